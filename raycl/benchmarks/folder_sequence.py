"""A folder of image folders: each sub-folder is one task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator

from raycl.benchmarks._pieces import Source, assemble, fitted, own_readouts
from raycl.benchmarks.base import Benchmark, BenchmarkConfig, Stream
from raycl.datasets.base import Dataset, DatasetConfig, key
from raycl.datasets.disk import data_root, resolve
from raycl.datasets.folder import subfolders
from raycl.errors import UserError


class FolderSequence(Benchmark):
    """Each sub-folder is an image-folder tree of its own, see ``raycl.datasets.folder``.

    Every task has outputs of its own, even where class names recur. The seed only chooses the
    validation images. Where ``tasks`` is not given, ``path`` below the data root (``RAYCL_DATA``)
    is listed.
    """

    class Config(BenchmarkConfig):
        """Options."""

        path: str = Field(description="folder, zip or archive.zip!inner; from the data root")
        tasks: tuple[str, ...] | None = Field(
            None, min_length=1, description="sub-folders in order; default: all, sorted by name"
        )
        size: int | None = Field(
            None, ge=4, le=1024, description="resize images to this side, pixels"
        )
        limit: int | None = Field(
            None, ge=1, description="at most this many training images per class"
        )
        hold_out: int | None = Field(
            None,
            ge=1,
            description="sub-folders without a test folder: images per class kept for testing, "
            "drawn by numpy's RandomState(1234); default: every fifth",
        )

        @model_validator(mode="before")
        @classmethod
        def _list(cls, value: Any) -> Any:
            """Write the tasks down once, so that workers and later runs see the same stream."""
            if not isinstance(value, dict) or value.get("tasks") or not value.get("path"):
                return value
            try:
                return value | {"tasks": subfolders(resolve(str(value["path"]), data_root()))}
            except UserError:  # `datasets` says what is missing, once data is asked for
                return value

    config: Config

    def default_label(self) -> str:
        """E.g. ``folder-sequence-animals``."""
        label = DatasetConfig(name="folder", path=self.config.path).label
        return f"folder-sequence-{label}"

    def datasets(self) -> list[DatasetConfig]:
        """See ``Benchmark.datasets``.

        Raises:
            UserError: The path is not there, or holds no images.
        """
        config = self.config
        tasks = config.tasks or subfolders(resolve(config.path, data_root()))
        inner = "!" if config.path.endswith(".zip") else "/"
        return [
            DatasetConfig(
                name="folder",
                path=f"{config.path.rstrip('/')}{inner}{task}",
                size=config.size,
                limit=config.limit,
                hold_out=config.hold_out,
            )
            for task in tasks
        ]

    def stream(
        self, data: Mapping[str, Dataset], seed: int, device: torch.device | str = "cpu"
    ) -> Stream:
        """See ``Benchmark.stream``. Domain readout only if all tasks have equally many classes."""
        sources = [Source(data[key(config)], device) for config in self.datasets()]
        about = [f"{s.data.name}: {len(s.data.classes)} classes" for s in sources]
        pieces = fitted(sources, about, None)
        readouts = own_readouts([piece.classes for piece in pieces])
        return assemble(pieces, readouts, self.config.validation, seed)
