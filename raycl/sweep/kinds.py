"""What a kind of trial puts behind the words of a sweep file: one table, ``KINDS``.

A sweep is of one kind, that of its benchmarks. Everything else asks the kind instead of knowing
which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raycl import registry
from raycl.errors import UserError, nearest
from raycl.sweep import games, images
from raycl.sweep.explain import Problem
from raycl.sweep.shown import Shown

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raycl.training.metrics import Metric

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Where the classes of a block are: their names are those of the package's files.

    Attributes:
        package: Dotted name; its ``base`` module has the base class.
        base: Name of the base class.
    """

    package: str
    base: str

    def names(self) -> list[str]:
        """Registered names."""
        return registry.names(self.package)

    def find(self, name: str) -> Any:
        """The class called ``name``; see ``registry.find``."""
        base: Any = getattr(import_module(f"{self.package}.base"), self.base)
        return registry.find(self.package, base, name)


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        name: For people.
        parts: ``benchmark``, ``method`` and ``network`` blocks.
        train: ``module:Class``, the model of the ``train`` block.
        metrics: ``module:NAME``, the metrics of a matrix.
        against_bound: ``module:NAME``, the metrics that need an upper bound's matrix too, if any.
        readouts: Ways a matrix is read that have metrics, the primary one first.
        asks: Whether a sweep file chooses among the readouts.
        search_metric: What a search looks at unless the file says.
        validation: Path in a benchmark block to how much there is to validate on; 0: nothing.
        validation_hint: What to write there.
        seeds: Which of ``fixed_seeds`` matter.
        tasks: Of a benchmark block and loaded data: how many tasks.
        needs_data: Whether data must be loaded before ``tasks`` can tell.
        settings: Of a method's class: the readouts it can be asked by.
        probes: Of a method's class: whether a linear probe can read its features; ``None`` where
            there are no probes.
        fits: Of a benchmark block, finished blocks and resources: raises ``Problem`` if they do
            not go together; with a path from the root of a trial's configuration.
        smoke: Of the file's data and the benchmark blocks: dotted path to value, for ``--smoke``.
        published: Of the benchmark blocks: further readouts, and the names they have numbers of.
        build: Of a finished configuration, data, device, resources and the tensors of weights files
            by hash: the run.
        keepsake: Of a run at a task's end: what is kept for good, besides checkpoints.
        pictures: Of a run at a task's end: files by path; a row's ``pictures`` are their stems.
        close: Of a run: lets go what it holds (processes).
        shown: How progress is told.
    """

    name: str
    parts: Mapping[str, Part]
    train: str
    metrics: str
    against_bound: str | None
    readouts: tuple[str, ...]
    asks: bool
    search_metric: str
    validation: tuple[str, ...]
    validation_hint: str
    seeds: tuple[str, ...]
    tasks: Callable[[Config, Mapping[str, Any]], int]
    needs_data: bool
    settings: Callable[[Any], frozenset[str]]
    probes: Callable[[Any], bool] | None
    fits: Callable[[Config, Config, Config], None]
    smoke: Callable[[Config, Sequence[Config]], dict[str, Any]]
    published: Callable[[Iterable[Config]], Mapping[str, Iterable[str]]]
    build: Callable[[Config, Mapping[str, Any], str, Config, Mapping[str, Any] | None], Any]
    keepsake: Callable[[Any], dict[str, Any]] | None
    pictures: Callable[[Any], dict[str, bytes]] | None
    close: Callable[[Any], None] | None
    shown: Shown

    def named(self, block: str, data: Config) -> Any:
        """The class a ``method``, ``network`` or ``benchmark`` block names.

        Raises:
            Problem: There is none.
        """
        name = data.get("name")
        if not isinstance(name, str):
            what = "is missing" if name is None else f"must be a name, not {name!r}"
            raise Problem(("name",), what)
        try:
            return self.parts[block].find(name)
        except UserError as error:
            others = [k.name for k in KINDS if k is not self and _has(k.parts[block], name)]
            hint = f"it is for {', '.join(others)}; {error.hint}" if others else error.hint
            raise Problem(("name",), error.what, hint) from error

    def networks_in(self, method: Config) -> tuple[str, ...]:
        """Options of a ``method`` block that are blocks of further networks; none of no method."""
        return self._declared(method, "networks")

    def weights_in(self, method: Config) -> tuple[str, ...]:
        """Options of a ``method`` block that are weights for the method itself."""
        return self._declared(method, "other_weights")

    def _declared(self, method: Config, attribute: str) -> tuple[str, ...]:
        """What the options of a method's block say of themselves; nothing of no method."""
        try:
            found = self.named("method", method).Config
        except Problem:  # it will be refused where it stands
            return ()
        return tuple(getattr(found, attribute, ()))

    def train_model(self) -> type[BaseModel]:
        """The model of the ``train`` block."""
        model: type[BaseModel] = _loaded(self.train)
        return model

    def all_metrics(self) -> Mapping[str, Metric]:
        """The metrics of a matrix by name."""
        metrics: Mapping[str, Metric] = _loaded(self.metrics)
        return metrics

    def bound_metrics(self) -> Mapping[str, Metric]:
        """The metrics that a report can give when it knows an upper bound, by name."""
        return _loaded(self.against_bound) if self.against_bound else {}


def _loaded(location: str) -> Any:
    module, _, name = location.partition(":")
    return getattr(import_module(module), name)


def _has(part: Part, name: str) -> bool:
    return ":" not in name and name in part.names()


_NETWORKS = Part("raycl.networks", "Backbone")

IMAGES = Kind(
    name="images",
    parts={
        "benchmark": Part("raycl.benchmarks", "Benchmark"),
        "method": Part("raycl.methods", "Method"),
        "network": _NETWORKS,
    },
    train="raycl.nn.optim:TrainConfig",
    metrics="raycl.training.metrics:METRICS",
    against_bound="raycl.training.metrics:AGAINST_BOUND",
    readouts=("class", "task", "domain"),
    asks=True,
    search_metric="validation/average_accuracy",
    validation=("validation",),
    validation_hint="the default is 0.1",
    seeds=("class_order", "init", "data"),
    tasks=images.tasks,
    needs_data=True,
    settings=lambda method: frozenset(method.settings),
    probes=images.probes,
    fits=images.fits,
    smoke=lambda data, benchmarks: {"train.epochs": 1, "stop.tasks": 2},
    published=lambda benchmarks: {},
    build=images.build,
    keepsake=None,
    pictures=images.pictures,
    close=None,
    shown=images.SHOWN,
)
GAMES = Kind(
    name="games",
    parts={
        "benchmark": Part("raycl.rl.benchmarks", "GameSequence"),
        "method": Part("raycl.rl.methods", "SequenceMethod"),
        "network": _NETWORKS,
    },
    train="raycl.rl.ppo:PPOConfig",
    metrics="raycl.rl.metrics:METRICS",
    against_bound=None,
    readouts=("normalised",),
    asks=False,
    search_metric="validation/average_performance",
    validation=("evaluation", "validation_episodes"),
    validation_hint="10 would do",
    seeds=("init", "data"),
    tasks=games.tasks,
    needs_data=False,
    settings=lambda method: frozenset({"normalised"}),
    probes=None,
    fits=games.fits,
    smoke=games.smoke,
    published=games.published,
    build=games.build,
    keepsake=games.keepsake,
    pictures=None,
    close=games.close,
    shown=games.SHOWN,
)
KINDS = (IMAGES, GAMES)


def registered(block: str, among: Iterable[Kind] = KINDS) -> list[tuple[str, str, Any]]:
    """Every class of a block: the kinds it is for, its name, itself; sorted by name.

    A name of two kinds has two classes, unless the kinds share the package. A class whose attribute
    with the name of a kind is false (``Backbone.games``) is not for that kind.
    """
    found: dict[tuple[str, Part], list[Kind]] = {}
    for kind in among:
        for name in kind.parts[block].names():
            found.setdefault((name, kind.parts[block]), []).append(kind)
    rows = []
    for (name, part), kinds in found.items():
        cls = part.find(name)
        fitting = (kind.name for kind in kinds if getattr(cls, kind.name, True))
        rows.append((", ".join(fitting), name, cls))
    return sorted(rows, key=lambda row: row[1])


def of(benchmark: Config) -> Kind:
    """The kind of a ``benchmark`` block.

    Raises:
        Problem: It names no benchmark of any kind.
    """
    name = benchmark.get("name")
    return _of_name(name) if isinstance(name, str) and ":" not in name else _of_class(benchmark)


@lru_cache
def _of_name(name: str) -> Kind:
    for kind in KINDS:
        if _has(kind.parts["benchmark"], name):
            return kind
    valid = [known for kind in KINDS for known in kind.parts["benchmark"].names()]
    raise Problem(("name",), f"unknown benchmark '{name}'", nearest(name, valid))


def _of_class(benchmark: Config) -> Kind:
    """A class from outside is of the kind whose base class it has."""
    problems = []
    for kind in KINDS:
        try:
            kind.named("benchmark", benchmark)
        except Problem as problem:
            problems.append(problem)
        else:
            return kind
    raise problems[0]


def guess(benchmark: Any) -> Kind:
    """The kind of what may not be a benchmark block, or a list of them; images if it is none."""
    first = benchmark[0] if isinstance(benchmark, list | tuple) and benchmark else benchmark
    block = {"name": first} if isinstance(first, str) else first
    try:
        return of(block) if isinstance(block, Mapping) else IMAGES
    except Problem:  # it will be refused where it stands
        return IMAGES
