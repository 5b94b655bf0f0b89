"""Which epoch a task ends with: by what it is chosen, and where it goes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raycl.benchmarks.base import Task
from raycl.methods.base import Classifier, Phase
from raycl.nn.optim import TrainConfig
from raycl.testing import finish, tensors, toy_data
from raycl.training.phase import PhaseState, changing
from raycl.training.run import Run

HERE = f"{__name__}:"
CNN: dict[str, Any] = {"name": "cnn", "channels": [4], "features": 12, "batch_norm": True}


def build(method: str = "finetune", readouts: list[str] | None = None, **train: Any) -> Run:
    return Run(
        {
            "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2},
            "method": {"name": method},
            "network": CNN,
            "train": {"epochs": 4, "batch_size": 8, "lr": 0.05, **train},
            "readouts": readouts,
        },
        toy_data(),
    )


def reload(run: Run, **options: Any) -> Run:
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    other = build(run.config.method["name"], **options)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


class Scripted(Classifier):
    """A classifier with scores given beforehand; ``mark`` shows which epoch it ended with."""

    scores: tuple[float, ...] = ()
    zero_shot = False

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("epochs", torch.zeros(()))
        self.mark = torch.nn.Linear(1, 1)

    def phases(self, task: Task) -> list[Phase]:
        (phase,) = super().phases(task)
        scores = iter(self.scores)

        def score() -> float:
            self.epochs += 1
            with torch.no_grad():
                self.mark.bias.fill_(float(self.epochs))
            return next(scores)

        return [replace(phase, score=score)]


def ended_with(scores: tuple[float, ...], **train: Any) -> tuple[int, int]:
    """The epoch kept, from 0, and how many were trained."""
    cls = type("Cls", (Scripted,), {"scores": scores, "__module__": __name__})
    globals()["Cls"] = cls
    options = {"epochs": len(scores), "select": "validation_accuracy", **train}
    run = build(HERE + "Cls", **options)
    while run.task_index == 0:
        run.advance()
    return int(run.method.mark.bias) - 1, int(run.method.epochs)


# ---------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    "scores, tolerance, kept",
    [
        ((50, 49.9, 49.6, 49.75), 0.2, 3),
        ((10, 60, 59.85, 59.7, 59.55), 0.2, 4),
        ((10, 60, 59.79, 59.9), 0.2, 3),
        ((10, 60, 59.79, 59.79), 0.2, 1),
        ((50, 50, 49), None, 0),  # the first of the best
        ((50, 50, 49), 0.0, 1),  # the last of the best
        ((math.nan, 50, math.nan), 0.2, 1),
    ],
)
def test_tolerance(scores: tuple[float, ...], tolerance: float | None, kept: int) -> None:
    assert ended_with(scores, select_tolerance=tolerance)[0] == kept


@pytest.mark.parametrize(
    "scores, patience, kept, trained",
    [
        ((50, 49, 48, 60), 2, 0, 3),
        ((50, 49, 60, 59, 58, 70), 2, 2, 5),
        ((50, 49, 60, 59), None, 2, 4),
        ((math.nan, math.nan, 50), 2, 1, 2),  # nothing was ever kept: the last epoch counts
    ],
)
def test_patience(scores: tuple[float, ...], patience: int | None, kept: int, trained: int) -> None:
    assert ended_with(scores, patience=patience) == (kept, trained)


def test_patience_is_resumed() -> None:
    cls = type("Cls", (Scripted,), {"scores": (50, 49, 48, 47, 46), "__module__": __name__})
    globals()["Cls"] = cls
    options: dict[str, Any] = {"epochs": 5, "select": "validation_accuracy", "patience": 3}
    run = build(HERE + "Cls", **options)
    run.advance()
    run.advance()
    other = reload(run, **options)
    cls.scores = (48, 47, 46)  # those after the second
    assert other._phase is not None
    assert (other._phase.epoch, other._phase.kept_epoch, other._phase.kept_score) == (2, 1, 50)


@pytest.mark.parametrize("option", [{"select_tolerance": 0.2}, {"patience": 3}])
def test_needs_a_score(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is about the epoch that is kept: set select"):
        TrainConfig(**option)


# ---------------------------------------------------------------------- seen_accuracy


@pytest.mark.parametrize("readouts", [None, ["task"]])
def test_seen_accuracy_is_of_all_tasks_so_far(readouts: list[str] | None) -> None:
    """The mean over tasks, and over the readouts class and task, whatever the report asks for."""
    run = build(select="seen_accuracy", readouts=readouts)
    while run.task_index == 0:
        run.advance()
    run._enter_task()
    run.method.eval()
    every = build()
    found = [
        every.evaluator.accuracy(run.method, run.stream.data[i].validation, i, 2)[readout]
        for i in range(2)
        for readout in ("class", "task")
    ]
    assert run.method.context.seen_accuracy() == pytest.approx(sum(found) / 4, abs=1e-12)
    assert len(set(found)) > 1


def test_seen_accuracy_chooses() -> None:
    """What is kept is an epoch whose score no other beats."""
    run = build(select="seen_accuracy", lr=0.3, epochs=8)
    scores: list[float] = []
    measure = run._seen_accuracy
    object.__setattr__(
        run.method.context, "seen_accuracy", lambda: scores.append(measure()) or scores[-1]
    )
    while run.task_index == 0:
        run.advance()
    run.method.eval()
    run.task_index = 0
    assert measure() == max(scores)
    assert len(scores) == 8


# ---------------------------------------------------------------------- what is kept, and where


def phase_of(run: Run) -> PhaseState:
    run.advance()
    assert run._phase is not None
    return run._phase


def test_only_what_the_phase_changes_is_kept() -> None:
    run = build("lwf_coreset", select="validation_accuracy")
    while run.task_index == 0:
        run.advance()
    kept = phase_of(run).kept
    assert kept is not None
    state = run.method.saved_state()
    assert set(kept) == {name for name in state if name.startswith(("backbone.", "head."))}
    assert "backbone.layers.1.running_mean" in kept
    assert any(name.startswith("teacher.") for name in state)
    assert any(name.startswith("exemplars.") for name in state)


def test_untrained_parts_are_not_among_it() -> None:
    run = build("sgd_frozen")
    head = {id(p) for p in run.method.head.parameters()}
    assert changing(run.method, head) == {"head.weight", "head.bias"}


def test_a_checkpoint_holds_no_tensor_twice() -> None:
    """The kept epoch is no copy of its own while it is the newest one."""
    cls = type("Cls", (Scripted,), {"scores": (50, 60, 40, 30), "__module__": __name__})
    globals()["Cls"] = cls
    options: dict[str, Any] = {"select": "validation_accuracy"}
    run = build(HERE + "Cls", **options)
    state = phase_of(run)
    assert state.state_dict()["kept"] is None
    run.advance()
    assert state.state_dict()["kept"] is None
    other = reload(run, **options)
    assert other._phase is not None
    for mine, theirs in ((run._phase, other._phase),):
        pairs = zip(tensors(mine.kept), tensors(theirs.kept), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert list(tensors(other._phase.kept))
    run.advance()
    assert state.state_dict()["kept"] is not None


class ElsewhereKept(Classifier):
    """Puts the kept epoch into a module of its own and goes on with its last epoch."""

    zero_shot = False

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("kept", torch.zeros_like(self.head.bias))

    def phases(self, task: Task) -> list[Phase]:
        (phase,) = super().phases(task)

        def take(state: Mapping[str, Any]) -> None:
            self.kept.copy_(state["head.bias"])

        return [replace(phase, kept=take)]


def test_a_phase_says_where_the_kept_epoch_goes() -> None:
    options: dict[str, Any] = {"select": "validation_accuracy", "lr": 0.3}
    run = build(HERE + "ElsewhereKept", **options)
    biases, scores = [], []
    while run.task_index == 0:
        row = run.advance()
        scores.append(row["validation/accuracy_current"])
        biases.append(run.method.head.bias.detach().clone())
    assert torch.equal(run.method.head.bias, biases[-1]), "the student went on"
    assert any(torch.equal(run.method.kept, bias) for bias in biases)
    plain = build(**options)
    while plain.task_index == 0:
        plain.advance()
    assert torch.equal(plain.method.head.bias, run.method.kept), "the same epoch"


def test_what_was_lost_is_named() -> None:
    run = build(select="validation_accuracy")
    state = phase_of(run)
    assert state.kept is not None
    state.kept["gone"] = torch.zeros(())
    with pytest.raises(RuntimeError, match="the method has lost gone since the kept epoch"):
        state.close()


def test_seen_accuracy_resumes_bitwise() -> None:
    options: dict[str, Any] = {"select": "seen_accuracy", "select_tolerance": 0.2, "patience": 2}
    whole = finish(build("distil", **options))
    run = build("distil", **options)
    while run.task_index == 0:
        run.advance()
    run.advance()
    assert finish(reload(run, **options))["matrices"] == whole["matrices"]


def test_the_optimistic_number_is_the_accuracy_of_the_kept_epoch_where_it_was_chosen() -> None:
    run = build(select="validation_accuracy", readouts=["task"], lr=0.01)
    run.method.active = lambda task: torch.tensor(task.classes)  # as the readout asks
    best: dict[int, float] = {}
    while not run.done:
        row = run.advance()
        task, current = int(row["task"]), row["validation/accuracy_current"]
        best[task] = max(best.get(task, 0.0), current)
    metrics = run.result()["metrics"]["task"]
    assert metrics["selection_accuracy"] == pytest.approx(sum(best.values()) / 2)
    assert metrics["selection_accuracy"] != metrics["learning_accuracy"]
    assert row["eval/task/selection_accuracy"] == metrics["selection_accuracy"]
    assert "selection_accuracy" not in run.result()["validation_metrics"]["task"]


@pytest.mark.parametrize("select", ["last", "validation_loss", "seen_accuracy"])
def test_other_ways_to_select_have_no_such_number(select: str) -> None:
    run = build(select=select)
    finish(run)
    assert "selection_accuracy" not in run.result()["metrics"]["class"]
