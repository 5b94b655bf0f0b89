"""Supermasks in superposition: each task picks a subnetwork of a random network."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raycl.methods._layered import Layer
from raycl.methods._masked import Masked
from raycl.methods.base import Context
from raycl.nn.masks import largest


class SupSup(Masked):
    """A network of random signs, and for each task a mask of bits that picks its weights.

    Paper:
        Wortsman, Ramanujan, Liu, Kembhavi, Rastegari, Yosinski & Farhadi, "Supermasks in
        Superposition", NeurIPS 2020, arXiv 2006.14769, and its code (RAIVNLab/supsup); the case in
        which the task is given at test time.

    The weights of every convolution and linear layer are replaced, once, by +c or -c with a fair
    coin, c = sqrt(2 / fan-in), whatever the network was before; biases by 0. They are never
    trained. A task has a score s for each weight, and uses those with the largest abs(s):
    int((1 - k) n) of the n weights of a layer are off. Scores and head are trained with
    cross-entropy over the task's classes, straight-through: dL/d abs(s) = W dL/d(W mask). When the
    task ends, the mask remains, as bits, and s is gone.

    Symbols:
        k: ``keep``. s starts Kaiming-uniform with a = sqrt(5), as PyTorch's weights do.

    Batch normalisations have no affine parameters here, and each task has running statistics of its
    own, which start at mean 0 and variance 1.

    Settings of that code: Adam at 0.001, batches of 128, ``keep`` from 0.01 to 0.32; Split
    CIFAR-100 of 20 tasks: 100 epochs in its configuration, 250 in its launcher; Split ImageNet of
    100 tasks: ``keep: 0.08``, a cosine with 5 epochs of warming up, 100 epochs, batches of 256.

    Departures:
        * The head is an ordinary linear layer that is trained, one for each task.
        * The same share of every layer is used. For Split ImageNet that code gives small layers
          more (Erdos-Renyi densities).
        * Where two abs(s) are equal at the boundary, which of them is used is PyTorch's choice.
        * Other parameters of a network (embeddings, layer normalisations) stay as they are.
    """

    class Config(Masked.Config):
        """Options of subnetworks."""

        keep: float = Field(0.08, gt=0, le=1, description="k: share of each layer's weights used")

    config: Any

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        for layer in self.layers.values():
            signed_constant_(layer)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.affine, module.weight, module.bias = False, None, None  # type: ignore[assignment]
                module.reset_running_stats()

    def start(self, weight: Tensor) -> Tensor:
        """See ``Masked.start``."""
        return nn.init.kaiming_uniform_(torch.empty_like(weight), a=math.sqrt(5))

    def binary(self, values: Tensor) -> Tensor:
        """See ``Masked.binary``."""
        return largest(values, self.config.keep)


@torch.no_grad()
def signed_constant_(layer: Layer) -> None:
    """Make the weight of a layer +c or -c at random, c = sqrt(2 / fan-in), and its bias 0."""
    weight = layer.weight
    signs = torch.randint(2, weight.shape) * 2 - 1  # drawn on the CPU: the same for every device
    weight.copy_(signs * math.sqrt(2 / weight[0].numel()))
    if layer.bias is not None:
        layer.bias.zero_()
