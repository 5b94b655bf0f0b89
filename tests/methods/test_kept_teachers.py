"""cdl: many students learn from the teachers that one trial has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raycl.errors import UserError
from raycl.testing import finish, toy_data
from raycl.training.run import Run
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.weights import build_network


def vit(width: int, depth: int, **more: Any) -> dict[str, Any]:
    size = {"img_size": 8, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2}
    arguments = size | {"embed_layer": "convolutions"}
    return {"name": "timm", "model": "vit_tiny_patch16_224", "model_args": arguments, **more}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small and a large network."""
    folder = tmp_path_factory.mktemp("data")
    for name, block in (("small", vit(16, 2)), ("large", vit(32, 3))):
        torch.manual_seed(0)
        save_file(build_network(block, (1, 8, 8)).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCL_DATA", str(root))
    monkeypatch.setenv("RAYCL_RUNS", str(root / "runs"))


LEARNERS: dict[str, dict[str, Any]] = {
    "coda_prompt": {"size": 4, "length": 2, "blocks": [0, 1]},
    "apt": {},
    "dual_prompt": {"size": 2, "blocks": [1], "general_blocks": [0]},
}


def build(learner: str = "coda_prompt", seed: int = 0, **method: Any) -> Run:
    def starting(name: str) -> dict[str, Any]:
        return {"weights": {"file": f"{name}.safetensors", "mean": [0.5], "std": [0.3]}}

    options = {"name": "cdl", "learner": {"name": learner, **LEARNERS[learner]}}
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "method": {**options, "teacher_network": vit(32, 3, **starting("large")), **method},
        "network": vit(16, 2, **starting("small")),
        "train": {"epochs": 2, "batch_size": 16, "lr": 0.01, "optimizer": "adam"},
        "seed": seed,
    }
    return Run(config, toy_data())


def saved(root: Path, run: Run, key: str) -> dict[str, str]:
    CheckpointStore(str(root / f"runs/earlier/trials/{key}")).save(run.state_dict(), 0)
    return {"trial": f"earlier/{key}"}


@pytest.mark.parametrize("learner", ["coda_prompt", "apt"])
def test_a_student_with_taken_teachers_has_the_same_bits(root: Path, learner: str) -> None:
    """A run with a kept teacher has the matrices, also the teacher's, of one that trains it."""
    keeper = build(learner, scheme="kd", keep_teachers=True)
    finish(keeper)
    trial = saved(root, keeper, learner)
    own = finish(build(learner, scheme="kdp"))
    student = build(learner, scheme="kdp", teacher=trial)
    names = set()
    while not student.done:
        names.add(student.advance()["phase"])
    assert names == {"student"}
    assert student.last_row["result"]["matrices"] == own["matrices"]
    taken, trained = student.method.state_dict(), keeper.method.state_dict()
    teachers = [name for name in taken if name.startswith("teacher.")]
    assert teachers
    assert all(torch.equal(taken[name], trained[name]) for name in teachers)


def test_resumes(root: Path) -> None:
    """Killed in its second task, it takes the second teacher again."""
    keeper = build(scheme="none", keep_teachers=True)
    finish(keeper)
    trial = saved(root, keeper, "resumed")
    whole = finish(build(scheme="kd", teacher=trial))
    first = build(scheme="kd", teacher=trial)
    for _ in range(3):
        first.advance()
    second = build(scheme="kd", teacher=trial)
    second.load_state_dict(first.state_dict())
    assert finish(second)["matrices"] == whole["matrices"]


@pytest.mark.parametrize(
    "change, what",
    [
        ({"seed": 1}, "another benchmark"),
        ({"teacher_network": vit(32, 4)}, "random weights"),
        ({"learner": "dual_prompt"}, "another method.learner"),
        ({"query_backbone": "own"}, "another method.query_backbone"),
        ({"scheme": "cdl_prompt"}, "trains teacher and student together"),
        ({"anchor": "first_task"}, "needs anchor: weights"),
        ({"teacher": {"file": "small.safetensors"}}, "teacher is a trial"),
        ({"keep_teachers": True}, "keeps teachers trained here: leave out teacher"),
        ({"teacher": {"trial": "earlier/nothing"}}, "no checkpoint of a trial 'nothing'"),
        ({"teacher": {"trial": "earlier/plain"}}, "has kept no teachers"),
        ({"teacher": {"trial": "earlier/half"}}, "teachers of 1 tasks, and 2 are to be learnt"),
    ],
)
def test_refused(root: Path, change: dict[str, Any], what: str) -> None:
    if not (root / "runs/earlier/trials/whole").exists():
        run = build(scheme="none", keep_teachers=True)
        while run.task_index < 1:
            run.advance()
        saved(root, run, "half")
        finish(run)
        saved(root, run, "whole")
        saved(root, build(scheme="none"), "plain")
    with pytest.raises((UserError, ValueError), match=what):
        build(**{"scheme": "kd", "teacher": {"trial": "earlier/whole"}, **change})
