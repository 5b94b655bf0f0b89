from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raycl.networks.resnet32 import ResNet32
from raycl.nn.inversion import (
    ChannelMoments,
    FreeImages,
    Inversion,
    Moments,
    Seen,
    Smoothness,
    Statistics,
    blur_matrix,
    blur_taps,
    content,
    diversity,
    normalisations,
    watched,
)


def seen(logits=None, images=None, labels=None, moments=None):
    logits = torch.zeros(1, 2) if logits is None else torch.as_tensor(logits)
    images = torch.zeros(1, 1, 8, 8) if images is None else images
    return Seen(images, logits, labels, moments)


def solver(seed=0, classes=4):
    """A network of 7 normalisations whose running statistics have moved."""
    torch.manual_seed(seed)
    backbone = ResNet32(ResNet32.Config(name="resnet32", blocks=1), (1, 8, 8))
    network = nn.Sequential(backbone, nn.Linear(64, classes))
    for _ in range(3):
        network(torch.randn(16, 1, 8, 8) * 2 + 0.5)
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------------- terms


def test_blur():
    taps = blur_taps()
    kernel = torch.outer(taps, taps)
    assert kernel[2, 2].item() == pytest.approx(0.092198, abs=1e-6)
    assert kernel[0, 0].item() == pytest.approx(0.012478, abs=1e-6)
    assert kernel.sum().item() == pytest.approx(1)


def test_smoothness_by_hand():
    prior = Smoothness((8, 8))
    assert prior(seen(images=torch.full((2, 3, 8, 8), 1.7))).item() == pytest.approx(0, abs=1e-12)
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (1 - 2 * ((i + j) % 2)).float()
    assert prior(seen(images=board[None, None])).item() == pytest.approx(0.994156, abs=1e-6)
    one = torch.zeros(1, 3, 8, 8)
    one[0, 1, 4, 4] = 1
    assert prior(seen(images=one)).item() == pytest.approx(0.00452106, abs=1e-8)


def test_smoothness_against_a_convolution():
    x = torch.randn(2, 3, 9, 6)
    kernel = torch.outer(blur_taps(), blur_taps()).float().expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    expected = (x - blurred).square().mean()
    torch.testing.assert_close(Smoothness((9, 6))(seen(images=x)), expected)
    with pytest.raises(ValueError, match="3 pixels"):
        blur_matrix(2)


@pytest.mark.parametrize(
    "batch, expected",
    [((-1, 1), 0), ((-2, 2), 0.318147), ((0, 2), 0.5), ((-0.5, 0.5), 0.806853)],
)
def test_statistics_by_hand(batch, expected):
    layer = nn.BatchNorm1d(1).eval()
    with watched([layer]) as inputs:
        layer(torch.tensor(batch)[:, None].float())
    moments = Moments(*ChannelMoments.apply(inputs[0]))
    found = Statistics([layer])(seen(moments=moments)).item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_statistics_of_a_network_layer_by_layer():
    network = solver()
    layers = normalisations(network)
    assert len(layers) == 7
    x = torch.randn(5, 1, 8, 8)
    inputs = []
    handles = [m.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for m in layers]
    network(x)
    for handle in handles:
        handle.remove()
    expected = 0.0
    for layer, got in zip(layers, inputs, strict=True):
        batch = torch.distributions.Normal(
            got.mean((0, 2, 3)), (got.var((0, 2, 3), correction=0) + 1e-8).sqrt()
        )
        running = torch.distributions.Normal(layer.running_mean, (layer.running_var + 1e-8).sqrt())
        expected += torch.distributions.kl_divergence(running, batch).mean() / 7
    engine = Inversion(network, torch.arange(4), {"s": (50.0, Statistics(layers))}, layers)
    torch.testing.assert_close(engine.losses(x)["s"], 50 * expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_dead_channel_are_finite():
    layer = nn.BatchNorm2d(2).eval()
    x = torch.zeros(4, 2, 3, 3, requires_grad=True)
    with watched([layer]) as inputs:
        layer(x)
    moments = Moments(*ChannelMoments.apply(inputs[0]))
    value = Statistics([layer])(seen(moments=moments))
    value.backward()
    # ln sqrt(1e-8) - 1/2 + (1 + 1e-8) / 2e-8
    assert value.item() == pytest.approx(math.log(1e-4) - 0.5 + 0.5e8, rel=1e-6)
    assert x.grad.isfinite().all()


def test_statistics_of_a_channel_that_was_always_dead():
    layer = nn.BatchNorm2d(2).eval()
    layer.running_var.zero_()
    moments = Moments(*ChannelMoments.apply(torch.zeros(4, 2, 3, 3)))
    assert Statistics([layer])(seen(moments=moments)).item() == 0  # 1e-8 in both variances


def test_moments_have_the_right_derivatives():
    for shape in ((4, 3), (3, 2, 4), (3, 2, 4, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        axes = [0, *range(2, len(shape))]
        mean, var = ChannelMoments.apply(x)
        torch.testing.assert_close(mean, x.mean(axes))
        torch.testing.assert_close(var, x.var(axes, correction=0))
        assert torch.autograd.gradcheck(ChannelMoments.apply, x)


@pytest.mark.parametrize(
    "p, expected", [((0.25,) * 4, 0), ((0.7, 0.1, 0.1, 0.1), 0.321610), ((1, 0, 0, 0), 1)]
)
def test_diversity_by_hand(p, expected):
    logits = torch.tensor([p, p]).float().clamp_min(1e-60).log().clamp_min(-200)
    assert diversity(seen(logits)).item() == pytest.approx(expected, abs=1e-6)


def test_diversity_of_the_mean_over_images():
    one_each = torch.eye(3) * 60
    assert diversity(seen(one_each)).item() == pytest.approx(0, abs=1e-6)
    assert diversity(seen(torch.randn(5, 1))).item() == 0


def test_diversity_of_two_sure_classes_is_finite():
    logits = torch.tensor([[900.0, -900.0]] * 3, requires_grad=True)
    value = diversity(seen(logits))
    value.backward()
    assert value.item() == 1
    assert logits.grad.isfinite().all()


def test_content_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    cool = content(1000.0)(seen(logits))
    assert cool.item() == pytest.approx(1.096946, abs=1e-6)
    cool.backward()
    expected = torch.tensor([[-6.66e-4, 3.33e-4, 3.33e-4]])
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-6)
    assert content()(seen(logits)).item() == pytest.approx(0.169846, abs=1e-6)
    asked = content()(seen(logits, labels=torch.tensor([2])))
    assert asked.item() == pytest.approx(3.169846, abs=1e-6)


# ---------------------------------------------------------------------- the engine


def test_hooks_see_inputs_and_are_removed():
    network = solver()
    layers = normalisations(network)
    x = torch.randn(3, 1, 8, 8)
    with watched(layers) as inputs:
        network(x)
    stem = network[0].stem
    assert torch.equal(inputs[0], stem[0](x))
    assert [len(layer._forward_pre_hooks) for layer in layers] == [0] * 7

    def fail(_: Seen) -> torch.Tensor:
        raise RuntimeError("a term")

    engine = Inversion(network, torch.arange(4), {"bad": (1.0, fail)}, layers)
    with pytest.raises(RuntimeError, match="a term"):
        engine.losses(x)
    with pytest.raises(RuntimeError, match="channels"):
        engine.losses(torch.randn(3, 2, 8, 8))
    assert [len(layer._forward_pre_hooks) for layer in layers] == [0] * 7


def test_only_the_outputs_asked_for_take_part():
    network = solver()
    outputs = torch.tensor([1, 3])
    engine = Inversion(network, outputs, {"content": (1.0, content())})
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1] * 3)
    expected = F.cross_entropy(network(x)[:, [1, 3]], labels)
    torch.testing.assert_close(engine.losses(x, labels)["content"], expected)


def free_inversion(network, start, labels, steps=50):
    """The engine as later methods use it: images are optimised, labels are given."""
    layers = normalisations(network)
    images = FreeImages(start)
    terms = {
        "content": (1.0, content()),
        "statistics": (0.01, Statistics(layers)),
        "own": (1e-3, lambda found: found.images.square().mean()),
    }
    engine = Inversion(network, torch.arange(4), terms, layers)
    optimizer = torch.optim.Adam(images.parameters(), lr=0.2, betas=(0.5, 0.9))
    history = []
    for _ in range(steps):
        losses = engine.losses(images(), labels)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    return images, history


@pytest.mark.parametrize("start", ["noise", "images"])
def test_free_images(start):
    network = solver()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(8, 1, 8, 8, generator=generator)
    if start == "images":
        first = first.mul(0.1).add(torch.linspace(-1, 1, 8))
    given = first.clone()
    labels = torch.arange(4).repeat(2)
    images, history = free_inversion(network, first, labels)
    assert torch.equal(first, given)
    assert history[0]["own"] == pytest.approx(1e-3 * first.square().mean().item(), rel=1e-5)
    assert history[-1]["content"] < 0.5 * history[0]["content"]
    assert sum(history[-1].values()) < sum(history[0].values())
    assert (network(images()).argmax(1) == labels).float().mean() > 0.8
    assert torch.equal(images(torch.tensor([3, 1])), images.images[[3, 1]])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in network.parameters())


def test_under_autocast_terms_are_float32():
    network = solver()
    layers = normalisations(network)
    terms = {
        "content": (1.0, content(1000.0)),
        "diversity": (1.0, diversity),
        "statistics": (1.0, Statistics(layers)),
        "prior": (1.0, Smoothness((8, 8))),
    }
    engine = Inversion(network, torch.arange(4), terms, layers)
    x = torch.randn(16, 1, 8, 8, requires_grad=True)
    expected = engine.losses(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = engine.losses(x)
    torch.stack(list(found.values())).sum().backward()
    assert x.grad.isfinite().all()
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert torch.equal(found["prior"], expected["prior"])
    for name in terms:
        torch.testing.assert_close(found[name], expected[name], rtol=0.05, atol=0.01)
