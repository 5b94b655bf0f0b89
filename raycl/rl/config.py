"""The finished configuration of a trial on games: the twin of ``raycl.training.config``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raycl.nn.precision import Precision
from raycl.trial.randomness import FixedSeeds, Seed


class PPOConfig(BaseModel):
    """Options of PPO; the defaults are those of BLIP's Atari experiments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(2.5e-4, gt=0, description="learning rate of Adam")
    anneal: bool = Field(True, description="let lr fall linearly to 0 over each game")
    adam_eps: float = Field(1e-5, gt=0, description="eps of Adam")
    envs: int = Field(16, ge=1, description="games played side by side, over all env runners")
    rollout: int = Field(125, ge=1, description="steps of each game between two updates")
    minibatches: int = Field(8, ge=1, description="per epoch; what is left over is dropped")
    epochs: int = Field(4, ge=1, description="passes over each rollout")
    gamma: float = Field(0.99, ge=0, le=1, description="discount")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="lambda of the advantages")
    clip: float = Field(0.1, gt=0, description="bound of the ratio and of the value's change")
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss, which has a 1/2")
    entropy_coef: float = Field(0.01, ge=0, description="weight of the entropy")
    max_grad_norm: float = Field(0.5, gt=0, description="bound on the norm of all gradients")
    precision: Precision = Field(
        "float32",
        exclude_if=lambda value: value == "float32",  # so that the keys of trials stay
        description="precision of the trunk while it plays for training and learns; bfloat16: "
        "heads, losses, weights and scores stay float32",
    )

    @property
    def batch_size(self) -> int:
        """Agent steps per update."""
        return self.envs * self.rollout

    @model_validator(mode="after")
    def _minibatches(self) -> PPOConfig:
        if self.minibatches > self.batch_size:
            raise ValueError(f"{self.minibatches} minibatches of {self.batch_size} steps")
        if self.batch_size < 2:
            raise ValueError("advantages of a single step cannot be scaled; use a longer rollout")
        return self

    def learning_rate(self, update: int, updates: int) -> float:
        """The learning rate of one update of a game: lr (1 - update / updates), or lr.

        Args:
            update: Updates of this game before this one.
            updates: Updates of this game in all.
        """
        return self.lr * (1 - update / updates) if self.anneal else self.lr


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
