from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.nn import fisher
from raycl.nn.fisher import fisher_diagonal, squared_gradients


class Logistic(nn.Module):
    """Two weights and a bias; the second logit is always zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.3, -0.2]]))
            self.linear.bias.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return torch.cat([h, torch.zeros_like(h)], dim=1)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(12, 5),
    ).eval()  # fmt: skip


def names_of(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def test_logistic_regression_by_hand() -> None:
    # h = (0, -0.3); labels 0 and 1; d CE / d h = (0.5 - 1, sigmoid(-0.3)), squared: 0.25, 0.181099
    x, y = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([0, 1])
    squares = squared_gradients(
        Logistic(), ["linear.weight", "linear.bias"], x, y, torch.tensor([0, 1])
    )
    expected = torch.tensor([0.25 + 0.181099, 4 * 0.25 + 0.25 * 0.181099, 0.25 + 0.181099])
    torch.testing.assert_close(squares, expected, rtol=1e-5, atol=0)
    # as BLIP's code scales it: the mean over two examples, of a loss that is a mean over two
    scaled = squares / 2 / 2**2
    expected = torch.tensor([0.0538874, 0.1306593, 0.0538874])
    torch.testing.assert_close(scaled, expected, rtol=1e-5, atol=0)


def test_sampled_labels_give_the_fisher_information() -> None:
    # of one image, exactly: p (1 - p) x^2, with p = sigmoid(0.3 * 2 - 0.2 * 1 + 0.1)
    x = torch.tensor([[2.0, 1.0]]).expand(500, 2)
    got = fisher_diagonal(
        Logistic(),
        ["linear.weight", "linear.bias"],
        [x] * 20,
        torch.tensor([0, 1]),
        torch.Generator().manual_seed(0),
    )
    p = torch.tensor(0.5).sigmoid()
    torch.testing.assert_close(got, p * (1 - p) * torch.tensor([4.0, 1.0, 1.0]), rtol=0.02, atol=0)


@pytest.mark.parametrize("chunk", [1, 300, 2**26])
def test_equals_one_gradient_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "CHUNK_ELEMENTS", chunk)
    network, x = small_network(), torch.randn(7, 1, 6, 6)
    outputs, labels = torch.tensor([1, 3, 4]), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    expected = torch.zeros(sum(p.numel() for p in network.parameters()))
    for image, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(network(image[None])[:, outputs], label[None])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        expected += torch.cat([g.flatten() for g in gradients]).square()
    got = squared_gradients(network, names_of(network), x, labels, outputs)
    torch.testing.assert_close(got, expected)
    head_bias = got[-5:]
    assert head_bias[[0, 2]].eq(0).all()  # outputs that take no part
    assert head_bias[[1, 3, 4]].gt(0).all()


def test_a_subset_of_the_parameters_in_the_order_asked_for() -> None:
    network, x, y = small_network(), torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 3])
    outputs = torch.arange(5)
    full = squared_gradients(network, names_of(network), x, y, outputs)
    some = squared_gradients(network, ["6.bias", "0.bias"], x, y, outputs)
    assert torch.equal(some[:5], full[-5:])
    assert torch.equal(some[5:], full[27:30])


def test_leaves_everything_as_it_was() -> None:
    network = small_network()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    random_state = torch.get_rng_state()
    network[0].weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    got = fisher_diagonal(
        network, names_of(network), [torch.randn(6, 1, 6, 6, generator=generator)],
        torch.arange(5), generator,
    )  # fmt: skip
    assert got[:27].gt(0).any()  # frozen parameters have a Fisher, too
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in network.parameters())
    assert not got.requires_grad


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        fisher_diagonal(Logistic(), ["linear.bias"], [], torch.tensor([0, 1]), torch.Generator())


class Odd(nn.Module):
    """Whatever a layer may go through: tokens, groups, strides, in place, twice, tied, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(
            4, 6, (2, 3), groups=2, dilation=(1, 1), padding=(0, 1), bias=False
        )
        self.circular = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
        self.wide = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.same = nn.Conv2d(6, 6, 3, padding="same")
        self.valid = nn.Conv2d(6, 6, 1, padding="valid")
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.tokens = nn.Linear(6, 5)
        self.each = nn.Linear(5, 5)  # sees all tokens of all examples as one batch
        self.twice = nn.Linear(5, 5)
        self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(5))
        self.unused = nn.Linear(5, 5)
        self.head = nn.Linear(5, 4)
        self.dead = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x), inplace=True)
        x = self.circular(self.grouped(x)).add_(1)
        x = self.valid(self.same(self.wide(x)))
        tokens = self.norm(x.flatten(2).mT)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = self.tokens(tokens).tanh_()
        shape = tokens.shape
        tokens = self.each(tokens.reshape(-1, 5)).view(shape)
        features = self.twice(self.twice(tokens.mean(1)).tanh()) * self.scale
        features = self.second(self.first(features).tanh())
        self.dead(features)
        return self.head(features)


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_every_kind_of_layer_equals_one_gradient_at_a_time(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    network, x = Odd().double().eval(), torch.randn(5, 2, 7, 7, dtype=torch.float64)
    outputs, labels = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 1, 0])
    names = names_of(network)
    expected = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for image, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(network(image[None])[:, outputs], label[None])
        parameters = list(network.parameters())
        for name, gradient in zip(
            names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                expected[name] += gradient.square()
    got = squared_gradients(network, names, x, labels, outputs)
    parts = torch.split(got, [p.numel() for p in network.parameters()])
    for name, part in zip(names, parts, strict=True):
        torch.testing.assert_close(part, expected[name].flatten(), rtol=1e-9, atol=1e-20, msg=name)
    assert all(not expected[f"{n}.weight"].any() for n in ("unused", "dead"))
    assert sum(e.any() for e in expected.values()) >= len(names) - 6


def test_closed_forms_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient of a single example is formed for linear layers and convolutions."""
    monkeypatch.setattr(fisher, "_per_example", None)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 5)
    )
    got = squared_gradients(
        network, names_of(network), torch.randn(4, 1, 6, 6), torch.arange(4), torch.arange(5)
    )
    assert got.shape == (30 + 48 * 5 + 5,)


class SequenceFirst(nn.Module):
    """A layer over (T, B, F), which only a look at the model can tell from (B, T, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.flatten(1).mT[:, :, None] * x.flatten(1)[:, :3]  # (4, B, 3)
        return self.head(self.linear(sequence).tanh().mean(0))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_sequence_first(count: int) -> None:
    torch.manual_seed(0)
    network, x = SequenceFirst().double(), torch.randn(count, 1, 2, 2, dtype=torch.float64)
    labels, names, outputs = (
        torch.zeros(count, dtype=torch.int64),
        ["linear.weight"],
        torch.arange(2),
    )
    expected = sum(
        squared_gradients(network, names, image[None], labels[:1], outputs) for image in x
    )
    torch.testing.assert_close(squared_gradients(network, names, x, labels, outputs), expected)


def test_networks_that_take_bytes() -> None:
    class Bytes(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float() / 255)

    network = Bytes(nn.Flatten(), nn.Linear(16, 3))
    images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    plain = nn.Sequential(nn.Flatten(), network[1]).requires_grad_(False)
    args = (torch.tensor([0, 1, 2, 1, 0]), torch.arange(3))
    got = squared_gradients(network, ["1.weight"], images, *args)
    torch.testing.assert_close(got, squared_gradients(plain, ["1.weight"], images / 255, *args))
    assert got.any()


def test_a_module_with_two_names_keeps_its_parameters() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh())
    network.append(network[1])
    weight = network[1].weight
    args = (torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2]), torch.arange(4))
    assert squared_gradients(network, ["1.weight"], *args).any()
    assert network[1].weight is network[3].weight is weight


def test_a_network_that_diverged_is_an_error() -> None:
    network = Logistic()
    network.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="diverged"):
        fisher_diagonal(
            network, ["linear.bias"], [torch.ones(2, 2)], torch.tensor([0, 1]), torch.Generator()
        )
