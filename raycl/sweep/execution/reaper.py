"""Ends Ray's processes on this machine when the driver is gone, for whatever reason.

Run as a program, with a mark as its argument: waits until standard input ends, which it does with
the driver, then kills the processes named there and every process that has the mark in its
environment. Only what the standard library has is used, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

ROUNDS, PAUSE_S = 20, 0.1


def began(pid: int) -> str:
    """When a process began, in the kernel's clock; empty if it is over."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""


def marked(mark: str) -> list[int]:
    """Processes with a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill(named: list[tuple[int, str]], mark: str) -> None:
    """Kill processes until none is left.

    Args:
        named: Process ids and when each began.
        mark: See ``marked``.
    """
    for _ in range(ROUNDS):
        left = {pid for pid, when in named if began(pid) == when}
        left |= {pid for pid in marked(mark) if began(pid)} - {os.getpid()}
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(PAUSE_S)


def main() -> None:
    """See the module."""
    named = [tuple(line.split()) for line in sys.stdin]
    kill([(int(line[0]), line[1]) for line in named if len(line) == 2], sys.argv[1])


if __name__ == "__main__":
    main()
