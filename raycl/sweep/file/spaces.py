"""Search spaces of the sweep file: ``{loguniform: [1, 100]}`` and the like, in Tune's words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycl.blocks import SPACES
from raycl.errors import KeyPath, nearest


class SpaceError(ValueError):
    """A search space that is none; ``path`` is where, below the space itself."""

    def __init__(self, what: str, path: KeyPath = (), hint: str = "") -> None:
        self.what, self.path, self.hint = what, path, hint
        super().__init__(what)


@dataclass(frozen=True)
class Space:
    """The values one leaf may take.

    Attributes:
        kind: One of ``SPACES``; means what ``ray.tune`` means by it (``grid``: ``grid_search``).
        args: Its options, or its bounds (and step). ``randint`` leaves the upper bound out.
    """

    kind: str
    args: tuple[Any, ...]

    @property
    def is_grid(self) -> bool:
        """Whether every option is run, rather than drawn."""
        return self.kind == "grid"

    def at(self, u: float) -> Any:
        """The value at quantile ``u`` in [0, 1): how a uniform number becomes a draw."""
        if self.kind in ("grid", "choice"):
            return self.args[int(u * len(self.args))]
        low, high = self.args[:2]
        if self.kind == "randint":
            return int(low + math.floor(u * (high - low)))
        if "log" in self.kind:
            value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        else:
            value = low + u * (high - low)
        if self.is_quantised:
            value = self.on_grid(self.steps(value))
        return float(min(max(value, low), high))

    @property
    def is_quantised(self) -> bool:
        """Whether its values are multiples of a step."""
        return self.kind.startswith("q")

    def steps(self, value: float) -> int:
        """How many steps a value of a quantised space is, the nearest whole number of them."""
        step: float = self.args[2]
        return round(value / step)

    def on_grid(self, steps: int) -> float:
        """The value of a quantised space that is so many steps: 0.3, not 0.30000000000000004."""
        return float(f"{steps * self.args[2]:.12g}")

    def draw(self, generator: np.random.Generator) -> Any:
        """One value. Takes exactly one number from the generator."""
        return self.at(float(generator.random()))

    def representatives(self) -> list[tuple[KeyPath, Any]]:
        """Values that stand for all in a check, with their place below the space.

        Every option of a grid or choice; both ends of an interval and a point inside (which
        shows that an integer was meant where a real number is drawn).
        """
        if self.kind in ("grid", "choice"):
            return [((self.kind, i), value) for i, value in enumerate(self.args)]
        if self.kind == "randint":
            return [((self.kind, 0), self.args[0]), ((self.kind, 1), self.args[1] - 1)]
        low, high = self.args[:2]
        inside = self.at(0.6180339887498949)
        return [((self.kind, 0), float(low)), ((self.kind, 1), float(high)), ((self.kind,), inside)]


def parse(value: Any) -> Space | None:
    """The search space ``value`` is, or ``None`` if it is an ordinary value.

    Raises:
        SpaceError: It has a word for a space in it, but is not a valid space.
    """
    if not isinstance(value, dict) or not any(kind in value for kind in SPACES):
        return None
    kind = next(kind for kind in SPACES if kind in value)
    if len(value) != 1:
        other = next(key for key in value if key != kind)
        raise SpaceError(f"a search space has one key, not '{kind}' and '{other}'")
    args = value[kind]
    if not isinstance(args, list):
        raise SpaceError(f"{kind} needs a list, not {args!r}", (kind,))
    if kind in ("grid", "choice"):
        _check_options(kind, args)
    else:
        _check_bounds(kind, args)
    return Space(kind, tuple(args))


def _check_options(kind: str, options: list[Any]) -> None:
    if not options:
        raise SpaceError(f"an empty {kind}: nothing to run", (kind,))
    for i, option in enumerate(options):
        if any(True for _ in walk(option)):
            raise SpaceError("a search space inside a search space", (kind, i))
        same = [j for j in range(i) if type(options[j]) is type(option) and options[j] == option]
        if kind == "grid" and same:
            raise SpaceError(f"{option!r} is given twice", (kind, i))


def _check_bounds(kind: str, args: list[Any]) -> None:
    quantised = kind.startswith("q")
    words = ["low", "high", "step"] if quantised else ["low", "high"]
    if len(args) != len(words):
        form = f"{{{kind}: [{', '.join(words)}]}}"
        raise SpaceError(f"needs {len(words)} numbers, {form}, not {len(args)}", (kind,))
    for i, number in enumerate(args):
        whole = kind == "randint"
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
            noun = "a whole number" if whole else "a number"
            raise SpaceError(f"must be {noun}, not {number!r}", (kind, i))
    low, high = args[:2]
    if low >= high:
        raise SpaceError(f"the lower bound must be below the upper, not {low} and {high}", (kind,))
    if "log" in kind and low <= 0:
        raise SpaceError(f"a logarithmic space needs a lower bound above 0, not {low}", (kind, 0))
    if not quantised:
        return
    step = args[2]
    if step <= 0:
        raise SpaceError(f"the step must be above 0, not {step}", (kind, 2))
    for i, bound in enumerate((low, high)):  # as Tune asks
        if not math.isclose(bound / step, round(bound / step), rel_tol=1e-9, abs_tol=1e-9):
            raise SpaceError(f"{bound} is not a multiple of the step {step}", (kind, i))


def walk(tree: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Space]]:
    """All search spaces of a tree of mappings and lists, with their paths.

    Raises:
        SpaceError: One of them is not valid; its ``path`` is from the root of the tree.
    """
    try:
        space = parse(tree)
    except SpaceError as error:
        raise SpaceError(error.what, path + error.path, error.hint) from error
    if space is not None:
        yield path, space
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from walk(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from walk(value, (*path, i))


def suggestion(value: Any) -> str:
    """A hint if ``value`` looks like a misspelt search space."""
    if isinstance(value, dict) and len(value) == 1:
        ((key, args),) = value.items()
        hint = nearest(key, SPACES)
        if isinstance(args, list) and hint.startswith("did you mean"):
            return f"search space: {hint}"
    return ""
