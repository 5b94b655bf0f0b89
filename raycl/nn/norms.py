"""Helpers for batch normalisation that no longer learns, and norms of parameters."""

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


def spare_single_values(network: nn.Module) -> None:
    """Let batch normalisations use running statistics where a batch has one value per channel.

    A last batch of one image, in maps of 1 x 1: there PyTorch has no statistics of the batch and
    stops. For good, and for copies of the network, too.
    """
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(_spare_single)
            layer.register_forward_hook(_restore)


def _spare_single(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    maps = inputs[0]
    if layer.training and maps.numel() == maps.shape[1]:
        layer.training = False
        layer.__dict__["_spared"] = True


def _restore(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if layer.__dict__.pop("_spared", False):
        layer.training = True


def sum_of_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Sum over tensors of the Euclidean norm of each, not squared; float32, a scalar.

    A tensor of zeros has gradient 0.
    """
    norms = torch._foreach_norm([tensor.float() for tensor in tensors], 2)
    return torch.stack(norms).sum()
