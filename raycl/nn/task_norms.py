"""Batch normalisations that belong to a task, and are swapped into a network that tasks share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class TaskNorms(nn.Module):
    """One task's copies of the tensors of all batch normalisations of a network.

    To be given to ``torch.func.functional_call``. In train mode the network then updates the
    task's running statistics in place, and leaves its own alone.

    Args:
        network: The copies start as its tensors are now.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for prefix, layer in network.named_modules():
            if isinstance(layer, _BatchNorm):
                for name, parameter in layer.named_parameters(recurse=False):
                    copied = nn.Parameter(parameter.detach().clone())
                    self.register_parameter(_key(f"{prefix}.{name}"), copied)
                for name, buffer in layer.named_buffers(recurse=False):
                    self.register_buffer(_key(f"{prefix}.{name}"), buffer.clone())

    def named(self) -> dict[str, Tensor]:
        """All tensors by their names in the network."""
        found = itertools.chain(self.named_parameters(), self.named_buffers())
        return {key.replace("/", "."): tensor for key, tensor in found}

    def statistics(self) -> list[Tensor]:
        """Running means and variances; not how many batches they have seen."""
        return [buffer for buffer in self.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def hand_over(self, network: nn.Module) -> None:
        """Give the network what the task has now."""
        state = network.state_dict()
        for name, tensor in self.named().items():
            state[name].copy_(tensor)


def _key(name: str) -> str:
    """A name that may be an attribute, which those with dots may not."""
    return name.replace(".", "/")
