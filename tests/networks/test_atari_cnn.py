from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raycl import registry
from raycl.errors import UserError
from raycl.networks.base import Backbone

FRAMES = (4, 84, 84)
SMALL = {"channels": [4, 6], "kernels": [4, 3], "strides": [2, 1], "features": 10}


def build(shape=FRAMES, **options):
    cls = registry.find("raycl.networks", Backbone, "atari_cnn")
    return cls(cls.Config(name="atari_cnn", **options), shape)


def shapes(network):
    return [tuple(p.shape) for p in network.parameters() if p.ndim > 1]


def test_defaults_are_those_of_blip():
    with torch.device("meta"):
        network = build()
    assert shapes(network) == [(32, 4, 8, 8), (64, 32, 4, 4), (128, 64, 3, 3), (1024, 6272)]
    assert sum(p.numel() for p in network.parameters()) == 6_538_464
    assert network.num_features == 1024
    strides = [m.stride for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(4, 4), (2, 2), (1, 1)]
    assert not any(m.padding[0] for m in network.modules() if isinstance(m, nn.Conv2d))


def test_the_nature_network_by_options():
    with torch.device("meta"):
        network = build(channels=[32, 64, 64], features=512)
    assert shapes(network)[-1] == (512, 3136)
    assert sum(p.numel() for p in network.parameters()) == 1_684_128


def test_initial_weights_are_orthogonal():
    torch.manual_seed(0)
    network = build((3, 12, 12), **SMALL)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
            continue
        rows = parameter.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), rtol=0, atol=1e-5)
    torch.manual_seed(0)
    again = build((3, 12, 12), **SMALL)
    assert all(map(torch.equal, network.parameters(), again.parameters()))


def test_forward():
    network = build((3, 12, 12), **SMALL)
    x = torch.rand(5, 3, 12, 12)
    first, second, linear = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    expected = second(first(x).relu()).relu().flatten(1)
    expected = linear(expected).relu()
    torch.testing.assert_close(network(x), expected)
    assert expected.shape == (5, network.num_features)
    assert 0.2 < (expected > 0).float().mean() < 0.8
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"channels": [4, 4]},
        {"kernels": [8]},
        {"strides": [4, 2, 1, 1]},
        {"channels": [], "kernels": [], "strides": []},
        {"channels": [0, 4, 4]},
        {"features": 0},
    ],
)
def test_bounds(options):
    with pytest.raises(ValidationError):
        build(**options)


def test_unequal_lengths_are_named():
    with pytest.raises(ValidationError, match="equally long, not of 2, 3, 3"):
        build(channels=[4, 4])


def test_images_that_are_too_small():
    with pytest.raises(UserError, match="2 convolutions leave 2x2 of an image of 28x28"):
        build((1, 28, 28))
    with pytest.raises(UserError, match="kernel of 8"):
        build((1, 84, 7))
