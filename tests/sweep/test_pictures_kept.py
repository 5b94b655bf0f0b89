"""A trial keeps its method's pictures before it says that they are there. Ray is not started."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl.sweep.execution import trainable
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import packed, plan_of
from raycl.testing import toy_data
from raycl.trial.checkpoint import CheckpointStore

METHOD = '''
import torch
from raycl.methods.base import Classifier


class Painter(Classifier):
    """Shows its head's weights. Nobody, 2026. Departures: none."""

    def pictures(self):
        return {"head": self.head.weight.sigmoid().mul(255).byte().expand(3, -1, -1)}
'''
NAMES = ["head-task-1", "head-task-2"]


def plan(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "paint.py").write_text(METHOD)
    sweep = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "methods": [{"name": f"{tmp_path / 'paint.py'}:Painter"}],
        "network": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 2},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    (made,) = expand.final_plans(spec.load(tmp_path / "s.yaml"), {})
    return {"plan": packed(made)}


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Run the trial; ``die`` after so many checkpoints, before the row that follows is sent."""
    config = plan(tmp_path)
    folder = tmp_path / "store" / plan_of(config).key

    def run(die: int = 0) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        saves = [0]
        save = CheckpointStore.save

        def counting(self: Any, *args: Any) -> str:
            path = save(self, *args)
            saves[0] += 1
            if saves[0] == die:
                raise KeyboardInterrupt  # as a kill: past every handler
            return path

        def report(row: dict[str, Any], settings: Any) -> None:
            for name in row.get("pictures", ()):
                assert (folder / "pictures" / f"{name}.png").stat().st_size > 0
            sent.append(row)

        monkeypatch.setattr(CheckpointStore, "save", counting)
        monkeypatch.setattr(trainable, "report", report)
        settings = trainable.Settings(str(tmp_path / "store"), 1e9, 2, "validation/x", "max")
        try:
            trainable.trial(config, toy_data(), settings)
        except KeyboardInterrupt:
            assert die
        finally:
            monkeypatch.setattr(CheckpointStore, "save", save)
        return sent

    return run


def test_pictures_are_there_before_they_are_named(
    go: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    sent = go()
    assert "failed" not in sent[-1]
    assert sent[-1]["pictures"] == NAMES
    files = sorted((tmp_path / "store").rglob("*.png"))
    assert [file.stem for file in files] == NAMES
    assert {file.parent.name for file in files} == {"pictures"}


def test_a_killed_trial_names_them_when_it_goes_on(
    go: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Killed between the checkpoint of a task's end and its row."""
    assert not any("pictures" in row for row in go(die=1))
    (file,) = (tmp_path / "store").rglob("*.png")
    before = file.read_bytes()
    sent = go()
    assert re.match("continues from", sent[0]["note"])
    assert sent[0]["pictures"] == NAMES[:1]
    assert sent[-1]["pictures"] == NAMES
    assert file.read_bytes() == before
    assert go()[-1]["pictures"] == NAMES, "a trial that is over says so once more"
