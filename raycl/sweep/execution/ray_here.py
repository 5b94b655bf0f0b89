"""A Ray that a sweep starts on this machine: its files, its end, and how its death is noticed."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from raycl.sweep.execution import reaper
from raycl.sweep.execution.signals import RAY_DIED, are_unheard, unheard

MARK = "RAYCL_RAY"
"""Variable by which processes of one Ray are found."""
SOCKET = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.sock-0000")
LONGEST = 107
"""Bytes in the path of a socket; Linux."""
AGAIN_S = 0.5
STUCK_S = 5.0


class RayDied(BaseException):
    """Ray's own process on this machine has died."""


def temporary_folder() -> str | None:
    """Folder in which Ray is to keep its sockets; ``None``: Ray's own choice.

    Folders of batch systems can be too deep for the path of a socket.
    """
    if len(os.fsencode(default_folder())) + len("/ray") + SOCKET <= LONGEST:
        return None
    return f"/tmp/raycl-{os.getuid()}"


def default_folder() -> str:
    """Folder in which Ray keeps its files by default."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


@contextlib.contextmanager
def reaped() -> Iterator[subprocess.Popen[str] | None]:
    """Make Ray's processes end with this one, even if it is killed; see ``reaper``."""
    if not Path("/proc/self/environ").exists():
        yield None
        return
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", reaper.__file__, f"{MARK}={mark}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    os.environ[MARK] = mark
    try:
        yield process
    finally:
        del os.environ[MARK]
        with unheard(), contextlib.suppress(OSError):
            process.communicate()


def tell(process: subprocess.Popen[str] | None) -> None:
    """Name the processes that Ray consists of: titles overwrite what marks some of them."""
    if process is None or process.stdin is None:
        return
    children = psutil.Process().children(recursive=True)
    mine = (child.pid for child in children if child.pid != process.pid)
    with contextlib.suppress(OSError):
        process.stdin.writelines(f"{pid} {reaper.began(pid)}\n" for pid in mine)
        process.stdin.flush()


def _agents(raylet: int) -> list[int]:
    """The helpers of a raylet, which ends itself when one of them is gone."""
    found: list[int] = []
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(raylet).children()
    for child in children:
        with contextlib.suppress(psutil.Error):  # a worker that is gone already
            line = " ".join(child.cmdline())
            if re.match(r"ray::\w+Agent\b", line) or re.search(r"/agent(/main)?\.py\b", line):
                found.append(child.pid)
    return found


class Watch:
    """Raises ``RayDied`` in the main thread when a process is gone without which Ray ends.

    Until ``watching`` is left it is a ``KeyboardInterrupt``: Ray's library drops all others, and
    Tune would go on after an ``Exception``, into a call at which the library ends this process.

    Args:
        stuck: Called in another thread if the main one does not come out of Ray's library, which
            waits for what is dead; does not return.

    Attributes:
        died: Whether it is.
    """

    def __init__(self, stuck: Callable[[], None] | None = None) -> None:
        self.died = False
        self._stuck = stuck
        self._over = threading.Event()
        self._pids: list[int] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the Ray that was started."""
        self._pids = self._processes()
        if not self._pids or not hasattr(os, "pidfd_open"):
            yield
            return
        before = signal.signal(RAY_DIED, self._raise)
        thread = threading.Thread(target=self._wait, name="ray-watch", daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            if self.died:
                raise RayDied from None
            raise
        finally:
            self._over.set()
            thread.join()
            signal.signal(RAY_DIED, before)

    @staticmethod
    def _processes() -> list[int]:
        import ray

        node = ray._private.worker._global_node
        found: dict[str, Any] = node.all_processes if node is not None else {}
        kinds = ("raylet", "gcs_server")
        pids = [info.process.pid for kind in kinds for info in found.get(kind, ())]
        return [*pids, *(pid for raylet in pids for pid in _agents(raylet))]

    def _wait(self) -> None:
        handles = [os.pidfd_open(pid) for pid in self._pids]
        try:
            while not self.died and not self._over.is_set():
                gone, _, _ = select.select(handles, [], [], AGAIN_S)
                self.died = bool(gone)
            if self.died and not self._over.is_set():
                # at once: a raylet that has lost an agent says good-bye, within milliseconds, and
                # then Ray's library ends this process; on a busy machine that may be faster
                self._end_all()
                # to the main thread, whose waiting it interrupts; any thread could take it else
                signal.pthread_kill(threading.main_thread().ident or 0, RAY_DIED)
            since = time.monotonic()
            while not self._over.wait(AGAIN_S):
                if are_unheard():
                    since = time.monotonic()
                if self._stuck is not None and time.monotonic() - since > STUCK_S:
                    self._end_all()
                    self._stuck()
        finally:
            for handle in handles:
                os.close(handle)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.died and not self._over.is_set():
            self._end_all()
            raise KeyboardInterrupt

    def _end_all(self) -> None:
        """End the other one too: it would tell Ray's library, which then ends this process."""
        for pid in self._pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
