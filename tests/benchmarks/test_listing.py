"""A folder sequence is listed once, where the sweep file is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from raycl.benchmarks.folder_sequence import FolderSequence


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.new("L", (8, 8)).save(path)


def test_the_tasks_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        picture(tmp_path / "animals" / name / "cat" / "1.png")
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    block = {"name": "folder_sequence", "path": "animals"}
    config = FolderSequence.Config.model_validate(block)
    assert config.tasks == ("a", "b")
    picture(tmp_path / "animals" / "c" / "cat" / "1.png")
    again = FolderSequence.Config.model_validate(config.model_dump())
    assert again.tasks == ("a", "b")
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path / "elsewhere"))
    assert FolderSequence.Config.model_validate(block).tasks is None
