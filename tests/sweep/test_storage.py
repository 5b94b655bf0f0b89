"""One driver per storage; what is full, foreign or gone is said in one line. Ray is not started."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from test_events import Log, trial

from raycl.errors import UserError
from raycl.sweep.execution import cluster, events, stage, storage, trainable
from raycl.sweep.execution.cluster import bundles
from raycl.sweep.execution.events import Events, Hub
from raycl.sweep.execution.reaper import began
from raycl.sweep.execution.rows import result_of
from raycl.sweep.execution.stage import Stage, _quiet_stdout
from raycl.sweep.execution.storage import LEASE, Lease
from raycl.sweep.plan.expand import Preview
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record import folder
from raycl.tracking import journal


def lease(url: str, sweep_id: str) -> Lease:
    return Lease(url, sweep_id, Path("/some/runs/s"))


def test_a_second_driver_of_another_folder_is_refused(tmp_path: Path) -> None:
    for url in (str(tmp_path / "s"), f"memory://bucket-{uuid.uuid4().hex}/s"):
        with lease(url, "a").held():
            with (
                pytest.raises(
                    UserError, match=rf"in use by process {os.getpid()} on .*/some/runs/s"
                ),
                lease(url, "b").held(),
            ):
                pytest.fail("both hold it")
            with lease(url, "a").held():
                pass  # the same folder: its own lock has the last word
        with lease(url, "b").held():
            pass
        assert not lease(url, "b").fs.exists(lease(url, "b").place)


def test_a_driver_of_a_copied_folder_is_refused(tmp_path: Path) -> None:
    """The copy has the sweep's identity, and a lock of its own."""
    copy = Lease(str(tmp_path), "a", Path("/other/runs/s"))
    with lease(str(tmp_path), "a").held():
        with pytest.raises(UserError, match="in use by process"), copy.held():
            pytest.fail("both hold it")
        with lease(str(tmp_path), "a").held():
            pass
    with copy.held():
        pass
    lease(str(tmp_path), "a")._write()
    left = json.loads((tmp_path / LEASE).read_text())
    stale = {"machine": "another boot", "beat": time.time() - storage.STALE_S - 1}
    (tmp_path / LEASE).write_text(json.dumps(left | stale))
    with copy.held():
        assert json.loads((tmp_path / LEASE).read_text())["folder"] == "/other/runs/s"


class Beats:
    """An event that is never set, for so many beats."""

    def __init__(self, left: int) -> None:
        self.left = left

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_lease_that_cannot_be_renewed_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine, full = lease(str(tmp_path), "a"), OSError(errno.ENOSPC, "No space left on device")
    beats = [full, full, None, full, full, full]

    def write() -> None:
        if found := beats.pop(0):
            raise found

    monkeypatch.setattr(mine, "_write", write)
    mine._renew(Beats(len(beats)))  # type: ignore[arg-type]
    assert beats == []
    assert caplog.text.count("cannot be renewed: [Errno 28] No space left") == 2


def test_what_tune_prints_needs_no_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _quiet_stdout(tmp_path / "tune.log"):
        print("± one")
    assert (tmp_path / "tune.log").read_text() == "± one\n"
    with _quiet_stdout(Path("/dev/full")):
        print("two")
    print("three")
    assert capsys.readouterr().out == "three\n"


def test_a_driver_that_died_is_forgotten(tmp_path: Path) -> None:
    old = lease(str(tmp_path), "a")
    old._write()
    with pytest.raises(UserError, match="in use"), lease(str(tmp_path), "b").held():
        pass
    file = tmp_path / LEASE
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"beat": time.time() - storage.STALE_S - 1}))
    with lease(str(tmp_path), "b").held():
        assert json.loads(file.read_text())["sweep_id"] == "b"


GONE = """
import sys
from pathlib import Path
from raycl.sweep.execution.storage import Lease

Lease(sys.argv[1], "another id, for the folder had none yet", Path("/some/runs/s"))._write()
"""


def test_a_driver_of_this_machine_that_is_gone_is_forgotten_at_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", GONE, str(tmp_path)], check=True)
    file = tmp_path / LEASE
    left = json.loads(file.read_text())
    for other in (
        {"machine": "another boot"},
        {"pid": str(os.getpid()), "began": began(os.getpid())},
    ):
        file.write_text(json.dumps(left | other))
        with pytest.raises(UserError, match="in use"), lease(str(tmp_path), "b").held():
            pass
    for own in ({}, {"pid": str(os.getpid())}):  # the number belongs to another process now
        file.write_text(json.dumps(left | own))
        with lease(str(tmp_path), "b").held():
            assert json.loads(file.read_text())["sweep_id"] == "b"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\0\0", b'{"sweep_id": "x"}'])
def test_a_damaged_lease_is_written_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEASE).write_bytes(content)
    with lease(str(tmp_path), "b").held():
        assert json.loads((tmp_path / LEASE).read_text())["sweep_id"] == "b"


def test_a_driver_that_was_replaced_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease as old as after a night in a closed laptop."""
    monkeypatch.setattr(storage, "BEAT_S", 0.05)
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        mine = lease(str(tmp_path), "a")
        with mine.held():
            time.sleep(0.2)
            assert not got
            while not got:
                lease(str(tmp_path), "b")._write()  # again, for a renewal may have come between
                time.sleep(0.02)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
    assert "/some/runs/s" in mine.taken_by
    assert json.loads((tmp_path / LEASE).read_text())["sweep_id"] == "b", "it is the other's now"


def test_only_ones_own_lease_is_removed(tmp_path: Path) -> None:
    mine = lease(str(tmp_path), "a")
    with mine.held():  # suspended, and ended before it looks again
        lease(str(tmp_path), "b")._write()
    assert json.loads((tmp_path / LEASE).read_text())["sweep_id"] == "b"


def test_a_file_system_may_raise_anything_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndpointConnectionError(Exception):
        pass

    def away(*arguments: Any, **options: Any) -> None:
        raise EndpointConnectionError

    mine = lease(str(tmp_path), "a")
    with mine.held():
        monkeypatch.setattr(type(mine.fs), "rm", away)
    assert (tmp_path / LEASE).exists(), "it goes stale"


def test_unusable_storage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught, lease(str(tmp_path / "file" / "s"), "a").held():
        pass
    assert str(caught.value).startswith(f"storage: {tmp_path}/file/s cannot be used: ")
    with pytest.raises(UserError, match="nosuch"), lease("nosuch://x/y", "a").held():
        pass


@pytest.mark.parametrize(
    "error, raised",
    [
        (OSError(errno.ENOSPC, "No space left on device"), trainable.Unkept),
        (OSError(errno.EROFS, "Read-only file system"), trainable.Unkept),
        (PermissionError("Access Denied"), trainable.Unkept),
        (OSError(errno.ESTALE, "Stale file handle"), trainable.Unreachable),
        (ConnectionError("reset"), trainable.Unreachable),
        (ValueError("every checkpoint is damaged"), ValueError),
    ],
)
def test_whose_fault_it_is(error: Exception, raised: type[Exception]) -> None:
    with pytest.raises(raised) as caught, trainable.kept():
        raise error
    assert str(error) in str(caught.value)
    assert trainable.lost(caught.value) == (raised is trainable.Unreachable)


def test_full_storage_ends_the_stage_and_no_trial_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(events.os, "kill", lambda pid, number: sent.append(number))
    log = Log()
    hub = Hub([log])
    followed = Events(hub, lambda: None, grace_s=60)
    one, two = trial("k", "t1"), trial("l", "t2")
    for found in (one, two):
        followed.on_trial_start(0, [], found)
    followed.on_step_begin(0, [])
    assert not sent
    followed.on_trial_result(0, [], one, result_of({"unkept": "No space left on device"}))
    followed.on_trial_complete(0, [], one)
    followed.on_step_begin(0, [])
    assert sent == [signal.SIGUSR1], "at once: nothing can be saved"
    assert "No space left" in hub.broken
    followed.on_trial_complete(0, [], two)
    assert [call for call in log.calls if call[0] == "ended"] == [
        ("ended", "k", "killed"),
        ("ended", "l", "killed"),
    ]


def test_a_driver_that_cannot_write_ends_the_stage() -> None:
    class Full(Log):
        def ended(self, *arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = Log()
    hub = Hub([Full(), log])
    followed = Events(hub, lambda: None, grace_s=60)
    one = trial("k", "t1")
    followed.on_trial_start(0, [], one)
    followed.on_trial_result(0, [], one, result_of({"finished": True}))
    followed.on_trial_complete(0, [], one)
    assert "No space left" in hub.broken
    assert log.calls[-1] == ("ended", "k", "finished"), "the others hear of it"


def test_a_worker_that_never_came_up_is_a_failed_trial() -> None:
    log = Log()
    followed = Events(Hub([log]), lambda: None, grace_s=60)
    one = trial("k", "t1")
    one.get_error = lambda: (
        "Failure # 1 (occurred at 2026-01-01_00-00-00)\nOne\n"
        "Failure # 2 (occurred at 2026-01-01_00-00-09)\nThe actor\ndied"
    )
    followed.on_trial_error(0, [], one)
    followed.on_trial_error(0, [], one)
    assert [call[0] for call in log.calls] == ["started", "ended"]
    assert log.calls[-1] == ("ended", "k", "error")


class Tuner:
    """Tune, with its own rule for retries; the first trial is lost a minute after each start."""

    def __init__(self, trainable: Any, *, param_space: Any, tune_config: Any, run_config: Any):
        most = run_config.failure_config.max_failures
        configs = [{"plan": plan} for plan in param_space["plan"]["grid_search"]]
        self.trials = [Trial("x", config=one, stub=True, max_failures=most) for one in configs]
        (self.told,) = run_config.callbacks

    def fit(self) -> None:
        bad, good = self.trials
        self.told.on_trial_start(0, [], bad)
        while True:
            events.time.now += 60
            bad.run_metadata.num_failures += 1
            if not bad.should_recover():
                break
            self.told.on_trial_recover(0, [], bad)
            self.told.on_trial_start(0, [], bad)
        self.told.on_trial_error(0, [], bad)
        self.told.on_trial_start(0, [], good)
        self.told.on_trial_result(0, [], good, result_of({"finished": True}))
        self.told.on_trial_complete(0, [], good)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_trial_that_is_lost_too_often_has_failed_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, retries: int
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(events, "time", clock)
    monkeypatch.setattr(stage.tune, "Tuner", Tuner)
    log = Log()
    settings = trainable.Settings(str(tmp_path), 60, 2, "validation/x", "max")
    plans = [TrialPlan(key, key, key, "m", "b", 0, "trial", {}, {"cpu": 1.0}) for key in "ab"]
    Stage({}, settings, retries, 60, tmp_path / "tune" / "last", Hub([log])).fit(plans)
    bad = [call[0] for call in log.calls if call[1] == "a"]
    assert bad == ["started", *["lost", "started"] * retries, "ended"]
    ends = [call for call in log.calls if call[0] == "ended"]
    assert ends == [("ended", "a", "error"), ("ended", "b", "finished")]


def test_the_end_waits_until_all_have_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    asked: list[bool] = []
    monkeypatch.setattr(events.os, "kill", lambda pid, number: sent.append(number))
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(events, "time", clock)
    log = Log()
    hub = Hub([log])
    followed = Events(hub, lambda: asked.append(True), grace_s=60)
    one, two = trial("k", "t1"), trial("l", "t2")
    for found in (one, two):
        followed.on_trial_start(0, [], found)
    hub.interrupted = True
    followed.on_trial_result(0, [], one, result_of({"parked": True}))
    followed.on_step_begin(0, [])
    followed.on_step_begin(0, [])
    assert asked == [True]
    assert not sent
    followed.on_trial_result(0, [], two, result_of({"parked": True}))
    followed.on_step_begin(0, [])
    assert sent == [signal.SIGUSR1]
    assert not [call for call in log.calls if call[0] == "row"], "a parked trial says nothing new"

    followed.on_trial_result(0, [], two, result_of({"progress": 1}))
    sent.clear()
    clock.now = 59.0
    followed.on_step_begin(0, [])
    assert not sent
    clock.now = 61.0
    followed.on_step_begin(0, [])
    assert sent == [signal.SIGUSR1], "no longer than the grace"


LIMITED = """
import numpy, torch
from raycl.sweep.execution.trainable import at_most

def much():
    return numpy.ones(1_500_000_000, dtype=numpy.uint8)

for make, error in ((much, MemoryError), (lambda: torch.ones(1_500_000_000), RuntimeError)):
    with at_most(1.0):
        small = torch.ones(10_000_000)
        try:
            make()
        except error as e:
            print(type(e).__name__, e)
        else:
            raise SystemExit("not limited")
print(len(much()))
with at_most(0):
    print(len(much()))
"""


def test_a_trial_can_be_limited_in_memory() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "can't allocate memory" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["1500000000"] * 2, "the limit ends with the trial"


def test_memory_is_asked_of_ray() -> None:
    asked = bundles({"cpu": 1.0, "gpu": 0.0, "memory": 2.5, "env_runners": 1})
    assert asked == [{"CPU": 1.0, "memory": 2.5e9}, {"CPU": 1.0}]
    assert bundles({"cpu": 0.5, "gpu": 0.25, "memory": 0.0}) == [{"CPU": 0.5, "GPU": 0.25}]


def asks(**resources: float) -> Preview:
    return Preview("final", "x-s0", "b", "m", 0, {}, {"cpu": 1.0, "gpu": 0.0} | resources)


def test_one_node_must_have_all_that_a_trial_asks_for() -> None:
    nodes = [{"CPU": 8.0, "memory": 4e9}, {"CPU": 2.0, "GPU": 1.0, "memory": 64e9}]
    cluster._check([asks(cpu=8.0), asks(cpu=2.0, gpu=1.0, memory=64.0)], nodes)
    with pytest.raises(cluster.TooMuch, match="asks for 4 CPUs and 1 GPUs at once; no node has"):
        cluster._check([asks(cpu=4.0, gpu=1.0)], nodes)
    with pytest.raises(cluster.TooMuch, match="asks for 4 CPUs and 8 GB of memory at once"):
        cluster._check([asks(cpu=4.0, memory=8.0)], nodes)
    with pytest.raises(cluster.TooMuch, match=r"the largest node has 8$"):
        cluster._check([asks(cpu=9.0)], nodes)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder.fcntl, "flock", no_locks)
    said = f"--runs: {tmp_path}/?s?: its file system has no locks: {os.strerror(number)}; give"
    with pytest.raises(UserError, match=said), folder.SweepFolder(tmp_path, "s").lock():
        pass
    with pytest.raises(UserError, match=said):
        journal.Lock(tmp_path)
