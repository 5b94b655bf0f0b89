"""Tensors that belong to a task and are swapped into a network which tasks share, for one pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


class TaskTensors(nn.Module):
    """One task's batch normalisations of a network, and its layers of some kinds.

    Called with the network and images (B, C, H, W) it gives features (B, F): those of the network
    with the task's tensors in place of its own, for this call only. In train mode the task's
    running statistics are updated in place.

    Args:
        network: Its tensors are copied.
        kinds: Types of layers whose parameters are the task's, too.

    Attributes:
        weights: float32 (P,), parameters of those layers one after another: one tensor for
            optimiser and disk. Absent where there are none, as are the next two.
        affine: float32 (Q,), weights and biases of normalisations.
        counts: int64 (L,), batches that each normalisation has seen.
        shapes: For each of these the shapes of its parts, by their names in the network.
    """

    def __init__(self, network: nn.Module, *kinds: type[nn.Module]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "affine": {}, "counts": {}}
        # kept apart from one another: autograd refuses a pass in which views of one tensor change
        self._statistics: list[str] = []
        for prefix, layer in network.named_modules():
            if isinstance(layer, kinds):
                parts["weights"] |= _below(prefix, layer.named_parameters(recurse=False))
            elif isinstance(layer, _BatchNorm):
                parts["affine"] |= _below(prefix, layer.named_parameters(recurse=False))
                for name, buffer in _below(prefix, layer.named_buffers(recurse=False)).items():
                    if buffer.is_floating_point():
                        self._statistics.append(name)
                        self.register_buffer(_key(name), buffer.clone())
                    else:
                        parts["counts"][name] = buffer
        self.shapes = {p: {n: v.shape for n, v in named.items()} for p, named in parts.items()}
        for part, named in parts.items():
            if not named:
                continue
            flat = torch.cat([value.detach().flatten() for value in named.values()])
            if part == "counts":
                self.register_buffer(part, flat)
            else:
                self.register_parameter(part, nn.Parameter(flat))

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """See the class."""
        return functional_call(network, self.named(), (images,), tie_weights=False)  # type: ignore[no-any-return]

    def part(self, name: str) -> dict[str, Tensor]:
        """Views of ``weights``, ``affine`` or ``counts``, by their names in the network."""
        shapes = self.shapes[name]
        if not shapes:
            return {}
        views = getattr(self, name).split([shape.numel() for shape in shapes.values()])
        return {n: v.view(shapes[n]) for n, v in zip(shapes, views, strict=True)}

    def statistics(self) -> dict[str, Tensor]:
        """Running means and variances of normalisations, by their names in the network."""
        return {name: getattr(self, _key(name)) for name in self._statistics}

    def named(self) -> dict[str, Tensor]:
        """All tensors by their names in the network."""
        return self.part("weights") | self.norms()

    def norms(self) -> dict[str, Tensor]:
        """The tensors of normalisations by their names in the network."""
        return self.part("affine") | self.part("counts") | self.statistics()

    @torch.no_grad()
    def hand_over(self, network: nn.Module) -> None:
        """Give the network the normalisations that the task has now."""
        state = network.state_dict()
        for name, value in self.norms().items():
            state[name].copy_(value)


def _below(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a layer by their names in the network."""
    return {f"{prefix}.{name}".lstrip("."): value for name, value in tensors}


def _key(name: str) -> str:
    """Make a name that an attribute may have, which has no dots."""
    return name.replace(".", "/")
