"""What results are made of besides the sweep file: raycl, own code, data.

It is written down with a sweep and with every outcome. A sweep does not go on with other code or
data than it began with, unless that is accepted; the report then says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import raycl
from raycl.datasets.fingerprint import fingerprint
from raycl.sources import sources
from raycl.sweep.expand import benchmark_configs, groups
from raycl.sweep.model import Sweep
from raycl.training.run import build_benchmark

CACHE = ".fingerprints.db"
"""Name of the file with hashes of data files, in the folder of all runs."""


@dataclass(frozen=True)
class MadeOf:
    """The record.

    Attributes:
        raycl: Its version.
        code: Name of a class's own file to its modules and their hashes.
        data: Label of a data set to its fingerprint.
    """

    raycl: str
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sweep: Sweep, root: Path, runs: Path) -> MadeOf:
        """What a sweep would be made of now.

        Args:
            sweep: The sweep; its classes have been loaded.
            root: The data root.
            runs: Folder of all runs.
        """
        trials = [group.base.config for group in groups(sweep)]
        code = {name: sources(name) for name in sorted(set(own_code(trials)))}
        data = {}
        if sweep.kind.needs_data:
            for config in benchmark_configs(sweep):
                for wanted in build_benchmark(config).datasets():
                    name = f"data set {wanted.path or wanted.name}"
                    data[name] = fingerprint(wanted, root, runs / CACHE)
        return cls(raycl.__version__, code, data)

    @classmethod
    def recorded(cls, identity: Mapping[str, Any]) -> MadeOf | None:
        """What a sweep's folder says; ``None`` if it is of an older raycl and does not."""
        found = identity.get("made_of")
        return cls(**found) if isinstance(found, dict) else None

    def plain(self) -> dict[str, Any]:
        """The record as plain data, for JSON."""
        return asdict(self)

    @property
    def key(self) -> str:
        """A short hash of it all."""
        text = json.dumps(self.plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def changes(self, before: MadeOf) -> list[str]:
        """What differs from an earlier record, by name."""
        found = []
        if self.raycl != before.raycl:
            found.append(f"raycl {before.raycl}, now {self.raycl}")
        old = {name: one for modules in before.code.values() for name, one in modules.items()}
        new = {name: one for modules in self.code.values() for name, one in modules.items()}
        found += [*_changed(old, new), *_changed(before.data, self.data)]
        return found


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"{name} (gone)"
        elif name not in old:
            yield f"{name} (new)"
        elif old[name] != new[name]:
            yield name


def own_code(tree: Any) -> Iterator[str]:
    """Files and modules that classes in blocks of a sweep come from, if they are not raycl's."""
    if isinstance(tree, Mapping):
        name = tree.get("name")
        if isinstance(name, str) and ":" in name:
            yield name.rpartition(":")[0]
        for value in tree.values():
            yield from own_code(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from own_code(value)


@lru_cache
def _loaded(name: str, content: bytes) -> Mapping[str, str]:
    """The sources of a class when this process first loaded it; a file that changes is another."""
    return sources(name)


def changed_since(made_of: Mapping[str, Mapping[str, str]], config: Any) -> list[str]:
    """Own code of a trial that is not (any more) what the sweep is made of, by name.

    Args:
        made_of: ``MadeOf.code`` of the sweep.
        config: The trial's.
    """
    found: list[str] = []
    for name in sorted(set(own_code(config))):
        file = Path(name)
        now = _loaded(name, file.read_bytes() if file.suffix == ".py" else b"")
        found += [
            module
            for module, one in made_of.get(name, {}).items()
            if module in now and now[module] != one
        ]
    return found
