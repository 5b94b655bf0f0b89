from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.errors import UserError
from raycl.tracking.journal import Journal, Ledger, Lock, chunk, count, locked, read
from tests.waiting import until


def metrics(step: int, key: str = "a", axis: str = "progress", nonfinite: int = 0) -> dict:
    return {
        "event": "metrics",
        "ms": 1,
        "key": key,
        "axis": axis,
        "step": step,
        "values": {"train/loss": 0.5, "train/lr": 0.1},
        "nonfinite": nonfinite,
    }


def steps(path: Path) -> list[int]:
    return [event["step"] for _, _, event in read(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tracking.jsonl"


def test_an_unfinished_last_line_waits(path: Path) -> None:
    Journal(path).append([metrics(1), metrics(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert steps(path) == [1]
    path.write_bytes(whole)
    assert steps(path) == [1, 2]


def test_a_torn_line_costs_only_itself(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Journal(path).append([metrics(1), metrics(2)])
    path.write_bytes(path.read_bytes()[:-10])
    Journal(path).append([metrics(3)])  # the driver was killed while it wrote line 2
    assert steps(path) == [1, 3]
    assert "unreadable line" in caplog.text


def test_reading_goes_on_from_an_offset_in_chunks(path: Path) -> None:
    Journal(path).append([metrics(i) for i in range(100)])
    seen, offset, chunks = [], 0, 0
    while offset < path.stat().st_size:
        lines, end = chunk(path, offset, 1000)
        assert 1000 <= end - offset < 1200 or end == path.stat().st_size
        seen += [event["step"] for _, event in lines]
        offset, chunks = end, chunks + 1
    assert seen == list(range(100))
    assert chunks > 5
    assert chunk(path, offset, 1000) == ([], offset)
    assert count(path, 0) == 200  # two values in each line


def test_a_chunk_has_its_damaged_lines_but_not_an_unfinished_one(path: Path) -> None:
    damage = b"\0" * 99 + b"\n"
    path.write_bytes(damage * 20)
    Journal(path).append([metrics(1)])
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(damage + b"unfinished")
    assert chunk(path, 0, 1000) == ([], 1000)
    assert chunk(path, 2000, 1000) == ([(2000, metrics(1))], whole + 100)


def test_no_events_are_no_line(path: Path) -> None:
    journal = Journal(path)
    journal.append([metrics(1)])
    before = path.read_bytes()
    journal.append([])
    assert path.read_bytes() == before


def test_numpy_numbers_are_written(path: Path) -> None:
    event = {"event": "end", "result": {"R": np.eye(2, dtype=np.float32), "n": np.int64(3)}}
    Journal(path).append([event])
    assert [e["result"] for _, _, e in read(path)] == [{"R": [[1.0, 0.0], [0.0, 1.0]], "n": 3}]


def test_the_ledger_knows_marks_attempts_and_open_trials(path: Path) -> None:
    Journal(path).append(
        [
            {"event": "sweep"},
            {"event": "trial", "key": "a", "attempt": 1},
            metrics(4, nonfinite=1),
            metrics(3),
            metrics(1, axis="tasks_done", nonfinite=2),
            {"event": "trial", "key": "b", "attempt": 1},
            {"event": "end", "key": "b", "status": "error"},
            {"event": "trial", "key": "c", "attempt": 1},
            {"event": "end", "key": "c", "status": "killed"},
            {"event": "trial", "key": "c", "attempt": 2},
        ]
    )
    ledger = Ledger.of(path)
    assert ledger.marks == {("a", "progress"): 4, ("a", "tasks_done"): 1}
    assert ledger.attempts == {"a": 1, "b": 1, "c": 2}
    assert ledger.open_trials == ["a", "c"]
    assert ledger.nonfinite == {"a": 2}
    assert not ledger.closed


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from raycl.tracking.journal import Lock;"
        "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert locked(tmp_path)
        with pytest.raises(UserError, match="another process"):
            Lock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    until(lambda: not locked(tmp_path))


class Small:
    """A file on a disk that takes so many bytes more."""

    def __init__(self, real: Any, room: int) -> None:
        self.real, self.room = real, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        done = self.real.write(data[: min(self.room, 7)])
        self.room -= done
        return int(done)


def test_lines_that_fit_only_in_part_are_cut_off_again(path: Path) -> None:
    journal = Journal(path)
    journal.append([metrics(1)])
    before = path.read_bytes()
    journal._file = Small(journal._file, 50)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        journal.append([metrics(2), metrics(3)])
    assert path.read_bytes() == before
    journal._file.room = 10_000  # type: ignore[attr-defined]
    journal.append([metrics(4)])  # seven bytes at a time
    assert steps(path) == [1, 4]


def test_to_look_whether_somebody_runs_a_sweep_writes_nothing(tmp_path: Path) -> None:
    assert not locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_may_not_be_read_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError

    lock = Lock(tmp_path)
    assert locked(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", closed)
        assert not locked(tmp_path)
    lock.release()
