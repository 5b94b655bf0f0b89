"""Learners of prompts and ways to distil them go through the conformance suite.

By default every learner alone, every scheme once and every learner in two of them, on weights from
a file; all other pairs, and networks that the first task trains, with ``pytest -m slow``.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prompt_making import ALONE, LEARNERS, PAIRS, STUDENT, TEACHER, trained_file

from raycl.datasets.base import Dataset
from raycl.testing import MethodConformance, toy_data

COVERING = {
    ("l2p", "none"),
    ("dual_prompt", "kd"),
    ("coda_prompt", "dkd"),
    ("apt", "fitnets"),
    ("l2p", "review_kd"),
    ("dual_prompt", "kd_token"),
    ("apt", "kdp"),
    ("coda_prompt", "cdl_prompt"),
}
"""Pairs that the default run tries."""
FIRST_TASK = {("l2p", "kdp")}
"""Pairs that are tried on networks which the first task trains, too."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Two networks with weights that know the toy images."""
    folder: Path = tmp_path_factory.mktemp("weights")
    blocks = {"student": STUDENT, "teacher": TEACHER}
    return {
        name: trained_file(folder / f"{name}.safetensors", block) for name, block in blocks.items()
    }


class Prompts(MethodConformance):
    """The suite with few images and small transformers."""

    __test__ = False
    anchor: ClassVar[str] = "weights"
    given: ClassVar[dict[str, Any]] = {}
    train = {"epochs": 3, "batch_size": 8, "lr": 0.03, "optimizer": "adam"}

    @pytest.fixture(autouse=True)
    def _weighted(self, request: pytest.FixtureRequest) -> None:
        blocks = {"student": STUDENT, "teacher": TEACHER}
        if self.anchor == "weights":
            blocks = request.getfixturevalue("weights")
        self.network = blocks["student"]  # type: ignore[misc]
        teacher = {"teacher_network": blocks["teacher"]} if self.method == "cdl" else {}
        self.options = {**self.given, "anchor": self.anchor, **teacher}  # type: ignore[misc]

    @cached_property
    def data(self) -> dict[str, Dataset]:
        """Fewer toy images than usual."""
        return toy_data(train=13, test=8)


def _add(name: str, slow: bool, **attributes: Any) -> None:
    made = type(name, (Prompts,), {"__test__": True, **attributes})
    globals()[name] = pytest.mark.slow(made) if slow else made


for _name, _options in ALONE.items():
    _add(f"Test_{_name}", False, method=_name, given=_options)
for _learner, _scheme in PAIRS:
    _given = {"learner": {"name": _learner, **LEARNERS[_learner]}, "scheme": _scheme}
    _pair, _both = (_learner, _scheme), {"method": "cdl", "given": _given}
    _add(f"Test_{_learner}_{_scheme}", _pair not in COVERING, **_both)
    if _pair in FIRST_TASK:
        _first = {"anchor": "first_task", "train": {**Prompts.train, "epochs": 8}}
        _add(f"Test_{_learner}_{_scheme}_first_task", True, **_both, **_first)
