"""Trials that differ before and after a phase share what it trains: a teacher of several students.

Trials run one after the other in this process; see ``sharing_making``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sharing_making import Killed, Lab, Trials, lab, seconds, text, without

from raycl.sweep.execution import trainable
from raycl.sweep.execution.prefixes import Spent
from raycl.sweep.plan import expand
from raycl.sweep.plan.sharing import shared_by_any
from raycl.trial.run import Row


def vit(width: int, **more: Any) -> dict[str, Any]:
    size = {"img_size": 8, "patch_size": 4, "embed_dim": width, "depth": 2, "num_heads": 2}
    return {"name": "timm", "model": "vit_tiny_patch16_224", "model_args": size | more}


def taught(label: str, scheme: str, **options: Any) -> dict[str, Any]:
    learner = {"name": "coda_prompt", "size": 4, "length": 2, "blocks": [0, 1]}
    method = {"name": "cdl", "label": label, "scheme": scheme, "learner": learner}
    return {**method, "anchor": "first_task", "teacher_network": vit(24), **options}


THREE = [taught("a", "kd"), taught("b", "kdp", alpha=0.7), taught("c", "none")]


def sweep(folder: Path, methods: list[Any] = THREE, **keys: Any) -> Lab:
    train = {"epochs": 2, "batch_size": 16, "lr": 0.01, "optimizer": "adam"}
    given: dict[str, Any] = {"methods": methods, "network": vit(16), "train": train}
    return lab(folder, text(**given | {"stop": {"tasks": 2}} | keys))


def ends(trials: Trials) -> dict[str, Any]:
    """The end of each trial, without what depends on the clock."""
    found = {}
    for name, rows in trials.items():
        result = rows[-1]["result"]
        whole = {key: value for key, value in result.items() if key not in ("cost", "matrices")}
        whole.pop("shared_seconds", None)
        cost = {k: v for k, v in result["cost"].items() if k not in ("seconds", "peak_memory_mb")}
        found[name] = (whole, cost, result["matrices"], rows[-1]["progress"])
    return found


def alone(folder: Path, one: Lab) -> dict[str, Any]:
    other = Lab(one.sweep, one.data, str(folder / "alone"))
    return ends(other.run(without(one.plans())))


@pytest.fixture(scope="module")
def three_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ends of ``THREE`` without sharing, which several tests compare with."""
    folder = tmp_path_factory.mktemp("three")
    return alone(folder, sweep(folder))


def test_students_share_their_teacher_and_end_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three_alone: dict[str, Any]
) -> None:
    monkeypatch.setattr(trainable, "EVERY_S", -1)  # every row is reported
    one = sweep(tmp_path)
    plans = one.plans()
    assert {plan.name: plan.phases for plan in plans} == {
        name: ["teacher"] for name in ("a-s0", "b-s0", "c-s0")
    }
    shared = one.run(plans)
    assert [seconds(rows) > 0 for rows in shared.values()] == [False, True, True]
    assert ends(shared) == three_alone
    for rows in shared.values():
        cost = rows[-1]["result"]["cost"]["seconds"]
        assert seconds(rows) < cost, "what others spent is part of the cost"
        teacher = [row for row in rows if row.get("phase") == "teacher"]
        assert {row["task"] for row in teacher if row["epoch"] == 1} == {0, 1}
    assert len(one.left()) == 2, "one teacher for each task"


def test_only_teachers_that_are_the_same_are_shared(tmp_path: Path) -> None:
    methods = [
        taught("a", "kd"),
        taught("b", "kdp"),
        taught("learner", "kd", learner="apt"),
        taught("network", "kd", teacher_network=vit(32)),
        taught("loss", "kd", aux_loss_scale=1),
        taught("rate", "kd", train={"lr": 0.02}),
        taught("together", "cdl_prompt"),
        {"name": "l2p", "size": 5, "length": 2, "blocks": [0], "anchor": "first_task"},
    ]
    plans = sweep(tmp_path, methods).plans()
    assert {plan.method for plan in plans if plan.phases} == {"a", "b"}
    two = sweep(tmp_path, THREE, seeds=2).plans()
    assert [plan.name for plan in two] == ["a-s0", "a-s1", "b-s0", "b-s1", "c-s0", "c-s1"]


def test_a_search_shares_teachers_if_all_its_trials_do(tmp_path: Path) -> None:
    for options, expected in (({"alpha": [0, 1]}, ["teacher"]), ({"aux_loss_scale": [1, 2]}, [])):
        varied = {name: {"uniform": bounds} for name, bounds in options.items()}
        methods = [taught("a", "kd") | varied]
        one = sweep(tmp_path, methods, search={"algorithm": "optuna"})
        (group,) = expand.groups(one.sweep)
        base = expand.search_base(one.sweep, group)
        plans = [expand.fill(base, v, 1, "search") for v in expand.each_value(group.spaces)]
        assert shared_by_any(base, plans, 2).phases == expected


@pytest.mark.parametrize("phase", ["anchor", "teacher", "student"])
def test_the_same_bits_if_trials_die(
    tmp_path: Path, phase: str, three_alone: dict[str, Any]
) -> None:
    """Each trial dies once in each phase of the second task, and once at the end of the first."""
    one = sweep(tmp_path)
    killed: set[tuple[str, bool]] = set()

    def kill(name: str, row: Row) -> None:
        at = (name, bool(row.get("at_task_end")))
        hit = row.get("phase") == phase or row.get("at_task_end")
        if hit and row.get("task") == (0 if at[1] or phase == "anchor" else 1) and at not in killed:
            killed.add(at)
            raise Killed

    one.kill = kill
    shared = one.run(one.plans(), at_once=True)
    assert len(killed) >= 3
    assert ends(shared) == three_alone
    assert sum(seconds(rows) > 0 for rows in shared.values()) >= 1


def test_a_damaged_teacher_is_trained_again(tmp_path: Path, three_alone: dict[str, Any]) -> None:
    one = sweep(tmp_path)
    first, second, _ = one.plans()
    one.run([first])
    path = sorted(one.store.named("*.pt"))[0]
    Path(path).write_bytes(Path(path).read_bytes()[:-100])
    shared = one.run([second])
    notes = [row["note"] for row in shared[second.name] if "note" in row]
    assert [path in note and "is damaged" in note for note in notes] == [True]
    assert ends(shared)[second.name] == three_alone[second.name]
    assert one.store.get(Path(path).stem), "it was not written again"


def test_a_trial_that_was_begun_with_other_code_shares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sweep(tmp_path, stop={"tasks": 3})
    first, second, _ = one.plans()
    deaths: list[int] = []

    def kill(name: str, row: Row) -> None:
        if row.get("at_task_end") and not deaths:
            deaths.append(row["task"])
            raise Killed

    one.kill = kill
    with pytest.raises(Killed):
        one._train(first)
    before = set(one.left())
    assert len(before) == 1
    monkeypatch.setattr(trainable, "process", lambda device: {"raycl": "another one"})
    deaths.clear()  # it dies once more, at the end of its second task
    one.run([first], at_once=True)
    assert len(deaths) == 1
    assert set(one.left()) == before, "its later teachers have learnt from another first one"
    one.run([second])
    assert len(one.left()) == 4


def test_teachers_go_when_nobody_needs_them(tmp_path: Path) -> None:
    one = sweep(tmp_path)
    plans = one.plans()
    one.run(plans[:1])
    spent = Spent(one.storage, plans)
    for plan in plans[:2]:
        spent.ended(plan, "finished", {}, "")
    assert len(one.left()) == 2
    spent.ended(plans[2], "finished", {}, "")
    spent.close()
    assert one.left() == []


@pytest.mark.parametrize("whose", ["network", "teacher_network"])
def test_nothing_is_shared_after_somebody_has_drawn_from_the_process(
    tmp_path: Path, whose: str
) -> None:
    """Dropout, while the first task trains the networks: its draws differ between schemes."""
    noisy = {"proj_drop_rate": 0.2}
    methods, network = [taught("a", "kd"), taught("b", "kdp")], vit(16)
    if whose == "network":
        network = vit(16, **noisy)
    else:
        methods = [one | {"teacher_network": vit(24, **noisy)} for one in methods]
    one = sweep(tmp_path, methods, network=network)
    shared = one.run(one.plans())
    assert one.left() == []
    assert ends(shared) == alone(tmp_path, one)


def test_a_learner_from_outside_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        '"""A learner of one\'s own."""\nfrom raycl.methods.apt import APT\n\n\n'
        'class Mine(APT):\n    """It may do anything (nobody, 2026)."""\n'
    )
    learner = {"name": f"{tmp_path}/mine.py:Mine"}
    methods = [taught(name, name, learner=learner) for name in ("kd", "kdp")]
    assert [plan.phases for plan in sweep(tmp_path, methods).plans()] == [[], []]


def test_a_phase_that_draws_from_the_process_is_not_left(tmp_path: Path) -> None:
    """Dropout draws from torch's own generator, which every trial has used otherwise."""
    (tmp_path / "noisy.py").write_text(
        '"""A method whose teacher has dropout."""\n'
        "import torch\n"
        "from raycl.methods.cdl import CDL\n\n\n"
        'class Noisy(CDL):\n    """It drops tokens (nobody, 2026)."""\n\n'
        "    class Config(CDL.Config):\n"
        "        alpha: float = CDL.Config.model_fields['alpha']\n\n"
        "    def begin_teacher(self):\n"
        "        super().begin_teacher()\n"
        "        torch.rand(())\n"
    )
    name = f"{tmp_path}/noisy.py:Noisy"
    methods = [taught(label, "kd", alpha=n) | {"name": name} for n, label in enumerate("ab")]
    one = sweep(tmp_path, methods)
    plans = one.plans()
    assert [plan.phases for plan in plans] == [["teacher"]] * 2
    shared = one.run(plans)
    assert one.left() == []
    assert ends(shared) == alone(tmp_path, one)
