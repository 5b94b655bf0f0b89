"""Streams of tasks: what a method is told, what it may see, and what it is tested on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from raycl.datasets.base import Dataset
from raycl.datasets.base import DatasetConfig as DatasetConfig
from raycl.datasets.examples import Examples
from raycl.datasets.left_out import LeftOut
from raycl.errors import UserError

Validation = Annotated[float, Field(ge=0, lt=1)] | Literal["train", "folder"]
"""Validation set of a task: a share of its training data; or ``train``: all of it, without holding
anything out; or ``folder``: the validation images that the files have."""
ClassOutputs = Literal["seen", "all"]
"""Outputs that compete where the task is unknown."""


class DataAccessError(RuntimeError):
    """A method asked for data it did not declare, or kept a task after its end."""


@dataclass(frozen=True)
class TaskInfo:
    """The facts about a task that may be known without its data.

    Attributes:
        index: Position in the stream, from 0.
        name: Name for people, e.g. ``"3/5 (cat, dog)"``.
        classes: Output ids of its classes. The position in this tuple is the label inside the
            task (the domain-incremental label). Tasks share ids where the benchmark says so.
    """

    index: int
    name: str
    classes: tuple[int, ...]


SMALL = 32 * 32
"""Pixels of an image up to which its size does not limit a batch; see ``StreamInfo.at_once``."""
FEWEST_AT_ONCE = 32


@dataclass(frozen=True)
class StreamInfo:
    """The facts about a stream that may be known without its data.

    Attributes:
        tasks: All tasks in order.
        input_shape: Channels, height, width.
        num_outputs: Distinct output ids over all tasks.
        class_names: Name of each output id.
        mean: Mean, per task and channel, with which images are normalised, in units of 0..1.
        std: Likewise.
        readouts: Readouts that make sense here, some of ``("class", "task", "domain")``;
            the first is the primary one.
    """

    tasks: tuple[TaskInfo, ...]
    input_shape: tuple[int, int, int]
    num_outputs: int
    class_names: tuple[str, ...]
    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]
    readouts: tuple[str, ...]

    def at_once(self, most: int) -> int:
        """Images to take at a time, where their number only decides how much memory is used.

        ``most`` of them if they have up to 32 x 32 pixels; of larger ones as many as have no more
        pixels together, but 32 or more, which is where small batches become slow.
        """
        _, height, width = self.input_shape
        return max(min(most, FEWEST_AT_ONCE), min(most, most * SMALL // (height * width)))

    def seen(self, index: int) -> tuple[int, ...]:
        """Output ids of tasks 0..index, in order of first appearance."""
        return tuple(dict.fromkeys(c for task in self.tasks[: index + 1] for c in task.classes))

    def renormalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> StreamInfo:
        """The same stream with other statistics; grey images get as many channels as those have.

        Raises:
            UserError: Colour images, and statistics of another number of channels.
        """
        channels, height, width = self.input_shape
        if channels not in (1, len(mean)):
            what = f"images have {channels} channels, and the weights are for {len(mean)}"
            raise UserError("network.weights", what)
        tasks = len(self.tasks)
        shape = (len(mean), height, width)
        return replace(self, input_shape=shape, mean=(mean,) * tasks, std=(std,) * tasks)


@dataclass(frozen=True)
class TaskData:
    """The three sets of one task. Only the harness holds this."""

    train: Examples
    validation: Examples | None
    test: Examples

    def renormalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> TaskData:
        """The same images, normalised with other statistics; see ``StreamInfo.renormalised``."""
        train, test = (one.renormalised(mean, std) for one in (self.train, self.test))
        if self.validation is None or self.validation is self.train:
            return TaskData(train, None if self.validation is None else train, test)
        return TaskData(train, self.validation.renormalised(mean, std), test)


@dataclass
class Stream:
    """A benchmark made concrete for one seed on one device.

    Attributes:
        info: The facts that may be known without data.
        data: One entry per task.
    """

    info: StreamInfo
    data: tuple[TaskData, ...]

    def renormalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Stream:
        """The same stream with other statistics; see ``StreamInfo.renormalised``."""
        info = self.info.renormalised(mean, std)
        return Stream(info, tuple(data.renormalised(mean, std) for data in self.data))

    def open(self, index: int, memory: str | None) -> Task:
        """Open a task, as a method sees it.

        Args:
            index: Index of the task.
            memory: The method's declaration; ``"all"`` opens the training data of the past.
        """
        past = [d.train for d in self.data[:index]] if memory == "all" else None
        return Task(self.info.tasks[index], self.data[index], past)


class Task:
    """One task as a method sees it while it is the current one.

    Anything undeclared, and anything after the task's end, raises ``DataAccessError``.
    """

    def __init__(self, info: TaskInfo, data: TaskData, past: list[Examples] | None) -> None:
        self.info = info
        self._data: TaskData | None = data
        self._past = past

    @property
    def train(self) -> Examples:
        """Training set."""
        return self._open().train

    @property
    def validation(self) -> Examples | None:
        """Validation set, or ``None`` when the benchmark keeps none."""
        return self._open().validation

    @property
    def past(self) -> list[Examples]:
        """Training sets of all earlier tasks; only with ``memory = "all"``."""
        self._open()
        if self._past is None:
            raise DataAccessError(
                f"task {self.info.index}: past training data is only for memory = 'all'"
            )
        return list(self._past)

    def close(self) -> None:
        """Refuse all further access."""
        self._data = self._past = None

    def _open(self) -> TaskData:
        if self._data is None:
            raise DataAccessError(f"task {self.info.index} has ended; its data is gone")
        return self._data


class BenchmarkConfig(BaseModel):
    """Options every benchmark has.

    ``class_outputs: all`` is how the code of HCL (CVPR 2023) reads a network whose head has all
    outputs from the start: an output whose class was never shown can win, and is wrong then.

    ``validation: train`` makes the training set of a task its validation set too, which is what
    BLIP, arXiv 2105.04444, does on MNIST. Then whatever is chosen on validation data (an epoch, a
    learning rate, an option) is chosen on data that was trained on.

    ``validation: folder`` takes the folder ``val`` of an image-folder tree that has ``train``,
    ``val`` and ``test``; for ``folder_sequence``, and for ``split`` of the data set ``folder``.

    Attributes:
        from_folder: Whether ``validation: folder`` can be asked for.
    """

    from_folder: ClassVar[bool] = False

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    label: str | None = Field(None, description="name in tables; default: made from the options")
    validation: Validation = Field(
        0.1,
        description="share of each task's training data held out; train: the training data "
        "itself; folder: the images in the folder val",
    )
    top_k: int = Field(
        1, ge=1, description="an image is right if its class is among this many highest outputs"
    )
    class_outputs: ClassOutputs = Field(
        "seen",
        description="outputs that compete where the task is unknown: those of the tasks seen so "
        "far, or all of the stream, also of tasks still to come",
    )

    @field_validator("validation", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if value == "folder":
            if not cls.from_folder:
                raise ValueError("folder is for folder_sequence, and for split of an image folder")
            return value
        if value == "train" or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise ValueError(
            f"must be a share below 1, or one of the words train and folder, not {value!r}"
        )


class Benchmark(ABC):
    """A recipe for streams. One file each; the file's stem is its name in sweep files."""

    Config: type[BenchmarkConfig] = BenchmarkConfig
    config: Any

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config

    @property
    def label(self) -> str:
        """Name in tables and tags, e.g. ``"split-digits-5"``, or ``"split-imagenet-5-top5"``."""
        top = f"-top{self.config.top_k}" if self.config.top_k > 1 else ""
        outputs = "-all-outputs" if self.config.class_outputs == "all" else ""
        return str(self.config.label or self.default_label() + top + outputs)

    @abstractmethod
    def default_label(self) -> str:
        """The label when none is given."""

    @abstractmethod
    def datasets(self) -> list[DatasetConfig]:
        """Data sets that must be loaded."""

    def left_out(self) -> LeftOut:
        """Files and folders that lie beside the data sets and belong to none of them."""
        return LeftOut()

    @abstractmethod
    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """Make the stream of one seed.

        Args:
            data: Loaded data sets, by ``key`` of their configuration (``raycl.datasets.key``).
            seed: Seed of class order, task order, transformations and the validation split.
            device: Device of the images.

        Raises:
            UserError: The options do not fit the data (more tasks than classes, ...).
        """
