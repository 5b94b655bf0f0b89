"""Chooses the readouts of a run: the questions that it asks its method after each task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raycl.errors import UserError
from raycl.methods.base import Method
from raycl.training.config import PROBE


def choose_readouts(
    defined: tuple[str, ...], method: type[Method], wanted: list[str] | tuple[str, ...] | None
) -> tuple[str, ...]:
    """Choose the readouts: those asked for, else all that benchmark and method both know.

    Raises:
        UserError: One asked for is not defined or not supported, or none is left.
    """
    usable = tuple(r for r in defined if r in method.settings)
    for readout in wanted or ():
        if readout not in usable:
            why = f"{method.__name__} supports {', '.join(sorted(method.settings))}"
            if readout not in defined:
                why = f"the benchmark defines {', '.join(defined)}"
            raise UserError("readouts", f"'{readout}' cannot be evaluated: {why}")
    if not usable:
        raise UserError("readouts", f"{method.__name__} supports none of {defined}")
    return tuple(wanted) if wanted else usable


def further_readouts(readouts: Sequence[str], predictors: Sequence[str]) -> tuple[str, ...]:
    """Readouts of a method's predictors, asked in the same ways as the method itself.

    Args:
        readouts: Readouts of the method itself.
        predictors: Names; see ``Method``.

    Raises:
        ValueError: A name that cannot be one, or that is there twice.

    >>> further_readouts(("class", "task"), ["teacher"])
    ('teacher/class', 'teacher/task')
    """
    for name in predictors:
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or f"{name}/" == PROBE:
            raise ValueError(f"'{name}' cannot be the name of a predictor")
    if len(set(predictors)) < len(predictors):
        raise ValueError(f"predictors names one twice: {', '.join(predictors)}")
    return tuple(f"{name}/{readout}" for name in predictors for readout in readouts)
