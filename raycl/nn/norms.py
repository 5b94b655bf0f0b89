"""Batch normalisation that has stopped learning."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch normalisation in eval mode: it uses its running statistics and keeps them.

    To be called after each ``module.train()``, which undoes it.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
