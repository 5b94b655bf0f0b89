"""The protocol of a run and its row: every key is described, and control keys are spelt once."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import raycl
from raycl.testing import toy_data
from raycl.training.run import Run
from raycl.trial import run as trial
from raycl.trial.run import Known, Row, add_histograms, failure

PREFIXES = {"train", "validation", "eval", "method", "cost", "time", "curve"}
CONTROL = {trial.FAILED, trial.TRACEBACK, trial.UNKEPT, trial.PARKED}


def described() -> set[str]:
    """Keys with a line of their own in the docstring of ``Known``."""
    return set(re.findall(r"(?m)^    (\w+): ", inspect.getdoc(Known) or ""))


def test_every_known_key_is_described() -> None:
    assert described() == Known.__annotations__.keys()
    constants = {n: v for n, v in vars(trial).items() if n.isupper() and isinstance(v, str)}
    assert {name.lower(): value for name, value in constants.items()} == {
        value: value for value in constants.values()
    }
    assert set(constants.values()) <= Known.__annotations__.keys()


def test_rows_have_known_keys_of_the_type_they_are_said_to_have() -> None:
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "method": {"name": "finetune"},
        "network": {"name": "mlp", "hidden": [4]},
    }
    run = Run(config, toy_data())
    rows: list[Row] = []
    while not run.done:
        rows.append(run.advance())
    types = get_type_hints(Known)
    for row in rows:
        for key, value in row.items():
            if "/" in key:
                assert key.partition("/")[0] in PREFIXES
                assert isinstance(value, float)
            else:
                assert isinstance(value, getattr(types[key], "__origin__", types[key])), key
    assert rows[-1]["finished"]
    assert rows[-1]["result"] == run.result()


@pytest.mark.parametrize("prefix", sorted(PREFIXES))
def test_prefixes_are_said_beside_the_row(prefix: str) -> None:
    assert f"``{prefix}/``" in Path(trial.__file__).read_text()


def test_control_keys_are_spelt_in_one_file() -> None:
    """Strings used as keys of a row: in a subscript, left of ``in``, in a dict, in ``get``."""
    found = []
    for path in Path(raycl.__file__).parent.rglob("*.py"):
        if path == Path(trial.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            keys: list[ast.expr | None] = []
            if isinstance(node, ast.Subscript):
                keys = [node.slice]
            elif isinstance(node, ast.Compare):
                keys = [node.left]
            elif isinstance(node, ast.Dict):
                keys = list(node.keys)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
                keys = list(node.args[:1])
            found += [
                f"{path}:{node.lineno} {key.value}"
                for key in keys
                if isinstance(key, ast.Constant) and key.value in CONTROL
            ]
    assert not found


def test_a_failure_has_its_traceback_below() -> None:
    assert failure({"finished": True}) is None
    assert failure({"failed": "ValueError: x", "traceback": "line 1"}) == "ValueError: x\nline 1"
    assert failure({"failed": "ValueError: x"}) == "ValueError: x\n"


@pytest.mark.parametrize("later", [{"bits": [1]}, {}, {"bits": [1, 2], "more": [3]}])
def test_histograms_have_the_same_bins_after_every_task(later: dict[str, list[int]]) -> None:
    found: dict[str, list[list[int]]] = {}
    add_histograms(found, {"bits": [1, 2]}, 1)
    add_histograms(found, {"bits": [3, 4]}, 2)
    assert found == {"bits": [[1, 2], [3, 4]]}
    with pytest.raises(ValueError, match=r"histogram \w+ must have the same bins after every task"):
        add_histograms(found, later, 3)
