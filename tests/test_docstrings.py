"""Docstrings: dotted names in them exist, and no summary begins in the middle of a sentence."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
DOTTED = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`")
FILES = {"csv", "db", "json", "md", "py", "sqlite", "txt"}
NOT_PYTHON = {
    "adapters.TASK.LAYER",  # names in a state, with a word for what varies
    "columns.K.adapters",
    "columns.K.network",
    "task_N.values.bits",
    "methods.ewc.lam",  # an option in a sweep file, by the method's label
    "package.module",
}
DANGLING = {
    *("of", "with", "it", "its", "that", "those", "these", "this", "they", "in", "as", "so", "on"),
    *("at", "for", "or", "and", "but", "from", "behind", "beside", "likewise", "whose"),
}


def sources() -> list[Path]:
    return sorted(p for name in ("raycl", "envs") for p in (ROOT / name).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Docstrings of modules, classes and functions, and those below constants."""
    for inner in ast.walk(node):
        match inner:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield inner.lineno, text


@cache
def module(path: Path) -> ModuleType:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return importlib.import_module(".".join(p for p in parts if p != "__init__"))


@cache
def words() -> tuple[dict[str, set[str]], set[str], set[str], set[str]]:
    """Members of the classes by their names; all names defined; all texts; all options."""
    members: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    defined, literals, options = set(), set(), set()
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                own = members.setdefault(node.name, set())
                bases.setdefault(node.name, set()).update(ast.unparse(b) for b in node.bases)
                for inner in ast.walk(node):
                    if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                        own.add(inner.name)
                    elif isinstance(inner, ast.AnnAssign | ast.Assign):
                        targets = (
                            [inner.target] if isinstance(inner, ast.AnnAssign) else inner.targets
                        )
                        own.update(n for target in targets for n in names_in(target))
                if "Config" in node.name or any("Config" in base for base in bases[node.name]):
                    options |= own
                defined |= own
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)
    for _ in range(8):  # no class has so many ancestors
        for name, parents in bases.items():
            for parent in parents:
                members[name] |= members.get(parent.rpartition(".")[2], set())
    return members, defined, literals, options


def names_in(target: ast.expr) -> list[str]:
    return [
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(target)
        if isinstance(node, ast.Name | ast.Attribute)
    ]


@cache
def names_used(path: Path) -> set[str]:
    """Arguments, variables and attributes of a file."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute):
            found.update(names_in(node)[:1])
    return found


def has(value: Any, parts: list[str]) -> bool:
    """Whether an object has an attribute, or a class a member that only instances have."""
    if not parts:
        return True
    name, *rest = parts
    if hasattr(value, name) and has(getattr(value, name), rest):
        return True
    if isinstance(value, ModuleType):  # a module that nothing has imported, or that a name hides
        try:
            return has(importlib.import_module(f"{value.__name__}.{name}"), rest)
        except ImportError:
            return False
    known = words()[0].get(getattr(value, "__name__", ""), set())
    annotated = any(
        name in getattr(c, "__annotations__", {}) for c in getattr(value, "__mro__", ())
    )
    return not rest and (name in known or annotated)


def exists(name: str, path: Path) -> bool:
    members, defined, literals, options = words()
    head, *rest = name.split(".")
    if name in NOT_PYTHON or rest[-1] in FILES or name in literals:
        return True
    space = module(path)
    package = space if path.name == "__init__.py" else importlib.import_module(space.__package__)
    places = [space, package, importlib.import_module("raycl")]
    if any(has(place, [head, *rest]) for place in places):
        return True
    try:
        if has(importlib.import_module(head), rest):
            return True
    except ImportError:
        pass
    if head in members:
        return rest[0] in members[head] or inherited(head, rest[0])
    from raycl.sweep.file.model import Sweep  # after the rest, which needs no sweep

    if head in Sweep.model_fields:
        return rest[0] in options or rest[0] in defined
    # a variable, an argument or an attribute: what it holds is not known, but a name is
    instance = (
        rest[0] in defined or hasattr(torch.nn.Module, rest[0]) or hasattr(torch.Tensor, rest[0])
    )
    return head in names_used(path) and (instance or rest[0] in names_used(path))


def inherited(cls: str, name: str) -> bool:
    """Whether a class of raycl has a member from a library's class."""
    for path in sources():
        if any(isinstance(n, ast.ClassDef) and n.name == cls for n in tree(path).body):
            return hasattr(getattr(module(path), cls), name)
    return False


def test_a_dotted_name_exists() -> None:
    unknown = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources()
        for line, text in texts(tree(path))
        for name in DOTTED.findall(text)
        if not exists(name, path)
    ]
    assert not unknown, "\n".join(unknown)


def test_a_name_that_is_gone_is_noticed() -> None:
    path = ROOT / "raycl" / "tracking" / "tracker.py"
    assert not exists("training.Run", path)
    assert not exists("Method.no_such_thing", path)
    assert not exists("raycl.training.run.Ran", path)
    assert exists("raycl.training.run.Run.advance", path)
    assert exists("Method.logits", path)


def test_a_summary_stands_alone() -> None:
    dangling = [
        f"{path.relative_to(ROOT)}:{line}: {text.split(chr(10))[0]}"
        for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]
        for line, text in texts(tree(path))
        if first(text) in DANGLING
    ]
    assert not dangling, "\n".join(dangling)


def test_a_description_names_its_option() -> None:
    dangling = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.keyword) and node.arg in ("description", "help"):
                text = getattr(node.value, "value", None)
                if isinstance(text, str) and first(text) in DANGLING:
                    dangling.append(f"{path.relative_to(ROOT)}:{node.value.lineno}: {text}")
    assert not dangling, "\n".join(dangling)


def first(text: str) -> str:
    """The first word in small letters."""
    return text.split()[0].strip(",;:.").lower()
