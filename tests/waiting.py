"""Ports, servers and whatever else a test waits for.

Nothing here gives up. pytest's ``timeout`` (pyproject.toml) is the one limit: it says where a test
was waiting, and on a busy machine what is right may take minutes.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest


def free_ports(n: int) -> list[int]:
    """Ports of loopback that nobody listens at, as many as asked for."""
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    return free_ports(1)[0]


def until(
    condition: Callable[[], Any],
    process: subprocess.Popen[Any] | None = None,
    log: Path | None = None,
) -> None:
    """Wait for a condition; fail with what a process has said if that ends first.

    Args:
        condition: What is to become true.
        process: Whoever is to make it true.
        log: Where the process writes, if not into a pipe.
    """
    while not condition():
        if process is not None and process.poll() is not None:
            said = log.read_text() if log else process.communicate()[0]
            pytest.fail(f"it ended with {process.returncode}:\n{said}")
        time.sleep(0.05)


def until_answered(
    url: str, process: subprocess.Popen[Any] | None = None, log: Path | None = None
) -> None:
    """Wait for a server to answer, be it to ask who one is."""

    def answers() -> bool:
        try:
            urlopen(url, timeout=2).close()
        except HTTPError as error:
            return error.code == 401
        except (URLError, OSError):
            return False
        return True

    until(answers, process, log)
