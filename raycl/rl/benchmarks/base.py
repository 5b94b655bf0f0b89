"""Sequences of games: what is played, for how long, and how scores are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raycl import registry

if TYPE_CHECKING:
    import gymnasium


class Evaluation(BaseModel):
    """Options of scoring a policy: in full games, on seeds it never trains on.

    Departures from BLIP's code:
        * Every seed is played once, where the code takes the first ten games that end among ten
          side by side, so that short ones count more often.
        * No game is scored on a seed that is trained on. There, ten games on the seeds S+10 to S+19
          are scored, and sixteen environments train from S to S+15.
        * The score after a game is that of what its end leaves (BLIP rounds), and a game has none
          before its first update.
        * Games are cut after ``max_frames`` of 108,000, half an hour, by default: the code's limit
          is that of its environments, ``max_frames: null`` with the preset ``faithful``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(10, ge=1, description="games played; a score is their mean")
    actions: Literal["greedy", "sampled"] = Field(
        "greedy",
        description="greedy: the most probable action, as BLIP's code; sampled: as in training, "
        "which says more of policies that are still close to uniform",
    )
    every: int | None = Field(
        None, ge=1, description="also after every so many updates; default: at a game's end only"
    )
    zero_shot: bool = Field(
        False, description="also score games that are still to come, and the untrained network"
    )
    validation_episodes: int = Field(
        0, ge=0, description="further games, on seeds of their own, for a search to look at"
    )
    max_frames: int | None = Field(
        108_000,
        ge=400,
        description="emulator frames after which a game is cut (108,000: half an hour); null: the "
        "limit that training has",
    )


class GamesConfig(BaseModel):
    """Options of every sequence of games."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str | None = Field(None, description="name in tables; default: made from the options")
    frames: int = Field(
        40_000_000, ge=1, description="emulator frames to train on each game; 4 are one agent step"
    )
    evaluation: Evaluation = Evaluation()


class GameSequence(ABC):
    """Games in order, and how to make them. One file each; the file's stem is its name.

    Args (of the constructor of every subclass):
        config: Its ``Config``.
    """

    Config: type[GamesConfig] = GamesConfig
    config: Any

    def __init__(self, config: GamesConfig) -> None:
        self.config = config

    @property
    def label(self) -> str:
        """Name in tables and tags."""
        return str(self.config.label or self.default_label())

    @abstractmethod
    def default_label(self) -> str:
        """The label when none is given."""

    @property
    @abstractmethod
    def games(self) -> tuple[str, ...]:
        """Names of the games in order."""

    @property
    @abstractmethod
    def num_actions(self) -> tuple[int, ...]:
        """Actions of each game: the width of its policy head."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an observation, which is uint8."""

    @property
    @abstractmethod
    def frames_per_step(self) -> int:
        """Emulator frames of one agent step."""

    @property
    @abstractmethod
    def references(self) -> tuple[tuple[float, float], ...]:
        """Raw scores of each game that are 0 % and 100 % when normalised."""

    @abstractmethod
    def make(
        self, num_envs: int, *, training: bool, num_threads: int = 1, render: bool = False
    ) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """Make an ``envs.vector.SequentialAtari``, or something that behaves like one.

        Args:
            num_envs: Games played side by side.
            training: Rewards are clipped and a lost life ends an episode.
            num_threads: Threads of the emulator.
            render: Frames can be had for pictures.
        """


def normalise(
    scores: Sequence[float | None], references: Sequence[tuple[float, float]]
) -> list[float | None]:
    """Turn raw scores into percent: 100 (R - low) / (high - low), game by game."""
    return [
        None if score is None else 100 * (score - low) / (high - low)
        for score, (low, high) in zip(scores, references, strict=True)
    ]


def build_games(block: Mapping[str, Any], where: str = "benchmark") -> GameSequence:
    """Build the sequence of games of a configuration block."""
    cls = registry.find("raycl.rl.benchmarks", GameSequence, block["name"], where=where)  # type: ignore[type-abstract]
    return cls(cls.Config.model_validate(block))
