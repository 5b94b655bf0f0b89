from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raycl.errors import UserError
from raycl.nn.generator import Generator, UpsampledConv


@pytest.mark.parametrize(
    "shape, expected",
    [((3, 32, 32), 8_423_939), ((3, 64, 64), 8_571_779), ((3, 224, 224), 3_326_275)],
)
def test_parameter_counts(shape, expected):
    assert sum(p.numel() for p in Generator(shape).parameters()) == expected


@pytest.mark.parametrize(
    "shape, start",
    [
        ((1, 8, 8), (128, 2, 2)),
        ((1, 28, 28), (128, 7, 7)),
        ((3, 16, 24), (128, 4, 6)),
        ((3, 32, 32), (128, 8, 8)),
        ((3, 40, 40), (128, 5, 5)),
        ((3, 64, 64), (128, 8, 8)),
        ((3, 128, 128), (64, 4, 4)),
        ((3, 224, 224), (64, 7, 7)),
    ],
)
def test_layouts(shape, start):
    generator = Generator(shape, latent=2).eval()
    assert generator.start == start
    with torch.no_grad():
        assert generator(torch.zeros(1, 2)).shape == (1, *shape)


@pytest.mark.parametrize(
    "shape, factor", [((1, 30, 30), 4), ((3, 32, 18), 4), ((3, 60, 60), 8), ((3, 200, 200), 32)]
)
def test_sizes_that_cannot_be_halved_are_refused(shape, factor):
    with pytest.raises(UserError, match=rf"{shape[1]}x{shape[2]} .* divisible by {factor}"):
        Generator(shape)


def test_against_the_layers_one_by_one():
    torch.manual_seed(0)
    generator = Generator((3, 16, 16), latent=5)
    noise = torch.randn(6, 5)
    found = generator(noise)
    first, second, last = (m for m in generator.modules() if isinstance(m, nn.Conv2d))
    x = F.linear(noise, generator.linear.weight, generator.linear.bias).view(6, 128, 4, 4)
    x = F.batch_norm(x, None, None, torch.ones(128), training=True)
    for conv, width in ((first, 128), (second, 64)):
        x = F.conv2d(F.interpolate(x, scale_factor=2), conv.weight, conv.bias, padding=1)
        scale = torch.ones(width)
        x = F.leaky_relu(F.batch_norm(x, None, None, scale, training=True, eps=0.8), 0.2)
    x = F.conv2d(x, last.weight, last.bias, padding=1).tanh()
    x = F.batch_norm(x, None, None, training=True, eps=1e-5)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_normalisations():
    norms = [m for m in Generator((1, 64, 64)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.eps for m in norms] == [1e-5, 0.8, 0.8, 0.8, 1e-5]
    assert [m.num_features for m in norms] == [128, 128, 128, 64, 1]
    assert [m.affine for m in norms] == [True] * 4 + [False]
    assert {m.momentum for m in norms} == {0.1}


@pytest.mark.parametrize("size", [8, 16])
def test_images_are_normalised(size):
    images = Generator((3, size, size), latent=20)(torch.randn(16, 20))
    var, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(var, torch.ones(3), rtol=0, atol=0.02)


def test_upsampled_convolution_with_gradients():
    torch.manual_seed(0)
    layer = UpsampledConv(3, 4, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(2, 4, 10, 8, dtype=torch.float64)
    literal = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), literal)
    inputs = (x, layer.weight, layer.bias)
    found = torch.autograd.grad((layer(x) * wanted).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((literal * wanted).sum(), inputs))
    assert sum(p.numel() for p in layer.parameters()) == 4 * 3 * 9 + 4


def test_reset_starts_anew():
    generator = Generator((1, 8, 8), latent=4)
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    for _ in range(2):
        generator(torch.randn(8, 4)).square().mean().backward()
        for p in generator.parameters():
            p.data += 1
    generator.reset()
    for name, value in generator.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, before[name])
    weight = generator.linear.weight
    assert not torch.equal(weight, before["linear.weight"])
    assert weight.abs().max() <= 0.5  # as nn.Linear starts with 4 inputs
    assert torch.equal(generator.body[0].weight, torch.ones(128))
