"""Pydantic's errors in one plain line."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raycl.errors import KeyPath, Problem, nearest
from raycl.sweep.file.spaces import suggestion


def validate(model: type[BaseModel], data: Mapping[str, Any], subject: str = "") -> BaseModel:
    """Validate, refusing also what pydantic would convert in silence (``"5"``, ``true`` as 1).

    Args:
        model: The schema.
        data: The block.
        subject: What the block describes, e.g. ``"method ewc"``.

    Raises:
        Problem: The first thing that is wrong.
    """
    try:
        value = model.model_validate(dict(data))
    except ValidationError as error:
        raise _problem(error, model, data, subject) from error
    _refuse_conversion(data, value.model_dump(mode="json"), ())
    return value


def _problem(error: ValidationError, model: type[BaseModel], data: Any, subject: str) -> Problem:
    """The error to show: of the branches of a union, the one that got furthest."""
    errors = error.errors(include_url=False)
    first = errors[0]["loc"][:1]
    chosen = max(
        (e for e in errors if e["loc"][:1] == first and not _follows(e, errors)), key=_rank
    )
    what, hint = _words(chosen, model, subject)
    path = tuple(chosen["loc"])
    return Problem(path[:-1] if path[-1:] in _BRANCHES else path, what, hint)


_BRANCHES = (("str",), ("int",), ("float",), ("bool",))
"""What pydantic calls branches of a union at the end of a path."""


def _follows(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether a list is only too short because something in it is wrong."""
    here = error["loc"]
    below = (e["loc"] for e in errors if len(e["loc"]) > len(here))
    return error["type"] == "too_short" and any(loc[: len(here)] == here for loc in below)


def _rank(error: ErrorDetails) -> tuple[bool, int]:
    """A branch of the right type first, then the one that got furthest."""
    word = error["type"] == "literal_error" and isinstance(error["input"], dict | list)
    return (not (word or error["type"].endswith("_type")), len(error["loc"]))


def _words(error: ErrorDetails, model: type[BaseModel], subject: str) -> tuple[str, str]:
    kind, loc, given = error["type"], error["loc"], error["input"]
    if kind == "extra_forbidden":
        valid = _fields(model, loc[:-1])
        owner = f"{subject} has no option" if subject and len(loc) == 1 else "unknown key"
        return f"{owner} '{loc[-1]}'", nearest(str(loc[-1]), valid) if valid else ""
    if kind == "missing":
        return "is missing", ""
    context = error.get("ctx", {})
    if kind == "literal_error" and isinstance(given, str):
        expected = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return f"unknown value '{given}'", nearest(given, expected)
    if kind in ("value_error", "assertion_error"):
        return str(context["error"]).removesuffix("."), ""
    if kind == "too_short":
        return "must not be empty", ""
    text = error["msg"].replace("Input", "it", 1)
    text = text.replace("valid tuple", "list").replace("valid dictionary", "mapping")
    text = text.partition(" or instance of ")[0].partition(", unable to ")[0]
    text = re.sub(r"\b0\.0{4,}\d+", lambda digits: f"{float(digits[0]):g}", text)
    return f"{text[:1].lower()}{text[1:]}, not {_short(given)}", suggestion(given)


def _short(value: Any) -> str:
    """Write a value as JSON does, which is how people wrote it in the file."""
    try:
        text = json.dumps(value) if not isinstance(value, str) else repr(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the model at a path below ``model``, or none if there is no model."""
    found: type[BaseModel] | None = model
    for part in path:
        if found is None:
            return []
        if isinstance(part, str) and part in found.model_fields:
            found = next(iter(models_in(found.model_fields[part].annotation)), None)
        elif isinstance(part, str) and part not in (found.__name__,):
            return []
    return list(found.model_fields) if found is not None else []


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list, dict):
        return [m for argument in get_args(annotation) for m in models_in(argument)]
    return []


def _refuse_conversion(given: Any, got: Any, path: KeyPath) -> None:
    if isinstance(given, Mapping) and isinstance(got, Mapping):
        for key in given.keys() & got.keys():
            _refuse_conversion(given[key], got[key], (*path, key))
    elif isinstance(given, list | tuple) and isinstance(got, list) and len(given) == len(got):
        for i, (a, b) in enumerate(zip(given, got, strict=True)):
            _refuse_conversion(a, b, (*path, i))
    elif isinstance(got, bool) != isinstance(given, bool):
        noun = "true or false" if isinstance(got, bool) else "a number"
        raise Problem(path, f"must be {noun}, not {_short(given)}")
    elif isinstance(got, int | float) and isinstance(given, str):
        raise Problem(path, f"must be a number, not {_short(given)}")
