"""What trials may share: how far into a stream an option, or the choice of a method, cannot matter.

An option says so where it is declared, a method's class in ``first_task_of``; the conformance suite
proves both. The *points* at which a state can be shared are numbered along the stream, with
tasks counted from 1:
``2 t - 1`` is the end of the training of task t, before what the method does at the task's end
(``Phase.after`` of the last phase, ``end_task``); ``2 t`` is when all of task t is over.

An option may also say that it has no part in a phase: trials that differ in it alone then share
what the phase trains, though they differ before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import get_annotations
from typing import Any

from pydantic import BaseModel

SHARED = "raycl_shared"
"""Key in ``json_schema_extra`` of an option: the last point at which it cannot have mattered."""
SHARED_SECONDS = "shared_seconds"
"""Key of a result: seconds of its cost that another trial has spent for it, if any."""
TAKEN_FROM = "taken_from"
"""Key of a result: name of the sweep that has run the trial, if it was another one."""


def trained(task: int) -> int:
    """The point at which a task, counted from 1, has been trained and is not over yet."""
    return 2 * task - 1


def over(task: int) -> int:
    """The point at which a task, counted from 1, is over."""
    return 2 * task


def from_task(task: int) -> dict[str, Any]:
    """Declare that an option cannot matter before a task, counted from 1.

    For an option that the method in ``first_task_of`` does not have, ``from_task(1)`` says that
    only its default leaves the first task as it is there.

    >>> from pydantic import Field
    >>> lam: float = Field(1.0, json_schema_extra=from_task(2))
    """
    return {SHARED: over(task - 1)}


def from_end_of_task(task: int) -> dict[str, Any]:
    """Declare that an option cannot matter before a task, counted from 1, has been trained."""
    return {SHARED: trained(task)}


def not_in_phase(phase: str) -> dict[str, Any]:
    """Declare that an option has no part in what a phase trains, see ``Phase.result``.

    Nor in what the phase starts from, in any task; the conformance suite looks at two.
    """
    return {SHARED: phase}


def unaffected(cls: Any, option: str) -> int:
    """The last point at which an option of a method cannot have mattered; 0: it always may.

    Args:
        cls: The method's class.
        option: Name of the option.
    """
    found = _own_claim(cls, option)
    return found if isinstance(found, int) else 0


def without_part(cls: Any, option: str) -> str:
    """The phase that an option of a method has no part in; empty: it may have one in all."""
    found = _own_claim(cls, option)
    return found if isinstance(found, str) else ""


def _own_claim(cls: Any, option: str) -> int | str | None:
    """The claim that an option of a method makes, see ``claim``.

    A class from outside raycl that inherits an option inherits no claim about it, because what the
    class does with the option may be another thing.
    """
    if not cls.__module__.startswith("raycl."):
        own = vars(cls).get("Config")
        if own is None or own.__module__ != cls.__module__ or option not in get_annotations(own):
            return None
    return claim(cls.Config, option)


def claim(config: type[BaseModel], option: str) -> int | str | None:
    """The point or the phase that an option names, wherever it is declared; ``None``: none."""
    extra = config.model_fields[option].json_schema_extra
    found = extra.get(SHARED) if isinstance(extra, dict) else None
    return found if isinstance(found, int | str) else None


def base_name(cls: Any) -> str | None:
    """The ``first_task_of`` that a class says of itself; that of a parent is no claim about it."""
    found: str | None = vars(cls).get("first_task_of")
    return found


def first_method(block: Mapping[str, Any], find: Callable[[str], Any]) -> dict[str, Any]:
    """The method whose first task, up to the end of its training, is that of a given method.

    Args:
        block: A finished ``method`` block.
        find: The class of a method by its name.

    Returns:
        The finished block of that method, with the options that both have; the same block if the
        method says nothing, or if it says so of other values of its options.
    """
    found, known = dict(block), {str(block["name"])}
    while (base := _base(found, find)) is not None:
        found = base
        if found["name"] in known:
            raise TypeError(f"first_task_of of {found['name']} leads back to itself")
        known.add(found["name"])
    return found


def _base(block: Mapping[str, Any], find: Callable[[str], Any]) -> dict[str, Any] | None:
    cls = find(block["name"])
    name = base_name(cls)
    if name is None:
        return None
    options, base = cls.Config.model_validate(block), find(name).Config
    shared: dict[str, Any] = {"name": name}
    for option, field in cls.Config.model_fields.items():
        value = getattr(options, option)
        if option in base.model_fields:
            shared.setdefault(option, value)
        elif claim(cls.Config, option) == 0 and value != field.get_default():
            return None  # the claim is about its default alone
    try:
        found: dict[str, Any] = base.model_validate(shared).model_dump(mode="json")
    except ValueError:  # an option that has other values there
        return None
    return found


def options_at(block: Mapping[str, Any], cls: Any, place: int | str) -> dict[str, Any]:
    """A ``method`` block without the options that cannot have mattered at a point, or in a phase.

    Args:
        block: The finished block.
        cls: The method's class.
        place: Number of the point, or name of the phase.
    """

    def matters(name: str) -> bool:
        if isinstance(place, str):
            return without_part(cls, name) != place
        return unaffected(cls, name) < place

    known = cls.Config.model_fields
    return {name: v for name, v in block.items() if name not in known or matters(name)}


def phases_named(cls: Any) -> list[str]:
    """The phases that options of a method say they have no part in, sorted."""
    return sorted({without_part(cls, name) for name in cls.Config.model_fields} - {""})
