"""What a resumed run must not notice, and the phases that need more than the ordinary."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from raycl.benchmarks.base import Task, TaskInfo
from raycl.methods.base import Classifier, Phase
from raycl.methods.finetune import Finetune
from raycl.nn.optim import make_optimizer
from raycl.testing import MethodConformance, finish, tensors, toy_data
from raycl.training.run import Run
from raycl.trial.run import TrainingError

HERE = f"{__name__}:"


def build(method: str = "finetune", **changes: Any) -> Run:
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2},
        "method": {"name": method},
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.05},
    }
    return Run(config | changes, toy_data())


def reload(run: Run, **changes: Any) -> Run:
    """Another run that goes on where this one stands, by way of bytes."""
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    other = build(run.config.method["name"], **changes)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


class Watchful(Classifier):
    """Notes mode, flags and gradients at the places where a method's own code is called."""

    zero_shot = False  # so that the constructor does not evaluate
    seen: Tensor

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("seen", torch.full((2, 3, 3), -1.0))

    def note(self, task: Task, place: int) -> None:
        parameters = list(self.parameters())
        self.seen[task.info.index, place] = torch.tensor(
            [
                float(self.training),
                sum(p.requires_grad for p in parameters),
                sum(p.grad is not None for p in parameters),
            ]
        )

    def begin_task(self, task: Task) -> None:
        self.note(task, 0)

    def phases(self, task: Task) -> list[Phase]:
        head = Phase(
            name="head",
            epochs=1,
            optimizer=lambda: make_optimizer(self.head.parameters(), self.context.train),
            batches=lambda: self.train_batches(task),
            loss=self.objective(task),
            before=lambda: self.note(task, 1),
        )
        return [*super().phases(task), head]

    def end_task(self, task: Task) -> None:
        self.note(task, 2)


def test_mode_flags_and_gradients_do_not_depend_on_a_restore() -> None:
    reference = build(HERE + "Watchful")
    finish(reference)
    assert reference.method.seen.tolist() == [[[0.0, 4.0, 0.0]] * 3] * 2
    for stop in range(6):
        run = build(HERE + "Watchful")
        for _ in range(stop):
            run.advance()
        other = reload(run)
        finish(other)
        assert torch.equal(other.method.seen, reference.method.seen), f"resumed after {stop}"


def test_the_number_of_threads_may_change() -> None:
    run = build(threads=1)
    run.advance()
    finish(reload(run, threads=2))
    torch.set_num_threads(1)


def test_without_validation_there_is_no_validation_accuracy() -> None:
    run = build(
        benchmark={"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.0},
    )
    rows = []
    while not run.done:
        rows.append(run.advance())
    assert not [key for row in rows for key in row if key.startswith("validation/")]


class Diverges(Finetune):
    """A method whose loss is no number in the third epoch of a task."""

    def phases(self, task: Task) -> list[Phase]:
        (phase,) = super().phases(task)
        loss, calls = phase.loss, [0]

        def batches() -> Any:
            calls[0] += 1
            return self.train_batches(task)

        def broken(batch: Any) -> Any:
            return loss(batch) * (float("nan") if calls[0] == 3 else 1)

        phase.epochs, phase.batches, phase.loss, phase.diverged = 5, batches, broken, "stop"
        return [phase]


def test_a_phase_may_end_when_it_diverges() -> None:
    run = build(
        HERE + "Diverges",
        train={"epochs": 5, "batch_size": 8, "lr": 0.05, "select": "validation_loss"},
    )
    result = finish(run)
    assert all(torch.isfinite(t).all() for t in tensors(run.method.state_dict()))
    assert run.progress == 6
    assert result["matrices"]["task"][0][0] > 80
    with pytest.raises(TrainingError, match="epoch 2"):  # no epoch is kept: nothing to go back to
        finish(build(HERE + "Diverges"))


class NoScore(Finetune):
    """A method whose score is no number in the first epoch."""

    def phases(self, task: Task) -> list[Phase]:
        (phase,) = super().phases(task)
        scores = iter([float("nan"), 2.0, 1.0])
        self.kept: list[Tensor] = []

        def score() -> float:
            self.kept.append(self.head.bias.detach().clone())
            return next(scores)

        phase.epochs, phase.score = 3, score
        return [phase]


def test_an_epoch_with_a_score_that_is_no_number_is_not_kept() -> None:
    run = build(HERE + "NoScore")
    for _ in range(3):
        run.advance()
    assert torch.equal(run.method.head.bias, run.method.kept[1])


class WarmUp(Finetune):
    """A rate that grows from step to step."""

    def phases(self, task: Task) -> list[Phase]:
        (phase,) = super().phases(task)
        phase.schedule = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (step + 1) / 100
        )
        phase.step_schedule = True
        return [phase]


def test_a_schedule_by_steps() -> None:
    run = build(HERE + "WarmUp")
    steps = -(-len(run.stream.data[0].train) // 8)
    run.advance()
    row = reload(run).advance()
    assert row["train/lr"] == pytest.approx(0.05 * (steps + 1) / 100)
    assert run.advance()["train/lr"] == row["train/lr"]


class Counting(Finetune):
    """Knows how its weights are distributed over three bins."""

    def histograms(self) -> dict[str, list[int]]:
        edges = torch.tensor([-0.1, 0.1])
        return {
            f"size/{name}": torch.bincount(
                torch.bucketize(p, edges).flatten(), minlength=3
            ).tolist()
            for name, p in self.named_parameters()
        }


class Growing(Finetune):
    """Has a histogram more in the second task."""

    def add_task(self, task: TaskInfo) -> None:
        self.latest = task.index

    def histograms(self) -> dict[str, list[int]]:
        return {name: [1] for name in ("a", "b")[: 1 + self.latest]}


def test_histograms_are_kept_for_each_task() -> None:
    reference = build(HERE + "Counting")
    found = finish(reference)["histograms"]
    weights = dict(reference.method.named_parameters())
    assert set(found) == {f"size/{name}" for name in weights}
    for name, rows in found.items():
        parameter = weights[name.removeprefix("size/")]
        assert [sum(row) for row in rows] == [parameter.numel()] * 2
        assert rows[1][0] == int((parameter <= -0.1).sum())
        assert all(type(count) is int for row in rows for count in row)
    assert found["size/head.weight"][0] != found["size/head.weight"][1]
    for stop in (1, 2, 3):
        run = build(HERE + "Counting")
        for _ in range(stop):
            run.advance()
        assert finish(reload(run))["histograms"] == found, f"resumed after {stop}"
    assert "histograms" not in finish(build())


def test_histograms_have_the_same_bins_after_every_task() -> None:
    with pytest.raises(ValueError, match="histogram b must have the same bins"):
        finish(build(HERE + "Growing"))


class Adapted(Finetune):
    """Never trains its backbone, and does not save it.

    Nobody, 2026. Departures: none.
    """

    fixed = ("backbone.",)
    any_network = False

    def trainable(self) -> Any:
        return list(self.head.parameters())


class Careless(Adapted):
    """Trains it all the same."""

    def trainable(self) -> Any:
        return list(self.parameters())


class TestAdapted(MethodConformance):
    method = HERE + "Adapted"
    network = {"name": "mlp", "hidden": [128]}


def test_fixed_state_is_not_saved_but_counted() -> None:
    run = build(HERE + "Adapted")
    result = finish(run)
    assert set(run.state_dict()["method"]) == {"head.weight", "head.bias"}
    held = sum(t.numel() * t.element_size() for t in tensors(run.method.state_dict()))
    assert result["cost"]["stored_bytes"] == held


def test_fixed_state_that_changes_is_found() -> None:
    suite = type("Suite", (MethodConformance,), {"method": HERE + "Careless"})()
    with pytest.raises(AssertionError, match="fixed, but changed"):
        suite.test_fixed_state_is_fixed()


class Alias(Finetune):
    """Holds its parts under a second name."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.whole = torch.nn.Sequential(self.backbone, self.head)


def test_what_has_two_names_costs_once() -> None:
    plain, alias = finish(build())["cost"], finish(build(HERE + "Alias"))["cost"]
    assert alias["stored_bytes"] == plain["stored_bytes"]
    assert alias["extra_parameters"] == 0
