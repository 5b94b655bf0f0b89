"""Plays one game and keeps it as frames of indexed colours."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycl.gif.encode import COLOURS, Indices
from raycl.rl.benchmarks.base import GameSequence


class Chooser(Protocol):
    """The interface that chooses actions, such as a ``raycl.rl.player.Player`` of one game."""

    def actions(self, obs: Tensor, game: int) -> Tensor:
        """Actions (B,) for observations uint8 (B, C, H, W)."""


@dataclass(frozen=True)
class Clip:
    """A recorded game; frame ``t`` shows it after ``t`` agent steps.

    Attributes:
        colours: RGB uint8 [n, 3].
        shape: Height and width of a frame.
        scores: Raw score after each step [steps + 1]; with the preset ``faithful`` without what is
            won between lives, but for the last one of a game that is over.
        over: Whether the game came to its end; else it was cut, here or by its time limit.
        counts: How often each colour was shown, in pixels over all frames [n].
        packed: The frames: indices into the colours, each as its difference (exclusive or) to the
            one before, compressed. A minute of a game takes some hundred kilobytes.
    """

    colours: NDArray[np.uint8]
    shape: tuple[int, int]
    scores: NDArray[np.float64]
    over: bool
    counts: NDArray[np.int64]
    packed: bytes

    @property
    def steps(self) -> int:
        """Agent steps played."""
        return len(self.scores) - 1

    @property
    def score(self) -> float:
        """Raw score at the end."""
        return float(self.scores[-1])

    def frames(self) -> Iterator[Indices]:
        """Frames in order; each array is overwritten by the next."""
        frame = np.zeros(self.shape, np.uint8)
        reader = zlib.decompressobj()
        rest = self.packed
        for _ in self.scores:
            found = b""
            while len(found) < frame.size:
                found += reader.decompress(rest, frame.size - len(found))
                rest = reader.unconsumed_tail
            frame ^= np.frombuffer(found, np.uint8).reshape(self.shape)
            yield frame


class _Recorder:
    """Turns RGB frames into a clip as they come.

    The emulator has 128 colours, but where it shows the brighter of two frames it mixes them. A
    colour that comes when the palette is full is shown as the nearest one in it.
    """

    def __init__(self) -> None:
        self.known = np.full(1 << 24, COLOURS, np.uint8)  # by colour; COLOURS: not yet
        self.colours: list[int] = []
        self.counts = np.zeros(COLOURS, np.int64)
        self.scores: list[float] = []
        self.packer = zlib.compressobj(1)
        self.packed = bytearray()
        self.last: Indices | None = None

    def add(self, screen: NDArray[np.uint8], score: float) -> None:
        """Record the frame of a step, RGB [H, W, 3], and the score after it."""
        frame = self._indices(screen)
        change = frame if self.last is None else frame ^ self.last
        self.packed += self.packer.compress(np.ascontiguousarray(change).tobytes())
        self.counts += np.bincount(frame.ravel(), minlength=COLOURS)
        self.last = frame
        self.scores.append(score)

    def repeat(self, score: float) -> None:
        """Record a step after which there is no new frame."""
        assert self.last is not None
        self.packed += self.packer.compress(np.zeros_like(self.last).tobytes())
        self.scores.append(score)

    def clip(self, over: bool) -> Clip:
        """The clip that was recorded."""
        assert self.last is not None
        colours = _rgb(self.colours).astype(np.uint8)
        packed = bytes(self.packed + self.packer.flush())
        shape = (self.last.shape[0], self.last.shape[1])
        counts = self.counts[: len(colours)]
        return Clip(colours, shape, np.array(self.scores), over, counts, packed)

    def _indices(self, screen: NDArray[np.uint8]) -> Indices:
        red, green, blue = np.moveaxis(screen.astype(np.int32), -1, 0)
        codes = red << 16 | green << 8 | blue
        frame: Indices = self.known[codes]
        for code in np.unique(codes[frame == COLOURS]).tolist():
            if len(self.colours) < COLOURS:
                self.known[code] = len(self.colours)
                self.colours.append(code)
            else:
                self.known[code] = np.abs(_rgb(self.colours) - _rgb([code])).sum(1).argmin()
            frame = self.known[codes]
        return frame


def _rgb(codes: list[int]) -> NDArray[np.int64]:
    """Turn codes 0xRRGGBB [n] into RGB [n, 3]."""
    found = np.array(codes, np.int64)
    return np.stack([found >> 16, found >> 8 & 255, found & 255], 1)


def play(player: Chooser, games: GameSequence, game: int, *, seed: int, max_steps: int) -> Clip:
    """Play one game on the emulator settings its scores were taken with.

    Args:
        player: The player.
        games: The sequence of the game.
        game: Index in the sequence.
        seed: Seed of the game; see ``raycl.rl.seeds``.
        max_steps: Agent steps after which it is cut.
    """
    env: Any = games.make(1, training=False, render=True)
    recorder, score = _Recorder(), 0.0
    try:
        env.set_task(game)
        observations, _ = env.reset(seed=[seed])
        recorder.add(env.render()[0], score)
        for _ in range(max_steps):
            actions = player.actions(torch.from_numpy(observations), game).numpy()
            observations, rewards, *_ = env.step(actions)
            score += float(rewards[0])
            finished = env.finished_games()
            if finished:  # the screen is that of the next game already
                recorder.repeat(finished[0].score)
                return recorder.clip(over=not finished[0].cut)
            recorder.add(env.render()[0], score)
        return recorder.clip(over=False)
    finally:
        env.close()
