"""PNN: lateral connections by hand, a second task done again, and columns that stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, Reference, float64, method_on, run_of
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.methods.pnn import Adapter, called_once
from raycl.networks.base import Backbone
from raycl.testing import MethodConformance, finish


class TestNormalised(MethodConformance):
    """Convolutions, and normalisations that stop with their column."""

    method = "pnn"
    network = CNN
    second = {"name": "mlp"}
    learns = 60.0


def two_columns(network, tasks=2):
    made = method_on("pnn", network, (1, 8, 8))
    for info in made.context.stream.tasks[:tasks]:
        made.add_task(info)
    return made.eval()


def test_lateral_connections_by_hand():
    made = two_columns({"name": "mlp", "hidden": [4, 3, 2]})
    images = torch.randn(5, 1, 8, 8)
    x = images.flatten(1)
    (_, l1, l2, l3), (_, m1, m2, m3) = (
        [layer for layer in made.column(i).network.layers if not isinstance(layer, nn.ReLU)]
        for i in (0, 1)
    )
    a2, a3, a4 = made.column(1).adapters
    assert [tuple(a.reduce.weight.shape) for a in (a2, a3, a4)] == [(4, 4), (3, 3), (2, 2)]
    assert [tuple(a.expand.weight.shape) for a in (a2, a3, a4)] == [(3, 4), (2, 3), (2, 2)]

    def lateral(adapter, h):
        hidden = (h * adapter.scales[0]) @ adapter.reduce.weight.T
        return hidden.relu() @ adapter.expand.weight.T

    g1 = l1(x).relu()
    g2 = l2(g1).relu()
    g3 = l3(g2).relu()
    h1 = m1(x).relu()  # no connection
    h2 = (m2(h1) + lateral(a2, g1)).relu()
    h3 = (m3(h2) + lateral(a3, g2)).relu()
    z = made.heads[1](h3) + lateral(a4, g3)
    torch.testing.assert_close(made.logits(images, 1)[:, 2:], z)
    torch.testing.assert_close(made.embed(images, 1), h3)
    torch.testing.assert_close(made.logits(images, 0)[:, :2], made.heads[0](g3))
    hooks = [m._forward_hooks for m in made.modules()]
    assert not any(hooks)


def test_three_columns_are_read_side_by_side():
    layer = nn.Linear(4, 3)
    adapter = Adapter(layer, 2)
    assert ((adapter.scales >= 0) & (adapter.scales <= 0.1)).all()
    assert adapter.expand.bias is adapter.reduce.bias is None
    assert not torch.equal(adapter.expand.weight, layer.weight)
    one, two = torch.randn(2, 6, 4)
    both = torch.cat([one * adapter.scales[0], two * adapter.scales[1]], 1)
    by_hand = (both @ adapter.reduce.weight.T).relu() @ adapter.expand.weight.T
    torch.testing.assert_close(adapter([one, two]), by_hand)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, 2, padding=1),
        nn.Conv2d(6, 6, 5, groups=6, bias=False),
        nn.Conv2d(6, 4, 3, dilation=2, padding_mode="circular", padding=1),
    ],
)
def test_adapters_have_the_form_of_a_convolution(layer):
    inputs = [torch.randn(2, 6, 9, 11) for _ in range(3)]
    added = Adapter(layer, 3)(inputs)
    assert added.shape == layer(inputs[0]).shape


def test_a_second_task_done_again():
    with float64():
        run = run_of("pnn")
        run._enter_task()
        reference = Reference(run, 0)
        columns = run.method.columns
        parts = [[p.detach().clone().requires_grad_() for p in columns[0].parameters()]]
        for _ in range(2):
            for x, y in reference.epoch():
                w1, b1, w2, b2 = parts[0]
                h2 = F.linear(F.linear(x, w1, b1).relu(), w2, b2).relu()
                reference.descend(reference.loss(h2, y), parts[0])
        run.advance()
        run.advance()
        run._enter_task()
        head = reference.head
        reference = Reference(run, 1)
        names = [name for name, _ in columns[1].named_parameters()]
        assert [name.partition(".")[0] for name in names] == ["network"] * 4 + ["adapters"] * 6
        parts.append([p.detach().clone().requires_grad_() for p in columns[1].parameters()])
        frozen = [p.detach().clone() for p in parts[0]]
        for _ in range(2):
            for x, y in reference.epoch():
                w1, b1, w2, b2 = frozen
                g1 = F.linear(x, w1, b1).relu()
                g2 = F.linear(g1, w2, b2).relu()
                w1, b1, w2, b2, s, v, u, t, r, q = parts[1]
                h1 = F.linear(x, w1, b1).relu()
                h2 = (F.linear(h1, w2, b2) + F.linear(F.linear(s * g1, v).relu(), u)).relu()
                z = F.linear(h2, *reference.head) + F.linear(F.linear(t * g2, r).relu(), q)
                reference.descend(F.cross_entropy(z, y), parts[1])
        finish(run)
        for column, mine in zip(columns, parts, strict=True):
            pairs = zip(column.parameters(), mine, strict=True)
            assert max((a - b).abs().max() for a, b in pairs) < 1e-7
        assert reference.head_difference() < 1e-7
        ours = run.method.heads[0].parameters()
        assert max((a - b).abs().max() for a, b in zip(ours, head, strict=True)) < 1e-7


def test_earlier_columns_keep_every_bit(build):
    train = {"epochs": 2, "weight_decay": 0.1, "momentum": 0.9}
    run = build("pnn", network={"name": "cnn", "channels": [4], "batch_norm": True}, train=train)
    run.method.columns[0].network.layers.append(nn.Dropout(0.5))
    while run.task_index == 0:
        run.advance()
    method, images = run.method.eval(), torch.randn(6, 1, 8, 8)
    before, answers = copy.deepcopy(method.state_dict()), method.logits(images, 0)
    run.advance()
    method.train()
    assert not any(module.training for module in method.columns[0].modules())
    assert all(module.training for module in method.columns[1].modules())
    finish(run)
    assert torch.equal(method.eval().logits(images, 0), answers)
    assert all(torch.equal(method.state_dict()[name], v) for name, v in before.items())


class Odd(Backbone):
    """One layer called twice, one whose weight is used without a call, and one never."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(4, 4)
        self.last, self.first = nn.Linear(4, 4), nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.twice(self.twice(self.first(images.flatten(1))))[:, None]
        return self.last(self.attention(x, x, x, need_weights=False)[0][:, 0])


def test_only_layers_that_are_called_once_are_connected():
    network = Odd()
    names = ["never", "last", "first", "twice", "attention.out_proj"]
    assert called_once(network, names, (1, 2, 2)) == ["first", "last"]
    assert network.training


def test_what_a_task_costs(build):
    run = build("pnn", network=CNN)
    plain = 36 + 180 + 168 + 18
    first, second = run.advance(), run.advance()
    assert first["cost/task_percent"] == pytest.approx(100 * (plain - 18) / plain)
    assert first["cost/task_percent_affine"] == pytest.approx(100)
    assert first["cost/task_percent_statistics"] == pytest.approx(100 * (plain + 18) / plain)
    adapters = (1 + 4 * 4 + 180) + (1 + 20 * 20 + 160) + (1 + 8 * 8 + 2 * 8)
    added = second["cost/task_percent"] - first["cost/task_percent"]
    assert added == pytest.approx(100 * adapters / plain)


def test_a_network_without_layers_is_refused():
    class Flat(Backbone):
        num_features = 64

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    made = method_on("pnn", {"name": "mlp"}, (1, 8, 8))
    object.__setattr__(made.context, "build_network", Flat)
    with pytest.raises(UserError, match=r"^network: pnn works on convolutions and linear layers"):
        type(made)(made.config, made.context)
