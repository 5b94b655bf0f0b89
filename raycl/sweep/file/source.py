"""A sweep file as text: YAML with line numbers, dotted paths, and overrides.

The dialect is that of ``raycl.yaml12``. Duplicate keys, non-finite numbers and foreign tags are
refused.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

from raycl.errors import KeyPath, UserError, nearest
from raycl.registry import short
from raycl.yaml12 import Loader

MAX_NODES = 100_000


def dotted(path: KeyPath) -> str:
    """A path as people write it.

    >>> dotted(("methods", 0, "lam"))
    'methods[0].lam'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def undotted(text: str) -> KeyPath:
    """The inverse of ``dotted``; ``ValueError`` if ``text`` is not a path."""
    if not re.fullmatch(r"[^.\[\]]+((\.[^.\[\]]+)|(\[\d+\]))*", text):
        raise ValueError(f"'{text}' is not a path like methods[0].lam")
    parts = re.findall(r"[^.\[\]]+|\[\d+\]", text)
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)


def get(tree: Any, path: KeyPath) -> Any:
    """The value at a path; ``KeyError``, ``IndexError`` or ``TypeError`` if it leads nowhere."""
    for part in path:
        tree = tree[part]
    return tree


def put(tree: Any, path: KeyPath, value: Any) -> None:
    """Set the value at a path whose parent exists."""
    get(tree, path[:-1])[path[-1]] = value


@dataclass
class Source:
    """A sweep file as read, and where each value came from.

    Attributes:
        file: As the user wrote it, for messages.
        text: The file's text.
        data: Its top-level mapping, overrides applied.
        origins: Line (from 1) of each path, or the ``--set`` that put the value there.
        benchmark: Where the benchmarks stand; see ``Sweep.for_search``.
    """

    file: str
    text: str
    data: dict[str, Any]
    origins: dict[KeyPath, int | str] = field(default_factory=dict)
    benchmark: KeyPath = ("benchmark",)

    def error(self, path: KeyPath, what: str, hint: str = "") -> UserError:
        """A ``UserError`` at a path of the file, with its line or its override."""
        path = self.locate(path)
        inside = (
            o for p, o in self.origins.items() if p[: len(path)] == path and isinstance(o, str)
        )
        around = (self.origins.get(path[:n]) for n in range(len(path), -1, -1))
        origin = next(inside, None) or next((o for o in around if o is not None), None)
        if isinstance(origin, str):
            where = f"{origin}: {dotted(path)}"
        elif path:
            where = (
                f"{self.file}:{origin}: {dotted(path)}"
                if origin
                else f"{self.file}: {dotted(path)}"
            )
        else:
            where = self.file
        return UserError(where, what, hint)

    def locate(self, path: KeyPath) -> KeyPath:
        """A path of the normalised sweep as a path of the file.

        A list the file gives as one mapping loses its index, a bare name standing for
        ``{name: NAME}`` its key, and the parts pydantic adds for unions are left out.
        """
        tree: Any = self.data
        found: list[str | int] = []
        if path[:1] == ("benchmark",):
            path = self.benchmark + path[1:]
        for position, part in enumerate(path):
            last = position == len(path) - 1
            if isinstance(part, int):
                if isinstance(tree, list):
                    found.append(part)
                    tree = tree[part] if part < len(tree) else None
            elif isinstance(tree, dict) and part in tree:
                found.append(part)
                tree = tree[part]
            elif last and part.isidentifier() and (tree is None or isinstance(tree, dict)):
                found.append(part)
        return tuple(found)

    def set(self, text: str) -> None:
        """Apply one ``--set a.b=c``; the value is YAML.

        Raises:
            UserError: No ``=``, a broken value, or a path that leads nowhere.
        """
        origin = f"--set {text}"
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(origin, "expected PATH=VALUE, e.g. train.epochs=2")
        self.override(path.strip(), _Parser(origin, numbered=False).parse(value), origin)

    def override(self, path: str, value: Any, origin: str) -> None:
        """Put a value at a dotted path, making mappings on the way.

        Elements of lists are named by index (``methods[0].lam``) or by label or name
        (``methods.ewc.lam``); a list of one benchmark is like that benchmark (``benchmark.tasks``).

        Args:
            path: Where.
            value: Plain data.
            origin: Who says so, for messages.

        Raises:
            UserError: The path leads nowhere.
        """
        try:
            parts = undotted(path)
        except ValueError as error:
            raise UserError(origin, str(error)) from error
        self._put(parts, value, origin)

    def _with_only_benchmark(self, path: KeyPath) -> KeyPath:
        """The same, with the index that a path into the only one of a list of benchmarks lacks."""
        only = self.data.get("benchmark") if path[:1] == ("benchmark",) else None
        if not isinstance(only, list) or len(only) != 1 or not path[1:]:
            return path
        named = isinstance(path[1], int) or path[1] in _names(only[0], of_methods=False)
        return path if named else ("benchmark", 0, *path[1:])

    def _put(self, path: KeyPath, value: Any, origin: str) -> None:
        tree: Any = self.data
        real: list[str | int] = []
        path = self._with_only_benchmark(path)
        for part, following in zip(path, [*path[1:], None], strict=True):
            part = _index(tree, part, origin, tuple(real))
            real.append(part)
            if following is None:
                tree[part] = value
                break
            child = tree[part] if isinstance(tree, list) else tree.get(part)
            if child is None and isinstance(following, str):
                child = {}
            elif isinstance(child, str) and isinstance(following, str):
                child = {"name": child}
            elif isinstance(following, int) and not isinstance(child, list):
                raise UserError(origin, f"{dotted(tuple(real))} is not a list")
            elif not isinstance(child, dict | list):
                raise UserError(origin, f"{dotted(tuple(real))} is {child!r}, nothing is below it")
            tree[part] = child
            tree = child
        changed = tuple(real)
        self.origins = {p: o for p, o in self.origins.items() if p[: len(changed)] != changed}
        self.origins[changed] = origin


def _index(tree: Any, part: str | int, origin: str, path: KeyPath) -> Any:
    """The key or index ``part`` means in ``tree``."""
    if isinstance(tree, list):
        if isinstance(part, int):
            if part < len(tree):
                return part
            raise UserError(origin, f"{dotted(path)} has {len(tree)} elements, counted from 0")
        names = [_names(element, of_methods=path == ("methods",)) for element in tree]
        for by in (0, 1):  # labels before names
            matches = [i for i, known in enumerate(names) if known[by] == part]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise UserError(
                    origin, f"{dotted(path)} has '{part}' {len(matches)} times", "use an index"
                )
        valid = {name for known in names for name in known if name}
        raise UserError(origin, f"{dotted(path)} has no '{part}'", nearest(part, valid))
    if isinstance(part, int):
        raise UserError(origin, f"{dotted(path)} is not a list")
    return part


def _names(element: Any, of_methods: bool) -> tuple[str | None, str | None]:
    """Label and name of an element of a list, as far as they are text; methods all have a label."""
    if isinstance(element, str):
        element = {"name": element}
    if not isinstance(element, dict):
        return (None, None)
    label, name = (v if isinstance(v := element.get(k), str) else None for k in ("label", "name"))
    if of_methods and label is None and name is not None:
        label = short(name)
    return label, name


def read(path: Path) -> Source:
    """Read a sweep file.

    Raises:
        UserError: No such file, a folder, not text, not YAML, or not a mapping.
    """
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        what = f"no such file (looked in {Path.cwd()})"
        raise UserError(file, what, _meant(path)) from error
    except IsADirectoryError as error:
        inside = [str(p) for depth in ("*", "*/*") for p in sorted(path.glob(f"{depth}.yaml"))]
        raise UserError(file, "is a folder, not a sweep file", _some("it holds", inside)) from error
    except UnicodeDecodeError as error:
        raise UserError(file, f"is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(file, f"cannot be read: {error.strerror}") from error
    return read_text(text, file)


def read_text(text: str, file: str) -> Source:
    """Parse the text of a sweep file; ``file`` is its name in messages."""
    parser = _Parser(file)
    data = parser.parse(text)
    if data is None:
        raise UserError(file, "is empty", "see sweeps/quickstart.yaml for an example")
    if not isinstance(data, dict):
        raise UserError(file, "must be a mapping (name: ..., benchmark: ..., methods: ...)")
    return Source(file, text, data, parser.origins)


def _meant(path: Path) -> str:
    """A hint: of the files beside ``path`` and in ./sweeps, the one whose name is most like it."""
    found = [*path.parent.glob("*.yaml"), *Path("sweeps").rglob("*.yaml")]
    known = sorted({p.resolve(): p for p in found}.values())

    def alike(other: Path) -> tuple[float, float]:
        pairs = ((path.stem, other.stem), (str(path), str(other)))
        first, second = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return first, second

    best = max(known, key=alike, default=None)
    if best is None or alike(best)[0] < 0.6:
        return _some("there are", [str(p) for p in known])
    return f"did you mean '{best}'?"


def _some(verb: str, names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{verb} {', '.join(names[:count])}{more}" if names else ""


class _Parser:
    """YAML text to plain values, noting the line of each path."""

    def __init__(self, where: str, *, numbered: bool = True) -> None:
        self.where, self.numbered, self.count = where, numbered, 0
        self.flattened: set[int] = set()
        self.origins: dict[KeyPath, int | str] = {}

    def parse(self, text: str) -> Any:
        """The value of a YAML document; ``UserError`` with the line if it is none."""
        loader: Loader | None = None
        try:
            loader = Loader(text)
            node = loader.get_single_node()
            return None if node is None else copy.deepcopy(self._value(loader, node, ()))
        except RecursionError as error:
            raise UserError(self.where, "is nested too deeply") from error
        except yaml.MarkedYAMLError as error:
            what = ", ".join(part for part in (error.context, error.problem) if part)
            mark = error.problem_mark or error.context_mark
            raise self._error(mark, f"not valid YAML: {what}") from error
        except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
            raise UserError(self.where, f"not valid YAML: {error}") from error
        finally:
            if loader is not None:
                loader.dispose()

    def _error(self, mark: yaml.Mark | None, what: str, hint: str = "") -> UserError:
        line = f":{mark.line + 1}" if mark is not None and self.numbered else ""
        return UserError(self.where + line, what, hint)

    def _value(self, loader: Loader, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise self._error(node.start_mark, f"has more than {MAX_NODES} values")
        if self.numbered:
            self.origins[path] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._value(loader, child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(loader, node, path)
        value = loader.construct_object(node)
        if not isinstance(value, str | int | float | bool | None):
            raise self._error(node.start_mark, f"values of type {node.tag} are not used here")
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node.start_mark, f"{dotted(path)} must be a finite number")
        return value

    def _mapping(self, loader: Loader, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                what = f"a key must be text, not {getattr(key, 'value', key.id)!s:.40}"
                raise self._error(key.start_mark, what, "put it in quotes")
            if key.value in seen and id(node) not in self.flattened:  # an alias may come again
                where = dotted((*path, key.value))
                what = f"{where} is given twice (first in line {seen[key.value]})"
                raise self._error(key.start_mark, what)
            seen[key.value] = key.start_mark.line + 1
        loader.flatten_mapping(node)
        self.flattened.add(id(node))
        found: dict[str, Any] = {}
        for key, child in node.value:
            found[key.value] = self._value(loader, child, (*path, key.value))
            if self.numbered and key.value in seen:
                self.origins[(*path, key.value)] = seen[key.value]
        return found
