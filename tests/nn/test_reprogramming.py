"""Kernels behind convolutions: counts and values of the specification, calls without a trace."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torchvision
from torch import nn

from raycl.nn.norms import spare_single_values, sum_of_norms
from raycl.nn.reprogramming import Kernels, ScaledKernels, add_kernels
from raycl.nn.task_tensors import TaskTensors

KINDS = (Kernels, ScaledKernels)


def backbone(name: str) -> nn.Module:
    if name.startswith("resnet"):
        network = torchvision.models.get_model(name)
        network.fc = nn.Identity()
        return network
    return timm.create_model(name, num_classes=0)


def sizes(own: TaskTensors) -> list[int]:
    """Scalars of kernels, affine parameters and statistics; counts of batches are left out."""
    statistics = sum(t.numel() for t in own.statistics().values())
    return [own.weights.numel(), own.affine.numel(), statistics]


COUNTS = [
    ("resnet50", "reduced_v1", 17, 34_560, (0.147, 0.373, 0.599)),
    ("resnet50", "reduced_v2", 53, 57_280, (0.244, 0.470, 0.696)),
    ("resnet50", "full", 53, 239_040, (1.017, 1.243, 1.469)),
    ("resnet18", "reduced_v1", 17, 35_136, (0.314, 0.400, 0.486)),
    ("resnet18", "reduced_v2", 20, 36_032, (0.322, 0.408, 0.494)),
    ("resnet18", "full", 20, 43_200, (0.387, 0.472, 0.558)),
    ("tf_efficientnet_lite0", "reduced_v1", 17, 9 * 8_992, (2.40, 3.65, 4.89)),
    ("tf_efficientnet_lite0", "full", 49, None, (8.10 - 2.49, 8.10 - 1.25, 8.10)),
    ("legacy_xception", "full", None, 452_808, (2.176, 2.438, 2.700)),
]


@pytest.mark.parametrize("name,variant,layers,kernels,percent", COUNTS)
def test_counts(name, variant, layers, kernels, percent):
    with torch.device("meta"):
        network = backbone(name)
        parameters = sum(p.numel() for p in network.parameters())
        wrapped = add_kernels(network, variant)
        own = TaskTensors(network, *KINDS)
    if layers is not None:
        assert len(wrapped) == layers
    found = sizes(own)
    if kernels is not None:
        assert found[0] == kernels
    shares = [100 * sum(found[: i + 1]) / parameters for i in range(3)]
    digits = 0.0006 if name.startswith(("resnet", "leg")) else 0.006
    assert shares == pytest.approx(percent, abs=digits)


@pytest.mark.parametrize("variant", ["reduced_v1", "reduced_v2", "full", "scaled"])
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_freshly_wrapped_it_is_the_network(name, variant):
    network = backbone(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = network(images)
        add_kernels(network, variant)
        own = TaskTensors(network, *KINDS)
        assert torch.equal(network(images), before)
        assert torch.equal(own(network, images), before)


def test_one_channel_by_hand():
    layer = Kernels(1)
    with torch.no_grad():
        layer.kernel[0, 0, 1, 1], layer.kernel[0, 0, 0, 1] = 2, 1
    maps = torch.arange(9.0).view(1, 1, 3, 3)
    expected = torch.tensor([[0.0, 2, 4], [6, 9, 12], [15, 18, 21]])
    assert torch.equal(layer(maps)[0, 0], expected)


def test_scaled_is_the_identity_until_its_factor_moves():
    layer = ScaledKernels(2)
    maps = torch.randn(1, 2, 4, 4)
    assert torch.equal(layer(maps), maps)
    with torch.no_grad():
        layer.scale[1] = 0.5
    own = nn.functional.conv2d(maps, layer.kernel, padding=1, groups=2)
    assert torch.allclose(layer(maps), maps + torch.tensor([0, 0.5]).view(2, 1, 1) * own)


@pytest.mark.parametrize("variant,expected", [("reduced_v1", 239.7645), ("full", 289.7056)])
def test_norms_at_the_start(variant, expected):
    with torch.device("meta"):
        network = backbone("resnet18")
        add_kernels(network, variant)
        shapes = TaskTensors(network, *KINDS).shapes["weights"].values()
    kernels = [Kernels(shape[0]).kernel for shape in shapes]
    assert sum_of_norms(kernels).item() == pytest.approx(expected, abs=1e-4)
    assert sum_of_norms([Kernels(49).kernel]).item() == pytest.approx(math.sqrt(49))


def test_terms_of_the_penalty():
    with torch.device("meta"):
        network = backbone("resnet18")
        add_kernels(network, "reduced_v1")
        own = TaskTensors(network, *KINDS)
    assert len(own.part("weights") | own.part("affine")) + 2 == 59  # with the head's two


def test_gradient_of_the_penalty():
    w, zero = torch.tensor([3.0, 4.0], requires_grad=True), torch.zeros(3, requires_grad=True)
    penalty = 1e-5 * sum_of_norms([w, zero])
    penalty.backward()
    assert penalty.item() == pytest.approx(5e-5)
    assert w.grad == pytest.approx(torch.tensor([6e-6, 8e-6]))
    assert torch.equal(zero.grad, torch.zeros(3))


def test_the_penalty_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert sum_of_norms([torch.ones(7)]).dtype == torch.float32
    rounded = sum_of_norms([torch.ones(7, dtype=torch.bfloat16)] * 3)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(3 * 7**0.5)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)
    )


def test_random_kernels_start_as_those_of_a_convolution():
    """Uniform with a variance of 1 / (3 fan-in), fan-in 9."""
    torch.manual_seed(0)
    kernel = ScaledKernels(4096).kernel.detach()
    assert kernel.abs().max() <= 1 / 3
    assert kernel.std().item() == pytest.approx(1 / 27**0.5, rel=0.02)


def test_a_call_leaves_nothing_of_a_task_behind():
    network = small()
    add_kernels(network, "full")
    first, second = TaskTensors(network, *KINDS), TaskTensors(network, *KINDS)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        for value in second.parameters():
            value.mul_(1.5)
        network.train()
        first(network, images)
        seen = first(network.eval(), images)
        second(network.train(), images)
        assert torch.equal(first(network.eval(), images), seen)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert first.counts.tolist() == [1, 1]
    assert not torch.equal(first.statistics()["1.running_mean"], before["1.running_mean"])


def test_gradients_reach_the_task_and_nothing_else():
    network = small()
    add_kernels(network, "full")
    network.requires_grad_(False)
    own = TaskTensors(network, *KINDS).requires_grad_(True)
    own(network, torch.randn(4, 3, 9, 9)).square().mean().backward()
    assert own.weights.grad.any()
    assert own.affine.grad.any()
    assert all(p.grad is None for p in network.parameters())


def test_a_batch_of_one_with_maps_of_one_pixel():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    spare_single_values(network)
    add_kernels(network, "full")
    own = TaskTensors(network, *KINDS)
    image = torch.randn(1, 3, 3, 3)
    network.train()
    found = own(network, image)
    assert network[1].training
    assert own.counts.tolist() == [0]
    assert torch.equal(found, own(network.eval(), image))
    assert not any(module.training for module in network.modules())


def test_hand_over():
    network = small()
    add_kernels(network, "full")
    kernels = network[0][1].kernel.clone()
    own = TaskTensors(network, *KINDS)
    with torch.no_grad():
        for value in own.parameters():
            value.add_(1)
    own.hand_over(network)
    assert torch.equal(network[1].weight, own.part("affine")["1.weight"])
    assert torch.equal(network[0][1].kernel, kernels)
    other = TaskTensors(network, *KINDS)
    assert torch.equal(other.affine, own.affine)
    assert not torch.equal(other.weights, own.weights)


def test_no_convolution_is_refused():
    with pytest.raises(ValueError, match="none of the network's 1 convolutions"):
        add_kernels(nn.Sequential(nn.Conv2d(3, 4, 1)), "reduced_v1")
    with pytest.raises(ValueError, match="0 convolutions"):
        add_kernels(nn.Linear(3, 4), "full")
