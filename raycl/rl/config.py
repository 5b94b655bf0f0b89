"""The finished configuration of a trial on games: the twin of ``raycl.training.config``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raycl.rl.ppo import PPOConfig
from raycl.training.config import FixedSeeds, Seed


class SequenceConfig(BaseModel):
    """One trial, as ``raycl.rl.sequence.SequenceRun`` takes it; it can be dumped as JSON.

    ``benchmark``, ``method`` and ``network`` hold ``name`` and options; the class found under the
    name validates them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: dict[str, Any]
    method: dict[str, Any]
    network: dict[str, Any]
    train: PPOConfig = PPOConfig()
    seed: Seed = 0
    fixed_seeds: FixedSeeds = FixedSeeds()
    readouts: None = Field(None, description="games are read by score; see rl.metrics")
    tasks: int | None = Field(None, ge=1, description="only the first so many games")
    threads: int = Field(1, ge=1, description="CPU threads of PyTorch")
