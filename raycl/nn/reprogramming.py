"""Channel-wise lightweight reprogramming: kernels behind the convolutions of a network.

The network stays as it is. ``raycl.nn.task_tensors`` holds the kernels and normalisations of a
task, and swaps them in for one forward pass.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Variant = Literal["reduced_v1", "reduced_v2", "full", "scaled"]
KERNEL = 3
"""Side of the kernels in pixels."""


class Kernels(nn.Module):
    """A depth-wise convolution that starts as the identity, without bias, stride 1.

    Args:
        channels: Feature maps.
        side: Side of each kernel, odd; 1: one scale per map.
    """

    def __init__(self, channels: int, side: int = KERNEL) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(channels, 1, side, side))
        with torch.no_grad():
            self.kernel[:, :, side // 2, side // 2] = 1

    def forward(self, maps: Tensor) -> Tensor:
        """K_c * h_c of maps h (B, C, H, W), with zeros around the border; the same shape."""
        if self.kernel.shape[-1] == 1:
            return maps * self.kernel.view(-1, 1, 1)
        return F.conv2d(maps, self.kernel, padding=KERNEL // 2, groups=len(self.kernel))


class ScaledKernels(nn.Module):
    """Kernels beside the identity: h_c + A_c (K_c * h_c), with A = 0 and random K at first.

    Args:
        channels: Feature maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, 1, KERNEL, KERNEL))
        random_kernels(self.kernel)
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W) to maps of the same shape."""
        changed = F.conv2d(maps, self.kernel, padding=KERNEL // 2, groups=len(self.kernel))
        return maps + self.scale * changed


def random_kernels(kernel: Tensor) -> None:
    """Draw kernels (C, 1, 3, 3) in place, as ``nn.Conv2d`` starts."""
    nn.init.kaiming_uniform_(kernel, a=5**0.5)


def kernels_for(layer: nn.Conv2d, variant: Variant) -> nn.Module | None:
    """The kernels behind a convolution, or ``None`` where it has none in this variant.

    ``reduced_v1``: 3 x 3 kernels, but not behind 1 x 1 convolutions. ``full``: behind all.
    ``reduced_v2``: behind all, of 1 x 1 behind 1 x 1 convolutions. ``scaled``: see
    ``ScaledKernels``, behind all.
    """
    single = layer.kernel_size == (1, 1)
    if variant == "scaled":
        return ScaledKernels(layer.out_channels)
    if variant == "reduced_v1" and single:
        return None
    return Kernels(layer.out_channels, 1 if variant == "reduced_v2" and single else KERNEL)


def add_kernels(network: nn.Module, variant: Variant) -> list[str]:
    """Put kernels that change nothing behind the convolutions of a network, in place.

    Convolutions and normalisations are found by their type, so that any network will do. The
    kernels and normalisations of the network itself are only what those of a task start from.

    Args:
        network: Images to features.
        variant: See ``kernels_for``.

    Returns:
        Names of the convolutions that have kernels now.

    Raises:
        ValueError: No convolution is to have kernels.
    """
    found = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    wrapped = []
    for name, layer in found:
        kernels = kernels_for(layer, variant)
        if kernels is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, nn.Sequential(layer, kernels))
            wrapped.append(name)
    if not wrapped:
        raise ValueError(f"none of the network's {len(found)} convolutions is to have kernels")
    return wrapped
