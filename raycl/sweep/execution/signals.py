"""What signals do to a sweep's driver, and how a sweep stops.

SIGINT (Ctrl-C), SIGTERM (``timeout``, ``scancel``, systemd, a preemption) and SIGHUP (a terminal or
an SSH connection that closes) mean the same: trials save, runs are closed, the driver ends. While
trials run they are only noted (``noted``), else they raise ``KeyboardInterrupt`` (``raised``), and
what must not be cut short does not hear them (``unheard``). Whoever sends them to the whole process
group, or to all processes of a job, sends them to Ray's processes, too: those are started with the
signals blocked (``blocked``), for trials could not save without them.

How a sweep stops while trials run, in the order of events:

1. A signal comes. ``stage`` has it noted: ``Hub.interrupted`` is set, nothing else happens yet.
2. ``events`` (``Events.on_step_begin``, which Tune calls several times a second) sees it, starts
   the clock of ``checkpoint.grace_s``, and has ``parking`` leave a word in Ray's key-value store.
3. Each trial looks there between two epochs (``Parking.look`` in ``trainable``). It saves a
   checkpoint and from then on reports its last row again and again, with ``parked``.
4. When all that run are parked, or the time is over, ``events`` sends this process SIGUSR1, which
   it hands on to Tune: its loop ends. Tune stops each trial by a ``SystemExit`` inside its next
   report; one that had not parked saves then, for which Tune gives it ten seconds.
5. Tune's ``fit`` returns. ``stage`` tells all listeners that what had not finished was ``killed``,
   which leaves no outcome, so that it is continued; then it raises ``Interrupted``.
6. ``run`` closes the tracker's runs as KILLED, unheard, and ends with exit code 130.

A storage that cannot be written (``Hub.broken``) takes the same way from step 2 on, without the
grace: there is nowhere to save to; ``stage`` raises ``Broken``, and the exit code is 1. A second
Ctrl-C is ignored while the time of step 2 runs; after it, it raises ``KeyboardInterrupt``. A
SIGUSR1 from outside while trials run is noted as in step 1. When a search has used up its time,
Tune itself ends it; its trials count as stopped early. When Ray itself dies nobody can be asked to
save: see ``ray_here.Watch``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GROUP = (signal.SIGTERM, signal.SIGHUP)
"""Ray blocks SIGINT in its processes by itself."""
RAY_DIED = signal.SIGUSR2

_TERMINALS = [fd for fd in (0, 1, 2) if os.isatty(fd)]


def abandon(*descriptors: int) -> None:
    """Let what is written to a terminal or pipe that is gone go nowhere, instead of failing."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in descriptors:
        os.dup2(null, fd)
    os.close(null)


@contextlib.contextmanager
def handled(call: Callable[[int], None]) -> Iterator[None]:
    """Have a function called for each of ``STOP``.

    A SIGHUP that is ignored stays so: that is what ``nohup`` means. SIGINT is heard also where a
    shell has begun the process in the background, which ignores it there.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            abandon(*(fd for fd in _TERMINALS if not os.isatty(fd)))
        call(number)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int) -> None:
    raise KeyboardInterrupt


def raised() -> contextlib.AbstractContextManager[None]:
    """Signals raise ``KeyboardInterrupt``."""
    return handled(_raise)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Signals do nothing, nor does the death of Ray."""
    before = signal.signal(RAY_DIED, lambda number, frame: None)
    _UNHEARD.append(1)
    try:
        with handled(lambda number: None):
            yield
    finally:
        _UNHEARD.pop()
        signal.signal(RAY_DIED, before)


_UNHEARD: list[int] = []


def are_unheard() -> bool:
    """Whether the main thread is doing what must not be cut short."""
    return bool(_UNHEARD)


def noted(note: Callable[[], None], grace_s: float) -> contextlib.AbstractContextManager[None]:
    """The first signal is noted; further ones do nothing while trials save.

    Args:
        note: Called once.
        grace_s: How long trials have to save; Ctrl-C raises ``KeyboardInterrupt`` after that.
    """
    first: list[float] = []

    def call(number: int) -> None:
        if not first:
            first.append(time.monotonic())
            note()
        elif number == signal.SIGINT and time.monotonic() - first[0] > grace_s:
            raise KeyboardInterrupt

    return handled(call)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Processes started meanwhile do not hear ``GROUP``; this one hears them at the end.

    Handlers are afterwards what they were before: Ray sets one of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP)
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in STOP}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
