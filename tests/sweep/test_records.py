"""A sweep's own files: damaged ones are mended or named, and they alone make its table."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl import atomic, cli
from raycl.cli import showing
from raycl.errors import UserError
from raycl.gif.command import Wish, gif
from raycl.report.load import TrackedRun, TrackedSweep
from raycl.report.local import joined
from raycl.report.notes import notes
from raycl.sweep import run as sweep_run
from raycl.sweep.execution import trainable
from raycl.sweep.execution.optuna_search import Proposals
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record import local
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.made_of import MadeOf
from raycl.sweep.record.outcomes import Outcome, Outcomes
from raycl.sweep.record.tracked import Tracked, sweep_record
from raycl.tracking import Tracker
from raycl.tracking.journal import JOURNAL, Journal, Ledger
from raycl.tracking.lines import lacking
from raycl.tracking.state import STATE, State
from raycl.training import metrics
from raycl.verify import verify

MINE = '''
from mended_helper import FACTOR
from raycl.methods.finetune import Finetune


class Mine(Finetune):
    """Mine. Departures: none."""
'''


def result(value: float) -> dict[str, Any]:
    matrix = [[value, None], [value, value]]
    import numpy as np

    computed = metrics.compute(np.array(matrix, dtype=float))
    return {
        "matrices": {"class": matrix},
        "validation_matrices": {},
        "baseline": {"class": [None, None]},
        "sizes": [10, 10],
        "metrics": {"class": computed},
        "validation_metrics": {"class": computed},
        "cost": {"seconds": 1.0},
        "tasks": ["a", "b"],
        "seeds": {"class_order": 0, "init": 0, "data": 0},
    }


def execution(path: Path, **changes: Any) -> sweep_run.Execution:
    sweep = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "methods": ["finetune"],
        "network": {"name": "mlp", "hidden": [8]},
        "seeds": 2,
    } | changes
    (path / "s.yaml").write_text(yaml.safe_dump(sweep))
    folder = SweepFolder(path / "runs", "s")
    found = sweep_run.Execution(spec.load(path / "s.yaml"), folder, None, None, None)
    found.outcomes = folder.outcomes
    return found


class Away(Tracker):
    """A tracker that keeps its journal and never sends it."""

    def _send_all(self) -> None:
        self._closing.wait()


@pytest.mark.parametrize("tracking", [{}, {"pictures": True}, {"pictures": False}])
def test_the_tracker_is_told_whether_pictures_are_wanted(
    tmp_path: Path, tracking: dict[str, bool]
) -> None:
    """Also by `raycl sync`, from the folder's own records."""
    found = execution(tmp_path, tracking=tracking)
    wanted = tracking.get("pictures", True)
    assert sweep_record(found.sweep, "id", "").pictures is wanted
    found.folder.claim("hash", found.sweep.resolved())
    assert sweep_record(spec.load(found.folder.resolved_file), "id", "").pictures is wanted


def test_a_sweep_goes_on_whose_smoke_block_is_about_methods_that_were_overridden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = execution(tmp_path, methods=["finetune", "joint"], smoke={"methods[1].label": "x"})
    sweep = spec.load(tmp_path / "s.yaml", ["methods=[finetune]"])
    found.folder.claim("hash", sweep.resolved())
    with pytest.raises(UserError, match="smoke"):
        spec.load(found.folder.resolved_file)
    monkeypatch.setattr(
        sweep_run.Execution, "run", lambda self, retry_errors: len(self.sweep.methods)
    )
    assert sweep_run.resume("s", found.folder.root, None, None, None) == 1
    assert local._record(found.folder).name == "s"
    with pytest.raises(UserError, match="finished"):
        verify("s", 1.0, found.folder.root, None, None)
    with pytest.raises(UserError, match="game"):
        gif("s", found.folder.root, None, None, Wish(None, (), 1, 1, None))


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sweep_run.Execution:
    """A sweep of two trials that have finished, whose tracking server was away."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sweep_run, "Tracker", Away)
    found = execution(tmp_path)
    found.made_of = MadeOf("1", {}, {"data set digits": "bundled"})

    def tags(plan: TrialPlan) -> dict[str, str]:
        return {"made_of": "one"}

    def on_cluster(data: Any, tracker: Tracker) -> None:
        listeners = [Tracked(tracker, "trials", tags), sweep_run.Recorder(found.outcomes, tags)]
        for plan in expand.final_plans(found.sweep, {}):
            row = {"finished": True, "result": result(80.0 + plan.seed), "cost/seconds": 1.0}
            for listener in listeners:
                listener.started(plan)
                listener.ended(plan, "finished", row, "")

    monkeypatch.setattr(found, "_on_cluster", on_cluster)
    assert found._tracked({})[0] == "FINISHED"
    return found


def means(sweep: TrackedSweep) -> list[Any]:
    from raycl.report.table import make_table

    return [
        (row["n"], row["mean"])
        for row in make_table(sweep).rows
        if row["metric"] == "average_accuracy"
    ]


@pytest.mark.parametrize("lost", ["nothing", JOURNAL, "outcomes", "spec.json", "an end"])
def test_the_table_comes_from_whatever_is_left(ended: sweep_run.Execution, lost: str) -> None:
    folder = ended.folder
    if lost == "an end":
        path = folder.path / JOURNAL
        lines = [
            line for line in path.read_bytes().splitlines(True) if b'"event":"end"' not in line
        ]
        path.write_bytes(b"".join(lines))
    elif lost == "outcomes":
        shutil.rmtree(folder.path / lost)
    elif lost != "nothing":
        (folder.path / lost).unlink()
    found = local.load(folder)
    assert found is not None
    assert means(found) == [(2, 80.5)]
    assert {run.end for run in found.runs} == {"finished"}
    assert {run.made_of for run in found.runs} == {"one"}
    assert ("cost/seconds" in found.runs[0].metrics) == (lost != "outcomes")


def test_success_means_a_table(
    ended: sweep_run.Execution, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended._conclude("FINISHED", 20) == 0
    said = capsys.readouterr()
    assert "80.50" in said.out
    assert "20 values did not reach" in said.err
    assert (ended.folder.path / "report" / "table.csv").is_file()
    key = ended.outcomes.all()[0].key
    real = local.load

    def without_one(folder: SweepFolder) -> TrackedSweep:
        found = real(folder)
        assert found is not None
        kept = [run for run in found.runs if run.trial_key != key]
        return TrackedSweep(found.name, "", found.sweep_id, "", found.spec, kept)

    monkeypatch.setattr(local, "load", without_one)
    assert ended._conclude("FINISHED", 0) == 1
    assert f"not in the table: {ended.outcomes.all()[0].name}" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_no_success(
    ended: sweep_run.Execution, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(ended.folder.path / "report", ignore_errors=True)
    (ended.folder.path / "report").write_text("in the way")
    assert ended._conclude("FINISHED", 20) == 1
    said = capsys.readouterr()
    assert "80.50" in said.out, "the table is printed all the same"
    assert "the report cannot be written" in said.err


def test_report_and_its_store(
    ended: sweep_run.Execution, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, differences = local.read("s", ended.folder.root, None)
    assert means(sweep) == [(2, 80.5)]
    assert "the table is from the sweep's folder: there is no " in differences[0]
    with pytest.raises(UserError, match="there is no"):
        local.read("s", ended.folder.root, f"sqlite:///{ended.folder.root}/other.db")
    with pytest.raises(UserError, match="there is no"):
        local.read("nothing-of-this-name", ended.folder.root, None)


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


FULL = "stopped: results cannot be kept: [Errno 28] No space left on device"


def test_nothing_is_begun_on_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = execution(tmp_path)
    monkeypatch.setattr(SweepFolder, "lock", full)  # which writes this process's number
    assert found.run() == 1
    assert capsys.readouterr().err.splitlines() == [FULL, "nothing had begun; run it again"]


def test_a_sweep_does_not_go_on_while_its_disk_is_full(
    ended: sweep_run.Execution, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_run, "Tracker", Tracker)
    monkeypatch.setattr(Journal, "append", full)
    (ended.folder.path / "outcomes" / f"{ended.outcomes.all()[0].key}.json").unlink()
    ended.accept_changes = True
    monkeypatch.setattr(ended, "_with_cluster", lambda *_: ended._conclude(*ended._tracked({})))
    assert ended.run() == 1
    again = "when that is put right, continue with: raycl resume s"
    assert capsys.readouterr().err.splitlines()[-2:] == [FULL, again]


def test_any_command_on_a_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_a_tracking_server_may_be_away_when_a_sweep_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "http://127.0.0.1:9"
    first = execution(tmp_path, tracking={"uri": uri})
    with pytest.raises(UserError, match="no tracking server answers"):
        first.run()
    State(uri, None).save(first.folder.path / STATE)
    again = execution(tmp_path, tracking={"uri": uri})
    again._check_store()
    assert "no tracking server answers at http://127.0.0.1:9" in capsys.readouterr().err
    other = execution(tmp_path, tracking={"uri": "http://127.0.0.1:1"})
    with pytest.raises(UserError, match="no tracking server answers"):
        other._check_store()


def test_an_end_that_the_journal_lacks_brings_its_pictures(ended: sweep_run.Execution) -> None:
    end = local.ends(ended.folder, ended.outcomes.all())[0]
    row = {**end.row, "pictures": ["head-task-1.png"]}
    lines = lacking(replace(end, row=row), Ledger())
    (pictures,) = [line for line in lines if line["event"] == "pictures"]
    assert pictures["names"] == ["head-task-1.png"]
    assert pictures["folder"] == f"trials/{end.record.key}/pictures"


def run_of(key: str, **changes: Any) -> TrackedRun:
    base = {
        "run_id": f"id-{key}", "name": key, "kind": "trial", "benchmark": "b", "method": "m",
        "seed": 0, "config_key": "c", "trial_key": key, "end": "finished", "reason": "",
        "started": 1, "metrics": {}, "result": result(50.0),
    }  # fmt: skip
    return TrackedRun(**(base | changes))


def test_what_only_the_store_has_is_in_the_table_too() -> None:
    mine = TrackedSweep(
        "s", "", "id", "", {}, [run_of("a", run_id=""), run_of("b", result=None, end="orphaned")]
    )
    theirs = TrackedSweep(
        "s", "uri", "id", "parent", {"x": 1}, [run_of(k, result=result(1.0)) for k in "abc"]
    )
    both = {run.trial_key: run for run in joined(mine, theirs).runs}
    assert both["a"].run_id == "id-a"
    assert both["a"].result == result(50.0), "the folder is right"
    assert both["b"].end == "finished"
    assert set(both) == {"a", "b", "c"}


def test_results_of_other_code_are_named_in_the_report() -> None:
    runs = [run_of("a", made_of="one"), run_of("b", made_of="two"), run_of("c", made_of="two")]
    sweep = TrackedSweep("s", "", "id", "", {}, runs, "helper on 2026-01-01")
    (said,) = [line for line in notes(sweep, [], [], None) if "same code" in line]
    assert "1 and 2 trials; changed and accepted: helper on 2026-01-01" in said
    same = TrackedSweep("s", "", "id", "", {}, runs[1:])
    assert not [line for line in notes(same, [], [], None) if "same code" in line]


# -- damaged files -----------------------------------------------------------------------------

BROKEN = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "of a newer raycl": lambda text: json.dumps(json.loads(text) | {"new": 1}),
    "a list": lambda text: "[]",
    "a wrong type": lambda text: json.dumps(json.loads(text) | {"seed": "x"}),
    "a status that is none": lambda text: json.dumps(json.loads(text) | {"status": "done"}),
    "of another trial": lambda text: json.dumps(json.loads(text) | {"key": "0" * 16}),
    "without its result": lambda text: json.dumps(json.loads(text) | {"row": {"finished": True}}),
    "zeros": lambda text: "\0" * 500,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_outcome_is_set_aside(ended: sweep_run.Execution, how: str) -> None:
    path = sorted((ended.folder.path / "outcomes").glob("*.json"))[0]
    path.write_text(BROKEN[how](path.read_text()))
    outcomes = ended.folder.outcomes
    assert len(outcomes.all()) == 1
    found = local.load(ended.folder)
    assert found is not None
    assert means(found) == [(2, 80.5)], "the journal has its result"
    assert path.exists(), "a report changes nothing"
    (said,) = outcomes.set_aside()
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith(": the trial goes on from its checkpoint")
    assert "\n" not in said
    assert ended.folder.outcomes.damaged == []
    assert path.with_suffix(".damaged").exists()


def test_a_damaged_outcome_of_a_search_may_be_needed_no_more(ended: sweep_run.Execution) -> None:
    one, other = sorted((ended.folder.path / "outcomes").glob("*.json"))
    for path in (one, other):
        path.write_text("{")
    said = ended.folder.outcomes.set_aside({one.stem})
    assert said[0].endswith(": the trial goes on from its checkpoint")
    assert said[1].endswith(", if its search is still open")


def test_an_outcome_of_an_older_raycl_is_read(ended: sweep_run.Execution) -> None:
    for path in (ended.folder.path / "outcomes").glob("*.json"):
        found = json.loads(path.read_text())
        del found["tags"], found["config"]
        path.write_text(json.dumps(found))
    assert len(ended.folder.outcomes.all()) == 2
    assert means(local.load(ended.folder)) == [(2, 80.5)]  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["empty", "half", "a list", "zeros", "gone"])
def test_a_damaged_specification_is_derived_from_the_journal(
    ended: sweep_run.Execution, how: str
) -> None:
    folder = ended.folder
    before = folder.identity()
    if how == "gone":
        folder.spec_file.unlink()
    else:
        folder.spec_file.write_text(BROKEN[how](folder.spec_file.read_text()))
    (said,) = SweepFolder.existing(folder.root, "s").mend()
    assert said.startswith(f"{folder.spec_file} is ")
    assert said.endswith(f"written again from {JOURNAL}")
    now = folder.identity()
    assert {k: now[k] for k in ("hash", "sweep_id", "resolved")} == {
        k: before[k] for k in ("hash", "sweep_id", "resolved")
    }
    folder.check(expand.spec_hash(ended.sweep), ended.sweep.resolved())
    assert folder.mend() == []


def test_one_that_cannot_be_derived_is_one_line(ended: sweep_run.Execution) -> None:
    (ended.folder.path / JOURNAL).unlink()
    ended.folder.spec_file.write_text("{")
    with pytest.raises(atomic.Damaged) as caught:
        ended.folder.mend()
    assert str(caught.value).startswith(f"{ended.folder.spec_file}: is damaged (")
    assert "restore it from a copy, or choose another name" in str(caught.value)


@pytest.mark.parametrize("content", ["", "name: [", "- a list", None])
def test_a_damaged_sweep_file_is_written_again(
    ended: sweep_run.Execution, content: str | None
) -> None:
    folder = ended.folder
    if content is None:
        folder.resolved_file.unlink()
    else:
        folder.resolved_file.write_text(content)
    (said,) = folder.mend()
    assert str(folder.resolved_file) in said
    assert spec.load(folder.resolved_file).resolved() == ended.sweep.resolved()


@pytest.mark.parametrize("content", ["", "{}", '[{"benchmark": 1}]', "[1]", "\0\0"])
def test_damaged_winners_are_those_that_were_run(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [{"name": "finetune", "train": {"lr": {"grid": [0.1, 0.2]}}}]
    found = execution(tmp_path, methods=methods)
    searched = expand.search_plans(found.sweep)
    for plan in searched:
        row = {"finished": True, "result": result(plan.varied["train.lr"])}
        found.outcomes.add(Outcome.of(plan, "finished", row, ""))
    (benchmark, method) = (searched[0].benchmark, searched[0].method)
    found.folder.record_winners({(benchmark, method): {"train.lr": 0.2}})
    file = found.folder.path / "winners.json"
    file.write_text(content)
    with pytest.raises(atomic.Damaged):
        found.folder.winners()
    (said,) = found._mend_winners()
    assert said.startswith(f"{file} is damaged (")
    assert found.folder.winners() == {(benchmark, method): {"train.lr": 0.2}}, "the best"
    assert not found._missing_search()

    final = expand.final_plans(found.sweep, {(benchmark, method): {"train.lr": 0.1}})[0]
    found.outcomes.add(Outcome.of(final, "finished", {"result": result(1.0)}, ""))
    file.write_text(content)
    found._mend_winners()
    assert found.folder.winners() == {(benchmark, method): {"train.lr": 0.1}}, "that was run"


def test_damaged_winners_of_a_sweep_without_a_search(ended: sweep_run.Execution) -> None:
    (ended.folder.path / "winners.json").write_text("")
    assert len(ended._mend_winners()) == 1
    assert ended._mend_winners() == []


def test_proposals_written_by_halves_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "proposals.jsonl"
    plan = expand.final_plans(execution(tmp_path).sweep, {})[0]
    Proposals(path).started(plan)
    whole = path.read_bytes()
    path.write_bytes(b'{"key": "x"}\nnull\n\xff\n' + whole + whole[:20])
    proposals = Proposals(path)
    assert set(proposals._rows) == {plan.key}
    other = expand.final_plans(execution(tmp_path, seeds=[7]).sweep, {})[0]
    proposals.started(other)
    assert set(Proposals(path)._rows) == {plan.key, other.key}, "its line is its own"


def test_lists_of_runs_and_doctor_live_with_damage(
    ended: sweep_run.Execution, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (ended.folder.path / "outcomes").glob("*.json"):
        path.write_text("")
    showing.list_("runs", ended.folder.root)
    assert "s" in capsys.readouterr().out


# -- other code, other data --------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sweep_run.Execution:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mended_helper", raising=False)  # of another test
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mended_helper.py").write_text("FACTOR = 1.0\n")
    found = execution(tmp_path, methods=["mine.py:Mine"])
    made_of = now(found)
    found.folder.claim(expand.spec_hash(found.sweep), found.sweep.resolved())
    found.folder.record_made_of(made_of, [])
    (found.folder.path / JOURNAL).touch()
    return found


def now(found: sweep_run.Execution) -> MadeOf:
    return MadeOf.of(found.sweep, found.data_root, found.folder.root)


def test_a_sweep_does_not_go_on_with_other_code(
    mine: sweep_run.Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine._accept(now(mine))
    before = now(mine)
    assert set(before.code["mine.py"]) == {"mine.py", "mended_helper"}
    (tmp_path / "mended_helper.py").write_text("FACTOR = 0.0\n")
    with pytest.raises(UserError) as caught:
        mine._accept(now(mine))
    assert "was begun with other code or data: mended_helper; " in str(caught.value)
    assert "--accept-changes" in str(caught.value)
    mine.accept_changes = True
    mine._accept(now(mine))
    assert "accepted: mended_helper" in capsys.readouterr().err
    mine.folder.record_made_of(now(mine), mine.accepted)
    assert mine.folder.made_of() == now(mine)
    (change,) = mine.folder.changes()
    assert change.startswith("mended_helper on 2")
    mine.accept_changes = False
    mine._accept(now(mine))
    assert now(mine).key != before.key


def test_nothing_has_begun_yet(mine: sweep_run.Execution, tmp_path: Path) -> None:
    (mine.folder.path / JOURNAL).unlink()
    (tmp_path / "mended_helper.py").write_text("FACTOR = 0.0\n")
    mine._accept(now(mine))


def test_every_difference_has_a_name() -> None:
    before = MadeOf("1", {"mine.py": {"mine.py": "a", "lib": "b"}}, {"data set x": "1", "y": "2"})
    after = MadeOf("2", {"mine.py": {"mine.py": "a", "new": "c"}}, {"data set x": "9", "y": "2"})
    assert after.changes(before) == ["raycl 1, now 2", "lib (gone)", "new (new)", "data set x"]
    assert after.changes(after) == []
    assert MadeOf.recorded({"made_of": json.loads(json.dumps(asdict(before)))}) == before
    assert MadeOf.recorded({}) is None


def test_lists_of_one_folder_are_data_sets_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b", "photos/cat/0"):
        path = tmp_path / f"{name}.{'png' if '/' in name else 'yaml'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    benchmarks = []
    for name in ("a", "b", "a"):
        lists = {"train": f"{name}.yaml", "test": f"{name}.yaml"}
        dataset = {"name": "folder", "path": "photos", "split_file": lists}
        label = f"{name}{len(benchmarks)}"
        benchmarks.append({"name": "split", "dataset": dataset, "tasks": 2, "label": label})
    sweep = execution(tmp_path, benchmark=benchmarks).sweep
    record = MadeOf.of(sweep, tmp_path, tmp_path)
    first, second = record.data
    assert first == "data set photos", "as recorded where there is one"
    assert second.startswith("data set photos (folder-")
    (tmp_path / "a.yaml").write_text("another")
    assert MadeOf.of(sweep, tmp_path, tmp_path).changes(record) == [first]
    (tmp_path / "b.yaml").write_text("another one")
    assert MadeOf.of(sweep, tmp_path, tmp_path).changes(record) == [first, second]


def test_code_that_changes_while_the_sweep_runs_ends_it(
    mine: sweep_run.Execution, tmp_path: Path
) -> None:
    (plan, *_) = expand.final_plans(mine.sweep, {})
    made_of = now(mine)
    assert made_of.changed(plan.config) == []
    (tmp_path / "mended_helper.py").write_text("FACTOR = 0.5\n")
    assert made_of.changed(plan.config) == [], "this process runs the old one"
    (tmp_path / "mine.py").write_text(MINE + "# changed\n")
    assert made_of.changed(plan.config) == ["mended_helper", "mine.py"]
    settings = trainable.Settings("s", 60, 2, "m", "max")
    trainable._check_made_of(settings, plan)
    with pytest.raises(trainable.Unkept, match=r"mended_helper, mine.py changed since the sweep"):
        trainable._check_made_of(replace(settings, made_of=made_of), plan)


def test_the_ledger_and_outcomes_agree_after_a_start(ended: sweep_run.Execution) -> None:
    assert Ledger.of(ended.folder.path / JOURNAL).statuses == {
        outcome.key: "finished" for outcome in Outcomes(ended.folder.path / "outcomes").all()
    }
