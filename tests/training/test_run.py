from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycl.benchmarks.base import DataAccessError, Task
from raycl.errors import UserError
from raycl.methods.base import Classifier, Phase
from raycl.methods.finetune import Finetune
from raycl.nn.optim import make_optimizer
from raycl.testing import finish, toy_data
from raycl.training.readouts import choose_readouts
from raycl.training.run import Run
from raycl.trial.run import TrainingError

HERE = f"{__name__}:"


def config(method: str = "finetune", **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2},
        "method": {"name": method},
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.05},
        "seed": 0,
    }
    for path, value in changes.items():
        block, _, key = path.partition("__")
        base[block] = base[block] | {key: value} if key else value
    return base


def rows(run: Run) -> list[dict[str, Any]]:
    found = []
    while not run.done:
        found.append(run.advance())
    return found


def test_one_row_per_epoch_and_steps_increase() -> None:
    found = rows(Run(config(), toy_data()))
    assert [r["progress"] for r in found] == [1, 2, 3, 4]
    assert [r["task"] for r in found] == [0, 0, 1, 1]
    assert [r["at_task_end"] for r in found] == [False, True, False, True]
    assert [r["tasks_done"] for r in found] == [0, 1, 1, 2]
    assert [r["finished"] for r in found] == [False, False, False, True]
    assert all("validation/average_accuracy" in r for r in found)
    assert "result" in found[-1]
    assert not any("result" in r for r in found[:-1])


def test_metrics_agree_with_the_matrix() -> None:
    last = rows(Run(config(), toy_data()))[-1]
    r = np.array(last["result"]["matrices"]["task"], dtype=float)
    assert last["eval/task/average_accuracy"] == pytest.approx(r[1].mean())
    assert last["eval/task/forgetting"] == pytest.approx(r[0, 0] - r[1, 0])
    assert last["eval/task/task_00"] == pytest.approx(r[1, 0])
    assert last["result"]["sizes"] == [40, 40]


def test_class_readout_is_not_given_for_tasks_not_learnt() -> None:
    result = finish(Run(config(), toy_data()))
    assert result["matrices"]["class"][0][1] is None
    assert result["matrices"]["task"][0][1] is not None
    assert result["baseline"]["class"] == [None, None]


def test_no_validation_set() -> None:
    found = rows(Run(config(benchmark__validation=0.0), toy_data()))
    assert not any("validation/class/average_accuracy" in r for r in found)
    assert found[-1]["result"]["validation_metrics"]["class"] == {}


def test_stream_can_be_cut() -> None:
    run = Run(config(tasks=1), toy_data())
    result = finish(run)
    assert result["matrices"]["class"] == [[pytest.approx(100, abs=20)]]
    assert run.stream.info.num_outputs == 4


def test_seeds_are_separate() -> None:
    def first_batch(**fixed: int) -> tuple[Any, Any, Any]:
        run = Run(config(seed=7, fixed_seeds=fixed), toy_data())
        weights = next(iter(run.method.parameters())).detach().clone()
        order = run.stream.info.class_names
        batch = next(iter(run.stream.data[0].train.batches(8, generator=run.random.data)))
        return weights, order, batch.index.tolist()

    weights, order, index = first_batch()
    again = first_batch(init=1)
    assert not torch.equal(weights, again[0])
    assert order == again[1]
    assert index == again[2]
    again = first_batch(data=1)
    assert torch.equal(weights, again[0])
    assert index != again[2]
    again = first_batch(class_order=3)
    assert torch.equal(weights, again[0])
    assert order != again[1]


def test_a_run_inherits_nothing_from_the_process() -> None:
    """Tune reuses workers: A, then B, then A again gives A's digits."""
    first = finish(Run(config(), toy_data()))
    finish(Run(config("naive_rehearsal", seed=5, method__memory_size=8), toy_data()))
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert finish(Run(config(), toy_data()))["matrices"] == first["matrices"]
    assert torch.get_default_dtype() == torch.float32
    assert not torch.backends.cudnn.allow_tf32, "float32 is float32"


def test_a_method_knows_how_many_tasks_are_run() -> None:
    context = Run(config() | {"tasks": 1}, toy_data()).method.context
    assert (context.tasks, context.last_old) == (context.stream.tasks[:1], ())
    context = Run(config(), toy_data()).method.context
    assert (context.tasks, context.last_old) == (context.stream.tasks, context.stream.seen(0))


def test_state_of_another_configuration_is_refused() -> None:
    run = Run(config(), toy_data())
    with pytest.raises(ValueError, match="another configuration"):
        Run(config(seed=1), toy_data()).load_state_dict(run.state_dict())


def test_a_done_run_does_not_advance() -> None:
    run = Run(config(), toy_data())
    rows(run)
    with pytest.raises(RuntimeError, match="done"):
        run.advance()


class Diverging(Finetune):
    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) * float("inf")


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    run = Run(config(HERE + "Diverging"), toy_data())
    with pytest.raises(
        TrainingError, match=r"loss became (inf|nan) in task 0, phase train, epoch 0"
    ):
        run.advance()


class Hoarder(Finetune):
    """Keeps the first task and looks at it in the second."""

    def begin_task(self, task: Task) -> None:
        if task.info.index == 0:
            self.__dict__["hoard"] = task
        else:
            len(self.__dict__["hoard"].train)


def test_a_task_is_gone_after_its_end() -> None:
    run = Run(config(HERE + "Hoarder"), toy_data())
    with pytest.raises(DataAccessError, match="task 0 has ended"):
        rows(run)


class Peeker(Finetune):
    """Asks for the past without declaring it."""

    def begin_task(self, task: Task) -> None:
        _ = task.past


def test_the_past_needs_a_declaration() -> None:
    with pytest.raises(DataAccessError, match="memory = 'all'"):
        Run(config(HERE + "Peeker"), toy_data()).advance()


class TwoPhases(Classifier):
    """Head first, then everything, with named losses, a projection and the best epoch kept."""

    calls: list[str] = []

    def phases(self, task: Task) -> list[Phase]:
        train = self.context.train
        loss = self.objective(task)
        log = TwoPhases.calls.append
        scores = iter([1.0, 3.0, 2.0])
        kept: list[Tensor] = []

        def score() -> float:
            kept.append(self.head.bias.detach().clone())
            return next(scores)

        def after() -> None:
            log(f"after {task.info.index}")
            assert torch.equal(self.head.bias, kept[1]), "the epoch with score 3 was not restored"

        def clamp() -> None:
            self.head.weight.data.clamp_(-0.25, 0.25)

        return [
            Phase(
                name="head",
                epochs=1,
                optimizer=lambda: make_optimizer(self.head.parameters(), train),
                batches=lambda: self.train_batches(task),
                loss=lambda batch: {"ce": loss(batch), "zero": loss(batch) * 0},
                before=lambda: log(f"before {task.info.index}"),
                after_step=clamp,
            ),
            Phase(
                name="all",
                epochs=3,
                optimizer=lambda: make_optimizer(self.parameters(), train),
                batches=lambda: self.train_batches(task),
                loss=loss,
                score=score,
                after=after,
            ),
        ]


def test_phases() -> None:
    TwoPhases.calls.clear()
    run = Run(config(HERE + "TwoPhases"), toy_data())
    backbone = [p.detach().clone() for p in run.method.backbone.parameters()]
    first = run.advance()
    assert first["phase"] == "head"
    assert first["train/ce"] == pytest.approx(first["train/loss"])
    assert first["train/zero"] == 0
    now = list(run.method.backbone.parameters())
    assert all(torch.equal(a, b) for a, b in zip(backbone, now, strict=True)), (
        "only the head trains"
    )
    assert float(run.method.head.weight.detach().abs().max()) <= 0.25
    found = rows(run)
    assert [r["phase"] for r in found] == ["all"] * 3 + ["head"] + ["all"] * 3
    assert TwoPhases.calls == ["before 0", "after 0", "before 1", "after 1"]


def test_plateau_schedule_lowers_the_rate_and_ends_the_phase() -> None:
    schedule = {"name": "plateau", "factor": 0.1, "patience": 1, "min_lr": 0.01}
    train = {"epochs": 50, "lr": 0.1, "select": "validation_accuracy", "schedule": schedule}
    found = rows(Run(config(train=train), toy_data()))
    rates = [r["train/lr"] for r in found if r["task"] == 0]
    assert len(rates) < 50
    assert rates[0] == 0.1
    assert rates[-1] >= 0.01


def test_step_and_cosine_schedules() -> None:
    train = {"epochs": 4, "lr": 0.1, "schedule": {"name": "step", "milestones": [2], "factor": 0.5}}
    rates = [r["train/lr"] for r in rows(Run(config(train=train), toy_data()))]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05] * 2)
    train = {"epochs": 4, "lr": 0.1, "schedule": {"name": "cosine"}}
    rates = [r["train/lr"] for r in rows(Run(config(train=train), toy_data()))]
    assert rates[:4] == pytest.approx([0.1 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)])


def test_readouts() -> None:
    class OnlyTask(Finetune):
        settings = frozenset({"task"})

    assert choose_readouts(("class", "task"), OnlyTask, None) == ("task",)
    with pytest.raises(UserError, match="OnlyTask supports task"):
        choose_readouts(("class", "task"), OnlyTask, ["class"])
    with pytest.raises(UserError, match="the benchmark defines class, task"):
        choose_readouts(("class", "task"), Finetune, ["domain"])


def test_costs() -> None:
    result = finish(Run(config(), toy_data()))
    assert result["cost"]["examples"] == 4 * 53  # 66 images less 20 % validation, two epochs
    assert result["cost"]["extra_parameters"] == 0
    ewc = finish(Run(config("online_ewc"), toy_data()))
    assert ewc["cost"]["extra_parameters"] > 0
    rehearsal = finish(Run(config("naive_rehearsal", method__memory_size=10), toy_data()))
    extra = rehearsal["cost"]["stored_bytes"] - result["cost"]["stored_bytes"]
    assert extra >= 10 * 64
