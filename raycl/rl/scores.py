"""The scores of a run on a sequence of games: matrices, curves, and the metrics of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raycl.rl.metrics import compute
from raycl.trial.matrix import Matrix, plain

Curve = list[list[float]]
"""Points [emulator frames since the start of the sequence, raw score]."""


class Scores:
    """``R[t, i]``: raw score on game i after game t; NaN where it was not measured.

    Args:
        games: Names of the games of the run.
        references: Raw scores that are 0 % and 100 %, of each game.
        frames: Emulator frames per game, as trained.
    """

    def __init__(
        self,
        games: Sequence[str],
        references: Sequence[tuple[float, float]],
        frames: int,
    ) -> None:
        self.games, self.references, self.frames = tuple(games), tuple(references), frames
        count = len(games)
        self.test = np.full((count, count), math.nan)
        self.validation = np.full((count, count), math.nan)
        self.untrained = np.full(count, math.nan)
        self.evaluation: dict[str, Curve] = {game: [] for game in games}
        self.training: dict[str, Curve] = {game: [] for game in games}

    def keep(self, index: int) -> None:
        """Begin a row: earlier games score as before, later ones as the untrained network."""
        for matrix in (self.test, self.validation):
            matrix[index, :index] = matrix[index - 1, :index] if index else math.nan
        self.test[index, index + 1 :] = self.untrained[index + 1 :]

    def normalised(self, scores: Matrix) -> Matrix:
        """Turn raw scores into percent of the reference; the last axis is the game."""
        low, high = (np.array(values) for values in zip(*self.references, strict=True))
        percent: Matrix = 100 * (scores - low) / (high - low)
        return percent

    def percent(self, game: int, score: float) -> float:
        """Turn one raw score into percent."""
        low, high = self.references[game]
        return 100 * (score - low) / (high - low)

    def row(self, index: int) -> dict[str, float]:
        """Metrics and scores after game ``index``, flat, for the tracker."""
        row: dict[str, float] = {}
        for name, matrix in (("score", self.test), ("normalised", self.normalised(self.test))):
            for i, value in enumerate(matrix[index]):
                if not math.isnan(value):
                    row[f"eval/{name}/task_{i:02d}"] = float(value)
        for name, value in self._metrics("test", index + 1).items():
            row[f"eval/normalised/{name}"] = value
        for name, value in self._metrics("validation", index + 1).items():
            row[f"validation/normalised/{name}"] = value
        average = row.get("validation/normalised/average_performance")
        return row if average is None else row | {"validation/average_performance": average}

    def as_dict(self, episodes: int) -> dict[str, Any]:
        """Plain JSON."""
        test, validation, baseline = self.test, self.validation, self.untrained
        count = len(self.games)
        return {
            "matrices": {"normalised": plain(self.normalised(test)), "score": plain(test)},
            "validation_matrices": {
                "normalised": plain(self.normalised(validation)),
                "score": plain(validation),
            },
            "baseline": {
                "normalised": plain(self.normalised(baseline)),
                "score": plain(baseline),
            },
            "sizes": [episodes] * count,
            "metrics": {"normalised": self._metrics("test", count), "score": {}},
            "validation_metrics": {
                "normalised": self._metrics("validation", count),
                "score": {},
            },
            "references": {
                game: list(pair) for game, pair in zip(self.games, self.references, strict=True)
            },
            "curves": {"evaluation": self.evaluation, "training": self.training},
        }

    def _metrics(self, name: str, rows: int) -> dict[str, float]:
        raw = self.test if name == "test" else self.validation
        if np.isnan(np.diag(raw)[:rows]).any():
            return {}  # not validated
        test = name == "test"
        curves = [
            [(frames, self.percent(i, score)) for frames, score in self.evaluation[game]]
            for i, game in enumerate(self.games[:rows])
        ]
        learning = [
            [(frames, self.percent(i, score)) for frames, score in self.training[game]]
            for i, game in enumerate(self.games[:rows])
        ]
        baseline = self.normalised(self.untrained)[:rows]
        return compute(
            self.normalised(raw)[:rows, :rows],
            baseline=None if not test or np.isnan(baseline).any() else baseline,
            evaluation=curves if test else None,
            training=learning if test else None,
            frames=self.frames,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "test": self.test.tolist(),
            "validation": self.validation.tolist(),
            "untrained": self.untrained.tolist(),
            "evaluation": self.evaluation,
            "training": self.training,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name in ("test", "validation", "untrained"):
            setattr(self, name, np.array(state[name], dtype=np.float64))
        for name in ("evaluation", "training"):
            curves = {game: [list(point) for point in state[name][game]] for game in self.games}
            setattr(self, name, curves)
