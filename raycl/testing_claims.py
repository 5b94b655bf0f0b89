"""The part of the conformance suite that proves what a method says of sharing, bit by bit.

An option may claim that it cannot matter before a task, or has no part in a phase, a class that its
first task is that of another method; see ``raycl.trial.sharing``.
``raycl.testing.MethodConformance`` has this part for methods on images. For a method on games
subclass ``SharingConformance`` itself, and override what raises ``NotImplementedError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from raycl.trial.run import TrialRun
from raycl.trial.sharing import (
    base_name,
    claim,
    first_method,
    over,
    phases_named,
    trained,
    unaffected,
    without_part,
)

State = dict[str, Any]


class Desk:
    """A shelf in memory; see ``raycl.trial.run.Shelf``.

    Attributes:
        left: What phases have trained, by phase and task.
        taken: How often something was taken.
    """

    def __init__(self) -> None:
        self.left: dict[tuple[str, int], State] = {}
        self.taken = 0

    def take(self, phase: str, task: int) -> State | None:
        """See ``Shelf``."""
        found = self.left.get((phase, task))
        self.taken += found is not None
        return deepcopy(found)

    def put(self, phase: str, task: int, content: State) -> None:
        """See ``Shelf``."""
        self.left[phase, task] = deepcopy(content)


class SharingConformance:
    """The tests of claims; part of ``raycl.testing.MethodConformance``.

    Attributes:
        others: Second values of options about which there is a claim, where the suite finds none.
    """

    others: ClassVar[Mapping[str, Any]] = {}

    def block(self) -> dict[str, Any]:
        """The finished ``method`` block that is tested."""
        raise NotImplementedError

    def find(self, name: str) -> Any:
        """The class of a method by its name."""
        raise NotImplementedError

    def run_of(self, block: Mapping[str, Any]) -> TrialRun:
        """A run of two tasks that has not begun, of a ``method`` block."""
        raise NotImplementedError

    def test_options_matter_when_they_say(self) -> None:
        """Two values of an option give the same bits up to the task from which it may matter."""
        block = self.block()
        cls = self.find(block["name"])
        claims = {name: unaffected(cls, name) for name in cls.Config.model_fields}
        claims = {name: point for name, point in claims.items() if point}
        reference = self._states(block, set(claims.values())) if claims else {}
        for name, point in claims.items():
            assert point <= over(2), f"{name}: the suite has two tasks; claim from_task(3) at most"
            changed = block | {name: self._another(cls, block, name)}
            found = self._states(changed, {point})[point]
            where = f"{name} = {changed[name]!r} matters before the task that it says"
            assert not (differing := differences(reference[point], found)), f"{where}: {differing}"

    def test_first_task_is_that_of(self) -> None:
        """The first task has the bits of the method in ``first_task_of``, and goes on from there.

        Options that the other method does not have are changed one by one.
        """
        cls = self.find(self.block()["name"])
        if base_name(cls) is None:
            return
        block = {k: v for k, v in self.block().items() if k not in _only_default(cls)}
        base = first_method(block, self.find)
        assert base["name"] != block["name"], f"{base_name(cls)} cannot have the same options"
        point = trained(1)
        run = self.run_of(block)
        whole = self._advance(run, {point}, run.state_dict)[point]
        while not run.done:  # now, for some random numbers are those of the process
            run.advance()
        own = self._states(block, {point})[point]
        theirs = self._states(base, {point})[point]
        assert not (found := differences(own, theirs)), f"not as {base['name']}: {found}"
        first = self.run_of(block)
        first.load_shared_state({k: v for k, v in deepcopy(theirs).items() if k != "rows"})
        del whole["rows"]
        found = differences(whole, first.state_dict())
        assert not found, f"what {base['name']} does not have changes in the first task: {found}"
        while not first.done:
            first.advance()
        found = differences(run.state_dict(), first.state_dict())
        assert not found, f"it does not go on as it would have: {found}"
        known = self.find(base["name"]).Config.model_fields
        for name in cls.Config.model_fields.keys() - known.keys() - _only_default(cls):
            changed = block | {name: self._another(cls, block, name)}
            found = differences(theirs, self._states(changed, {point})[point])
            assert not found, f"{name} = {changed[name]!r} matters in the first task: {found}"

    def test_phases_are_those_of_others(self) -> None:
        """A phase trains the same bits whatever the options are that say they have no part in it.

        A run that takes what another has trained goes on as if it had trained it.
        """
        block = self.block()
        cls = self.find(block["name"])
        options, desk = cls.Config.model_validate(block), Desk()
        phases = {name for name in phases_named(cls) if options.has_phase(name)}
        run = self._with(block, desk)
        left = {phase for phase, _ in desk.left}
        assert not phases_named(cls) or left == phases, "phases with a result, and those named"
        if not left:
            return
        self._takes(block, desk, run)
        named = {name: without_part(cls, name) for name in cls.Config.model_fields}
        for name in (name for name, phase in named.items() if phase in phases):
            changed, other = block | {name: self._another(cls, block, name)}, Desk()
            alone = self._with(changed, other)
            own = {at: left for at, left in desk.left.items() if at[0] == named[name]}
            found = differences(own, {at: other.left.get(at) for at in own})
            assert not found, f"{name} = {changed[name]!r} has a part in {named[name]}: {found}"
            self._takes(changed, desk, alone)

    def _takes(self, block: Mapping[str, Any], desk: Desk, alone: TrialRun) -> None:
        """Run a block that takes everything from a desk; it must end as it has ended alone."""
        count, desk.taken = len(desk.left), 0
        taker = self._with(block, desk)
        assert desk.taken == count == len(desk.left)
        found = differences(alone.state_dict(), taker.state_dict())
        assert not found, f"a run that takes what others have trained ends otherwise: {found}"

    def _with(self, block: Mapping[str, Any], desk: Desk) -> TrialRun:
        """A run that is over, with a shelf."""
        run = self.run_of(block)
        run.shelf = desk
        while not run.done:
            run.advance()
        return run

    def check(self, block: Mapping[str, Any]) -> None:
        """Raise an error if a method refuses the values of its options."""
        self.run_of(block)

    # ------------------------------------------------------------------ inside

    def _states(self, block: Mapping[str, Any], points: set[int]) -> dict[int, State]:
        run = self.run_of(block)
        return self._advance(run, points, run.shared_state)

    @staticmethod
    def _advance(run: TrialRun, points: set[int], state: Callable[[], State]) -> dict[int, State]:
        """Step a run to the last of some points; its state at each."""
        found: dict[int, State] = {}
        rows: list[dict[str, Any]] = []

        def look(point: int) -> None:
            if point in points:
                found[point] = deepcopy(state()) | {"rows": list(rows)}

        run.trained = lambda: look(trained(run.last_row.get("tasks_done", 0) + 1))
        while not run.done and max(points) not in found:
            row = run.advance()
            rows.append(row)
            if row["at_task_end"]:
                look(over(row["tasks_done"]))
        run.trained = lambda: None
        return found

    def _another(self, cls: Any, block: Mapping[str, Any], name: str) -> Any:
        """Another value of an option than the one in a block."""
        if name in self.others:
            return self.others[name]
        value = getattr(cls.Config.model_validate(block), name)
        for other in candidates(cls.Config.model_fields[name].annotation, value):
            try:
                self.check({**block, name: other})
            except Exception:  # noqa: BLE001  (the method refuses it: the next one)
                continue
            return other
        raise AssertionError(f"the suite knows no other value of {name}: name one in `others`")


def _only_default(cls: Any) -> set[str]:
    """Options of which the claim of ``first_task_of`` is about the default alone."""
    return {name for name in cls.Config.model_fields if claim(cls.Config, name) == 0}


def candidates(annotation: Any, value: Any) -> Iterator[Any]:
    """Values that an option of a type may have beside the one that it has."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        for other in (value * 2, value / 2, value + 1, value - 1, 0.5, 1, 0):
            number = int(other) if isinstance(value, int) else float(other)
            if number != value:
                yield number
    for part in (annotation, *get_args(annotation)):
        for other in get_args(part):
            if isinstance(other, str | int) and other != value:
                yield other
        if part is int:
            yield from (1, 2)
    if value is None:
        yield from (1, 0.5, 1.0)


VARYING = ("time/", "cost/seconds", "cost/peak_memory_mb")
"""Beginnings of the keys of a row that no two runs have alike."""
CLOCKS = {"seconds", "peak_memory_mb", "config"}
"""Keys of a state that two runs that are the same may have different."""


def differences(one: Any, other: Any, path: str = "") -> str:
    """Where two states differ in a bit first; empty: nowhere, but for time, memory and options."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return "" if same or _nans(one, other) else path
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [[k for k in d if not _varies(k)] for d in (one, other)]
        if set(keys[0]) != set(keys[1]):
            return f"{path}: {sorted(map(str, set(keys[0]) ^ set(keys[1])))}"
        parts = ((one[k], other[k], f"{path}.{k}" if path else str(k)) for k in keys[0])
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return path
        pairs = enumerate(zip(one, other, strict=True))
        parts = ((a, b, f"{path}[{i}]") for i, (a, b) in pairs)
    else:
        return "" if one == other or (one != one and other != other) else path
    return next((found for part in parts if (found := differences(*part))), "")


def _varies(key: Any) -> bool:
    return key in CLOCKS or (isinstance(key, str) and key.startswith(VARYING))


def _nans(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits, of which some are no numbers."""
    same = one.shape == other.shape and one.dtype == other.dtype and one.is_floating_point()
    return same and torch.equal(one.nan_to_num(), other.nan_to_num())
