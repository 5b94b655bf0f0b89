"""The form of a kind of trial: its classes, and functions to build, check and show a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raycl import registry
from raycl.errors import Problem, UserError
from raycl.trial.run import Row, TrialRun

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raycl.datasets.base import Dataset
    from raycl.networks.base import Tensors
    from raycl.trial.matrix import Metric


@dataclass(frozen=True)
class Shown:
    """The view of a running trial.

    Attributes:
        columns: Titles of the live table between the trial's name and its time.
        left: Titles of the columns that hold text.
        cells: From a row (empty at the start) and the number of tasks to the cells.
        where: From the same to a few words.
        headline: From the last row of a finished trial to its result in a few words.
    """

    columns: tuple[str, ...]
    left: frozenset[str]
    cells: Callable[[Row, int], list[str]]
    where: Callable[[Row, int], str]
    headline: Callable[[Row], str]


Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """The place of the classes of a block, whose names are those of the package's files.

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
        tasks: Function of a benchmark block and loaded data that gives the number of tasks.
        needs_data: Whether data must be loaded before ``tasks`` can tell.
        settings: Function of a method's class that gives the readouts it can be asked by.
        probes: Function of a method's class that says whether a linear probe can read its features;
            ``None`` where there are no probes.
        fits: Function of a benchmark block, finished blocks and resources that raises ``Problem``
            if they do not go together; its path begins at the root of a trial's configuration.
        smoke: Function of the file's data and the benchmark blocks that gives, for ``--smoke``, the
            values to set by their dotted paths.
        published: Function of the benchmark blocks that gives further readouts, and the names they
            have numbers of.
        build: Function that makes the run, of a finished configuration, data, device, resources and
            the tensors of weights files by hash.
        shown: How progress is told.
        evaluation: Where a sweep file says how its trials are evaluated.
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
    tasks: Callable[[Config, Mapping[str, Dataset]], int]
    needs_data: bool
    settings: Callable[[Any], frozenset[str]]
    probes: Callable[[Any], bool] | None
    fits: Callable[[Config, Config, Config], None]
    smoke: Callable[[Config, Sequence[Config]], dict[str, Any]]
    published: Callable[[Iterable[Config]], Mapping[str, Iterable[str]]]
    build: Callable[
        [Config, Mapping[str, Dataset], str, Config, Mapping[str, Tensors] | None], TrialRun
    ]
    shown: Shown
    evaluation: str

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
            from raycl.sweep.kinds import KINDS  # the table, which holds this very kind

            others = [k.name for k in KINDS if k is not self and has(k.parts[block], name)]
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


def has(part: Part, name: str) -> bool:
    """Whether a name is one of the registered ones of a part."""
    return ":" not in name and name in part.names()


NETWORKS = Part("raycl.networks", "Backbone")
