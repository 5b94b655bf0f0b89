"""Signals to the driver, to everybody, and the death of what was started. Ray is not started."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from raycl.sweep.execution import ray_here, reaper, signals
from raycl.sweep.execution.ray_here import RayDied, Watch, _agents
from tests.waiting import until


def send(number: int) -> None:
    """To the main thread: others, pytest's own, have no signal blocked."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", signals.STOP)
def test_any_of_them_ends_the_driver_and_none_cuts_its_end_short(number: int) -> None:
    before = signal.getsignal(number)
    with signals.raised():
        with pytest.raises(KeyboardInterrupt):
            send(number)
        with signals.unheard():
            send(number)
            send(signals.RAY_DIED)
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert signal.getsignal(number) == before


def test_further_signals_do_nothing_while_trials_save() -> None:
    noted: list[int] = []
    with signals.noted(lambda: noted.append(1), grace_s=60):
        for number in (*signals.STOP, signal.SIGINT, signal.SIGINT):
            send(number)
    assert noted == [1]
    with signals.noted(lambda: noted.append(2), grace_s=0.0):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert noted == [1, 2]


def test_nohup_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raised():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_started_blocked_does_not_hear_those_to_everybody() -> None:
    mine = [signal.getsignal(number) for number in signals.STOP]
    code = "print(1, flush=True); input(); print(2)"
    with signals.raised():
        block = signals.blocked()
        block.__enter__()
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(15))  # as Ray does
        for number in signals.GROUP:
            child.send_signal(number)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):  # heard at the end, by our handler
            block.__exit__(None, None, None)
        assert child.communicate(b"\n")[0] == b"2\n"
        assert child.returncode == 0
    assert [signal.getsignal(number) for number in signals.STOP] == mine


GONE = """
import os, signal, sys, time
from rich.console import Console
from raycl.sweep.execution import signals

try:
    with signals.raised():
        print("up", file=sys.stderr, flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    for _ in range(3):
        Console(stderr=True).print("more")
    print("survived")
"""


def test_a_closed_terminal() -> None:
    """SIGHUP, and writing fails from then on."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", GONE],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(theirs)
    assert b"up" in os.read(mine, 100)
    os.close(mine)
    process.send_signal(signal.SIGHUP)
    assert process.communicate()[0] == b"survived\n"


# -- the end of what was started ---------------------------------------------------------------

DRIVER = """
import os, subprocess, sys, time
from raycl.sweep.execution import ray_here

with ray_here.reaped() as process:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    marked = subprocess.Popen(sleep, start_new_session=True)
    bare = {k: v for k, v in os.environ.items() if k != ray_here.MARK}
    named = subprocess.Popen(sleep, env=bare)
    ray_here.tell(process)
    other = subprocess.Popen(sleep, env=bare)
    print(process.pid, marked.pid, named.pid, other.pid, flush=True)
    if sys.argv[1] == "killed":
        time.sleep(60)
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_nothing_outlives_the_driver(how: str) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, how], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    watcher, marked, named, other = map(int, driver.stdout.readline().split())
    try:
        if how == "killed":
            driver.kill()
        driver.wait()
        until(lambda: not any(map(reaper.began, (watcher, marked, named))))
        assert reaper.began(other), "what is not Ray's is nobody's business"
    finally:
        driver.stdout.close()
        for pid in (marked, named, other):
            if reaper.began(pid):
                os.kill(pid, signal.SIGKILL)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])


def test_the_agents_of_a_raylet_are_watched() -> None:
    names = ("ray::RuntimeEnvAgent", "ray::DashboardAgent", "ray::IDLE")
    sleeping = " & ".join(f"(exec -a {name} sleep 60)" for name in names)
    raylet = subprocess.Popen(["bash", "-c", f"{sleeping} & wait"])
    try:
        until(lambda: len(_agents(raylet.pid)) >= 2)
        found = [psutil.Process(pid).cmdline()[0] for pid in _agents(raylet.pid)]
        assert sorted(found) == ["ray::DashboardAgent", "ray::RuntimeEnvAgent"]
    finally:
        for child in psutil.Process(raylet.pid).children():
            child.kill()
        raylet.wait()
    assert _agents(raylet.pid) == []


def bereft(watch: Watch, process: subprocess.Popen[bytes]) -> None:
    with watch.watching():
        process.kill()
        time.sleep(600)


@pytest.mark.parametrize("first", [0, 1])
def test_the_death_of_ray_is_raised_in_the_main_thread(
    monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    pair = [sleeper(), sleeper()]
    monkeypatch.setattr(Watch, "_processes", lambda self: [process.pid for process in pair])
    watch = Watch()
    try:
        with pytest.raises(RayDied):
            bereft(watch, pair[first])
        assert watch.died
        assert pair[1 - first].wait() == -signal.SIGKILL, "it would tell Ray's library"
    finally:
        for process in pair:
            process.kill()
            process.wait()


def test_a_main_thread_that_hangs_in_rays_library(monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper()
    monkeypatch.setattr(Watch, "_processes", lambda self: [process.pid])
    monkeypatch.setattr(ray_here, "STUCK_S", 0.1)
    called: list[bool] = []
    watch = Watch(lambda: (called.append(True), watch._over.set()))  # type: ignore[arg-type,func-returns-value]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signals.RAY_DIED})
    try:
        with watch.watching():
            process.kill()
            process.wait()
            until(lambda: called)
        assert called == [True]
        signal.sigtimedwait({signals.RAY_DIED}, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_an_orderly_end_of_ray_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper()
    monkeypatch.setattr(Watch, "_processes", lambda self: [process.pid])
    watch = Watch()
    with watch.watching():
        pass
    process.kill()
    process.wait()
    assert not watch.died


def test_sockets_get_a_shorter_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/short")
    assert ray_here.temporary_folder() is None
    deep = "/scratch/of-a-batch-job-with-a-long-name/slurm_jobdir/1355700"
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, deep)
        folder: Any = ray_here.temporary_folder()
        assert len(folder) + len("/ray") + ray_here.SOCKET < ray_here.LONGEST


def test_the_processes_of_a_driver_are_told_apart_from_later_ones() -> None:
    process = sleeper()
    when = reaper.began(process.pid)
    assert when
    reaper.kill([(process.pid, "123")], "no=mark")
    assert psutil.pid_exists(process.pid), "another process has this number now"
    reaper.kill([(process.pid, when)], "no=mark")
    assert process.wait() == -signal.SIGKILL


def test_a_shell_that_ignores_sigint_in_the_background_does_not_keep_it_from_us() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.raised(), pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
