"""What results are made of besides the sweep file: code, data, weights, device and versions.

A sweep writes down what it is made of (``MadeOf``), and does not go on with other code, data or
weights of a hub, unless that is accepted; the report then says so. Each result has a line about
each (``MADE``), which ``raycl verify`` compares: there, the data are those that were loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

import raycl
from raycl.datasets.base import Arrays, Dataset, Files, key
from raycl.datasets.files import split_archive
from raycl.datasets.fingerprint import fingerprint
from raycl.networks.base import LOADED, from_hubs
from raycl.sources import sources
from raycl.sweep.file.blocks import benchmark_configs, networks_in
from raycl.sweep.file.model import Sweep
from raycl.sweep.plan.expand import Group, each_value, groups, own_code, own_code_of
from raycl.sweep.plan.plan import fill
from raycl.training.run import build_benchmark

CACHE = ".fingerprints.db"
"""Name of the file with hashes of data files, in the folder of all runs."""
MADE = "made"
"""Key of a finished trial's last row."""
CONTINUED = "continued"
"""Word of a trial that not one undisturbed run could have made; see ``continued``."""
WORDS = ("code", "data", "weights", "device", "versions", "env_runners", CONTINUED)
"""What such a row tells of."""
MUST_BE = ("code", "device", "versions", "env_runners")
"""Words in which two results of the same bits agree; data and weights are compared by name."""
OURS = ("raycl", "envs")
"""Packages of this project, all of whose files count as its code."""
PACKAGES = (
    *("torch", "numpy", "torchvision", "ray", "timm", "pillow", "scikit-learn"),
    *("gymnasium", "ale-py", "opencv-python-headless"),
)


@dataclass(frozen=True)
class MadeOf:
    """The record of what a sweep is made of.

    Attributes:
        raycl: Its version.
        code: Name of a class's own file to its modules and their hashes; where the class is of an
            installed package, to that and its version.
        data: Label of a data set to its fingerprint.
        weights: Name of weights from a hub to the hash of their files.
    """

    raycl: str
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sweep: Sweep, root: Path, runs: Path) -> MadeOf:
        """Take the record of what a sweep would be made of now.

        Args:
            sweep: The sweep; its classes, and its weights from hubs, have been loaded.
            root: The data root.
            runs: Folder of all runs.
        """
        both = [sweep] if sweep.search.benchmark is None else [sweep, sweep.for_search]
        code = {name: _sources(name) for name in own_code_of(sweep)}
        data: dict[str, str] = {}
        if sweep.kind.needs_data:
            for config in [config for one in both for config in benchmark_configs(one)]:
                for wanted in build_benchmark(config).datasets():
                    name = f"data set {wanted.path or wanted.name}"
                    found = fingerprint(wanted, root, runs / CACHE)
                    if data.get(name, found) != found:  # other files of one path
                        name += f" ({key(wanted)})"
                    data[name] = found
        names = {name for group in groups(sweep) for name in _from_hubs(group)}
        weights = {name: LOADED[name] for name in sorted(names & LOADED.keys())}
        return cls(raycl.__version__, code, data, weights)

    @classmethod
    def recorded(cls, identity: Mapping[str, Any]) -> MadeOf | None:
        """What a sweep's folder says; ``None`` if it is of an older raycl and does not."""
        found = identity.get("made_of")
        return cls(**found) if isinstance(found, dict) else None

    def plain(self) -> dict[str, Any]:
        """The record as plain data, for JSON, which is as it was before weights were recorded."""
        found = asdict(self)
        return found if self.weights else {k: v for k, v in found.items() if k != "weights"}

    @property
    def key(self) -> str:
        """A short hash of it all."""
        text = json.dumps(self.plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def changes(self, before: MadeOf) -> list[str]:
        """Names of the things that differ from an earlier record."""
        found = []
        if self.raycl != before.raycl:
            found.append(f"raycl {before.raycl}, now {self.raycl}")
        old = {name: one for modules in before.code.values() for name, one in modules.items()}
        new = {name: one for modules in self.code.values() for name, one in modules.items()}
        for was, now in ((old, new), (before.data, self.data), (before.weights, self.weights)):
            found += _changed(was, now)
        return found

    def changed(self, config: Any) -> list[str]:
        """What a trial has loaded in this process that is not (any more) what this says, by name.

        Args:
            config: The trial's.
        """
        found: list[str] = []
        for name in sorted(set(own_code(config))):
            file = Path(name)
            now = _loaded(name, file.read_bytes() if file.suffix == ".py" else b"")
            found += [
                module
                for module, one in self.code.get(name, {}).items()
                if module in now and now[module] != one
            ]
        return found + [name for name, one in self.weights.items() if LOADED.get(name, one) != one]


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"{name} (gone)"
        elif name not in old:
            yield f"{name} (new)"
        elif old[name] != new[name]:
            yield name


@lru_cache
def _loaded(name: str, content: bytes) -> Mapping[str, str]:
    """The sources of a class when this process first loaded it; a file that changes is another."""
    return _sources(name)


def _sources(name: str) -> dict[str, str]:
    """Hashes of a class's own files, or the version of the package that it comes with."""
    first = name.partition(".")[0]
    if (found := sources(name)) or first in OURS or name.endswith(".py"):
        return found
    return {one: version(one) for one in sorted(set(packages_distributions().get(first, ())))}


def _from_hubs(group: Group) -> Iterator[str]:
    """Names of weights from hubs that networks of a group's trials start from."""
    for values in each_value(group.spaces):
        for block in networks_in(fill(group.base, values, 0, "").config).values():
            yield from from_hubs(block)


def driver(sets: Mapping[str, Dataset]) -> dict[str, str]:
    """Code and data of a result, as the driver sees them.

    Args:
        sets: Loaded data sets by ``raycl.datasets.key``.
    """
    return {"code": code(), "data": data(sets)}


@cache
def code() -> str:
    """The version of raycl, and a hash of its files, which may have been edited."""
    found = hashlib.sha256()
    for package in OURS:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            found.update(f"{package}/{path.relative_to(root)}".encode())
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


def process(device: str) -> dict[str, str]:
    """Weights from hubs, device and versions, as the process sees them that trains.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    weights = ", ".join(f"{name} {one}" for name, one in sorted(LOADED.items()))
    return ({"weights": weights} if weights else {}) | {"device": name, "versions": _versions()}


@cache
def _versions() -> str:
    found = [f"{package} {version(package)}" for package in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *found])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each word of ``WORDS`` that is not what it was.

    Weights and env runners are passed over where an older raycl, which did not record them, made
    the result. Data are those of a whole sweep, which may have had others beside those of this one.
    """
    then_only = ("weights", "env_runners", CONTINUED)
    known = [word for word in WORDS if word in (then if word in then_only else now)]
    return [
        f"{word}: {then.get(word, 'not recorded')} then, {now.get(word, 'none')} now"
        for word in known
        if then.get(word) != now.get(word)
        and not (word == "data" and _shared(then, now) and _same_data(then, now))
    ]


def same(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether a trial that was made with one thing has the bits of one made with another.

    Args:
        then: What it was made with; data and weights are those of its whole sweep.
        now: What it would be made with.
    """
    if then.get(CONTINUED) or any(then.get(w) != now.get(w) for w in MUST_BE):
        return False
    old, new = (_parts(one.get("weights", "")) for one in (then, now))
    return _same_data(then, now) and all(new.get(name) == one for name, one in old.items())


def _same_data(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether the data sets that both have are the same."""
    old, new = (_parts(one.get("data", "")) for one in (then, now))
    return all(old[name] == new[name] for name in _shared(then, now))


def _shared(then: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    """Names of the data sets that both have."""
    old, new = (_parts(one.get("data", "")) for one in (then, now))
    return old.keys() & new.keys()


def _parts(text: str) -> dict[str, str]:
    return dict(re.findall(r"(.+?) ([0-9a-f]{8,64})(?:, |$)", text))


def continued(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What a trial goes on with that is not what it began with, in words; empty: nothing.

    Args:
        then: What it has been made with so far, as its checkpoint says. Weights are not compared: a
            network that is restored needs none.
        now: What it goes on with.
    """
    if not then:
        return "from a checkpoint of an older raycl"
    words = [w for w in sorted(then.keys() | now.keys()) if w not in ("data", "weights")]
    words = [w for w in words if then.get(w) != now.get(w)]
    words += [] if _same_data(then, now) else ["data"]
    return f"with other {', '.join(words)}" if words else ""
