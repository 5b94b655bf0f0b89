from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from raycl.trial.checkpoint import CheckpointStore


def store(tmp_path: Path, *steps: int) -> CheckpointStore:
    found = CheckpointStore(str(tmp_path / "trial"))
    for step in steps:
        found.save({"step": step, "w": torch.full((4,), float(step))}, step)
    return found


def test_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    found = store(tmp_path, 1, 2, 10)
    loaded = found.load()
    assert loaded is not None
    assert loaded.state["step"] == 10
    assert not loaded.damaged
    assert [Path(p).name for p in found.paths()] == ["step-000000002.pt", "step-000000010.pt"]
    assert not list((tmp_path / "trial").glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_newest_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    found = store(tmp_path, 1, 2)
    newest = Path(found.paths()[-1])
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "truncate": content[:middle],
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
        }[damage]
    )
    loaded = found.load()
    assert loaded is not None
    assert loaded.state["step"] == 1
    assert loaded.path.endswith("step-000000001.pt")
    assert [Path(p).name for p in loaded.damaged] == ["step-000000002.pt"]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    found = store(tmp_path, 1, 2)
    for path in found.paths():
        Path(path).write_bytes(b"torn")
    with pytest.raises(ValueError, match="every checkpoint is damaged"):
        found.load()


def test_nothing_there(tmp_path: Path) -> None:
    assert store(tmp_path).load() is None


def test_other_file_systems() -> None:
    found = CheckpointStore("memory://raycl-test/trial")
    found.save({"step": 3}, 3)
    loaded = found.load()
    assert loaded is not None
    assert loaded.state == {"step": 3}


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """Checkpoints hold tensors and plain values; anything else is refused when read."""
    found = CheckpointStore(str(tmp_path))
    found.save({"path": Path("x")}, 1)
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        found.load()


def test_keep_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CheckpointStore(str(tmp_path), keep=1)


@pytest.mark.parametrize("name", ["[a]*", "a::b", "a?b", "ü #%41"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    found = store(tmp_path / name, 1, 2)
    assert len(found.paths()) == 2
    loaded = found.load()
    assert loaded is not None
    assert loaded.state["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_steps_may_have_more_digits(tmp_path: Path) -> None:
    found = store(tmp_path, 999_999_998, 999_999_999, 1_000_000_000, 12_000_000_000)
    assert [int(path.rpartition("-")[2][:-3]) for path in found.paths()] == [
        1_000_000_000,
        12_000_000_000,
    ]
    loaded = found.load()
    assert loaded is not None
    assert loaded.state["step"] == 12_000_000_000


def test_a_damaged_newest_one_does_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    found = store(tmp_path, 1, 2, 9)
    Path(found.paths()[-1]).write_bytes(b"torn")
    for step in (3, 4):  # the trial goes on from the second step
        found.save({"step": step}, step)
    names = [Path(path).name for path in found.paths()]
    assert names == ["step-000000003.pt", "step-000000004.pt", "step-000000009.pt"]
    for step in (9, 10):
        found.save({"step": step}, step)
    assert [Path(path).name for path in found.paths()] == ["step-000000009.pt", "step-000000010.pt"]


def test_drafts_of_killed_workers_are_removed_after_an_hour(tmp_path: Path) -> None:
    found = store(tmp_path, 1)
    old, new = (tmp_path / "trial" / name for name in (".a.tmp", ".b.tmp"))
    for draft in (old, new):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    found.save({}, 2)
    assert not old.exists()
    assert new.exists(), "somebody may still write it"
