"""Measures the memory that is left for images, on this machine and in its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from raycl.errors import UserError

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
COPIES = 2
"""Images in memory are there twice: as they were read, and where all trials share them."""


def check(count: int, channels: int, size: tuple[int, int], where: str) -> None:
    """Refuse images that memory cannot hold, before any of them is decoded.

    Args:
        count: Number of images.
        channels: Channels of each image.
        size: Width and height of each image, in pixels.
        where: The place that an error names.

    Raises:
        UserError: The images need more memory than is left.
    """
    width, height = size
    needed, left = COPIES * count * channels * width * height, free()
    if needed > left:
        each = f"{count:,} images of {width} x {height} pixels"
        what = f"{each} take {_gb(needed)} of memory, and {_gb(left)} are free"
        hint = "take fewer (budget) or smaller ones (size); beyond 64 pixels they stay in files"
        raise UserError(where, what, hint)


def free() -> int:
    """Bytes that this process may still take, of the machine or of its batch job or container.

    Swap space counts.
    """
    machine: int = psutil.virtual_memory().available + psutil.swap_memory().free
    return max(0, min([machine, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield the rest of the limit of every control group that this process is in."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            top = GROUPS / controllers
            inside = Path(path.strip("/"))
            for group in (inside, *inside.parents):
                yield from _left(top / group)


def _left(group: Path) -> Iterator[int]:
    """The rest of the limit of one control group, version 2 or 1, if it has a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            total, taken = (int((group / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group in this container, or "max"
            continue
        cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        yield total - taken + int(cached)  # the kernel gives back what files take of it


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
