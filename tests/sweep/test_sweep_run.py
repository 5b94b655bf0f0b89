"""What a continued sweep has to do; Ray is not started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl.errors import UserError
from raycl.sweep import run
from raycl.sweep.execution.events import Hub
from raycl.sweep.execution.stage import Stage
from raycl.sweep.execution.stages import Stages
from raycl.sweep.execution.trainable import Settings
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.plan.plan import TrialPlan, fill
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome


def execution(path: Path, **changes: Any) -> run.Execution:
    sweep = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
        "methods": [{"name": "finetune", "train": {"lr": {"grid": [0.1, 0.2]}}}],
        "network": {"name": "mlp", "hidden": [8]},
    } | changes
    (path / "s.yaml").write_text(yaml.safe_dump(sweep))
    folder = SweepFolder(path, "s")
    found = run.Execution(spec.load(path / "s.yaml"), folder, None, None, None)
    found.outcomes = folder.outcomes
    return found


def test_a_search_that_finished_nothing_is_opened_again_by_resume(tmp_path: Path) -> None:
    found = execution(tmp_path)
    for plan in expand.search_plans(found.sweep):
        found.outcomes.add(Outcome.of(plan, "error", {}, "MemoryError"))
    assert found._missing_search()
    assert found._without_winner() == [], "the search is not over"
    found.folder.record_winners({})
    ((benchmark, method),) = found._without_winner()
    assert method == "finetune"
    assert not found._missing_search()
    found.reopened = True
    assert found._missing_search()
    assert len(found._again_by_resume()) == 2
    found.folder.record_winners({(benchmark, method): {"train.lr": 0.1}})
    assert found._without_winner() == []
    assert found._missing_final()


def test_one_failed_trial_of_a_search_that_has_a_winner_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = execution(tmp_path)
    bad, good = expand.search_plans(found.sweep)
    found.outcomes.add(Outcome.of(bad, "error", {}, "TrainingError: the loss is nan"))
    assert found._failed()[0], "the search is open, and resume tries it again"
    found.folder.record_winners({(good.benchmark, good.method): good.varied})
    again, passed_over = found._failed()
    assert (again, [o.key for o in passed_over]) == ([], [bad.key])
    monkeypatch.setattr(found, "_report", lambda: True)
    assert found._conclude("FINISHED", 0) == 0
    assert not found.reopened
    said = capsys.readouterr().err
    assert "failed, so the search chose among others: " in said
    assert "run them again" not in said


def test_a_table_without_a_method_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = execution(tmp_path)
    found.folder.record_winners({})
    monkeypatch.setattr(found, "_report", lambda: None)
    assert found._conclude("FAILED", 0) == 1
    assert "its search finished nothing" in capsys.readouterr().err


def test_changed_code_is_named(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    folder.claim("one", {"a": 1})
    assert folder.claim("one", {"a": 1})
    with pytest.raises(UserError, match="the code or the defaults of a method"):
        folder.claim("two", {"a": 1})
    with pytest.raises(UserError, match=r"differs in a\)"):
        folder.claim("two", {"a": 2})


def test_what_does_not_change_results_may_change(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "demo")
    old = {"name": "demo", "seeds": [0], "resources": {"cpu": 1}}
    sweep_id = folder.claim("one", old)
    assert folder.claim("one", old | {"resources": {"cpu": 2}}) == sweep_id
    assert folder.identity()["resolved"]["resources"] == {"cpu": 2}
    with pytest.raises(UserError, match=r"\(differs in seeds\)"):
        folder.check("two", old | {"seeds": [0, 1], "storage": "/shared"})


@pytest.mark.parametrize(
    "changes, reordered",
    [
        ({}, True),
        ({"scheduler": {"name": "asha"}}, False),
        ({"search": {"num_samples": 1, "time_budget": 9}}, False),
    ],
)
def test_search_trials_start_in_the_order_of_the_file_where_some_are_stopped(
    tmp_path: Path, changes: dict[str, Any], reordered: bool
) -> None:
    """Otherwise those go first that leave what others need: here one of each method."""
    names = ("ewc", "online_ewc")
    methods = [{"name": name, "lam": {"grid": [1, 2]}} for name in names]
    found = execution(tmp_path, methods=methods, **changes)
    started: list[str] = []

    class Stopped(Exception):
        pass

    class Staged(Stage):
        def fit(self, plans: Sequence[TrialPlan], **options: Any) -> None:
            started.extend(plan.key for plan in plans)
            raise Stopped

    hub = Hub([])
    stage = Staged({}, Settings("", 1, 2, "m", "max"), 0, 1, tmp_path, hub)
    data = check_data(found.sweep, tmp_path)
    stages = Stages(found.sweep, found.folder, found.outcomes, stage, data, found.console, print)
    with pytest.raises(Stopped):
        stages.search()
    plans = expand.search_plans(found.sweep)
    assert len(started) == 4
    order = [started.index(plan.key) for plan in plans]
    assert (order != [0, 1, 2, 3]) == reordered
    assert hub.listeners == []


def test_a_search_whose_time_was_over_before_anything_finished_goes_on(tmp_path: Path) -> None:
    def cut(path: Path, **changes: Any) -> run.Execution:
        path.mkdir()
        found = execution(path, **changes)
        for plan in expand.search_plans(found.sweep):
            found.outcomes.add(Outcome.of(plan, "stopped-early", {}, ""))
        found.folder.record_winners({})
        return found

    found = cut(tmp_path / "limited", search={"num_samples": 1, "time_budget": 9})
    again = found._again_by_resume()
    assert len(again) == 2
    found._forget(again)
    assert found.folder.outcomes.all() == []
    (group,) = found._without_winner()
    found.folder.record_winners({group: {"train.lr": 0.1}})
    assert found._again_by_resume() == [], "it has a winner"
    assert cut(tmp_path / "not", scheduler={"name": "asha"})._again_by_resume() == []


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_only_groups_without_a_winner_are_searched_again(
    tmp_path: Path,
    algorithm: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first of two methods has used up all the time; the second has begun nothing."""
    options = {"lam": {"quniform": [1, 9, 1]}}
    methods = [{"name": name, **options} for name in ("ewc", "online_ewc")]
    search = {"num_samples": 3, "time_budget": 9, "algorithm": algorithm, "max_concurrent": 1}
    found = execution(tmp_path, methods=methods, search=search)
    first, second = expand.groups(found.sweep)
    base = expand.search_base(found.sweep, first)
    for lam, status in ((1.0, "finished"), (2.0, "stopped-early"), (3.0, "error")):
        plan = fill(base, {"method.lam": lam}, 1000, "search")
        found.outcomes.add(Outcome.of(plan, status, {}, ""))  # type: ignore[arg-type]
    label = (first.benchmark, first.method)
    found.folder.record_winners({label: {"method.lam": 1.0}})
    monkeypatch.setattr(found, "_report", lambda: False)
    assert found._conclude("FAILED", 0) == 1
    said = capsys.readouterr().err
    assert "give the search as much time again with: raycl resume s" in said
    assert "run them again" not in said
    found.reopened = bool(found._without_winner())
    assert found._missing_search()
    assert found._again_by_resume() == []

    asked: list[str] = []

    class Staged(Stage):
        def fit(self, plans: Sequence[TrialPlan], **options: Any) -> None:
            asked.extend(plan.method for plan in plans)

        def fit_proposed(self, base: TrialPlan, *_: Any, **options: Any) -> None:
            asked.append(base.method)
            assert options["time_budget_s"] > 8, "nobody else gets any"

    stage = Staged({}, Settings("", 1, 2, "m", "max"), 0, 1, tmp_path, Hub([]))
    data = check_data(found.sweep, tmp_path)
    stages = Stages(found.sweep, found.folder, found.outcomes, stage, data, found.console, print)
    monkeypatch.setattr("raycl.sweep.execution.stages.choose_winners", lambda *_: {})
    monkeypatch.setattr("raycl.sweep.execution.stages.remove", lambda *_: None)
    stages.search()
    assert set(asked) == {second.method}
    assert found.folder.winners() == {label: {"method.lam": 1.0}}


def test_what_is_refused_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a failed trial's outcome nor a damaged one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = execution(tmp_path, methods=["finetune"], seeds=2)
    bad, torn = expand.final_plans(found.sweep, {})
    found.outcomes.add(Outcome.of(bad, "error", {}, "MemoryError"))
    (found.folder.path / "outcomes" / f"{torn.key}.json").write_text("{")
    before = sorted(path.name for path in (found.folder.path / "outcomes").iterdir())

    def refuse(*_: Any) -> None:
        raise UserError("name", "was begun with other code or data")

    monkeypatch.setattr(found, "_accept", refuse)
    with pytest.raises(UserError, match="other code or data"):
        found.run(retry_errors=True)
    monkeypatch.setattr(found, "_accept", lambda _: None)
    monkeypatch.setattr(run.cluster, "connect", refuse)
    with pytest.raises(UserError):
        found.run(retry_errors=True)
    assert sorted(path.name for path in (found.folder.path / "outcomes").iterdir()) == before
