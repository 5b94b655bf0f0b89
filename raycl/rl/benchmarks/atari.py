"""Atari games one after another, on ``envs.vector.SequentialAtari``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from raycl.errors import nearest
from raycl.rl.benchmarks.base import GamesConfig, GameSequence

if TYPE_CHECKING:
    import gymnasium

_NAMED_UP_TO = 3
"""Games of a list that are written out in its label."""


class Atari(GameSequence):
    """A sequence of games of the Arcade Learning Environment, each with its minimal action set.

    Bellemare et al., "The Arcade Learning Environment", JAIR 2013. ``blip6`` and ``blip3`` are the
    sequence of Shi et al., "Continual Learning via Bit-Level Information Preserving", CVPR 2021
    (arXiv 2105.04444), and its first three games.

    Scores are normalised by the random and human scores of Mnih et al., Nature 2015, as Wang et
    al. (arXiv 1511.06581) print them, or by a pair of raw scores for each game.
    """

    class Config(GamesConfig):
        """Options of the benchmark ``atari``."""

        games: str | tuple[str, ...] = Field(
            "blip6", description="a sequence (blip6, blip3), one game, or a list of games"
        )
        preset: Literal["fast", "faithful"] = Field(
            "fast", description="ale-py's C++ environment, or the reference's stack of wrappers"
        )
        full_action_space: bool = Field(False, description="all 18 actions in every game")
        normalise: Literal["human"] | dict[str, tuple[float, float]] = Field(
            "human",
            description="what is 0 and 100 %: random and human play, or GAME: [low, high] for each",
            validate_default=True,
        )

        @field_validator("games")
        @classmethod
        def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
            _sequence(value)
            return value

        @field_validator("normalise")
        @classmethod
        def _complete(cls, value: Any, info: ValidationInfo) -> Any:
            if "games" in info.data:  # else they are what is wrong
                _references(_sequence(info.data["games"]), value)
            return value

    config: Config

    def default_label(self) -> str:
        """``atari-blip3``, ``atari-Boxing-Krull``, ``atari-5-games``; the preset if not fast."""
        from envs.games import SEQUENCES

        names = {games: name for name, games in SEQUENCES.items()}
        short = self.games if len(self.games) <= _NAMED_UP_TO else (str(len(self.games)), "games")
        what = names.get(self.games) or "-".join(short)
        return f"atari-{what}" + ("" if self.config.preset == "fast" else f"-{self.config.preset}")

    @property
    def games(self) -> tuple[str, ...]:
        """Names of the games in order."""
        return _sequence(self.config.games)

    @property
    def num_actions(self) -> tuple[int, ...]:
        """Actions of each game: its minimal set, or all 18."""
        from envs.games import num_actions

        full = self.config.full_action_space
        return tuple(18 if full else num_actions(game) for game in self.games)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Four grey frames of 84 x 84."""
        return (4, 84, 84)

    @property
    def frames_per_step(self) -> int:
        """An action is held for four frames."""
        return 4

    @property
    def references(self) -> tuple[tuple[float, float], ...]:
        """Raw scores of each game that are 0 % and 100 % when normalised."""
        return _references(self.games, self.config.normalise)

    def make(
        self, num_envs: int, *, training: bool, num_threads: int = 1, render: bool = False
    ) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """See the base class."""
        from envs.vector import SequentialAtari

        return SequentialAtari(
            self.games,
            num_envs,
            preset=self.config.preset,
            training=training,
            full_action_space=self.config.full_action_space,
            max_frames=None if training else self.config.evaluation.max_frames,
            num_threads=num_threads,
            render_mode="rgb_array" if render else None,
        )


def _sequence(games: str | Iterable[str]) -> tuple[str, ...]:
    """Find the games that the option means.

    Raises:
        ValueError: A game is unknown, or given twice.
    """
    from envs.games import UnknownGame, sequence

    try:
        found = sequence(games if isinstance(games, str) else list(games))
    except UnknownGame as error:
        raise ValueError(f"unknown game '{error.name}'; {_hint(error.name, games)}") from error
    if not found:
        raise ValueError("must not be empty")
    return found


def _hint(name: str, games: str | Iterable[str]) -> str:
    """A hint for a name that belongs to no game."""
    from envs.games import SEQUENCES, names

    listed = not isinstance(games, str)
    if listed and name in SEQUENCES:
        return f"{name} is a sequence, and stands alone: games: {name}"
    valid = names() if listed else [*SEQUENCES, *names()]
    bare = name.rpartition("/")[2].partition("NoFrameskip")[0].partition("-")[0]
    hint = nearest({known.lower(): known for known in valid}.get(bare.lower(), name), valid)
    if hint.startswith("did you mean"):
        return hint
    return f"there are {len(names())} games, e.g. {', '.join(SEQUENCES['blip6'][:3])}"


def _references(
    games: tuple[str, ...], normalise: Literal["human"] | dict[str, tuple[float, float]]
) -> tuple[tuple[float, float], ...]:
    """Low and high raw score of each game.

    Raises:
        ValueError: A game has none, a name is not among the games, or low is not below high.
    """
    if isinstance(normalise, str):
        from envs.games import SCORES

        known, lacks = SCORES, "nobody's score is known for {}; write GAME: [low, high] for each"
    else:
        known, lacks = normalise, "{} has no scores; write {}: [low, high]"
        for game, (low, high) in known.items():
            if game not in games:
                raise ValueError(f"'{game}' is none of the games; {nearest(game, games)}")
            if low >= high:
                raise ValueError(f"{game}: low must be below high, not {low:g} and {high:g}")
    for game in games:
        if game not in known:
            raise ValueError(lacks.format(game, game))
    return tuple(known[game] for game in games)
