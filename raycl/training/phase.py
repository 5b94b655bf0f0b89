"""A phase that is under way: an epoch of it, its optimiser and schedule, the best epoch so far."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raycl.datasets.examples import Batch
from raycl.methods.base import Method, Phase, total


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that is not a number)."""


class PhaseState:
    """What a running phase adds to the method's own state.

    Args:
        phase: Its description.
        method: The method; only the optimiser's parameters require gradients until ``close``.
    """

    def __init__(self, phase: Phase, method: Method) -> None:
        self.phase, self.method = phase, method
        self.optimizer = phase.optimizer()
        self.schedule = None if phase.schedule is None else phase.schedule(self.optimizer)
        self.epoch = 0
        self.kept_score: float | None = None
        self.kept: dict[str, Any] | None = None
        self._flags = [(p, p.requires_grad) for p in method.parameters()]
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for parameter in method.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def finish_epoch(self) -> bool:
        """Score, keep, schedule; returns whether the phase is over."""
        self.epoch += 1
        self.method.eval()
        score = None if self.phase.score is None else self.phase.score()
        if score is not None and not math.isnan(score) and self.phase.keep(score, self.kept_score):
            self.kept_score = score
            self.kept = _clone(self.method.saved_state())
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if score is None:
                raise ValueError(f"phase {self.phase.name}: a plateau schedule needs a score")
            self.schedule.step(score)
        elif self.schedule is not None and not self.phase.step_schedule:
            self.schedule.step()
        stop = self.phase.stop
        early = score is not None and stop is not None and stop(score, self.lr)
        return early or self.epoch >= self.phase.epochs

    def close(self) -> None:
        """Put the kept epoch's state back, if an epoch was kept; undo what is no state.

        A restored method knows neither the last gradients nor which parameters a phase that is over
        has trained; so nothing may depend on them.
        """
        if self.kept is not None:
            self.method.load_saved_state(self.kept)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self.method.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "epoch": self.epoch,
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "kept_score": self.kept_score,
            "kept": self.kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.epoch, self.kept_score, self.kept = state["epoch"], state["kept_score"], state["kept"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])


def train_one_epoch(
    phase: Phase, optimizer: torch.optim.Optimizer, method: Method, schedule: Any = None
) -> tuple[dict[str, float], int]:
    """One pass over a phase's batches; nothing is read from the device before its end.

    Args:
        phase: What to do.
        optimizer: Its optimiser.
        method: Put into train mode.
        schedule: To be stepped after every optimiser step.

    Returns:
        Mean of the loss and of each named term over examples, and the number of examples.
    """
    method.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, Tensor] = {}
    examples = steps = 0
    for batch in phase.batches():
        losses = phase.loss(batch)
        terms = {} if isinstance(losses, Tensor) else losses
        loss = total(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if phase.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, phase.clip_norm)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if phase.after_step is not None:
            phase.after_step()
        size = len(batch) if isinstance(batch, Batch) else 0
        examples, steps = examples + size, steps + 1
        for name, value in {"loss": loss, **terms}.items():
            if name not in sums:
                sums[name] = torch.zeros_like(value, dtype=torch.float32, requires_grad=False)
            sums[name].add_(value.detach(), alpha=size or 1)
    if not steps:
        raise TrainingError(f"phase {phase.name} has no batches: is drop_last leaving nothing?")
    return {name: float(value) / (examples or steps) for name, value in sums.items()}, examples


def _clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _clone(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_clone(v) for v in value)
    return value
