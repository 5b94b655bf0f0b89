"""Synaptic intelligence: a quadratic anchor, weighed by what each parameter did for the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods.base import (
    Classifier,
    Context,
    Losses,
    Outputs,
    Phase,
    from_end_of_task,
    from_task,
    masked_cross_entropy,
)
from raycl.nn.quadratic import QuadraticPenalty


class SI(Classifier):
    """Training is pulled to the last solution, as each parameter's part in the old losses weighs.

    Paper:
        Zenke, Poole & Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017, arXiv
        1703.04200; as the baseline "SI" in Buzzega et al., "Dark Experience for General Continual
        Learning: a Strong, Simple Baseline", NeurIPS 2020, arXiv 2004.07211, and its code
        (aimagelab/mammoth).

    Loss, what happens in every step, and at the end of a task:
        L = CE(z[outputs], y) + c sum_i Omega_i (theta_i - theta*_i)^2
        w_i <- w_i + g_i (theta_i before the step - theta_i after it)
        Omega_i <- max(0, Omega_i + w_i / ((theta_i - theta*_i)^2 + xi));  theta* <- theta;  w <- 0

        g is the gradient of the cross-entropy alone, without the penalty. Summed over a task, w_i
        is what parameter i has taken from the loss along the way. The first task has no penalty;
        its theta* is where it started.

    Symbols:
        c: ``c``. xi: ``xi``. Omega, theta*, w: the buffers ``omega``, ``anchor``, ``path``, three
        numbers per parameter. theta: all parameters, head included. The width of the softmax, all
        outputs of the stream from the start: ``outputs: all``.

    Published settings of that code:
        ResNet-18, batches of 32, SGD without momentum, c 0.5, xi 1.0, lr 0.03. CIFAR-10 in 5 tasks:
        50 epochs. Tiny-ImageNet in 10 tasks: 100 epochs.

    What is clipped:
        The step, not the measurement. As in that code, each value of the gradient of L, penalty
        included, is bounded by ``clip_value`` before the optimiser takes it; and before that their
        norm by ``train.clip_norm``, if set. In w, g is not clipped and theta moves as far as it
        did: bounded, with momentum, with weight decay. A clipped g would not be the slope of the
        loss on the way, and w no part of the loss. Where nothing is clipped and the optimiser is
        plain SGD, a step of the first task adds lr g_i^2.

    Departures from the paper:
        * ``clip_value``, which it does not have; set ``null`` for none.
        * Omega is never below 0. Where the penalty, or momentum, moves a parameter against its
          gradient, w_i may be negative, and a negative Omega_i would push it away without bound.
        * Running statistics of batch normalisation are neither protected nor frozen.
    Departures from the code of arXiv 2004.07211:
        * w is that of the paper. In the versions of that code that were read, a step of any task
          adds lr times the square of the clipped gradient of L, penalty included, as it does in
          divyam3897/UCL. Omega cannot fall below 0 there.
        * With ``train.select`` w ends with the epoch that is kept, like the weights; so it is held
          twice.
    """

    class Config(Classifier.Config):
        """Options of SI."""

        outputs: Outputs = "all"
        c: float = Field(
            0.5, ge=0, description="strength of the penalty", json_schema_extra=from_task(2)
        )
        xi: float = Field(
            1.0,
            gt=0,
            description="damping: added to the squared distance that a task has moved",
            json_schema_extra=from_end_of_task(1),
        )
        clip_value: float | None = Field(
            1.0, gt=0, description="bound of each value of the gradient in a step; null: none"
        )

    omega: Tensor
    anchor: Tensor
    path: Tensor
    kept_path: Tensor

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        names = ["omega", "anchor", "path"]
        names += [] if context.train.select == "last" else ["kept_path"]
        for name in names:
            self.register_buffer(name, torch.zeros_like(self.position()))

    def parts(self, buffer: Tensor) -> list[Tensor]:
        """Views of a flat buffer, one for each parameter, of its shape."""
        parameters = list(self.network.parameters())
        pieces = torch.split(buffer, [p.numel() for p in parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    def position(self) -> Tensor:
        """A copy of all parameters, in the order of the buffers."""
        return torch.cat([p.detach().flatten() for p in self.network.parameters()])

    def begin_task(self, task: Task) -> None:
        """Note, before the first task, where the network starts."""
        super().begin_task(task)
        if task.info.index == 0:
            self.anchor.copy_(self.position())

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``; the first task has no penalty."""
        if task.info.index == 0:
            return super().objective(task)
        active, penalty = self.active(task.info), self.penalty()

        def loss(batch: Batch) -> Losses:
            pull = penalty()  # first, so that its gradient comes last and is added in place
            z = self.logits(batch.images, None)
            return {
                "cross_entropy": masked_cross_entropy(z, batch.labels, active),
                "penalty": pull,
            }

        return loss

    def penalty(self) -> QuadraticPenalty:
        """C * sum_i Omega_i (theta_i - theta*_i)^2, while Omega and theta* stay as they are."""
        parameters = list(self.network.parameters())
        weights, anchor = self.parts(self.omega), self.parts(self.anchor)
        return QuadraticPenalty(parameters, anchor, 2 * self.config.c, weights)

    def phases(self, task: Task) -> list[Phase]:
        """See ``Classifier.phases``; every step is measured, and the gradient is clipped here."""
        (phase,) = super().phases(task)
        steps = Steps(self)

        def optimizer() -> torch.optim.Optimizer:
            made = phase.optimizer()
            made.register_step_pre_hook(lambda *_: steps.before())
            return made

        def keep(score: float, kept: float | None) -> bool:
            better = phase.keep(score, kept)
            if better:
                self.kept_path.copy_(self.path)
            return better

        def put_back(state: Mapping[str, Any]) -> None:
            self.load_state_dict(state, strict=False)
            self.path.copy_(self.kept_path)

        measured = replace(phase, optimizer=optimizer, after_step=steps.after, clip_norm=None)
        return [measured if phase.score is None else replace(measured, keep=keep, kept=put_back)]

    def end_task(self, task: Task) -> None:
        """Take the task's w into Omega and move the anchor here."""
        here = self.position()
        self.path.div_((here - self.anchor).square_().add_(self.config.xi))
        self.omega.add_(self.path).clamp_(min=0)
        self.path.zero_()
        self.anchor.copy_(here)

    def diagnostics(self) -> dict[str, float]:
        """Scale of Omega.

        Where lr * c * omega_max is below 1, plain SGD is stable without a bound on the gradient.
        """
        return {"omega_mean": float(self.omega.mean()), "omega_max": float(self.omega.max())}


class Steps:
    """The two halves of a step: what is noted before the optimiser moves, and added to w after.

    Args:
        method: The method; its buffers have to stay where they are.
    """

    def __init__(self, method: SI) -> None:
        self.method = method
        self._noted: tuple[list[Tensor], ...] | None = None

    @cached_property
    def parts(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Each parameter with its share of Omega, theta* and w."""
        method = self.method
        shares = (method.parts(buffer) for buffer in (method.omega, method.anchor, method.path))
        return list(zip(method.network.parameters(), *shares, strict=True))

    @torch.no_grad()
    def before(self) -> None:
        """Note the position and the gradient of the cross-entropy; clip that of the whole loss."""
        config, clip_norm = self.method.config, self.method.context.train.clip_norm
        parts = [part for part in self.parts if part[0].grad is not None]
        parameters, omega, anchor, path = (list(column) for column in zip(*parts, strict=True))
        pull = torch._foreach_sub(parameters, anchor)
        torch._foreach_mul_(pull, omega)
        gradients = [p.grad for p in parameters if p.grad is not None]
        own = torch._foreach_add(gradients, pull, alpha=-2 * config.c)
        self._noted = parameters, path, list(own), list(torch._foreach_neg(parameters))
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        if config.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, config.clip_value)

    @torch.no_grad()
    def after(self) -> None:
        """Add to w what each parameter has taken from the loss."""
        if self._noted is None:
            raise RuntimeError("the optimiser made a step that was not noted")
        (parameters, path, own, moved), self._noted = self._noted, None
        torch._foreach_add_(moved, parameters)  # the position after the step minus that before it
        torch._foreach_addcmul_(path, own, moved, value=-1)
