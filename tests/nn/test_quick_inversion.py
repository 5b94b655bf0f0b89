"""Terms of the inversion of arXiv 2306.08593, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from raycl.nn.inversion import (
    Inversion,
    LayerNorms,
    Moments,
    Seen,
    content,
    convolutions,
    magnitude,
    moments_of,
    normalisations,
    running_moments,
    variation,
    watched,
)


def seen(logits=None, images=None, labels=None, moments=None):
    images = torch.zeros(1, 1, 8, 8) if images is None else images
    return Seen(images, torch.zeros(1, 2) if logits is None else logits, labels, moments)


def solver():
    """A network of two normalisations whose running statistics have moved."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)]
    network = nn.Sequential(*layers, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    for _ in range(3):
        network(torch.randn(16, 1, 8, 8) * 2 + 0.5)
    return network.eval().requires_grad_(False)


def test_smoothed_content_by_hand():
    """The target is spread over all outputs, the one asked for among them."""
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    found = content(1.0, 0.1)(seen(logits, labels=labels))
    assert found.item() == pytest.approx(0.3365127, abs=1e-7)
    assert content(1.0)(seen(logits, labels=labels)).item() == pytest.approx(0.1698460, abs=1e-7)


SQUARE = [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    "images, expected",
    [([SQUARE], 8.2426407), ([SQUARE, SQUARE], 11.6568542), ([[[5.0, 5.0], [5.0, 5.0]]], 0)],
)
def test_variation_by_hand(images, expected):
    """Two copies count sqrt 2 times, not twice."""
    found = variation(seen(images=torch.tensor(images)[:, None]))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_variation_takes_every_direction_once():
    """One pixel in the middle differs from its eight neighbours, two in each direction."""
    x = torch.zeros(1, 2, 5, 6)
    x[0, 1, 2, 3] = 3
    assert variation(seen(images=x)).item() == pytest.approx(4 * 3 * math.sqrt(2))
    x = torch.zeros(1, 1, 5, 6)
    x[0, 0, 0, 0] = 3  # in the corner: right, below, and falling
    assert variation(seen(images=x)).item() == pytest.approx(3 * 3)
    x = torch.zeros(1, 1, 5, 6)
    x[0, 0, 0, 5] = 3  # left, below, and rising
    assert variation(seen(images=x)).item() == pytest.approx(3 * 3)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_variation_has_the_right_derivatives(format):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=format).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: 2 * variation(seen(images=images)), x)
    line = torch.randn(2, 1, 1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: variation(seen(images=images)), line)


def test_magnitude_by_hand():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).view(1, 1, 2, 2)
    assert magnitude(seen(images=x)).item() == pytest.approx(5)
    assert magnitude(seen(images=torch.cat([x, x]))).item() == pytest.approx(5 * math.sqrt(2))


def channels(*values):
    """Images of one channel for each argument, a pixel of it in each image."""
    return torch.tensor(values).T[:, :, None, None].float()


@pytest.mark.parametrize(
    "values, expected", [([(1, 3)], 2.0), ([(1, 3), (0, 4)], 5.8284271), ([(-1, 1)], 0)]
)
def test_layer_norms_by_hand(values, expected):
    x = channels(*values)
    target = Moments(torch.zeros(len(values)), torch.ones(len(values)), (len(values),))
    found = LayerNorms(target)(seen(moments=moments_of([x]))).item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_layer_norms_are_summed_over_layers():
    """Each layer has norms of its own, and the variance is divided by the number of values."""
    maps = [channels((1, 3)), channels((1, 3), (0, 4))]
    target = Moments(torch.zeros(3), torch.ones(3), (1, 2))
    found = LayerNorms(target)(seen(moments=moments_of(maps))).item()
    assert found == pytest.approx(2.0 + 5.8284271, abs=1e-6)


def test_norms_of_exactly_nothing_have_the_gradient_zero():
    x = torch.full((2, 3, 4, 4), 1.5, requires_grad=True)
    here = moments_of([x.detach()])
    layer_norms = LayerNorms(Moments(here.mean, here.var, (3,)))
    for term, found in (
        (variation, seen(images=x)),
        (layer_norms, seen(moments=moments_of([x]))),
        (magnitude, seen(images=x * 0)),
    ):
        value = term(found)
        (grad,) = torch.autograd.grad(value, x)
        assert value.item() == 0
        assert not grad.any()  # nor is it no number


def test_layer_norms_against_running_statistics():
    network = solver()
    layers = normalisations(network)
    x = torch.randn(5, 1, 8, 8)
    with watched(layers) as inputs:
        network(x)
    expected = 0.0
    for layer, got in zip(layers, inputs, strict=True):
        var, mean = torch.var_mean(got, (0, 2, 3), correction=0)
        expected += (layer.running_var - var).norm() + (layer.running_mean - mean).norm()
    terms = {"s": (0.1, LayerNorms(running_moments(layers)))}
    engine = Inversion(network, torch.arange(4), terms, layers)
    torch.testing.assert_close(engine.losses(x)["s"], 0.1 * expected)


def test_targets_stay_when_normalisations_go_on():
    network = solver()
    target = running_moments(normalisations(network))
    before = target.mean.clone(), target.var.clone()
    network.train()(torch.randn(8, 1, 8, 8) + 3)
    assert torch.equal(target.mean, before[0])
    assert torch.equal(target.var, before[1])


@pytest.mark.parametrize("inplace", [False, True])
def test_what_convolutions_give_is_watched_before_it_is_overwritten(inplace):
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)
    network = nn.Sequential(
        first, nn.ReLU(inplace), second, nn.ReLU(inplace), nn.Flatten(), nn.LazyLinear(4)
    )
    layers = convolutions(network)
    assert layers == [first, second]
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    maps = [first(x), second(first(x).relu())]
    assert (maps[0] < 0).any()
    assert (maps[1] < 0).any()
    target = Moments(torch.ones(5), torch.full((5,), 2.0), (3, 2))
    expected = sum(
        (2 - m.var((0, 2, 3), correction=0)).norm() + (1 - m.mean((0, 2, 3))).norm() for m in maps
    )
    engine = Inversion(
        network, torch.arange(4), {"s": (1.0, LayerNorms(target))}, layers, outputs_watched=True
    )
    found = engine.losses(x)["s"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))
    assert not any(layer._forward_hooks for layer in layers)
