"""Finds the code that a class from outside raycl runs: its file, and the modules that it imports.

Installed packages, the standard library and raycl itself are not followed: versions stand for them.
Imports are read off the source, also those inside functions; what a file imports under a name that
it computes is found only if that happens while the file is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import raycl

LOADED: dict[str, set[str]] = {}
"""Path of a file to the modules that were imported while it was loaded."""


def sources(location: str) -> dict[str, str]:
    """Hash of each file that a class runs, by the name of its module.

    Args:
        location: ``path/to/file.py`` or ``package.module``, as in a sweep file; the file's own name
            in the answer.
    """
    hashes: dict[str, str] = {}
    if location.endswith(".py"):
        start, package = Path(location).resolve(), ""
    else:
        spec = _find(location)
        if spec is None or not _is_own(spec.origin):
            return {}
        start, package = Path(str(spec.origin)), spec.parent or ""
    todo = [(location, start, package)]
    todo += _modules(LOADED.get(str(start), ()))
    while todo:
        name, path, package = todo.pop()
        if name in hashes:
            continue
        content = path.read_bytes()
        hashes[name] = hashlib.sha256(content).hexdigest()[:16]
        if path.suffix == ".py":
            todo += _modules(_imported(content, package))
    return dict(sorted(hashes.items()))


def _modules(names: Iterable[str]) -> Iterator[tuple[str, Path, str]]:
    """Name, file and package of those modules that belong to the user, not to a library."""
    for name in names:
        spec = _find(name)
        if spec is not None and _is_own(spec.origin):
            yield name, Path(str(spec.origin)), spec.parent or ""


def _imported(content: bytes, package: str) -> Iterator[str]:
    """Names of modules that a file imports, and of the packages around them."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _find(name: str) -> ModuleSpec | None:
    """The file of a module, found without importing it, so that none of its code is run."""
    first, *rest = name.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        return None
    try:
        spec = importlib.util.find_spec(first)
        for i, _ in enumerate(rest):
            if spec is None or spec.submodule_search_locations is None:
                return None
            inner = ".".join([first, *rest[: i + 1]])
            spec = PathFinder.find_spec(inner, list(spec.submodule_search_locations))
    except (ImportError, ValueError):  # a module of this name has been put there by hand
        return None
    return spec


def _is_own(origin: str | None) -> bool:
    if origin is None or not Path(origin).is_file():
        return False
    path = Path(origin).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(place) for place in _installed())


@lru_cache
def _installed() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [sysconfig.get_paths()[name] for name in names]
    places += [
        *site.getsitepackages(),
        site.getusersitepackages(),
        str(Path(raycl.__file__).parent),
    ]
    return tuple(Path(place).resolve() for place in places)


def own_modules() -> set[str]:
    """Names of the modules that are loaded now and have a file."""
    return {name for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)}
