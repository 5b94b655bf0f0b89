"""Batch normalisation that has stopped learning, and norms of parameters."""

from __future__ import annotations

from collections.abc import Sequence

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


def sum_of_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Sum over tensors of the Euclidean norm of each, not squared; float32, a scalar.

    A tensor of zeros has gradient 0.
    """
    norms = torch._foreach_norm([tensor.float() for tensor in tensors], 2)
    return torch.stack(norms).sum()
