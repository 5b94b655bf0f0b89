"""A folder of image folders: each sub-folder is one task."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from raycl.benchmarks._pieces import Source, assemble, fitted, own_readouts
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets import task_list
from raycl.datasets.base import (
    Budget,
    Dataset,
    DatasetConfig,
    check_budget,
    key,
    without_defaults,
)
from raycl.datasets.disk import data_root, resolve
from raycl.datasets.left_out import LeftOut
from raycl.datasets.listing import beside, has_folder, is_zip, subfolders
from raycl.errors import UserError

ORDER = "benchmark.order"


class FolderSequence(Benchmark):
    """Each sub-folder is an image-folder tree of its own, see ``raycl.datasets.folder``.

    Every task has outputs of its own, even where class names recur. The seed only chooses the
    validation images, and with ``validation: folder`` nothing: the images in each task's folder
    ``val`` are its validation images. Where neither ``tasks`` nor ``order`` is given, all folders
    of ``path`` below the data root (``RAYCL_DATA``) are tasks. A lone folder around all of them
    (usual in zips) is skipped.

    The 53 tasks of CLR, arXiv 2307.11386, are such a sequence: see ``sweeps/clr``. ``order`` reads
    tasks and their order from a CSV file with a column ``name`` or ``id`` (CLR's ``stat.csv`` has
    both; other columns do not matter); a task's folder has its name, or else its id. ``budget`` is
    CLR's rule of how many images are taken.
    """

    class Config(BenchmarkConfig):
        """Options of the benchmark ``folder_sequence``."""

        path: str = Field(description="folder, zip or archive.zip!inner; from the data root")
        tasks: tuple[str, ...] | None = Field(
            None, min_length=1, description="sub-folders in order; default: all, sorted by name"
        )
        order: str | None = Field(
            None,
            description="CSV file with a column name or id: the tasks in order; from the data root",
        )
        size: int | None = Field(
            None,
            ge=4,
            le=1024,
            description="resize images to size x size pixels, bilinear; proportions are not kept",
        )
        mean: tuple[float, ...] | None = Field(
            None,
            description="mean for all tasks, per channel, in units of 0..1; with three values grey "
            "images get three equal channels; default: each task its own",
        )
        std: tuple[float, ...] | None = Field(
            None, description="standard deviation for all tasks, per channel, in units of 0..1"
        )
        budget: Budget | None = Field(
            None, description="images per task instead of per class; {}: those of CLR"
        )
        limit: int | None = Field(
            None, ge=1, description="largest number of training images per class"
        )
        hold_out: int | None = Field(
            None,
            ge=1,
            description="sub-folders without a test folder: images per class kept for testing, "
            "drawn by numpy's RandomState(1234); default: every fifth",
        )

        from_folder = True

        @model_validator(mode="before")
        @classmethod
        def _list(cls, value: Any) -> Any:
            """Write the tasks down once, so that workers and later runs see the same stream."""
            if not isinstance(value, dict) or (value.get("tasks") and value.get("order")):
                return value
            try:
                tasks = _tasks(value.get("path"), value.get("tasks"), value.get("order"))
            except UserError:  # `datasets` says what is wrong, once data is asked for
                return value
            rest = {name: given for name, given in value.items() if name != "order"}
            return value if tasks is None else rest | {"tasks": tasks}

        @model_validator(mode="after")
        def _one_rule(self) -> Self:
            if self.tasks and self.order:
                raise ValueError("tasks and order both list the tasks: leave one out")
            check_budget(self.budget, self.limit)
            return self

        @model_serializer(mode="wrap")
        def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
            return without_defaults(self, handler(self), ("order", "mean", "std", "budget"))

    config: Config

    def default_label(self) -> str:
        """E.g. ``folder-sequence-animals``."""
        label = DatasetConfig(name="folder", path=self.config.path).label
        return f"folder-sequence-{label}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``.

        Raises:
            UserError: The path is not there, or holds no images; the CSV file is not there, lists
                nothing, or lists a task that has no folder.
        """
        config = self.config
        tasks = config.tasks or _tasks(config.path, None, config.order) or ()
        inner = "!" if is_zip(resolve(config.path, data_root())) else "/"
        return [
            DatasetConfig(
                name="folder",
                path=f"{config.path.rstrip('/')}{inner}{task}",
                size=config.size,
                limit=config.limit,
                hold_out=config.hold_out,
                mean=config.mean,
                std=config.std,
                budget=config.budget,
                validation=config.validation == "folder",
            )
            for task in tasks
        ]

    def left_out(self) -> LeftOut:
        """See ``Benchmark.left_out``."""
        return beside(resolve(self.config.path, data_root()), self.config.tasks or ())

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``. Domain readout only if all tasks have equally many classes."""
        sources = [Source(data[key(config)], device) for config in self.datasets()]
        about = [f"{s.data.name}: {len(s.data.classes)} classes" for s in sources]
        pieces = fitted(sources, about, None)
        readouts = own_readouts([piece.classes for piece in pieces])
        return assemble(pieces, readouts, self.config.validation, seed)


def _tasks(path: Any, tasks: Any, order: Any) -> list[str] | None:
    """Each task's folder below ``path``; ``None`` if ``tasks`` names folders, or is no list.

    Args:
        path: Option ``path``, maybe of a wrong type.
        tasks: Option ``tasks``, likewise.
        order: Option ``order``, likewise.
    """
    if not path or not isinstance(path, str) or not isinstance(order, str | None):
        return None
    root = data_root()
    where = resolve(path, root)
    if tasks:
        if not _all_text(tasks) or has_folder(where, tasks[0]):
            return None
        folders = _called(where)
        return [folders.get(unicodedata.normalize("NFC", task), task) for task in tasks]
    if order is None:
        return subfolders(where)
    csv = resolve(order, root)
    return task_list.match(task_list.read(csv, ORDER), _called(where), csv, ORDER)


def _all_text(tasks: Any) -> bool:
    return isinstance(tasks, list | tuple) and all(isinstance(task, str) for task in tasks)


def _called(path: Path) -> dict[str, str]:
    """The folder of each task, by its name in composed form (NFC); it may be inside a lone one."""
    folders = {folder.rpartition("/")[2]: folder for folder in subfolders(path)}
    return {unicodedata.normalize("NFC", name): folder for name, folder in folders.items()}
