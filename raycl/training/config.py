"""The finished configuration of one trial: no axes and no search spaces are left."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from raycl.nn.optim import TrainConfig
from raycl.trial.randomness import FixedSeeds, Seed

Readout = Literal["class", "task", "domain"]
PROBE = "probe/"
"""Beginning of the names of readouts for which the linear probe is asked, not the method."""
PROBE_READOUTS = tuple(PROBE + readout for readout in get_args(Readout))
"""All readouts that a linear probe may have."""


class ProbeConfig(BaseModel):
    """A linear classifier that is fitted on frozen features, to see what they still hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: Literal["end", "task"] = Field(
        "end", description="measured after the last task only, or after every task"
    )
    l2: float = Field(
        1e-4, gt=0, description="mean loss + l2/2 |w|^2 is minimised, on standardised features"
    )


class EvaluateConfig(BaseModel):
    """What is measured after each task: on how many images, how often, and what beside.

    The diagonal of the matrices and their last row are always whole, and training never depends on
    what is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int | None = Field(
        None,
        ge=1,
        description="images per task of all entries that are neither on the diagonal nor in the "
        "last row, drawn once; default: all images",
    )
    every: int = Field(
        1,
        ge=1,
        description="tasks between two rows that are measured below the diagonal; the last row is",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="arithmetic of the method's answers; bfloat16 goes with train.precision",
    )
    probe: ProbeConfig | None = Field(
        None, description="linear probe on the frozen features, a diagnostic; default: none"
    )
    cache_mb: int = Field(
        1024,
        ge=0,
        description="memory for what a method computes from each image once, 10^6 bytes; 0: none",
    )


class TrialConfig(BaseModel):
    """One trial, as ``raycl.training.run.Run`` takes it; ``model_dump(mode="json")`` is JSON.

    ``benchmark``, ``method`` and ``network`` hold ``name`` and options; the class found under the
    name validates them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: dict[str, Any]
    method: dict[str, Any]
    network: dict[str, Any]
    train: TrainConfig = TrainConfig()
    seed: Seed = 0
    fixed_seeds: FixedSeeds = FixedSeeds()
    readouts: tuple[Readout, ...] | None = Field(
        None, description="None: all that the benchmark defines and the method supports"
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    tasks: int | None = Field(None, ge=1, description="only the first so many tasks of the stream")
    threads: int = Field(1, ge=1, description="CPU threads of PyTorch")
