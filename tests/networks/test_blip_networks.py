"""The networks of BLIP, arXiv 2105.04444: sizes as tabled for its scenarios."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from raycl import registry
from raycl.errors import UserError
from raycl.networks.base import Backbone

CIFAR, MINI = (3, 32, 32), (3, 84, 84)


def build(name: str, shape: tuple[int, int, int], **options: object) -> Backbone:
    cls = registry.find("raycl.networks", Backbone, name)  # type: ignore[type-abstract]
    return cls(cls.Config.model_validate({"name": name, **options}), shape)


def sizes(network: Backbone, heads: list[int]) -> tuple[int, int, float]:
    """Parameters without and with linear heads, and the latter in MiB."""
    backbone = sum(p.numel() for p in network.parameters())
    total = backbone + sum((network.num_features + 1) * classes for classes in heads)
    return backbone, total, round(total * 4 / 2**20, 2)


def shapes(network: Backbone, kind: type[nn.Module], shape: tuple[int, int, int]) -> list[int]:
    """Sides of the maps that the layers of a kind give."""
    found: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: found.append(out.shape[2]))
        for layer in network.modules()
        if isinstance(layer, kind)
    ]
    network(torch.zeros(2, *shape))
    for hook in hooks:
        hook.remove()
    return found


def test_mlp_sizes() -> None:
    with torch.device("meta"):
        network = build("mlp", (1, 28, 28), hidden=[1200])
    assert sizes(network, [2] * 5) == (942_000, 954_010, 3.64)
    assert sizes(network, [10] * 10) == (942_000, 1_062_100, 4.05)


ALEXNETS = [
    (
        {"width": 2},
        CIFAR,
        [2] * 5 + [20] * 5,
        (9_218_944, 9_444_334, 36.03),
        [(3, 128, 4), (128, 256, 3), (256, 512, 2)],
        [(2048, 2048), (2048, 2048)],
    ),
    (
        {"width": 0.8, "hidden": [1638, 1638]},
        CIFAR,
        [10] * 5,
        (4_162_744, 4_244_694, 16.19),
        [(3, 51, 4), (51, 102, 3), (102, 205, 2)],
        [(820, 1638), (1638, 1638)],
    ),
    (
        {"hidden": [2048, 512]},
        MINI,
        [5] * 20,
        (27_416_256, 27_467_556, 104.78),
        [(3, 64, 10), (64, 128, 8), (128, 256, 2)],
        [(12544, 2048), (2048, 512)],
    ),
]


@pytest.mark.parametrize("options, shape, heads, size, convolutions, linear", ALEXNETS)
def test_alexnet_sizes(
    options: dict[str, object],
    shape: tuple[int, int, int],
    heads: list[int],
    size: tuple[int, int, float],
    convolutions: list[tuple[int, int, int]],
    linear: list[tuple[int, int]],
) -> None:
    with torch.device("meta"):
        network = build("alexnet", shape, **options)
    assert sizes(network, heads) == size
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in found] == convolutions
    dense = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in dense] == linear
    assert network.num_features == linear[-1][1]


@pytest.mark.parametrize("shape, maps", [(CIFAR, [14, 6, 2]), (MINI, [37, 15, 7])])
def test_alexnet_maps(shape: tuple[int, int, int], maps: list[int]) -> None:
    network = build("alexnet", shape, width=0.05, hidden=[7, 5])
    assert shapes(network, nn.MaxPool2d, shape) == maps


def test_alexnet_is_what_the_paper_writes() -> None:
    network = build("alexnet", CIFAR, width=0.05, hidden=[7, 5]).eval()
    images = torch.randn(3, *CIFAR)
    x: Tensor = images
    weights = dict(network.named_parameters())
    names = sorted({int(name.split(".")[1]) for name in weights})
    for name in names[:3]:
        x = F.conv2d(x, weights[f"layers.{name}.weight"], weights[f"layers.{name}.bias"])
        x = F.max_pool2d(x.relu(), 2)
    x = x.flatten(1)
    for name in names[3:]:
        x = F.linear(x, weights[f"layers.{name}.weight"], weights[f"layers.{name}.bias"]).relu()
    assert torch.allclose(network(images), x, atol=1e-6)


def test_alexnet_order_of_layers() -> None:
    network = build("alexnet", CIFAR, width=0.05, hidden=[7, 5], dropout_late=0.5)
    kinds = [type(layer).__name__ for layer in network.layers]  # type: ignore[union-attr]
    stage = ["Conv2d", "ReLU", "Dropout", "MaxPool2d"]
    assert kinds == [*stage * 3, "Flatten", *["Linear", "ReLU", "Dropout"] * 2]
    dropouts = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.2, 0.2, 0.5, 0.5, 0.5]
    # hooks read what goes into a layer, which an in-place ReLU would overwrite
    assert not any(m.inplace for m in network.modules() if isinstance(m, nn.ReLU | nn.Dropout))


def test_alexnet_rounds_half_to_even() -> None:
    network = build("alexnet", CIFAR, width=0.0390625, hidden=[7, 5])  # 2.5, 5, 10
    channels = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [2, 5, 10]


@pytest.mark.parametrize("size", range(12, 40))
def test_alexnet_takes_every_size_it_says_it_takes(size: int) -> None:
    network = build("alexnet", (1, size, size), width=0.02, hidden=[3, 2])
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 2)


@pytest.mark.parametrize("height, width", [(8, 8), (9, 9), (10, 10), (11, 11), (32, 40)])
def test_alexnet_refuses(height: int, width: int) -> None:
    text = f"network: alexnet takes square images .* 12x12 pixels, not {height}x{width}; set "
    with pytest.raises(UserError, match=text):
        build("alexnet", (3, height, width))


@pytest.mark.parametrize(
    "width, widths, size",
    [
        (1.5, [96, 192, 384, 768], (25_106_976, 25_183_876, 96.07)),
        (1, [64, 128, 256, 512], (11_159_232, 11_210_532, 42.76)),
    ],
)
def test_resnet18_sizes(width: float, widths: list[int], size: tuple[int, int, float]) -> None:
    with torch.device("meta"):
        network = build("resnet18", MINI, width=width)
    assert sizes(network, [5] * 20) == size
    assert network.num_features == widths[-1]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    assert sorted({m.out_channels for m in convolutions}) == widths
    assert all(m.bias is None for m in convolutions)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(m.affine for m in norms)


def test_resnet18_truncates_its_widths() -> None:
    with torch.device("meta"):
        network = build("resnet18", MINI, width=0.99)
    widths = {m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {63, 126, 253, 506}  # of 63.36, 126.72, 253.44 and 506.88


def test_resnet18_maps() -> None:
    network = build("resnet18", MINI, width=0.05)
    block = type(network.blocks[0])  # type: ignore[index]
    assert shapes(network, nn.Sequential, MINI)[0] == 42  # the stem
    assert shapes(network, block, MINI) == [42, 42, 21, 21, 11, 11, 6, 6]


def test_resnet18_window_is_the_upper_left_corner() -> None:
    network = build("resnet18", MINI, width=0.05).eval()
    maps: list[Tensor] = []
    network.blocks.register_forward_hook(lambda _, __, out: maps.append(out))  # type: ignore[union-attr]
    images = torch.randn(2, *MINI)
    features = network(images)
    assert maps[0].shape[2:] == (6, 6)
    assert torch.allclose(features, maps[0][:, :, :4, :4].mean((2, 3)), atol=1e-6)
    network.pool = "mean"  # type: ignore[assignment]
    assert torch.equal(network(images), maps[0].mean((2, 3)))


@pytest.mark.parametrize(
    "options, shape, features",
    [
        ({}, (1, 128, 128), 4 * 25),
        ({}, (3, 50, 112), 25),
        ({"pool": "mean"}, (1, 128, 128), 25),
        ({"pool": "mean"}, (1, 8, 9), 25),
    ],
)
def test_resnet18_features(
    options: dict[str, object], shape: tuple[int, int, int], features: int
) -> None:
    network = build("resnet18", shape, width=0.05, **options)
    out = network(torch.randn(2, *shape))
    assert out.shape == (2, features)
    assert network.num_features == features
    out.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_resnet18_block_adds_its_input() -> None:
    plain, wider = build("resnet18", MINI, width=0.05).eval().blocks[1:3]  # type: ignore[index]
    x = torch.randn(2, 3, 9, 9)
    for block in (plain, wider):
        nn.init.zeros_(block.conv2.weight)  # the residual branch is silent: the shortcut is left
    assert torch.equal(plain(x), x.relu())
    weight = wider.shortcut[0].weight
    assert weight.shape == (6, 3, 1, 1)
    expected = F.conv2d(x, weight, stride=2).relu() / (1 + 1e-5) ** 0.5
    assert torch.allclose(wider(x), expected, atol=1e-6)


@pytest.mark.parametrize("shape, side", [(CIFAR, "2x2"), ((3, 84, 48), "6x3")])
def test_resnet18_refuses_a_map_smaller_than_its_window(
    shape: tuple[int, int, int], side: str
) -> None:
    with pytest.raises(UserError, match=f"network: .* a map of {side}.*; set pool: mean"):
        build("resnet18", shape)


@pytest.mark.parametrize(
    "name, options",
    [
        ("alexnet", {"width": 0}),
        ("alexnet", {"hidden": [10]}),
        ("alexnet", {"hidden": [10, 0]}),
        ("alexnet", {"dropout_late": 1}),
        ("resnet18", {"width": 0.01}),
        ("resnet18", {"pool": "max"}),
    ],
)
def test_bounds(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        build(name, MINI, **options)
