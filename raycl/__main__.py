"""The process of ``raycl`` and of ``python -m raycl``: the command line, and a quick end."""

from __future__ import annotations

import atexit
import os
import sys

from raycl.cli import main


def run() -> None:
    """Run the command line, and end the process as soon as all that was written is flushed.

    Without that, the interpreter takes the loaded libraries apart, for a second or more.
    """
    codes: list[int] = []

    def leave() -> None:
        if not codes:
            return  # an error that is none of ours: the interpreter ends as ever
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                return  # the interpreter says what could not be written
        os._exit(codes[0])

    atexit.register(leave)  # before all others, which makes it the last one called
    try:
        main()
        codes.append(0)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            codes.append(end.code or 0)
        raise


if __name__ == "__main__":
    run()
