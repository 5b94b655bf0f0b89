"""Shared prefixes: trials take from others what they have in common, and come to the same bits."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pytest
from sharing_making import Killed, Lab, lab, measured, seconds, text, without

from raycl.sweep.execution import trainable
from raycl.sweep.execution.prefixes import FOLDER, Spent, remove
from raycl.sweep.plan import expand, sharing
from raycl.sweep.plan.sharing import shared_by_any
from raycl.training.run import Run
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.run import Row

ROOT = Path(__file__).parents[2]
SEARCH = text(
    methods=[{"name": "online_ewc", "gamma": {"grid": [1.0, 0.5]}, "lam": {"grid": [1.0, 30.0]}}],
    search={"num_samples": 1},
)


@pytest.fixture(autouse=True)
def every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials report every row, not only those that are due."""
    monkeypatch.setattr(trainable, "EVERY_S", 0.0)


def alone(path: Path, one: Lab) -> dict[str, Any]:
    """What each trial of a sweep reports if it shares nothing."""
    other = Lab(one.sweep, one.data, str(path / "alone"))
    return {name: measured(rows) for name, rows in other.run(without(one.plans())).items()}


def test_a_disturbed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = lab(tmp_path / "a", SEARCH), lab(tmp_path / "b", SEARCH)
    one.run(one.plans()[:1])
    assert len(one.left()) == 2
    monkeypatch.setattr(Run, "exact", False)
    other.run(other.plans()[:1])
    assert other.left() == []


# ---------------------------------------------------------------------- the plan


def points(one: Lab) -> dict[str, list[int]]:
    return {plan.name: plan.points for plan in one.plans()}


def test_methods_share_their_first_task_and_values_of_an_option_what_comes_before_it(
    tmp_path: Path,
) -> None:
    methods = [
        "finetune",
        {"name": "ewc", "outputs": "seen", "label": "a"},
        {"name": "ewc", "outputs": "seen", "label": "b", "lam": 3.0},
        {"name": "ewc", "outputs": "seen", "label": "c", "fisher": "per_example"},
        {"name": "ewc", "outputs": "task", "label": "d"},
        {"name": "online_ewc", "label": "e", "gamma": 0.5},
        {"name": "online_ewc", "label": "f"},
        {"name": "online_ewc", "label": "g", "train": {"lr": 0.01}},
        "blip",
    ]
    assert points(lab(tmp_path, text(methods=methods))) == {
        "finetune-s0": [1],
        "a-s0": [1, 2],
        "b-s0": [1, 2],
        "c-s0": [1],
        "d-s0": [],  # other outputs
        "e-s0": [1, 3],
        "f-s0": [1, 3],
        "g-s0": [],  # another rate
        "blip-s0": [],
    }


def test_what_nobody_needs_is_not_left(tmp_path: Path) -> None:
    """Two trials that part late do not need what they share before."""
    methods = [{"name": "online_ewc", "label": label, "gamma": n} for n, label in enumerate("ab")]
    assert points(lab(tmp_path, text(methods=methods))) == {"a-s0": [3], "b-s0": [3]}
    assert points(lab(tmp_path, text(methods=methods, stop={"tasks": 1}))) == {
        "a-s0": [1],
        "b-s0": [1],
    }
    same = [{"name": "joint", "label": name} for name in "ab"]
    assert points(lab(tmp_path, text(methods=same))) == {"a-s0": [7], "b-s0": [7]}


def test_a_class_of_ones_own_claims_only_what_it_says_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '"""A method of one\'s own."""\n'
        "from raycl.methods.lwf import LwF\n\n\n"
        'class Mine(LwF):\n    """It may use its options for anything (nobody, 2026)."""\n'
    )
    name = f"{tmp_path}/mine.py:Mine"
    methods: list[Any] = [{"name": name, "label": label, "lam": n} for n, label in enumerate("ab")]
    assert set(map(str, points(lab(tmp_path, text(methods=[*methods, "lwf"]))).values())) == {"[]"}
    source = (tmp_path / "mine.py").read_text() + (
        "\n    class Config(LwF.Config):\n"
        "        lam: float = Field(1.0, json_schema_extra=from_task(2))\n\n"
        '    first_task_of = "finetune"\n'
    )
    imports = "from pydantic import Field\nfrom raycl.methods.base import from_task\n"
    (tmp_path / "mine.py").write_text(source.replace("from raycl", f"{imports}from raycl", 1))
    found = points(lab(tmp_path, text(methods=[*methods, "lwf"])))
    assert found == {"a-s0": [1, 2], "b-s0": [1, 2], "lwf-s0": [1]}


def test_trials_that_leave_what_others_need_go_first(tmp_path: Path) -> None:
    methods = [
        {"name": "ewc", "outputs": "seen", "label": "a", "lam": {"grid": [1, 2, 3]}},
        {"name": "online_ewc", "label": "b", "lam": {"grid": [1, 2]}},
        "blip",
    ]
    one = lab(tmp_path, text(methods=methods))
    order = [plan.name.partition("-s")[0] for plan in one.plans()]
    assert order == ["a-lam1", "b-lam1", "a-lam2", "a-lam3", "b-lam2"]
    assert [plan.key for plan in one.plans(share=False)] == [
        plan.key for plan in expand.search_plans(one.sweep)
    ]


def test_a_search_that_proposes_shares_what_all_proposals_do(tmp_path: Path) -> None:
    options = {"lam": {"loguniform": [1, 100]}, "gamma": {"uniform": [0, 1]}}
    methods = [{"name": "online_ewc"} | options]
    search = {"algorithm": "optuna"}
    for more, expected in (({}, [2]), ({"train": {"lr": {"uniform": [0.1, 0.2]}}}, [])):
        one = lab(tmp_path, text(methods=[methods[0] | more], search=search))
        (group,) = expand.groups(one.sweep)
        base = expand.search_base(one.sweep, group)
        plans = [expand.fill(base, v, 1, "search") for v in expand.each_value(group.spaces)]
        assert shared_by_any(base, plans, one.tasks[base.benchmark]).points == expected


# ---------------------------------------------------------------------- the trials


def test_every_matrix_of_blip_and_its_baselines_is_the_same(tmp_path: Path) -> None:
    """Every row, too, with its pictures; costs are those that the trial has alone."""
    path = str(ROOT / "sweeps" / "blip" / "digits.yaml")
    one = lab(tmp_path, path, "train.epochs=2", smoke=True)
    shared = one.run(one.plans())
    assert {name: measured(rows) for name, rows in shared.items()} == alone(tmp_path, one)
    took = {name for name, rows in shared.items() if seconds(rows)}
    assert len(took) == 4  # of the eight: one in each of three groups, and blip, train for others
    for rows in shared.values():
        cost = rows[-1]["result"]["cost"]["seconds"]
        assert seconds(rows) < cost
        assert cost > next(row["cost/seconds"] for row in rows if row["at_task_end"])
    assert len(one.left()) == 3


def test_the_same_bits_under_kills(tmp_path: Path) -> None:
    """Trials die when they report, also while they repeat the rows of others."""
    one = lab(tmp_path, SEARCH)
    chooser, killed = random.Random(0), []

    def kill(name: str, row: Row) -> None:
        if len(killed) < 12 and chooser.random() < 0.4:
            killed.append(name)
            raise Killed

    one.kill = kill
    shared = one.run(one.plans())
    assert len(killed) == 12
    assert {name: measured(rows) for name, rows in shared.items()} == alone(tmp_path, one)
    assert sum(seconds(rows) > 0 for rows in shared.values()) == 3


@pytest.mark.parametrize("task", [1, 2])
def test_who_continues_leaves_nothing_and_others_have_all_rows(tmp_path: Path, task: int) -> None:
    """The first trial dies when it reports a task's end, before it can leave the state."""
    one = lab(tmp_path, SEARCH)
    killed: list[str] = []

    def kill(name: str, row: Row) -> None:
        if not killed and row.get("at_task_end") and row["tasks_done"] == task:
            killed.append(name)
            raise Killed

    one.kill = kill
    shared = one.run(one.plans(), at_once=True)
    assert len(killed) == 1
    assert {name: measured(rows) for name, rows in shared.items()} == alone(tmp_path, one)
    for name, rows in shared.items():
        ends = {row["tasks_done"] for row in rows if row.get("at_task_end")}
        assert ends == set(range(1, max(ends) + 1)), name


def test_deeper_prefixes_are_taken_where_trials_part(tmp_path: Path) -> None:
    one = lab(tmp_path, SEARCH)
    plans = one.plans()
    assert {tuple(plan.points) for plan in plans} == {(2, 3)}
    shared = one.run(plans)
    first_new = {}
    for name, rows in shared.items():
        ends = [row["cost/seconds"] for row in rows if row["at_task_end"]]
        first_new[name] = sum(end <= seconds(rows) for end in ends)
    assert sorted(first_new.values()) == [0, 1, 1, 1]
    examples = {name: rows[-1]["result"]["cost"]["examples"] for name, rows in shared.items()}
    assert len(set(examples.values())) == 1


def test_a_task_taken_before_its_end_has_a_checkpoint_at_its_end(tmp_path: Path) -> None:
    """The state that was taken is saved at once, under the number of steps that the end has."""
    methods = [{"name": "online_ewc", "gamma": {"grid": [1.0, 0.5]}}]
    train = {"epochs": 1, "batch_size": 16, "lr": 0.05}
    one = lab(tmp_path, text(methods=methods, train=train, stop={"tasks": 2}))
    plans = one.plans()
    trials = one.run(plans)
    assert [plan.points for plan in plans] == [[3], [3]]
    taken = [plan for plan in plans if seconds(trials[plan.name])]
    assert len(taken) == 1
    for plan in plans:
        loaded = CheckpointStore(f"{one.storage}/{plan.key}").load()
        assert loaded is not None
        tasks_over, _, progress, _ = loaded.state["position"]
        assert (tasks_over, progress) == (2, 2)
        assert loaded.state["last"]["finished"]
        assert loaded.state["made"]["device"]


@pytest.mark.parametrize("harm", ["torn", "empty"])
def test_a_damaged_prefix_is_passed_over(tmp_path: Path, harm: str) -> None:
    methods = ["finetune", "lwf_seen"]
    one = lab(tmp_path, text(methods=methods))
    first, second = one.plans()
    one.run([first])
    (path,) = one.store.named("*.pt")
    Path(path).write_bytes(Path(path).read_bytes()[:-100] if harm == "torn" else b"")
    shared = one.run([second])[second.name]
    assert "is damaged" in shared[0]["note"]
    assert path in shared[0]["note"]
    assert measured(shared) == alone(tmp_path, one)[second.name]
    assert seconds(shared) == 0
    assert one.store.get(Path(path).stem), "it was not written again"


def test_any_storage_will_do(tmp_path: Path) -> None:
    where = f"memory://{uuid.uuid4().hex}/s"
    one = lab(tmp_path, text(methods=["finetune", "lwf_seen"]), storage=where)
    shared = one.run(one.plans())
    assert [seconds(rows) > 0 for rows in shared.values()] == [False, True]
    assert len(one.left()) == 1
    remove(one.storage)
    assert not one.store.fs.exists(one.store.root)


def test_pictures_are_those_of_the_trial_itself(tmp_path: Path) -> None:
    (tmp_path / "drawn.py").write_text(
        '"""A method that draws."""\n'
        "from pydantic import Field\n"
        "from raycl.methods.base import from_task\n"
        "from raycl.methods.finetune import Finetune\n\n\n"
        'class Drawn(Finetune):\n    """It draws its head (nobody, 2026)."""\n\n'
        "    class Config(Finetune.Config):\n"
        "        late: float = Field(1.0, json_schema_extra=from_task(3))\n\n"
        "    def pictures(self):\n"
        "        return {'head': self.head.weight.sigmoid().mul(255).byte().expand(3, -1, -1)}\n"
    )
    name = f"{tmp_path}/drawn.py:Drawn"
    methods = [{"name": name, "label": label, "late": n} for n, label in enumerate("ab")]
    one = lab(tmp_path, text(methods=methods))
    plans = one.plans()
    assert [plan.points for plan in plans] == [[4], [4]]
    first, second = one.run(plans).values()
    assert seconds(second) > 0
    assert measured(second).keys() == measured(first).keys()
    drawn = [Path(one.storage, plan.key, "pictures") for plan in plans]
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in drawn]
    assert files[0] == files[1]
    assert {f"{name}.png" for name in second[-1]["pictures"]} == files[1].keys()


def test_a_state_made_of_something_else_is_not_taken(tmp_path: Path, monkeypatch: Any) -> None:
    """Another device or another version of a library may round otherwise."""
    one = lab(tmp_path, text(methods=["finetune", "lwf_seen"]))
    first, second = one.plans()
    one.run([first])
    monkeypatch.setattr(trainable, "process", lambda device: {"device": "another one"})
    assert seconds(one.run([second])[second.name]) == 0
    assert len(one.left()) == 2


# ---------------------------------------------------------------------- afterwards


def test_a_state_goes_when_nobody_needs_it(tmp_path: Path) -> None:
    one = lab(tmp_path, SEARCH)
    plans = one.plans()
    one.run(plans[:3])
    left = set(one.left())
    assert len(left) == 3  # one after the first task, two after the training of the second
    spent = Spent(one.storage, plans)
    spent.ended(plans[0], "killed", {}, "")  # it goes on later
    for plan in plans:
        spent.ended(plan, "finished", {}, "")
    spent.close()
    assert one.left() == []


def test_a_storage_without_its_package_is_told_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was left there is only in the way, and a finished sweep needs nothing of it."""

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("raycl.trial.checkpoint.fsspec.url_to_fs", missing)
    remove("s3://bucket/s")
    (said,) = caplog.messages
    assert said == "s3://bucket/s/prefix cannot be removed: Install s3fs to access S3"


def test_the_keys_of_trials_do_not_depend_on_sharing(tmp_path: Path) -> None:
    with_it, without_it = (lab(tmp_path, SEARCH, f"share={word}") for word in ("true", "false"))
    assert {p.key for p in with_it.plans()} == {p.key for p in without_it.plans(share=False)}
    assert expand.spec_hash(with_it.sweep) == expand.spec_hash(without_it.sweep)
    assert FOLDER == "prefix"
    assert sharing.FIRST == 1
