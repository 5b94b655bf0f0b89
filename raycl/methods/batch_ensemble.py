"""BatchEnsemble: one network, scaled by a matrix of rank one in each layer of each task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task
from raycl.methods._layered import Layer, Layered, input_width, scaled_inputs
from raycl.methods.base import Context


class BatchEnsemble(Layered):
    """The weight of each layer is W s t^T, entry by entry: W is shared, s and t are the task's.

    Paper:
        Wen, Tran & Ba, "BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong
        Learning", ICLR 2020, arXiv 2002.06715, as the code of SupSup (RAIVNLab/supsup) has it for a
        sequence of tasks.

    A convolution or linear layer of a task scales its input channels by s and its output channels
    by t, before the bias. s, t and the head are trained with cross-entropy over the task's classes;
    all of s and t start at -1 or +1 with a fair coin.

    Symbols:
        W: weights of the network. ``weights: fixed``: as they are, random or pre-trained.
        ``weights: first_task``: the first task trains all of the network together with its s and
        t; later ones leave it alone.

    Each task has its own batch normalisations (affine parameters, running statistics). They start
    as those of the network, which with ``weights: first_task`` are those that the first task ends
    with.

    Departures:
        * A network's weights are W as they are; that code draws random ones.
        * Biases belong to the network; those of an ensemble of that paper have their own.
    """

    class Config(Layered.Config):
        """Options of rank-one factors."""

        weights: Literal["fixed", "first_task"] = Field(
            "fixed", description="W: as it is, or trained on the first task, then fixed"
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.learns_first = config.weights == "first_task"
        if self.learns_first:
            self.fixed = ()

    def new_values(self) -> Factors:
        """See ``Layered.new_values``."""
        return Factors(self.layers.values())

    def weights(self, task: int) -> list[Tensor]:
        """See ``Layered.weights``."""
        factors = self.own(task).values
        assert isinstance(factors, Factors)
        triples = zip(self.layers.values(), factors.inputs, factors.outputs, strict=True)
        return [
            scaled_inputs(layer, s) * t.view(-1, *(1 for _ in layer.weight.shape[1:]))
            for layer, s, t in triples
        ]

    def trained_network(self) -> list[nn.Parameter]:
        """See ``Layered.trained_network``: in the first task W, if it learns that."""
        return self.shared_parameters() if self.learns_first and self.index == 0 else []

    def end_task(self, task: Task) -> None:
        """Let later tasks start from the normalisations that go with W."""
        if self.learns_first and task.info.index == 0:
            self.own(0).norms.hand_over(self.backbone)


class Factors(nn.Module):
    """Vectors s and t of some layers, -1 or +1 at random at first.

    Args:
        layers: The layers that the vectors are for.

    Attributes:
        inputs: s of each layer, float (input channels,).
        outputs: t of each layer, float (output channels,).
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        widths = [(input_width(layer), len(layer.weight)) for layer in layers]
        self.inputs = nn.ParameterList(_signs(width) for width, _ in widths)
        self.outputs = nn.ParameterList(_signs(width) for _, width in widths)


def _signs(count: int) -> nn.Parameter:
    return nn.Parameter(torch.randint(2, (count,)) * 2.0 - 1)
