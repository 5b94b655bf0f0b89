"""Makes standard output and standard error never fail, whatever is printed, whoever listens.

A sweep goes on when its terminal has closed or ``| head`` has seen enough, and letters that a
terminal cannot print are replaced.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""Error numbers which mean that nobody reads a pipe or a terminal any more."""
PLAIN = {"↑": "^", "↓": "v", "→": "->", "±": "+-", "−": "-", "–": "-", "·": "-", "•": "*"}
PLAIN |= {"≤": "<=", "≥": ">=", "…": "..."}
"""Signs that raycl prints, and their replacements where only ASCII can be printed."""


def steady() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` such streams; streams replaced before stay."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("raycl", _plain)
    sys.stdout = _steady(sys.stdout, 1)
    sys.stderr = _steady(sys.stderr, 2)


def _steady(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # it was closed when Python began
        return io.TextIOWrapper(io.BufferedWriter(_Listener(number)), "utf-8", "raycl")
    if type(stream) is not io.TextIOWrapper or stream.fileno() != number:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Listener(number)),
        stream.encoding,
        "raycl",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Listener(io.FileIO):
    """A file descriptor whose reader may go away."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: Any, /) -> int:
        """Write; if nobody reads any more, pretend that it was read."""
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 1 and error.errno not in GONE:
                raise
            return len(data)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters)
    return "".join(escaped), error.end


def clock(seconds: float) -> str:
    """Write a length of time as a clock shows it.

    >>> clock(65.2), clock(4866)
    ('1:05', '1:21:06')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
