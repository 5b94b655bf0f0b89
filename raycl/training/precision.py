"""Arithmetic of a phase in bfloat16, and weights in the channels-last memory format."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from raycl.methods.base import Phase
from raycl.nn.optim import TrainConfig
from raycl.nn.precision import autocast


def with_precision(phase: Phase, train: TrainConfig, device: torch.device) -> Phase:
    """Make a phase compute its loss and its score in ``train.precision``.

    See ``raycl.nn.precision.autocast`` for what bfloat16 rounds. Parameters, their gradients, the
    optimiser, what happens between phases, and evaluation stay float32. On every
    device these functions of ``torch.nn.functional`` stay float32, too: ``cross_entropy``,
    ``nll_loss``, ``binary_cross_entropy_with_logits``, ``kl_div`` and ``mse_loss``. Measured with
    PyTorch 2.13: softmax, log_softmax, exp, log, sum and norms are float32 on CUDA but have the
    type of their input on the CPU; mean and var, and so statistics of a batch, have it on both. A
    loss made of those converts its input by ``torch.Tensor.float``, as ``Classifier.logits`` does.

    Args:
        phase: The phase that is run.
        train: The train block.
        device: Device of the run.
    """
    if train.precision == "float32":
        return phase
    context = autocast(device)
    score = phase.score
    return replace(phase, loss=context(phase.loss), score=None if score is None else context(score))


def to_channels_last(module: nn.Module) -> None:
    """Put the weights of two-dimensional convolutions into channels-last order, in place.

    Their outputs follow. Shapes, names and values stay; buffers, such as stored images, too.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
