"""Parameter superposition: one network for all tasks, whose inputs have other signs in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.methods._layered import Layered, input_width, scaled_inputs
from raycl.methods.base import Context
from raycl.nn.masks import pack_bits, unpack_bits


class PSP(Layered):
    """Every task trains all weights, behind random signs of each layer's input channels.

    Paper:
        Cheung, Terekhov, Chen, Agrawal & Olshausen, "Superposition of Many Models into One",
        NeurIPS 2019, arXiv 1902.05522, binary superposition, and its code
        (briancheung/superposition).

    A task has a context o in {-1, +1} for each input channel of each convolution and linear layer
    of the network, drawn with a fair coin when it is met, and fixed. A layer computes W (o x), and
    all tasks train the same W with cross-entropy over the task's classes. Contexts of two tasks are
    nearly orthogonal where a layer is wide, so that to one of them what the other has learnt is
    noise of mean 0. New tasks do change the answers for old ones.

    Symbols:
        o: ``task_N.values.bits``, one bit per input channel. W: weights, with their biases and
        other parameters of the network; shared.

    Each task has its own head and batch normalisations (affine parameters, running statistics),
    which start as those of the network.

    Departures:
        * That code starts from Xavier-normal weights. Here they are those of the network, unless
          ``init: xavier`` says so.
        * Contexts are not trained, which that code has as an option.
        * One context per channel of a convolution, also on the channels of the image.
        * The head is a task's own and has no context.
    """

    class Config(Layered.Config):
        """Options of superposition."""

        init: Literal["network", "xavier"] = Field(
            "network", description="weights at first: the network's, or Xavier-normal"
        )

    isolated = False
    fixed = ()

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        if config.init == "xavier":
            for layer in self.layers.values():
                nn.init.xavier_normal_(layer.weight)

    def new_values(self) -> Contexts:
        """See ``Layered.new_values``."""
        return Contexts([input_width(layer) for layer in self.layers.values()])

    def weights(self, task: int) -> list[Tensor]:
        """See ``Layered.weights``; W (o x) is (W o) x."""
        contexts = self.own(task).values
        assert isinstance(contexts, Contexts)
        pairs = zip(self.layers.values(), contexts.signs(), strict=True)
        return [scaled_inputs(layer, signs) for layer, signs in pairs]

    def trained_network(self) -> list[nn.Parameter]:
        """See ``Layered.trained_network``: all that tasks share."""
        return self.shared_parameters()


class Contexts(nn.Module):
    """Random signs for the inputs of some layers, a bit each.

    Args:
        widths: Number of inputs of each layer.
    """

    bits: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.register_buffer("bits", pack_bits(torch.rand(sum(widths)) < 0.5))

    def signs(self) -> list[Tensor]:
        """-1 and +1 for each layer: float (width,)."""
        signs = 2 * unpack_bits(self.bits, sum(self.widths)).float() - 1
        return list(torch.split(signs, self.widths))
