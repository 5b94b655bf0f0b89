"""The schema of a sweep file, key by key; ``check`` sees what keys mean together."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from raycl.errors import nearest
from raycl.registry import short
from raycl.secrets import concealed, masked
from raycl.sweep import kinds
from raycl.sweep.file.source import Source
from raycl.training.config import EvaluateConfig, Readout
from raycl.trial.randomness import FixedSeeds, Seed

NO_PBT = (
    "population based training is not offered on a stream of tasks: it copies the weights of "
    "another configuration in mid-stream, so the result is no run of any configuration"
)
Number = float | int | None
MAX_NAME = 80
"""Letters of a sweep's name."""
THEIRS = re.compile(r"(?i)(mlflow\.db.*|mlruns|mlartifacts|artifacts)\Z")
"""Names in the runs folder that no sweep may have, on file systems that ignore case, too."""
DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?\Z")
"""Names that Windows keeps for devices."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _named(value: Any) -> Any:
    """A bare name stands for ``{name: NAME}``."""
    return {"name": value} if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _word(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", value):
        raise ValueError(
            f"'{value}' is no label: up to 40 letters, digits and _ -, "
            "beginning with a letter or digit"
        )
    return value


def _folder(value: str) -> str:
    if len(value) > MAX_NAME or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"'{value}' names a folder: up to {MAX_NAME} letters, digits and . _ -, "
            "beginning with a letter or digit"
        )
    if THEIRS.match(value):
        raise ValueError(
            f"'{value}' belongs to the runs folder, which keeps mlflow.db and artifacts beside "
            "the folders of sweeps"
        )
    if value.endswith(".") or DEVICES.match(value):
        raise ValueError(f"'{value}' cannot be the name of a folder on Windows")
    return value


def _seeds(value: Any) -> Any:
    """``n`` stands for ``0..n-1``."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 1000:
            raise ValueError(f"the number of seeds must be 1 to 1000, not {value}")
        return tuple(range(value))
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value} is given twice")
    return values


Label = Annotated[str, AfterValidator(_word)]
Block = Annotated[dict[str, Any], BeforeValidator(_named)]


class Resources(_Model):
    """What one trial asks Ray for."""

    cpu: float = Field(1.0, gt=0, description="CPU cores; a fraction lets trials share one")
    gpu: float = Field(0.0, ge=0, description="GPUs; a fraction lets trials share one")
    memory: float = Field(
        0.0, ge=0, description="GB of main memory, at most, unless it has a GPU; 0: no limit"
    )
    env_runners: int = Field(
        0, ge=0, description="games: processes that play, each on one CPU core more; 0: the trial"
    )

    @field_validator("gpu")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"more than one GPU must be a whole number, not {value}")
        return value


class MethodEntry(BaseModel):
    """One row of the comparison. Further keys are the method's hyper-parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="registered name, package.module:Class or path/to/file.py:Class")
    label: Label = Field(description="name in tables; default: the method's name")
    train: dict[str, Any] = Field({}, description="overrides of the sweep's train block")
    network: Block = Field({}, description="overrides of the sweep's network block")
    resources: dict[str, Any] = Field({}, description="overrides of the sweep's resources")

    @model_validator(mode="before")
    @classmethod
    def _label(cls, value: Any) -> Any:
        value = _named(value)
        if isinstance(value, dict) and "label" not in value and isinstance(value.get("name"), str):
            return value | {"label": short(value["name"])}
        return value

    @property
    def options(self) -> dict[str, Any]:
        """The hyper-parameters, which may be search spaces."""
        return dict(self.model_extra or {})


class Search(_Model):
    """Options of the search: it is on validation data, on seeds of its own."""

    num_samples: int = Field(
        10, ge=1, le=10_000, description="draws per benchmark and method, each with the whole grid"
    )
    algorithm: Literal["random", "optuna", "optuna_gp"] = Field(
        "random", description="random (and grid), Optuna's TPE, or Optuna's Gaussian process"
    )
    metric: str = Field(
        "validation/average_accuracy",
        description="validation/METRIC or validation/READOUT/METRIC; "
        "default for games: validation/average_performance",
    )
    mode: Literal["max", "min"] = Field(description="default: the better direction of the metric")
    protocol: Literal["end_of_stream", "first_tasks"] = Field(
        "end_of_stream", description="search trials run the whole stream, or its first tasks only"
    )
    tasks: int | None = Field(None, ge=1, description="first_tasks: how many")
    seeds: int = Field(1, ge=1, le=100, description="search seeds per draw, none of `seeds`")
    seed: int = Field(0, ge=0, description="seed of the draws")
    benchmark: Annotated[dict[str, Any] | None, BeforeValidator(_named)] = Field(
        None,
        description="another stream, on which values are chosen; default: the sweep's own. Its "
        "class orders are those of the search's seeds, whatever fixed_seeds says",
    )
    max_concurrent: int | None = Field(None, ge=1, description="search trials at the same time")
    time_budget: float | None = Field(None, gt=0, description="seconds for the search stage")

    @field_validator("metric")
    @classmethod
    def _metric(cls, value: str) -> str:
        if value.partition("/")[0] != "validation":
            raise ValueError(
                f"'{value}' is not on validation data; a search may not see test data; "
                f"write validation/{value.rpartition('/')[2]}"
            )
        return value  # which metrics there are depends on the benchmark: see check

    @property
    def readout(self) -> str | None:
        """The readout named by the metric; ``None``: each method's primary one."""
        return self.metric.removeprefix("validation/").rpartition("/")[0] or None


class Scheduler(_Model):
    """Early stopping of search trials, judged within each benchmark and method."""

    name: Literal["fifo", "asha", "median"] = "fifo"
    grace_period: int = Field(2, ge=1, description="tasks before which nothing is stopped")
    reduction_factor: float = Field(3, gt=1, description="asha: one in this many goes on")

    @field_validator("name", mode="before")
    @classmethod
    def _no_pbt(cls, value: Any) -> Any:
        if str(value).lower() in ("pbt", "pb2", "population_based_training"):
            raise ValueError(f"{NO_PBT}; use asha, median or fifo")
        return value


class Failures(_Model):
    """Options for lost workers and nodes."""

    max_retries: int = Field(2, ge=0, le=100, description="per trial, from its last checkpoint")


class Checkpoint(_Model):
    """Options of checkpoints; a trial always saves at a task's end."""

    every_s: float = Field(60, ge=0, description="seconds between checkpoints inside a task")
    keep: int = Field(2, ge=2, description="newest checkpoints kept; one may be damaged, so 2")
    grace_s: float = Field(
        60, ge=0, description="seconds that trials have to save when the sweep is told to stop"
    )


class Tracking(_Model):
    """Options of tracking: the store, and whether pictures go there."""

    uri: str | None = Field(
        None, description="MLflow; default: MLFLOW_TRACKING_URI, else SQLite under the runs folder"
    )
    pictures: bool = Field(
        True,
        description="false: no drawn matrices and no images of methods in MLflow, which is cheaper "
        "for large sweeps; numbers and tables are all there",
    )


class Stop(_Model):
    """Stop each trial after its first tasks."""

    tasks: int | None = Field(None, ge=1, description="only the first so many tasks")


class Report(_Model):
    """Options of the report."""

    baseline: str | None = Field(None, description="label of the method differences are taken to")
    upper_bound: str | None = Field(
        None, description="images: label of the method omega is relative to, e.g. joint"
    )


class Figure(_Model):
    """A published mean with its spread, or a value that was read off a plot."""

    mean: float = Field(description="what is printed")
    std: float | None = Field(None, ge=0, description="standard deviation over runs")
    n: int | None = Field(None, ge=1, description="number of runs")
    error: float | None = Field(None, ge=0, description="error of a value that was read off a plot")
    source: str | None = Field(None, description="if it is another one than that of all")


Cell = Annotated[Figure | Number, Field(union_mode="left_to_right")]
Printed = Annotated[Figure | Number | dict[str, Cell], Field(union_mode="left_to_right")]
"""What is published of one method: one figure, or one for each revision, the newest first."""


class Published(BaseModel):
    """Numbers others printed, shown beside ours.

    Further keys are ``METRIC`` (of the benchmark's primary readout) or ``READOUT/METRIC``; each
    maps method labels to numbers, or benchmark labels to such mappings. ``null``: not printed.
    ``{mean: 69.9, std: 0.2, n: 3}`` stands for a number whose spread is known, too. Where revisions
    of the source differ, ``{REVISION: NUMBER, ...}`` stands for a number.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[
        str, dict[str, Annotated[Printed | dict[str, Printed], Field(union_mode="left_to_right")]]
    ] = Field(init=False)

    source: str = Field(description="where they are printed, e.g. 'arXiv 2105.04444, table 1'")
    note: str | None = Field(None, description="what differs from our set-up")
    in_full: dict[str, Any] = Field(
        {}, description="part of the sweep file that a run in full has; null: left at its default"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """A mapping with a mean is a figure, and revisions are called otherwise."""
        for numbers in (self.model_extra or {}).values():
            for value in (*numbers.values(), *_inner(numbers)):
                if isinstance(value, dict) and "mean" in value:
                    raise ValueError(_fault(value))
        return self


def _fault(figure: dict[str, Any]) -> str:
    """The reason why a mapping with a mean is no ``Figure``."""
    for name in figure:
        if name not in Figure.model_fields:
            return f"a figure has no '{name}'; {nearest(name, Figure.model_fields)}"
    try:
        Figure.model_validate(figure)
    except ValidationError as error:
        first = error.errors()[0]
        return f"the {first['loc'][0]} of a figure: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return "no figure stands there"


def _inner(numbers: dict[str, Any]) -> list[Any]:
    """What stands one level deeper: by method, where numbers are by benchmark."""
    return [
        cell for value in numbers.values() if isinstance(value, dict) for cell in value.values()
    ]


class Sweep(_Model):
    """A sweep file, complete: defaults filled in, short forms written out.

    ``Sweep.model_validate(sweep.resolved())`` gives the same sweep, without passwords.
    """

    name: Annotated[str, AfterValidator(_folder)] = Field(
        description="name of the run, its folder and its MLflow experiment"
    )
    description: str | None = Field(None, description="what it is for; shown in MLflow")
    benchmark: Annotated[tuple[Block, ...], BeforeValidator(_several), Field(min_length=1)] = Field(
        description="one benchmark, or a list as an axis"
    )
    methods: tuple[MethodEntry, ...] = Field(min_length=1, description="the rows of the comparison")
    network: Block = Field(description="backbone of every method")
    train: dict[str, Any] = Field({}, description="how every method is trained")
    seeds: Annotated[
        tuple[Seed, ...], BeforeValidator(_seeds), AfterValidator(_distinct), Field(min_length=1)
    ] = Field((0,), description="how many (0..n-1), or which")
    fixed_seeds: FixedSeeds = Field(FixedSeeds(), description="seeds shared by all trials")
    readouts: (
        Annotated[tuple[Readout, ...], AfterValidator(_distinct), Field(min_length=1)] | None
    ) = Field(None, description="default: all that the benchmark defines and a method supports")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="what is measured beside the readouts; images only"
    )
    search: Search = Field(
        Search.model_validate({"mode": "max"}), description="used if there are search spaces"
    )
    scheduler: Annotated[Scheduler, BeforeValidator(_named)] = Field(
        Scheduler(), description="early stopping of search trials"
    )
    resources: Resources = Field(Resources(), description="per trial")
    failures: Failures = Failures()
    checkpoint: Checkpoint = Checkpoint()
    storage: str | None = Field(
        None, description="checkpoints: an absolute path or a URI; default: the runs folder"
    )
    tracking: Tracking = Tracking()
    share: bool = Field(
        True,
        description="trials that are the same up to a task share the work before it; matrices are "
        "the same either way",
    )
    reuse: bool = Field(
        False,
        description="take over what other sweeps of the runs folder have finished: the same "
        "trials, made with the same code, data, weights, device and versions",
    )
    stop: Stop = Stop()
    report: Report = Report()
    published: Published | None = Field(None, description="printed beside ours by the report")
    smoke: dict[str, Any] | None = Field(
        None, description="overrides (dotted path: value) that --smoke applies"
    )
    _source: Source | None = PrivateAttr(None)
    _tunes: bool = PrivateAttr(False)

    @model_validator(mode="before")
    @classmethod
    def _search(cls, value: Any) -> Any:
        """What a search looks at depends on what is learnt, and the better direction on that."""
        if not isinstance(value, dict) or not isinstance(value.get("search", {}), dict):
            return value
        kind = kinds.guess(value.get("benchmark"))
        search = {"metric": kind.search_metric} | value.get("search", {})
        known = kind.all_metrics().get(str(search["metric"]).rpartition("/")[2])
        mode = "min" if known and not known.higher_is_better else "max"
        return value | {"search": {"mode": mode} | search}

    @field_validator("storage")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        plain = re.sub(r"\s", "-", (value or "").strip())  # a space ends a URI in text
        if masked(plain) != plain:
            raise ValueError(
                "a password or key in it would stand in files and messages; set a variable: "
                "AWS_SECRET_ACCESS_KEY, FSSPEC_SFTP_PASSWORD, ..."
            )
        if value is not None and not re.match(r"/|[a-z][a-z0-9+.-]*://", value):
            raise ValueError(f"'{value}' must be an absolute path or a URI: workers run elsewhere")
        return value

    def resolved(self) -> dict[str, Any]:
        """The whole sweep as plain data, as a file would say it; passwords are left out."""
        found: dict[str, Any] = concealed(self.model_dump(mode="json"))
        return found

    @property
    def kind(self) -> kinds.Kind:
        """Kind of the sweep's trials; all of its benchmarks are of one kind."""
        return kinds.of(self.benchmark[0])

    @property
    def source(self) -> Source:
        """The file it came from, for error messages."""
        return self._source or Source("sweep", "", {})

    def resources_of(self, entry: MethodEntry) -> Resources:
        """What a trial of this method asks for."""
        return Resources.model_validate(self.resources.model_dump() | entry.resources)

    @property
    def tunes(self) -> bool:
        """Whether this is the sweep of a search on a stream of its own, see ``for_search``."""
        return self._tunes

    @property
    def for_search(self) -> Sweep:
        """The sweep that search trials belong to: this one, or the same on ``search.benchmark``."""
        if self.search.benchmark is None:
            return self
        changed = {
            "benchmark": (self.search.benchmark,),
            "search": self.search.model_copy(update={"benchmark": None}),
            "fixed_seeds": self.fixed_seeds.model_copy(update={"class_order": None}),
        }
        found = self.model_copy(update=changed)
        found._source = replace(self.source, benchmark=("search", "benchmark"))
        found._tunes = True
        return found

    def search_seeds(self) -> tuple[int, ...]:
        """Seeds of search trials: none of ``seeds``, and the same however many those are."""
        free = (s for s in range(1000, 3000) if s not in self.seeds)
        return tuple(next(free) for _ in range(self.search.seeds))
