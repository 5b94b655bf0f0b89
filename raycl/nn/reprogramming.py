"""Channel-wise lightweight reprogramming: kernels of a task behind the convolutions of a network.

The network stays as it is; what belongs to a task is swapped in for one forward pass, so that
nothing of a task is left in it between calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

Variant = Literal["reduced_v1", "reduced_v2", "full", "scaled"]
KERNEL = 3
"""Side of the kernels in pixels."""


class Kernels(nn.Module):
    """A depth-wise convolution that starts as the identity, without bias, stride 1.

    Args:
        channels: Feature maps.
        side: Of each kernel; odd. 1: one scale per map.
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
        nn.init.kaiming_uniform_(self.kernel, a=5**0.5)  # as nn.Conv2d starts
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W) to maps of the same shape."""
        changed = F.conv2d(maps, self.kernel, padding=KERNEL // 2, groups=len(self.kernel))
        return maps + self.scale * changed


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
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.register_forward_pre_hook(_spare_single)
        norm.register_forward_hook(_restore)
    return wrapped


class TaskTensors(nn.Module):
    """Kernels, normalisations and running statistics of one task.

    Called with the network and images (B, C, H, W) it gives features (B, F): those of the network
    with the task's tensors in place of its own, for this call only. In train mode the task's
    running statistics are updated in place.

    Args:
        network: A network with kernels; its tensors are copied.

    Attributes:
        weights: float32 (P,), all kernels one after another: one tensor for optimiser and disk.
        affine: float32 (Q,), weights and biases of normalisations.
        counts: int64 (L,), batches that each normalisation has seen.
        shapes: For each of these the shapes of its parts, by their names in the network.
    """

    weights: nn.Parameter
    affine: nn.Parameter
    counts: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        found: dict[str, dict[str, Tensor]] = {"weights": {}, "affine": {}, "counts": {}}
        # apart from one another: autograd refuses a pass in which views of one tensor change
        self._statistics: list[str] = []
        for prefix, layer in network.named_modules():
            if isinstance(layer, Kernels | ScaledKernels):
                found["weights"] |= _below(prefix, layer.named_parameters(recurse=False))
            elif isinstance(layer, _BatchNorm):
                found["affine"] |= _below(prefix, layer.named_parameters(recurse=False))
                for name, buffer in _below(prefix, layer.named_buffers(recurse=False)).items():
                    if buffer.is_floating_point():
                        self._statistics.append(name)
                        self.register_buffer(_key(name), buffer.clone())
                    else:
                        found["counts"][name] = buffer
        self.shapes = {p: {n: v.shape for n, v in named.items()} for p, named in found.items()}
        flat = {p: [v.detach().flatten() for v in named.values()] for p, named in found.items()}
        none = next(network.parameters()).new_empty(0)
        self.weights = nn.Parameter(torch.cat(flat["weights"] or [none]))
        self.affine = nn.Parameter(torch.cat(flat["affine"] or [none]))
        self.register_buffer("counts", torch.cat(flat["counts"] or [none.long()]))

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """See the class."""
        return functional_call(network, self.named(), (images,), tie_weights=False)  # type: ignore[no-any-return]

    def part(self, name: str) -> dict[str, Tensor]:
        """Views of ``weights``, ``affine`` or ``counts``, by their names in the network."""
        shapes = self.shapes[name]
        views = getattr(self, name).split([shape.numel() for shape in shapes.values()])
        return {n: v.view(shapes[n]) for n, v in zip(shapes, views, strict=True)}

    def statistics(self) -> dict[str, Tensor]:
        """Running means and variances of normalisations, by their names in the network."""
        return {name: getattr(self, _key(name)) for name in self._statistics}

    def named(self) -> dict[str, Tensor]:
        """All tensors by their names in the network."""
        parts = [self.part(name) for name in self.shapes]
        return {name: value for part in (*parts, self.statistics()) for name, value in part.items()}

    @torch.no_grad()
    def start(self, network: nn.Module) -> None:
        """Take over what the network has now."""
        state = network.state_dict()
        for name, value in self.named().items():
            value.copy_(state[name])

    @torch.no_grad()
    def hand_over(self, network: nn.Module) -> None:
        """Give the network what the task has now."""
        state = network.state_dict()
        for name, value in self.named().items():
            state[name].copy_(value)


def _below(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a layer by their names in the network."""
    return {f"{prefix}.{name}": value for name, value in tensors}


def _key(name: str) -> str:
    """A name that may be an attribute; state dictionaries keep dots for modules."""
    return name.replace(".", "/")


def _spare_single(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Let a normalisation use its running statistics where a batch has one value per channel."""
    images = inputs[0]
    if layer.training and images.numel() == images.shape[1]:
        layer.training = False
        layer._spared = True  # type: ignore[assignment]


def _restore(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if layer.__dict__.pop("_spared", False):
        layer.training = True
