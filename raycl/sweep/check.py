"""What can be wrong with a sweep file beyond its schema, each with the place in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raycl import datasets
from raycl.benchmarks.base import Benchmark, StreamInfo
from raycl.datasets.base import Dataset
from raycl.errors import UserError, nearest
from raycl.sweep.blocks import Blocks, blocks_of, finish, named, place
from raycl.sweep.expand import benchmark_configs, groups
from raycl.sweep.explain import Problem, validate
from raycl.sweep.model import MethodEntry, Resources, Sweep
from raycl.sweep.source import KeyPath, dotted, put, undotted
from raycl.sweep.spaces import Space, SpaceError, walk
from raycl.training.metrics import METRICS
from raycl.training.randomness import Seeds

READOUTS = ("class", "task", "domain")


def check(sweep: Sweep) -> None:
    """Everything that can be seen without data and without Ray.

    Raises:
        UserError: The first thing that is wrong.
    """
    checked = _Checked(sweep)
    checked.benchmarks()
    for index in range(len(sweep.methods)):
        checked.method(index)
    checked.labels()
    checked.seeds()
    checked.search()
    checked.references()


@dataclass
class _Searched:
    """What the checks of a method found out about it."""

    entry: MethodEntry
    settings: frozenset[str]
    spaces: dict[str, Space]
    selects: bool
    """Whether an epoch is selected on validation data."""


class _Checked:
    """The checks of one sweep; each method raises ``UserError``."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.error = sweep, sweep.source.error
        self.found: list[_Searched] = []
        self.benchmark_labels: list[str] = []
        self.validation: list[float | str] = []

    # ------------------------------------------------------------------ benchmarks

    def benchmarks(self) -> None:
        """Names, options, data sets, labels."""
        for i, block in enumerate(self.sweep.benchmark):
            for path, _ in _spaces(block, partial(self._in_benchmark, i)):
                what = "a search space is for methods, network and train"
                raise self._in_benchmark(i, path, what, "list benchmarks to compare them")
        for i, config in enumerate(benchmark_configs(self.sweep)):
            self._data_names(i, config)
            label = config["label"]
            if label in self.benchmark_labels:
                first = self.benchmark_labels.index(label)
                what = f"the label '{label}' is taken by benchmark[{first}]"
                raise self.error(("benchmark", i, "label"), what, "give each a label of its own")
            self.benchmark_labels.append(label)
            self.validation.append(config["validation"])

    def _in_benchmark(self, index: int, path: KeyPath, what: str, hint: str) -> UserError:
        return self.error(("benchmark", index, *path), what, hint)

    def _data_names(self, index: int, config: dict[str, Any]) -> None:
        valid = datasets.names()
        try:
            wanted = build(config).datasets()
        except UserError:
            return  # they depend on what is on the disk, which check_data is for
        for data in wanted:
            if data.name not in valid:
                path = _find(self.sweep.benchmark[index], data.name) or ()
                what = f"unknown data set '{data.name}'"
                raise self.error(("benchmark", index, *path), what, nearest(data.name, valid))

    # ------------------------------------------------------------------ methods

    def method(self, index: int) -> None:
        """Name, options, network, train and resources of one method, for all its search spaces."""
        sweep, entry = self.sweep, self.sweep.methods[index]
        blocks = blocks_of(sweep, entry)

        def at(path: KeyPath, what: str, hint: str = "") -> UserError:
            return self.error(place(sweep, index, path), what, hint)

        spaces = dict(_spaces(blocks, at))
        try:
            method = named("method", {"name": entry.name})
        except Problem as p:
            raise at(("method", *p.path), p.what, p.hint) from p
        for word in MethodEntry.model_fields.keys() - {"name"}:
            if word in method.Config.model_fields:
                what = f"option '{word}' of {entry.name} is a word of the sweep file"
                raise at(("method", "name"), what, "rename the option")
        selects = False
        for chosen, culprit in _representatives(spaces):
            done = _finish(blocks, chosen, culprit, at)
            selects |= done["train"]["select"] != "last"
        try:
            validate(Resources, sweep.resources.model_dump() | entry.resources)
        except Problem as p:
            raise self.error(("methods", index, "resources", *p.path), p.what, p.hint) from p
        named_spaces = {dotted(path): space for path, space in spaces.items()}
        self.found.append(_Searched(entry, method.settings, named_spaces, selects))
        self._readouts(index)

    def _readouts(self, index: int) -> None:
        found = self.found[index]
        supported = f"{found.entry.label} supports {', '.join(sorted(found.settings))}"
        for i, readout in enumerate(self.sweep.readouts or ()):
            if readout not in found.settings:
                what = f"methods[{index}] cannot be evaluated by '{readout}'"
                raise self.error(("readouts", i), what, supported)
        searched = self.sweep.search.readout
        if searched and found.spaces and searched not in found.settings:
            what = f"methods[{index}] cannot be evaluated by '{searched}'"
            raise self.error(("search", "metric"), what, supported)

    def labels(self) -> None:
        """Labels are distinct, and so are trials."""
        labels: list[str] = []
        for i, entry in enumerate(self.sweep.methods):
            if entry.label in labels:
                what = f"the label '{entry.label}' is taken by methods[{labels.index(entry.label)}]"
                key = "label" if "label" in self._raw_method(i) else "name"
                raise self.error(("methods", i, key), what, "give each a label of its own")
            labels.append(entry.label)

    def _raw_method(self, index: int) -> Any:
        raw = self.sweep.source.data.get("methods", {})
        return raw[index] if isinstance(raw, list) else {}

    # ------------------------------------------------------------------ seeds and search

    def seeds(self) -> None:
        """Two seeds must not mean the same trial."""
        fixed = self.sweep.fixed_seeds.model_dump().values()
        if len(self.sweep.seeds) > 1 and None not in fixed:
            what = "all of them are fixed, so every seed would be the same trial"
            raise self.error(("fixed_seeds",), what, "leave one free, or set seeds: 1")

    def search(self) -> None:
        """Search and early stopping, and the validation data they need."""
        sweep, search = self.sweep, self.sweep.search
        self._validation()
        if search.readout and sweep.readouts and search.readout not in sweep.readouts:
            what = f"'{search.readout}' is not among readouts"
            raise self.error(("search", "metric"), what, nearest(search.readout, sweep.readouts))
        if (search.protocol == "first_tasks") != (search.tasks is not None):
            what = "search.tasks goes with, and only with, protocol: first_tasks"
            raise self.error(("search", "tasks" if search.tasks else "protocol"), what)
        if search.tasks and sweep.stop.tasks and search.tasks > sweep.stop.tasks:
            what = f"must be at most stop.tasks, {sweep.stop.tasks}, not {search.tasks}"
            raise self.error(("search", "tasks"), what)
        tasks = search.tasks or sweep.stop.tasks
        metric = search.metric.rpartition("/")[2]
        if tasks and tasks < METRICS[metric].min_tasks and any(f.spaces for f in self.found):
            what = f"{metric} needs {METRICS[metric].min_tasks} tasks, search trials have {tasks}"
            raise self.error(("search", "metric"), what)
        if sweep.scheduler.name != "fifo" and search.seeds > 1:
            what = f"must be 1 with {sweep.scheduler.name}: a stopped trial would leave its mean"
            raise self.error(("search", "seeds"), what)
        if search.algorithm != "random":
            self._no_grid()

    def _validation(self) -> None:
        for i, found in enumerate(self.found):
            if not (found.spaces or found.selects):
                continue
            needs = "is searched" if found.spaces else "selects epochs (train.select)"
            for b, share in enumerate(self.validation):
                if share == 0:
                    what = (
                        f"is 0, but methods[{i}] ({found.entry.label}) {needs} on validation data"
                    )
                    raise self.error(("benchmark", b, "validation"), what, "the default is 0.1")

    def _no_grid(self) -> None:
        for i, found in enumerate(self.found):
            for path, space in found.spaces.items():
                if space.is_grid:
                    what = f"a grid cannot be searched by {self.sweep.search.algorithm}"
                    where = place(self.sweep, i, undotted(path))
                    raise self.error(where, what, "use choice, or search.algorithm: random")

    # ------------------------------------------------------------------ references

    def references(self) -> None:
        """Labels, metrics and readouts mentioned by the report and by published numbers."""
        methods = [entry.label for entry in self.sweep.methods]
        baseline = self.sweep.report.baseline
        if baseline is not None and baseline not in methods:
            what = f"no method has the label '{baseline}'"
            raise self.error(("report", "baseline"), what, nearest(baseline, methods))
        if self.sweep.published is None:
            return
        for key, numbers in (self.sweep.published.model_extra or {}).items():
            readout, _, metric = key.rpartition("/")
            if metric not in METRICS or (readout and readout not in READOUTS):
                wrong, valid = (readout, READOUTS) if metric in METRICS else (metric, METRICS)
                kind = "readout" if metric in METRICS else "metric"
                what = f"unknown {kind} '{wrong}'"
                raise self.error(("published", key), what, nearest(wrong, valid))
            for path, label, valid_labels in self._published_labels(key, numbers, methods):
                if label not in valid_labels:
                    what = f"no method or benchmark has the label '{label}'"
                    raise self.error(path, what, nearest(label, valid_labels))

    def _published_labels(
        self, key: str, numbers: Mapping[str, Any], methods: list[str]
    ) -> Iterator[tuple[KeyPath, str, list[str]]]:
        for label, value in numbers.items():
            path: KeyPath = ("published", key, label)
            if not isinstance(value, dict):
                yield path, label, methods
                continue
            yield path, label, self.benchmark_labels
            for method in value:
                yield (*path, method), method, methods


def build(config: Mapping[str, Any]) -> Benchmark:
    """The benchmark of a finished block."""
    cls = named("benchmark", config)
    benchmark: Benchmark = cls(cls.Config.model_validate(config))
    return benchmark


def _spaces(
    tree: Any, error: Callable[[KeyPath, str, str], UserError]
) -> Iterator[tuple[KeyPath, Space]]:
    try:
        yield from walk(tree)
    except SpaceError as e:
        raise error(e.path, e.what, e.hint) from e


Chosen = dict[KeyPath, tuple[KeyPath, Any]]
"""Path of a search space to one of its representatives: the place below the space, the value."""


def _representatives(spaces: Mapping[KeyPath, Space]) -> Iterator[tuple[Chosen, KeyPath]]:
    """Values to try, and the path of the one that differs from the first try.

    Each space in turn takes each of its representative values while the others keep their first.
    """
    first = {path: space.representatives()[0] for path, space in spaces.items()}
    yield first, ()
    for path, space in spaces.items():
        for below, value in space.representatives()[1:]:
            yield first | {path: (below, value)}, (*path, *below)


def _finish(
    blocks: Blocks,
    chosen: Chosen,
    culprit: KeyPath,
    error: Callable[[KeyPath, str, str], UserError],
) -> Blocks:
    """``blocks.finish`` with search spaces filled; an error names the option that causes it."""
    filled = deepcopy(blocks)
    for path, (_, value) in chosen.items():
        put(filled, path, deepcopy(value))
    try:
        return finish(filled)
    except Problem as p:
        inside = (
            path + below for path, (below, _) in chosen.items() if p.path[: len(path)] == path
        )
        raise error(next(inside, culprit or p.path), p.what, p.hint) from p


def _find(tree: Any, value: str, path: KeyPath = ()) -> KeyPath | None:
    """Path of the first leaf that equals ``value``."""
    if tree == value:
        return path
    children: Iterable[tuple[str | int, Any]] = ()
    if isinstance(tree, dict):
        children = tree.items()
    elif isinstance(tree, list):
        children = enumerate(tree)
    found = (_find(child, value, (*path, key)) for key, child in children if key != "label")
    return next((where for where in found if where is not None), None)


def check_data(sweep: Sweep, root: Path) -> dict[str, Dataset]:
    """Load every data set and build every stream once, for the first seed.

    Args:
        sweep: The sweep.
        root: The data folder.

    Returns:
        Loaded data sets, by ``raycl.datasets.key``.

    Raises:
        UserError: A data set is missing, or does not fit its benchmark (more tasks than classes),
            or the benchmark does not define a readout that was asked for.
    """
    data: dict[str, Dataset] = {}
    for index, config in enumerate(benchmark_configs(sweep)):
        benchmark = build(config)
        try:
            for wanted in benchmark.datasets():
                key = datasets.key(wanted)
                if key not in data:
                    data[key] = datasets.load(wanted, root)
            seed = Seeds.derive(sweep.seeds[0], **sweep.fixed_seeds.model_dump()).class_order
            info = benchmark.stream(data, seed).info
        except UserError as error:
            raise _placed(sweep, index, error) from error
        _check_stream(sweep, config["label"], info)
    return data


def _placed(sweep: Sweep, index: int, error: UserError) -> UserError:
    """An error about ``benchmark...`` with its place in the file."""
    if not error.where.startswith("benchmark"):
        return error
    path = ("benchmark", index, *undotted(error.where)[1:])
    return sweep.source.error(path, error.what, error.hint)


def _check_stream(sweep: Sweep, label: str, info: StreamInfo) -> None:
    """What was asked for against what the stream of benchmark ``label`` is."""
    for path, tasks in (
        (("stop", "tasks"), sweep.stop.tasks),
        (("search", "tasks"), sweep.search.tasks),
    ):
        if tasks is not None and tasks > len(info.tasks):
            raise sweep.source.error(path, f"{tasks} tasks, but {label} has {len(info.tasks)}")
    defined = f"it defines {', '.join(info.readouts)}"
    for i, readout in enumerate(sweep.readouts or ()):
        if readout not in info.readouts:
            what = f"{label} has no readout '{readout}'"
            raise sweep.source.error(("readouts", i), what, defined)
    for i, entry in enumerate(sweep.methods):
        settings = named("method", {"name": entry.name}).settings
        if not settings & set(info.readouts):
            what = f"{entry.label} can be evaluated by none of the readouts of {label}"
            hint = f"{defined}; {entry.label} supports {', '.join(sorted(settings))}"
            raise sweep.source.error(("methods", i), what, hint)
    searched = sweep.search.readout
    if (
        searched is not None
        and any(g.spaces for g in groups(sweep))
        and searched not in info.readouts
    ):
        raise sweep.source.error(
            ("search", "metric"), f"{label} has no readout '{searched}'", defined
        )
