"""Headless Chromium, driven over the pipe of its DevTools protocol: pages in real time."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1200",
    "--remote-debugging-pipe",
]
PATIENCE_S = 600.0
"""The one wait with a limit of its own: its end names the text that a page lacks."""


class Browser:
    """One browser with one page; leaving the context leaves nothing of it."""

    def __init__(self, profile: Path) -> None:
        asked, self._ask = _pipe()
        self._answers, answered = _pipe()

        def commands_at_3_and_4() -> None:
            os.dup2(asked, 3)
            os.dup2(answered, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            stderr=subprocess.DEVNULL,
            preexec_fn=commands_at_3_and_4,
            pass_fds=(3, 4),
            start_new_session=True,
        )
        os.close(asked)
        os.close(answered)
        self._number, self._read, self._session = 0, b"", ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ask)
        os.close(self._answers)

    def open(self, address: str, *texts: str) -> str:
        """Load a page and wait until it shows all of some texts; all that it shows then."""
        for url in ("about:blank", address):  # another fragment alone would not load it again
            self._call("Page.navigate", url=url)
        deadline, shown = time.monotonic() + PATIENCE_S, ""
        while missing := [text for text in texts if text not in shown]:
            assert time.monotonic() < deadline, f"{missing} not in: {shown}"
            time.sleep(0.2)
            shown = " ".join(self.value("document.body ? document.body.innerText : ''").split())
        return shown

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass  # an event, or an error of a page that is gone
        assert "result" in answer, answer
        return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], PATIENCE_S)[0], "the browser is silent"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser ended"
            self._read += read
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the numbers that Chromium wants its own to have."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
