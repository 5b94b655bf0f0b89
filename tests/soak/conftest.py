"""How long a soak test is, and where it takes place."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import Lab, lab, small_disk
from tests.soak.chaos import COUNTED, Chaos

__all__ = ["lab"]


@dataclass
class Soaked:
    """A lab whose runs folder may be on a small disk, and the parameters of the test."""

    lab: Lab
    disk: bool
    trials: int
    seed: int
    minutes: float

    def chaos(self, sweep_file: Path) -> Chaos:
        """``raycl run``, and what is to happen to it."""
        return Chaos(self.lab, ("run", str(sweep_file)), self.seed, self.minutes, self.disk)


@pytest.fixture
def soaked(lab: Lab) -> Iterator[Soaked]:
    """``SOAK_TRIALS`` (200) trials, ``SOAK_MINUTES`` (30) of accidents from ``SOAK_SEED`` (any)."""
    (lab.path / "counted.py").write_text(COUNTED)
    (lab.path / "steps").mkdir()
    trials = int(os.environ.get("SOAK_TRIALS", "200"))
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(10**6))
    with small_disk(lab.runs, "200m") as disk:
        if not disk:
            warnings.warn("no disk is filled: only root can mount a small one", stacklevel=1)
        print(f"\n{trials} trials in {lab.path}; again with the same accidents: SOAK_SEED={seed}")
        yield Soaked(lab, disk, trials, seed, minutes)
