"""The matrices of a run: test and validation accuracy per readout, and the metrics of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raycl.training import metrics
from raycl.training.coverage import Coverage
from raycl.trial.matrix import Mask, Rows, needed, plain


class Matrices:
    """``R[t, i]``: percent accuracy on task i after task t; NaN where it was not measured.

    Args:
        readouts: Names of the readouts; the first is the primary one.
        tasks: T, the number of tasks of the run.
        diagnostics: Further readouts, such as ``probe/class``, to which of their rows are measured;
            on test data only, so that nothing can be selected by them.
        selects: Whether a task's epoch is the one with the best accuracy on validation data.
        coverage: What is measured of the readouts; ``None``: everything on and below the diagonal.

    Attributes:
        tested: All readouts on test data, diagnostics last.
    """

    def __init__(
        self,
        readouts: Sequence[str],
        tasks: int,
        diagnostics: Mapping[str, Rows] = {},
        selects: bool = False,
        coverage: Coverage | None = None,
    ) -> None:
        self.selects, self.coverage = selects, coverage
        self.readouts, self.tasks = tuple(readouts), tasks
        self.diagnostics = dict(diagnostics)
        self.tested = (*self.readouts, *self.diagnostics)
        self.sets = {
            name: {r: np.full((tasks, tasks), math.nan) for r in self.tested}
            for name in ("test", "validation")
        }
        self.baseline = {r: np.full(tasks, math.nan) for r in self.tested}
        self.rows_done = 0

    def fill(self, name: str, row: int, column: int, accuracy: Mapping[str, float]) -> None:
        """Enter the accuracies of one task, per readout.

        A task that was not learnt yet has no class-incremental accuracy: its outputs do not
        compete.
        """
        for readout, value in accuracy.items():
            if column <= row or not _among_seen(readout):
                self.sets[name][readout][row, column] = value
        self.rows_done = max(self.rows_done, row + 1)

    def carry_over(self, row: int) -> None:
        """Copy the accuracies of all earlier tasks into a row: nothing can have changed them."""
        for name, readout in itertools.product(self.sets, self.readouts):
            matrix = self.sets[name][readout]
            if row:
                matrix[row, :row] = matrix[row - 1, :row]

    def fill_baseline(self, column: int, accuracy: Mapping[str, float]) -> None:
        """Enter the accuracies of the untrained network on one task."""
        for readout, value in accuracy.items():
            if not _among_seen(readout):
                self.baseline[readout][column] = value

    def row(self, index: int, sizes: Sequence[int]) -> dict[str, float]:
        """Metrics and accuracies after task ``index``, flat, for the tracker."""
        row: dict[str, float] = {}
        for readout in self.tested:
            for name, value in self._compute("test", readout, index + 1, sizes).items():
                row[f"eval/{readout}/{name}"] = value
            for name, value in self._compute("validation", readout, index + 1, None).items():
                row[f"validation/{readout}/{name}"] = value
            for i, value in enumerate(self.sets["test"][readout][index, : index + 1]):
                if not math.isnan(value):
                    row[f"eval/{readout}/task_{i:02d}"] = float(value)
        return row

    def current_validation(self, index: int) -> float | None:
        """Validation accuracy on task ``index`` right after it, primary readout."""
        value = float(self.sets["validation"][self.readouts[0]][index, index])
        return None if math.isnan(value) else value

    def validation_average(self) -> float | None:
        """Average validation accuracy over the tasks learnt so far, primary readout.

        ``None`` where it was not measured: nothing is validated, or the last row is left out.
        """
        if not self.rows_done:
            return None
        seen = self.sets["validation"][self.readouts[0]][self.rows_done - 1, : self.rows_done]
        return None if np.isnan(seen).any() else float(seen.mean())

    def as_dict(self, sizes: Sequence[int]) -> dict[str, Any]:
        """Plain JSON: matrices, baselines, sizes and all metrics.

        Where not everything is measured on all images, ``images`` is how many stand behind each
        entry of the readouts, ``None`` for one that is not measured.
        """
        test, validation = self.sets["test"], self.sets["validation"]
        return {
            "matrices": {r: plain(test[r]) for r in self.tested},
            "validation_matrices": {r: plain(validation[r]) for r in self.readouts},
            "baseline": {r: plain(self.baseline[r]) for r in self.readouts},
            "sizes": list(sizes),
            **self._images(),
            "metrics": {r: self._compute("test", r, self.tasks, sizes) for r in self.tested},
            "validation_metrics": {
                r: self._compute("validation", r, self.tasks, None) for r in self.readouts
            },
        }

    def _compute(
        self, name: str, readout: str, rows: int, sizes: Sequence[int] | None
    ) -> dict[str, float]:
        r = self.sets[name][readout][:rows, :rows]
        found = self.diagnostics.get(readout, "all")
        if np.isnan(np.diag(r) if found == "all" else r[-1, -1]).any():
            return {}  # no validation set, or a row that a diagnostic leaves out
        baseline = self.baseline[readout][:rows]
        ahead = name == "test" and not (np.isnan(baseline).any() or np.isnan(np.diag(r, 1)).any())
        chose = self.sets["validation"][readout][:rows, :rows] if self.selects else None
        if name != "test" or chose is None or np.isnan(np.diag(chose)).any():
            chose = None
        measured = self._measured(name, readout)
        lasting = metrics.readable(measured)  # the last value of any other would be taken for whole
        values = metrics.compute(
            r, sizes, baseline if ahead else None, measured[:rows, :rows], chose
        )
        return {metric: value for metric, value in values.items() if metric in lasting}

    def _measured(self, name: str, readout: str) -> Mask:
        """Entries that are measured once their row has been filled, (T, T)."""
        if self.diagnostics.get(readout) == "last":
            return needed("last", self.tasks)
        if self.coverage is None or readout in self.diagnostics:
            return np.tri(self.tasks, k=1, dtype=np.bool_)
        found: Mask = self.coverage.images(name) > 0
        return found

    def _images(self) -> dict[str, Any]:
        if self.coverage is None or not self.coverage.is_partial:
            return {}
        images = self.coverage.images("test").tolist()
        return {"images": [[n or None for n in row] for row in images]}

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sets": {n: {r: m.tolist() for r, m in s.items()} for n, s in self.sets.items()},
            "baseline": {r: b.tolist() for r, b in self.baseline.items()},
            "rows_done": self.rows_done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.sets = {
            n: {r: np.array(m, dtype=np.float64) for r, m in s.items()}
            for n, s in state["sets"].items()
        }
        self.baseline = {r: np.array(b, dtype=np.float64) for r, b in state["baseline"].items()}
        self.rows_done = state["rows_done"]


def _among_seen(readout: str) -> bool:
    """Whether only outputs of tasks seen compete, so that a task to come has no accuracy."""
    return readout.rpartition("/")[2] == "class"
