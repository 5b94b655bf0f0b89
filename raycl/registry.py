"""Look-up by name without a table: file stem = registered name = name in the sweep file.

A name is the stem of a file in one of raycl's packages (``raycl.methods``, ``raycl.benchmarks``,
``raycl.networks``), or ``package.module:Class``, or ``path/to/file.py:Class``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from raycl import sources
from raycl.errors import UserError, nearest

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Registered names of a package: its public modules other than ``base``."""
    module = importlib.import_module(package)
    found = (info.name for info in pkgutil.iter_modules(module.__path__) if not info.ispkg)
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def short(name: str) -> str:
    """The name without the module or file that it is in."""
    return name.rpartition(":")[2]


def find(package: str, base: type[T], name: str, *, where: str = "") -> type[T]:
    """The class called ``name``.

    Args:
        package: Package in which plain names are looked up, e.g. ``"raycl.methods"``.
        base: The class it must derive from.
        name: A registered name, ``module:Class`` or ``file.py:Class``.
        where: The place in the sweep file, for error messages.

    Raises:
        UserError: There is no such name, file, module or class, or the class is not a ``base``.
    """
    if ":" in name:
        return _external(base, name, where)
    valid = names(package)
    if name not in valid:
        kind = package.rpartition(".")[2].rstrip("s")
        raise UserError(where, f"unknown {kind} '{name}'", nearest(name, valid))
    module = importlib.import_module(f"{package}.{name}")
    defined = (v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__)
    classes = [v for v in defined if isinstance(v, type) and issubclass(v, base)]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}")
    return classes[0]


def _external(base: type[T], name: str, where: str) -> type[T]:
    location, _, attribute = name.rpartition(":")
    module = _load_file(Path(location), where) if location.endswith(".py") else None
    if module is None:
        try:
            module = importlib.import_module(location)
        except (Exception, SystemExit) as error:
            raise UserError(where, f"cannot import '{location}': {error!r}") from error
    value = getattr(module, attribute, None)
    if not (isinstance(value, type) and issubclass(value, base)):
        valid = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base)]
        kind = base.__name__
        what = f"'{location}' has no {kind} '{attribute}'"
        raise UserError(where, what, nearest(attribute, valid))
    return value


def _load_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise UserError(where, f"no such file '{path}' (looked in {Path.cwd()})")
    path = path.resolve()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    name = f"raycl_user_{path.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(where, f"cannot import '{path}'")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        before = sources.own_modules()
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise UserError(where, f"'{path}' fails on import: {error!r}") from error
        sources.LOADED[str(path)] = sources.own_modules() - before - {name}
    return sys.modules[name]
