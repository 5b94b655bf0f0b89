"""What Ray's workers do for ``raycl gif``: play a game from a checkpoint, put games on a sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from raycl.errors import UserError
from raycl.gif.clip import Clip, play
from raycl.gif.encode import Gif
from raycl.gif.sheet import Sheet, Tile, number
from raycl.rl.benchmarks.base import build_games
from raycl.rl.config import SequenceConfig
from raycl.rl.player import Player
from raycl.rl.policy import build_policy
from raycl.rl.seeds import first_seed
from raycl.secrets import adopt
from raycl.tracking.names import file_name
from raycl.trial.checkpoint import CheckpointStore

EMULATOR_HZ = 60
CELL_BYTES, GRID_BYTES = 1_000_000, 3_000_000
"""What a file should not exceed; steps are left out to stay below."""


@dataclass(frozen=True)
class Job:
    """A game to be played.

    Attributes:
        storage: Folder or URL of the trial's checkpoints.
        after: Row of the picture: after which game of the sequence.
        network: The policy after which game plays.
        game: Which game it plays.
        games: Names of all games.
        method: Label of the trial's method.
        max_seconds: Seconds of the game's own time, after which it is cut.
        fps: Agent steps shown per second.
    """

    storage: str
    after: int
    network: int
    game: int
    games: tuple[str, ...]
    method: str
    max_seconds: float
    fps: float

    @property
    def file(self) -> str:
        """Name of its picture."""
        return f"{self.after:02d}-{file_name(self.games[self.game])}.gif"


@dataclass(frozen=True)
class Cell:
    """A game that was played, or why it was not.

    Attributes:
        job: What was asked for.
        clip: The game; ``None``: there is a problem.
        gif: Its picture.
        problem: One line.
        score: Mean raw score of the trial's own evaluation; ``None``: it was not measured.
        percent: The same, normalised.
    """

    job: Job
    clip: Clip | None = None
    gif: Gif | None = None
    problem: str = ""
    score: float | None = None
    percent: float | None = None

    @property
    def tile(self) -> Tile:
        """The game as a tile of a sheet."""
        caption = ""
        if self.score is not None and self.percent is not None:
            caption = f"mean {number(self.score)} · {self.percent:z.0f} %"
        return Tile(self.clip, caption, self.problem, faded=self.job.game > self.job.after)


class Unusable(Exception):
    """A checkpoint that nothing can be played from; the text says why."""


def draw_cell(job: Job, variables: Mapping[str, str] | None = None) -> Cell:
    """Play one game and draw it.

    Args:
        job: Which.
        variables: Set in this process, for what the storage asks for.
    """
    adopt(variables or {})
    torch.set_num_threads(1)
    try:
        state = _state(job)
        clip = _play(job, state)
    except Unusable as error:
        return Cell(job, problem=str(error))
    score, percent = (state["scores"][name][job.game] for name in ("score", "normalised"))
    cell = Cell(job, clip, None, "", score, percent)
    title, label = f"{job.method}: {job.games[job.game]}", f"after {job.games[job.after]}"
    sheet = Sheet(title, [""], [label], {(0, 0): cell.tile}, job.fps)
    return replace(cell, gif=sheet.gif(CELL_BYTES))


def draw_grid(title: str, *cells: Cell) -> Gif:
    """One method: row = after which game, column = which game."""
    games = cells[0].job.games
    rows = 1 + max(cell.job.after for cell in cells)
    columns = 1 + max(cell.job.game for cell in cells)
    tiles = {(cell.job.after, cell.job.game): cell.tile for cell in cells}
    labels = [f"after\n{game}" for game in games[:rows]]
    return Sheet(title, labels, games[:columns], tiles, cells[0].job.fps).gif(GRID_BYTES)


def draw_methods(title: str, *cells: Cell) -> Gif:
    """All methods: row = method, column = game, each after the last game it has learnt.

    Args:
        title: Above it.
        cells: Row by row.
    """
    games = cells[0].job.games
    columns = 1 + max(cell.job.game for cell in cells)
    last = {cell.job.method: cell.job.after for cell in cells}
    rows = list(last)
    tiles = {(rows.index(cell.job.method), cell.job.game): cell.tile for cell in cells}
    labels = [f"{method}\nafter\n{games[after]}" for method, after in last.items()]
    return Sheet(title, labels, games[:columns], tiles, cells[0].job.fps).gif(GRID_BYTES)


def _state(job: Job) -> dict[str, Any]:
    name = f"after-{job.network:02d}"
    try:
        state = CheckpointStore(job.storage).get(name)
    except ValueError as error:
        raise Unusable(f"{name}.pt is damaged") from error
    if state is None:
        raise Unusable(f"{name}.pt is missing")
    return state


def _play(job: Job, state: dict[str, Any]) -> Clip:
    config = SequenceConfig.model_validate(state["config"])
    try:
        games = build_games(config.benchmark)
        policy = build_policy(config, random=True)  # the checkpoint has all weights
    except UserError as error:
        raise Unusable(str(error)) from error
    try:
        policy.load_state_dict(state["policy"])
    except RuntimeError as error:
        raise Unusable(f"after-{job.network:02d}.pt does not fit the network") from error
    steps = max(1, int(job.max_seconds * EMULATOR_HZ / games.frames_per_step))
    seed = first_seed(config, job.game)
    player = Player(policy, games.config.evaluation.actions, [seed])
    return play(player, games, job.game, seed=seed, max_steps=steps)
