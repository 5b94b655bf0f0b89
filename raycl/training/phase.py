"""Runs a phase: trains an epoch, keeps optimiser, schedule and the best epoch so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raycl.datasets.examples import Batch
from raycl.methods.base import Method, Phase, total
from raycl.trial.run import TrainingError


class PhaseState:
    """The state that a running phase has beside the method's own.

    Args:
        phase: Its description.
        method: The method; only the optimiser's parameters require gradients until ``close``.

    Attributes:
        kept: The part of the method's state that the phase changes, as it was after the kept
            epoch, on the device; see ``changing``. ``None``: no epoch was kept yet.
        kept_epoch: Number of that epoch, counted from 1; 0 for none.
    """

    def __init__(self, phase: Phase, method: Method) -> None:
        self.phase, self.method = phase, method
        self.optimizer = phase.optimizer()
        self.schedule = None if phase.schedule is None else phase.schedule(self.optimizer)
        self.epoch = self.kept_epoch = 0
        self.kept_score: float | None = None
        self.kept: dict[str, Any] | None = None
        self._flags = [(p, p.requires_grad) for p in method.parameters()]
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for parameter in method.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.changing = changing(method, trained)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def finish_epoch(self) -> bool:
        """Score and perhaps keep the epoch, step the schedule; tell whether the phase is over."""
        self.epoch += 1
        self.method.eval()
        score = None if self.phase.score is None else self.phase.score()
        if score is not None and not math.isnan(score) and self.phase.keep(score, self.kept_score):
            self.kept_score, self.kept_epoch = score, self.epoch
            self.kept = self._snapshot()
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if score is None:
                raise ValueError(f"phase {self.phase.name}: a plateau schedule needs a score")
            self.schedule.step(score)
        elif self.schedule is not None and not self.phase.step_schedule:
            self.schedule.step()
        stop, patience = self.phase.stop, self.phase.patience
        early = score is not None and stop is not None and stop(score, self.lr)
        early |= patience is not None and self.epoch - self.kept_epoch >= patience
        return early or self.epoch >= self.phase.epochs

    def _snapshot(self) -> dict[str, Any]:
        state = self.method.saved_state()
        return {name: _clone(value) for name, value in state.items() if name in self.changing}

    def close(self) -> None:
        """End the phase: put the kept epoch's state where the phase wants it, if there is one.

        Then undo what is no state.

        A restored method knows neither the last gradients nor which parameters a phase that is over
        has trained; so nothing may depend on them.
        """
        if self.kept is not None:
            (self.phase.kept or self._put_back)(self.kept)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self.method.zero_grad(set_to_none=True)

    def _put_back(self, kept: Mapping[str, Any]) -> None:
        left_over = self.method.load_state_dict(kept, strict=False).unexpected_keys
        if left_over:
            raise RuntimeError(f"the method has lost {', '.join(left_over)} since the kept epoch")

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; no copy of the kept epoch while it is the newest one."""
        return {
            "epoch": self.epoch,
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "kept_score": self.kept_score,
            "kept_epoch": self.kept_epoch,
            "kept": None if self.kept_epoch == self.epoch else self.kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, after the method's own state was restored."""
        self.epoch, self.kept_epoch = state["epoch"], state["kept_epoch"]
        self.kept_score, self.kept = state["kept_score"], state["kept"]
        if self.kept_epoch == self.epoch > 0:
            self.kept = self._snapshot()
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])


def changing(method: Method, trained: set[int]) -> set[str]:
    """Names, in the method's state, of the parameters that a phase trains and buffers near them.

    A buffer counts if it belongs to a direct child of the method in which a parameter is trained: a
    backbone with its normalisations, but no teacher and no store of images.

    Args:
        method: The method.
        trained: ``id`` of every parameter that the optimiser steps.
    """
    parameters = dict(method.named_parameters(remove_duplicate=False))
    names = {name for name, p in parameters.items() if id(p) in trained}
    children = {name.partition(".")[0] for name in names if "." in name}
    others = (name for name in method.state_dict() if name not in parameters and "." in name)
    return names | {name for name in others if name.partition(".")[0] in children}


def train_one_epoch(
    phase: Phase, optimizer: torch.optim.Optimizer, method: Method, schedule: Any = None
) -> tuple[dict[str, float], int]:
    """Train one epoch of a phase; nothing is read from the device before its end.

    Args:
        phase: The phase.
        optimizer: Its optimiser.
        method: The method; it is put into train mode.
        schedule: Schedule to step after every optimiser step, if any.

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
