"""What a result was made with: code, data, device and versions, noted with each finished trial."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import raycl
from raycl.datasets.base import Arrays, Dataset, Files
from raycl.datasets.files import split_archive

MADE = "made"
"""Key of a finished trial's last row."""
PACKAGES = ("torch", "numpy", "torchvision", "ray")


@cache
def code() -> str:
    """The version of raycl, and a hash of its files, which may have been edited."""
    root = Path(raycl.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode())
        found.update(path.read_bytes())
    return f"raycl {raycl.__version__} ({found.hexdigest()[:12]})"


def data(sets: Mapping[str, Dataset]) -> str:
    """A fingerprint of each loaded data set: of images and labels, or of names and sizes of files.

    Args:
        sets: By ``raycl.datasets.key``.
    """
    return ", ".join(f"{key} {_fingerprint(sets[key])}" for key in sorted(sets))


def _fingerprint(one: Dataset) -> str:
    found = hashlib.sha256(repr((one.classes, one.mean, one.std)).encode())
    for part in (one.train, one.test, one.validation):
        if part is None:
            continue
        found.update(np.ascontiguousarray(part.labels).data)
        if isinstance(part, Arrays):
            found.update(np.ascontiguousarray(part.images).data)
        else:
            for line in _files(part):
                found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:12]


def _files(part: Files) -> Iterable[str]:
    """Name and size of each file; of images in an archive the archive's size."""
    sizes: dict[str, int] = {}
    for path in part.paths:
        file, _ = split_archive(Path(path))
        if str(file) not in sizes:
            sizes[str(file)] = file.stat().st_size
        yield f"{Path(path).parent.name}/{Path(path).name} {sizes[str(file)]}\n"


def machine(device: str) -> dict[str, str]:
    """Device and versions, as the process sees them that trains.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    found = [f"{package} {version(package)}" for package in PACKAGES]
    return {"device": name, "versions": ", ".join([f"python {platform.python_version()}", *found])}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each of code, data, device and versions that is not what it was."""
    return [
        f"{word}: {then.get(word, 'not recorded')} then, {now[word]} now"
        for word in ("code", "data", "device", "versions")
        if then.get(word) != now[word]
    ]
