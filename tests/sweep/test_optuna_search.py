"""Optuna, as it is asked and told; the whole way through Ray is in the end-to-end tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune
from ray.tune.utils import flatten_dict

from raycl.sweep.execution import optuna_search, trainable
from raycl.sweep.execution.events import Hub
from raycl.sweep.execution.rows import result_of, row_of
from raycl.sweep.file import spec
from raycl.sweep.file.spaces import Space
from raycl.sweep.plan.plan import TrialPlan, packed, plan_of
from raycl.sweep.record.outcomes import Outcomes

SPACES = {
    "train.lr": Space("loguniform", (0.001, 0.1)),
    "train.schedule": Space("choice", ({"name": "constant"}, {"name": "cosine"})),
}


def base() -> TrialPlan:
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits"},
        "method": {"name": "finetune"},
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"lr": None, "schedule": None},
    }
    return TrialPlan("", "", "", "finetune", "digits", 1000, "search", config, {"cpu": 1.0})


def searcher(
    proposed: int = 0, first: list[dict[str, Any]] | None = None
) -> optuna_search.Searcher:
    drawn = optuna_search._drawn(0, proposed)
    return optuna_search.make_searcher(base(), SPACES, "optuna", drawn, "max", first or [])


def finished(plan: TrialPlan) -> Any:
    matrix = {"class": {"average_accuracy": 50.0}}
    row = {"result": {"validation_metrics": matrix}}
    return optuna_search.Outcome.of(plan, "finished", row, "")


def ask(found: optuna_search.Searcher, name: str) -> TrialPlan:
    """A proposal on its way through Tune's configuration."""
    proposal = found.suggest(name)
    assert proposal is not None
    return plan_of({"plan": packed(base()), **proposal})


def test_a_continued_search_knows_what_was_run_and_draws_something_else() -> None:
    one = searcher()
    plans = [ask(one, f"trial{i}") for i in range(4)]
    assert len({plan.key for plan in plans}) == 4
    assert all(plan.config["train"]["schedule"]["min_lr"] for plan in plans), "not finished"
    two = searcher(len(plans))
    for plan in plans:
        optuna_search._tell(two, finished(plan), "validation/average_accuracy")
    assert [trial.value for trial in two._ot_study.trials] == [50.0] * 4
    again = {ask(two, f"trial{i}").key for i in range(4)}
    assert not again & {plan.key for plan in plans}


QUANTISED = {
    "train.batch_size": Space("qloguniform", (8, 64, 8)),
    "train.lr": Space("quniform", (0.2, 0.8, 0.2)),
    "train.momentum": Space("quniform", (0, 0.9, 0.3)),
}


@pytest.mark.parametrize("algorithm", ["optuna", "optuna_gp"])
def test_quantised_spaces_are_quantised(algorithm: str) -> None:
    """Bounds included; Optuna learns from what was run, in this process or an earlier one."""
    plan = base()
    plan.config["train"].update(schedule={"name": "constant"}, batch_size=8, momentum=0.0)
    spaces = {k: v for k, v in QUANTISED.items() if algorithm == "optuna" or k != "train.momentum"}

    def search(proposed: int, first: list[dict[str, Any]]) -> optuna_search.Searcher:
        drawn = optuna_search._drawn(0, proposed)
        return optuna_search.make_searcher(plan, spaces, algorithm, drawn, "max", first)

    found, plans = search(0, []), []
    for i in range(60 if algorithm == "optuna" else 12):
        proposal = found.suggest(f"trial{i}")
        plans.append(plan_of({"plan": packed(plan), **(proposal or {})}))
        result = flatten_dict(result_of({"finished": True}, score=1.0 * i))
        found.on_trial_complete(f"trial{i}", result)
    drawn = {path: {p.varied[path] for p in plans} for path in spaces}
    assert drawn["train.batch_size"] <= set(range(8, 65, 8))
    assert all(isinstance(size, int) for size in drawn["train.batch_size"])
    assert drawn["train.lr"] <= {0.2, 0.4, 0.6, 0.8}, "and not 0.6000000000000001"
    if algorithm == "optuna":
        assert {8, 64} <= drawn["train.batch_size"]
        assert drawn["train.lr"] == {0.2, 0.4, 0.6, 0.8}
        assert drawn["train.momentum"] == {0.0, 0.3, 0.6, 0.9}
    again = search(len(plans), [plans[-1].varied])
    for one in plans[:-1]:
        optuna_search._tell(again, finished(one), "validation/average_accuracy")
    told, known = (
        [trial.params for trial in one._ot_study.trials if trial.state.name == "COMPLETE"]
        for one in (again, found)
    )
    assert told == known[:-1]
    proposal = again.suggest("trial")
    assert proposal is not None
    assert plan_of({"plan": packed(plan), **proposal}).key == plans[-1].key


SMALL = {
    "train.batch_size": Space("qloguniform", (8, 64, 8)),
    "train.schedule": Space(
        "choice", ({"name": "constant"}, {"name": "constant", "factor": 0.1}, {"name": "cosine"})
    ),
}


@pytest.mark.parametrize(
    "algorithm, seed, spaces, points",
    [
        ("optuna", 0, SMALL, 16),  # two of the three options are the same
        ("optuna", 1, SMALL, 16),
        ("optuna_gp", 0, {"train.batch_size": Space("quniform", (8, 24, 8))}, 3),
    ],
)
def test_every_point_of_a_small_space_is_proposed_once(
    algorithm: str, seed: int, spaces: dict[str, Space], points: int
) -> None:
    """Also by a search that goes on; then there is nothing left, and the same again by seed."""
    plan = base()
    plan.config["train"].update(lr=0.1, schedule={"name": "constant"})

    def search(told: list[TrialPlan]) -> tuple[optuna_search.Searcher, list[TrialPlan]]:
        drawn = optuna_search._drawn(seed, len(told))
        found = optuna_search.make_searcher(plan, spaces, algorithm, drawn, "max", [])
        for one in told:
            optuna_search._tell(found, finished(one), "validation/average_accuracy")
        plans: list[TrialPlan] = []
        while (proposal := found.suggest(f"trial{len(plans)}")) != found.FINISHED:
            assert isinstance(proposal, dict)
            plans.append(plan_of({"plan": packed(plan), **proposal}))
            result = flatten_dict(result_of({"finished": True}, score=1.0))
            found.on_trial_complete(f"trial{len(plans) - 1}", result)
        return found, plans

    found, plans = search([])
    assert found.exhausted
    assert len({one.key for one in plans}) == len(plans) == points
    assert search([])[1] == plans
    half = points // 2
    later = search(plans[:half])[1]
    assert {one.key for one in later} == {one.key for one in plans[half:]}
    assert search(plans)[1] == []


def test_a_point_is_drawn_where_optuna_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of an interval, at whose end a Gaussian process may stay."""
    same = {"space/train.lr": 0.1, "space/train.schedule": None}

    def repeat(study: Any, trial: Any, space: Any) -> dict[str, Any]:
        return same | {"space/train.schedule": space["space/train.schedule"].choices[0]}

    found = searcher()
    monkeypatch.setattr(found._sampler, "sample_relative", repeat)
    distributions = found._space
    monkeypatch.setattr(
        found._sampler, "infer_relative_search_space", lambda study, trial: distributions
    )
    plans = [ask(found, f"trial{i}") for i in range(3)]
    assert plans[0].varied["train.lr"] == 0.1
    assert len({plan.key for plan in plans}) == 3
    assert all(0.001 <= plan.varied["train.lr"] <= 0.1 for plan in plans)
    for i in range(3):
        found.on_trial_complete(f"trial{i}", flatten_dict(result_of({}, score=1.0)))


class Here:
    """A stage that calls a trial finished as soon as it is proposed, until so many are over."""

    def __init__(self, outcomes: Outcomes, stop: int = 99) -> None:
        self.hub, self.outcomes, self.stop = Hub([]), outcomes, stop

    def fit_proposed(self, base: TrialPlan, searcher: Any, num_samples: int, **_: Any) -> None:
        for i in range(min(num_samples, self.stop)):
            proposal = searcher.suggest(f"trial{i}")
            if proposal == searcher.FINISHED:
                return
            plan = plan_of({"plan": packed(base), **proposal})
            assert plan.key not in self.outcomes
            for listener in self.hub.listeners:
                listener.started(plan)
            self.outcomes.add(finished(plan))
            result = flatten_dict(result_of({"finished": True}, score=1.0))
            searcher.on_trial_complete(f"trial{i}", result)


@pytest.mark.parametrize("samples, runs", [(2, 2), (3, 3), (10, 3)])
def test_as_many_trials_run_as_there_are_points(tmp_path: Path, samples: int, runs: int) -> None:
    sweep = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "methods": ["finetune"],
        "network": {"name": "mlp", "hidden": [8]},
        "train": {"batch_size": {"quniform": [8, 24, 8]}},
        "search": {"algorithm": "optuna", "num_samples": samples, "max_concurrent": 1},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    loaded, outcomes = spec.load(tmp_path / "s.yaml"), Outcomes(tmp_path / "outcomes")
    said: list[str] = []
    tasks = {"split-digits-2": 2}
    for stop in (1, 99):  # interrupted, and continued
        here: Any = Here(outcomes, stop)
        known = Outcomes(outcomes.directory)
        optuna_search.search_adaptively(loaded, here, known, 2, said.append, tasks)
    assert len(Outcomes(outcomes.directory).all()) == runs
    line = "search of finetune on split-digits-2: its space has 3 points, all tried; "
    assert said == ([f"{line}num_samples: 10 asks for more"] if samples > runs else [])


def test_an_unfinished_proposal_comes_first() -> None:
    plan = ask(searcher(), "trial")
    assert ask(searcher(1, [plan.varied]), "other").key == plan.key


@pytest.mark.parametrize(
    "row,state", [({"finished": True}, "COMPLETE"), ({}, "PRUNED"), ({"failed": "x"}, "FAIL")]
)
def test_only_a_finished_trial_has_a_value(row: dict[str, Any], state: str) -> None:
    found = searcher()
    found.suggest("trial")
    result = flatten_dict(result_of(row, score=99.0) | {"training_iteration": 1})
    found.on_trial_result("trial", result)
    found.on_trial_complete("trial", result)
    assert found._ot_study.trials[0].state.name == state


@pytest.mark.parametrize(
    "metric,mode,score",
    [
        ("validation/average_accuracy", "max", 1.0),
        ("validation/forgetting", "min", 2.0),
        ("validation/task/forgetting", "min", 3.0),
        ("validation/learning_accuracy", "max", -math.inf),
    ],
)
def test_score(metric: str, mode: str, score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", sent.append)
    row = {
        "validation/class/average_accuracy": 1.0,
        "validation/class/forgetting": 2.0,
        "validation/task/average_accuracy": 4.0,
        "validation/task/forgetting": 3.0,
        "validation/average_accuracy": 1.0,
    }
    trainable.report(row, trainable.Settings("", 60, 2, metric, mode))
    assert sent[0]["score"] == score
    assert row_of(sent[0]) == row


def test_tune_sees_two_numbers_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune keeps 2 kB of statistics of each number it sees, for every trial, and saves them."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", sent.append)
    row = {"progress": 3, "tasks_done": 1, "result": {"cost": {"seconds": 1.5}}, "train/loss": 0.1}
    trainable.report(row, trainable.Settings("", 60, 2, "validation/average_accuracy", "max"))
    numbers = {k for k, value in flatten_dict(sent[0]).items() if isinstance(value, int | float)}
    assert numbers == {"tasks_done", "score"}


def test_options_that_exclude_each_other_are_no_point() -> None:
    """A check of each pair has passed what only three together are."""
    spaces = {
        "train.lr": Space("choice", (0.1,)),
        "train.schedule": Space("choice", ({"name": "constant"},)),
        "train.optimizer": Space("choice", ("sgd", "adam")),
        "train.momentum": Space("choice", (0.0, 0.9)),
    }
    drawn = optuna_search._drawn(0, 0)
    found = optuna_search.make_searcher(base(), spaces, "optuna", drawn, "max", [])
    proposed = []
    while (one := found.suggest(f"trial{len(proposed)}")) not in (None, found.FINISHED):
        proposed.append(one["space"])  # type: ignore[index]
    assert len(proposed) == 3
    assert ("adam", 0.9) not in {(p["train.optimizer"], p["train.momentum"]) for p in proposed}
