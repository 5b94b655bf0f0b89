"""Batch normalisation that has stopped learning, and norms of parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch normalisation in eval mode: it uses its running statistics and keeps them.

    To be called after each ``module.train()``, which undoes it.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


@contextlib.contextmanager
def keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisations use the statistics of their batches, but not follow them, inside."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


def sum_of_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Sum over tensors of the Euclidean norm of each, not squared; float32, a scalar.

    A tensor of zeros has gradient 0.
    """
    norms = torch._foreach_norm([tensor.float() for tensor in tensors], 2)
    return torch.stack(norms).sum()
