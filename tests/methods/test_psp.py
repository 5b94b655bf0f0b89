"""PSP: contexts by hand, two tasks on one weight done again, what is shared and what is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, RESNET, Reference, float64, run_of
from torch import nn
from torch.func import functional_call

from raycl.methods._layered import scaled_inputs
from raycl.methods.psp import Contexts
from raycl.nn.masks import pack_bits
from raycl.testing import MethodConformance, finish


class TestNormalised(MethodConformance):
    """Normalisations of each task beside shared weights."""

    method = "psp"
    network = CNN
    second = RESNET
    learns = 60.0


@pytest.mark.parametrize(
    "layer, shape, width",
    [
        (nn.Linear(6, 4), (3, 5, 6), 6),
        (nn.Conv2d(6, 4, 3, 2, padding=1), (3, 6, 9, 8), 6),
        (nn.Conv2d(6, 4, 3, groups=2), (3, 6, 9, 8), 6),
        (nn.Conv2d(6, 6, 3, groups=6), (3, 6, 9, 8), 6),
    ],
)
def test_scaling_the_weight_is_scaling_the_input(layer, shape, width):
    signs = torch.randint(2, (width,)) * 2.0 - 1
    x = torch.randn(shape)
    scaled = scaled_inputs(layer, signs)
    assert scaled.shape == layer.weight.shape
    column = signs if isinstance(layer, nn.Linear) else signs[:, None, None]
    assert torch.equal(functional_call(layer, {"weight": scaled}, (x,)), layer(x * column))
    factors = torch.randn(width)
    column = factors if isinstance(layer, nn.Linear) else factors[:, None, None]
    found = functional_call(layer, {"weight": scaled_inputs(layer, factors)}, (x,))
    torch.testing.assert_close(found, layer(x * column))


def test_a_context_is_a_bit_per_input():
    contexts = Contexts([3, 1, 6])
    contexts.bits.copy_(pack_bits(torch.tensor([1, 0, 1, 0, 0, 0, 0, 1, 1, 0]).bool()))
    expected = [[1, -1, 1], [-1], [-1, -1, -1, 1, 1, -1]]
    assert [signs.tolist() for signs in contexts.signs()] == expected
    many = torch.cat([s for _ in range(50) for s in Contexts([100]).signs()])
    assert many.abs().unique().tolist() == [1]
    assert abs(many.mean()) < 0.06  # 4 standard deviations


def test_two_tasks_done_again():
    with float64():
        run = run_of("psp")
        run._enter_task()
        layers = Reference(run, 0).layers()
        shared = [p.requires_grad_() for layer in layers for p in layer]
        for task in (0, 1):
            run._enter_task()
            reference = Reference(run, task)
            signs = [s.double() for s in run.method.own(task).values.signs()]
            assert [len(s) for s in signs] == [64, 7]
            for _ in range(2):
                for x, y in reference.epoch():
                    for o, (w, b) in zip(signs, layers, strict=True):
                        x = F.relu((o * x) @ w.T + b)
                    reference.descend(reference.loss(x, y), shared)
            run.advance()
            run.advance()
            ours = list(run.method.backbone.parameters())
            assert max((a - b).abs().max() for a, b in zip(ours, shared, strict=True)) < 1e-7
            assert reference.head_difference() < 1e-7


def test_tasks_share_weights_but_not_heads_and_normalisations(build):
    run = build("psp", network=CNN, train={"lr": 0.5})
    method = run.method
    norms = [n for n in method.backbone.state_dict() if n.startswith(("layers.1.", "layers.5."))]
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    run.advance()
    first = {k: v.clone() for k, v in method.state_dict().items()}
    images = torch.randn(9, 1, 8, 8)
    features = method.eval().embed(images, 0)
    run.advance()
    state = method.state_dict()
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, before[name]) == (name in norms)
    mine = [n for n in first if n.startswith(("heads.0.", "task_0."))]
    assert len(mine) == 2 + 1 + 2 + 2 * 2  # head, bits, affine and counts, statistics
    assert all(torch.equal(state[name], first[name]) for name in mine)
    assert not torch.equal(method.eval().embed(images, 0), features)  # forgotten, a little
    one, two = (method.own(task).norms.named() for task in (0, 1))
    assert all(not torch.equal(one[n], two[n]) for n in norms if "batches" not in n)


def test_old_tasks_are_measured_again(build):
    matrix = finish(build("psp", train={"lr": 0.5, "epochs": 3}))["matrices"]["task"]
    assert matrix[1][0] is not None
    assert not build("psp").method.isolated


def test_weights_start_as_the_networks_or_xavier(build):
    plain = build("psp")
    layer = plain.method.backbone.layers[1]
    assert torch.equal(layer.weight, plain.method.context.build_network().layers[1].weight) is False
    assert layer.weight.abs().max() <= 1 / 8  # PyTorch's start: uniform within 1 / sqrt(64)
    xavier = build("psp", init="xavier", network={"name": "mlp", "hidden": [200]})
    weight = xavier.method.backbone.layers[1].weight
    assert weight.std().item() == pytest.approx((2 / 264) ** 0.5, rel=0.03)
    assert weight.abs().max() > 3 * weight.std(), "normal: a uniform one ends at 1.7"


def test_the_penalty_sums_all_that_is_trained(build):
    run = build("psp", network=CNN, penalty=0.1)
    run._enter_task()
    method = run.method
    trained = {id(p) for p in method.trainable() if p is not method.own(0).norms.affine}
    assert trained <= {id(p) for p in method.penalised()}
    assert len(method.penalised()) == len(trained) + 2 * 2  # affine parameters, one by one


def test_what_a_task_costs(build):
    run = build("psp", network=CNN)
    backbone = 36 + 180 + 168 + 18
    for _ in range(2):
        row = run.advance()
        contexts = -(-(1 + 4 + 20) // 8) / 4
        assert row["cost/task_percent"] == pytest.approx(100 * contexts / backbone)
        assert row["cost/task_percent_affine"] == pytest.approx(100 * (contexts + 18) / backbone)
        assert row["cost/task_percent_statistics"] == pytest.approx(
            100 * (contexts + 36) / backbone
        )
