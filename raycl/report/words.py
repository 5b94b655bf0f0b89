"""Titles of readouts, metrics and axes, for results of images and of games.

The last part of a readout's name says how a matrix is read: ``class``. What is before it says who
was asked, if it was not the method itself: the linear probe in ``probe/class``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """A predictor that is asked beside the method itself, such as the linear probe.

    Attributes:
        title: Its name in the heading of a table.
        short: Its name in the title of a figure.
        remark: Text behind the heading, instead of what is known of the task; tables with a remark
            come after all others.
    """

    title: str
    short: str
    remark: str = ""


ASKED = {"probe": Asked("linear probe on frozen features", "linear probe", "diagnostic")}


def asked(readout: str) -> str:
    """Predictor of a readout: the part before its last ``/``; empty for the method itself."""
    return readout.rpartition("/")[0]


def way(readout: str) -> str:
    """Way in which a matrix is read: the part of a readout behind its last ``/``."""
    return readout.rpartition("/")[2]


@dataclass(frozen=True)
class Words:
    """Names for the results of images, or of games.

    Attributes:
        readouts: Titles of the ways a matrix is read, in the order of a report.
        units: Unit of each readout's numbers.
        digits: Decimals of each readout's numbers in a table.
        metrics: Titles of the metrics, with the better direction.
        headlines: The metrics a table shows.
        task: Word for one task: task, or game.
        performance: Words for the matrix's entries that the readout's title does not have.
        average: Name of the figure with its average, and the axis of that.
        percent: Readouts whose entries are percent, and can be averaged over tasks.
    """

    readouts: Mapping[str, str]
    units: Mapping[str, str]
    digits: Mapping[str, int]
    metrics: Mapping[str, str]
    headlines: tuple[str, ...]
    task: str
    performance: str
    average: tuple[str, str]
    percent: tuple[str, ...]

    def title(self, readout: str) -> str:
        """Heading of a readout: who was asked, how the matrix is read, and a remark."""
        who, title = asked(readout), self.readouts[way(readout)]
        if not who:
            return title
        known = ASKED.get(who, Asked(who, who))
        what, _, remark = title.partition(" (")
        return f"{known.title}, {what} ({known.remark or remark.removesuffix(')')})"

    def short(self, readout: str) -> str:
        """A readout's title without a remark."""
        who, what = asked(readout), self.readouts[way(readout)].partition(" (")[0]
        return f"{ASKED[who].short if who in ASKED else who}, {what}" if who else what

    def unit(self, readout: str) -> str:
        """Unit of a readout's numbers."""
        return self.units[way(readout)]

    def decimals(self, readout: str) -> int:
        """Decimals of a readout's numbers in a table."""
        return self.digits[way(readout)]

    def is_percent(self, readout: str) -> bool:
        """Whether a readout's entries are percent, and can be averaged over tasks."""
        return way(readout) in self.percent

    def metric(self, name: str) -> str:
        """Title of a metric; a raw score has the game for its name."""
        return self.metrics.get(name) or f"{name} ↑"


IMAGES = Words(
    readouts={
        "class": "class-incremental (task unknown)",
        "task": "task-incremental (task known)",
        "domain": "domain-incremental (task unknown, shared labels)",
    },
    units=dict.fromkeys(("class", "task", "domain"), "percent"),
    digits=dict.fromkeys(("class", "task", "domain"), 2),
    metrics={
        "average_accuracy": "average accuracy ↑",
        "average_accuracy_by_item": "avg. accuracy by item ↑",
        "average_incremental_accuracy": "avg. incremental accuracy ↑",
        "forgetting": "forgetting ↓",
        "forgetting_nonnegative": "forgetting, at least 0 ↓",
        "backward_transfer": "backward transfer ↑",
        "backward_transfer_all": "backward transfer, all T ↑",
        "forward_transfer": "forward transfer ↑",
        "learning_accuracy": "learning accuracy ↑",
        "selection_accuracy": "accuracy on the selection split (optimistic) ↑",
        "one_step_forgetting": "one-step forgetting ↓",
        "omega": "omega (% of upper bound) ↑",
    },
    headlines=(
        "average_accuracy",
        "selection_accuracy",
        "average_incremental_accuracy",
        "forgetting",
        "backward_transfer",
        "omega",
    ),
    task="task",
    performance=": accuracy",
    average=("accuracy", "accuracy on tasks so far (%)"),
    percent=("class", "task", "domain"),
)
GAMES = Words(
    readouts={
        "normalised": "normalised score",
        "score": "raw score (at the end)",
    },
    units={"normalised": "% of reference", "score": "points"},
    digits={"normalised": 1, "score": 1},
    metrics={
        "average_performance": "average performance ↑",
        "forgetting": "forgetting ↓",
        "max_forgetting": "forgetting from the best ↓",
        "backward_transfer": "backward transfer ↑",
        "isolated_forgetting": "isolated forgetting ↓",
        "zero_shot_transfer": "zero-shot transfer ↑",
        "learning_performance": "learning performance ↑",
        "retention": "retention ↑",
        "auc": "area under training curves ↑",
        "forward_transfer": "forward transfer ↑",
    },
    headlines=(
        "average_performance",
        "learning_performance",
        "forgetting",
        "retention",
        "forward_transfer",
    ),
    task="game",
    performance="",
    average=("performance", "score on games so far (% of reference)"),
    percent=("normalised",),
)
READOUTS = (*IMAGES.readouts, *GAMES.readouts)
"""All ways of reading a matrix, in the order of a report."""


def of(readout: str) -> Words:
    """Choose the words that go with a readout."""
    return GAMES if way(readout) in GAMES.readouts else IMAGES


def order(readout: str) -> tuple[bool, str, int]:
    """Key that sorts readouts as a report has them: the method itself first, diagnostics last."""
    who = asked(readout)
    remark = who in ASKED and bool(ASKED[who].remark)
    return remark, who, READOUTS.index(way(readout))
