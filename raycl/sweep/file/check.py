"""Checks of a sweep file beyond its schema; every error names the place in the file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from raycl import datasets
from raycl.blocks import SPACES
from raycl.errors import KeyPath, Problem, UserError, nearest
from raycl.sweep import kinds
from raycl.sweep.file.blocks import Blocks, benchmark_configs, blocks_of, finish, place
from raycl.sweep.file.model import MethodEntry, Resources, Sweep
from raycl.sweep.file.source import dotted, get, put, undotted
from raycl.sweep.file.spaces import Space, SpaceError, walk
from raycl.sweep.file.validate import validate
from raycl.training.config import PROBE_READOUTS, EvaluateConfig
from raycl.training.run import build_benchmark


def check(sweep: Sweep) -> None:
    """Check everything that can be seen without data and without Ray.

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
    checked.search_benchmark()
    checked.references()


@dataclass
class _Searched:
    """What the checks of a method found out about it."""

    index: int
    entry: MethodEntry
    settings: frozenset[str]
    spaces: dict[str, Space]
    selects: bool
    """Whether an epoch is selected on validation data."""
    predictors: tuple[str, ...] = ()
    """Predictors that can be asked beside the method itself."""


class _Checked:
    """The checks of one sweep; each method raises ``UserError``.

    Args:
        sweep: The sweep.
        kind: Kind that its benchmarks have to be of; ``None``: the same for all.
    """

    def __init__(self, sweep: Sweep, kind: kinds.Kind | None = None) -> None:
        self.sweep, self.error, self.expected = sweep, sweep.source.error, kind
        self.found: list[_Searched] = []
        self.configs: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ benchmarks

    def benchmarks(self) -> None:
        """Check the benchmarks: names, kinds, options, data sets, labels, lengths."""
        for i, block in enumerate(self.sweep.benchmark):
            for path, _ in _spaces(block, partial(self._in_benchmark, i)):
                what = "a search space is for methods, network and train"
                raise self._in_benchmark(i, path, what, "list benchmarks to compare them")
        self.configs = benchmark_configs(self.sweep)
        self.kind = self.expected or self.sweep.kind
        labels: list[str] = []
        for i, config in enumerate(self.configs):
            self._of_one_kind(i, config)
            if self.kind.needs_data:
                self._data_names(i, config)
            else:
                check_length(self.sweep, config["label"], self.kind.tasks(config, {}))
            label = config["label"]
            if label in labels:
                what = f"the label '{label}' is taken by benchmark[{labels.index(label)}]"
                raise self.error(("benchmark", i, "label"), what, "give each a label of its own")
            labels.append(label)
        if self.sweep.readouts is not None and not self.kind.asks:
            raise self.error(("readouts",), f"{self.kind.name} have no readouts to choose from")
        for name, value in EvaluateConfig():
            asked = name != "probe" and getattr(self.sweep.evaluate, name) != value
            if asked and self.kind.evaluation != "evaluate":
                what = f"is for images; {self.kind.name} have {self.kind.evaluation} instead"
                raise self.error(("evaluate", name), what)

    def _of_one_kind(self, index: int, config: dict[str, Any]) -> None:
        kind = kinds.of(config)
        if kind is not self.kind:
            what = f"{config['name']} is for {kind.name}, and benchmark[0] for {self.kind.name}"
            raise self._in_benchmark(index, ("name",), what, "give each a sweep file of its own")

    def _in_benchmark(self, index: int, path: KeyPath, what: str, hint: str) -> UserError:
        return self.error(("benchmark", index, *path), what, hint)

    def _data_names(self, index: int, config: dict[str, Any]) -> None:
        valid = datasets.names()
        try:
            wanted = build_benchmark(config).datasets()
        except UserError:
            return  # they depend on what is on the disk, which check_data is for
        for data in wanted:
            if data.name not in valid:
                path = _find(self.sweep.benchmark[index], data.name) or ()
                what = f"unknown data set '{data.name}'"
                raise self.error(("benchmark", index, *path), what, nearest(data.name, valid))

    # ------------------------------------------------------------------ methods

    def method(self, index: int) -> None:
        """Check one method: name, options, network, train and resources, for all its spaces."""
        sweep, entry = self.sweep, self.sweep.methods[index]
        blocks = blocks_of(sweep, entry)
        whole = any(kind in entry.train for kind in SPACES)
        if entry.train and not whole and any(kind in sweep.train for kind in SPACES):
            what = "cannot change single options of a train that is a search space"
            hint = "write the space in train's options, or in the method"
            raise self.error(("methods", index, "train"), what, hint)

        def at(path: KeyPath, what: str, hint: str = "") -> UserError:
            return self.error(place(sweep, index, path), what, hint)

        spaces = dict(_spaces(blocks, at))
        try:
            method = self.kind.named("method", {"name": entry.name})
        except Problem as p:
            raise at(("method", *p.path), p.what, p.hint) from p
        for word in MethodEntry.model_fields.keys() - {"name"}:
            if word in method.Config.model_fields:
                what = f"option '{word}' of {entry.name} is a word of the sweep file"
                raise at(("method", "name"), what, "rename the option")
        try:
            asked = validate(Resources, sweep.resources.model_dump() | entry.resources).model_dump()
        except Problem as p:
            raise self.error(("methods", index, "resources", *p.path), p.what, p.hint) from p
        selects = False
        pairs = sweep.search.algorithm != "random"  # draws are checked one by one
        for chosen, culprit in _representatives(spaces, pairs):
            done = _finish(blocks, chosen, culprit, at, self.kind)
            selects |= done["train"].get("select", "last") != "last"
            self._precision(index, done["train"])
            self._fits(done, asked, at)
        named_spaces = {dotted(path): space for path, space in spaces.items()}
        settings, predictors = self.kind.settings(method), tuple(getattr(method, "predictors", ()))
        self.found.append(_Searched(index, entry, settings, named_spaces, selects, predictors))
        if self.sweep.tunes:
            return  # what follows does not depend on the stream
        self._readouts(index)
        self._probe(index, method)

    def _fits(
        self, done: Blocks, asked: dict[str, Any], at: Callable[[KeyPath, str, str], UserError]
    ) -> None:
        """Check a method's finished blocks and resources against each benchmark."""
        for i, config in enumerate(self.configs):
            try:
                self.kind.fits(config, done, asked)
            except Problem as p:
                if p.path[0] == "benchmark":
                    raise self._in_benchmark(i, p.path[1:], p.what, p.hint) from p
                raise at(p.path, p.what, p.hint) from p

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

    def _precision(self, index: int, train: Mapping[str, Any]) -> None:
        """Refuse to evaluate in bfloat16 what is trained in float32."""
        if self.sweep.evaluate.precision == "bfloat16" != train.get("precision", "bfloat16"):
            label = self.sweep.methods[index].label
            what = f"methods[{index}] ({label}) is trained in {train['precision']}"
            hint = "set train.precision: bfloat16, or leave it out"
            raise self.error(("evaluate", "precision"), what, hint)

    def _probe(self, index: int, method: Any) -> None:
        """Refuse a linear probe for a method without features."""
        if self.sweep.evaluate.probe is None:
            return
        if self.kind.probes is None:
            what = f"{self.kind.name} have no features for a linear probe"
            raise self.error(("evaluate", "probe"), what, "leave it out")
        if not self.kind.probes(method):
            what = f"methods[{index}] ({self.found[index].entry.label}) has no features to read"
            hint = "give its class a method `features`, as raycl.methods.base.Method says"
            raise self.error(("evaluate", "probe"), what, hint)

    def labels(self) -> None:
        """Refuse equal labels, and equal trials."""
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
        """Refuse seeds of which two mean the same trial."""
        fixed = self.sweep.fixed_seeds.model_dump()
        for name in fixed:
            if fixed[name] is not None and name not in self.kind.seeds:
                what = f"{self.kind.name} have no such seed"
                raise self.error(("fixed_seeds", name), what, nearest(name, self.kind.seeds))
        if len(self.sweep.seeds) > 1 and all(fixed[name] is not None for name in self.kind.seeds):
            what = "all of them are fixed, so every seed would be the same trial"
            raise self.error(("fixed_seeds",), what, "leave one free, or set seeds: 1")

    def search(self) -> None:
        """Check search and early stopping, and the validation data they need."""
        sweep, search = self.sweep, self.sweep.search
        self._metric()
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
        if tasks and any(f.spaces for f in self.found):
            check_metric(sweep, tasks, "search trials have")
        if sweep.scheduler.name != "fifo" and search.seeds > 1:
            what = f"must be 1 with {sweep.scheduler.name}: a stopped trial would leave its mean"
            raise self.error(("search", "seeds"), what)
        if search.algorithm != "random":
            self._proposed()

    def search_benchmark(self) -> None:
        """Check the stream of a search as the sweep's own, with the methods that are searched."""
        path = ("search", "benchmark")
        if self.sweep.search.benchmark is None:
            return
        searched = [found.index for found in self.found if found.spaces]
        if not searched:
            what = "no value is searched, so nothing would run on it"
            raise self.error(path, what, "leave it out, or give an option a search space")
        other = _Checked(self.sweep.for_search, self.kind)
        other.benchmarks()
        label = other.configs[0]["label"]
        if label in (taken := [config["label"] for config in self.configs]):
            what = f"the label '{label}' is taken by benchmark[{taken.index(label)}]"
            raise self.error((*path, "label"), what, "give each stream a label of its own")
        for index in searched:
            other.method(index)
        other._validation()

    def _metric(self) -> None:
        """Check the search metric: a metric of validation data, under a known readout."""
        *_, metric = self.sweep.search.metric.split("/")
        readout = self.sweep.search.readout
        usable = [name for name, known in self.kind.all_metrics().items() if not known.also]
        if metric not in usable:
            what = f"unknown metric '{metric}' on validation data"
            raise self.error(("search", "metric"), what, nearest(metric, usable))
        if readout and readout in PROBE_READOUTS:
            what = f"'{readout}' is a diagnostic on test data, by which nothing may be selected"
            hint = f"validation/{readout.rpartition('/')[2]}/{metric} is of the method itself"
            raise self.error(("search", "metric"), what, hint)
        if readout and readout not in self.kind.readouts:
            what = f"unknown readout '{readout}'"
            raise self.error(("search", "metric"), what, nearest(readout, self.kind.readouts))

    def _validation(self) -> None:
        path = self.kind.validation
        here = self.sweep.search.benchmark is None
        for found in self.found:
            i, searched = found.index, here and bool(found.spaces)
            if not (searched or found.selects):
                continue
            needs = "is searched" if searched else "selects epochs (train.select)"
            for b, config in enumerate(self.configs):
                if get(config, path) == 0:
                    what = (
                        f"is 0, but methods[{i}] ({found.entry.label}) {needs} on validation data"
                    )
                    raise self.error(("benchmark", b, *path), what, self.kind.validation_hint)

    def _proposed(self) -> None:
        """Check what a searcher that proposes values cannot do: grids, several seeds."""
        search = self.sweep.search
        if search.seeds > 1 and any(found.spaces for found in self.found):
            what = f"must be 1 with {search.algorithm}, which learns from each trial by itself"
            raise self.error(("search", "seeds"), what)
        for i, found in enumerate(self.found):
            for path, space in found.spaces.items():
                if space.is_grid:
                    what = f"a grid cannot be searched by {self.sweep.search.algorithm}"
                    where = place(self.sweep, i, undotted(path))
                    raise self.error(where, what, "use choice, or search.algorithm: random")

    # ------------------------------------------------------------------ references

    def references(self) -> None:
        """Check labels, metrics and readouts in the report and in published numbers."""
        methods = [entry.label for entry in self.sweep.methods]
        for key in ("baseline", "upper_bound"):
            label = getattr(self.sweep.report, key)
            if label is not None and label not in methods:
                what = f"no method has the label '{label}'"
                raise self.error(("report", key), what, nearest(label, methods))
        if self.sweep.report.upper_bound is not None and not self.kind.bound_metrics():
            what = f"{self.kind.name} have no metric that is relative to an upper bound"
            raise self.error(("report", "upper_bound"), what, "leave it out")
        if self.sweep.published is None:
            return
        tree = self.sweep.resolved()
        entries = zip(tree["methods"], self.sweep.methods, strict=True)
        tree["methods"] = {  # each with all that it is trained with
            given["label"]: {**given, **{name: blocks[name] for name in ("train", "network")}}
            for given, entry in entries
            if (blocks := blocks_of(self.sweep, entry))
        }
        self._in_full(self.sweep.published.in_full, tree, ("published", "in_full"))
        for key, numbers in (self.sweep.published.model_extra or {}).items():
            self._published_key(key)
            for path, label, valid_labels in self._published_labels(key, numbers, methods):
                if label not in valid_labels:
                    what = f"no method or benchmark has the label '{label}'"
                    raise self.error(path, what, nearest(label, valid_labels))

    def _in_full(self, wanted: Mapping[str, Any], tree: Any, path: KeyPath) -> None:
        """Refuse what no sweep file has in ``in_full``; keys with ``null`` may be any."""
        for key, value in wanted.items():
            if key not in tree and value is None:
                continue  # left at its default
            if key not in tree:
                raise self.error(
                    (*path, key), f"the sweep has no '{key}' there", nearest(key, tree)
                )
            found = tree[key]
            for kind, word in ((Mapping, "a mapping"), (list, "a list")):
                if isinstance(found, kind) and value is not None and not isinstance(value, kind):
                    what = f"the finished sweep has {word} there, which '{value}' never equals"
                    raise self.error((*path, key), what, "see raycl show sweep")
            if isinstance(value, Mapping) and isinstance(found, Mapping):
                self._in_full(value, found, (*path, key))

    def _published_key(self, key: str) -> None:
        """``METRIC``, ``READOUT/METRIC``, or what else the kind has numbers of."""
        readout, _, metric = key.rpartition("/")
        further = self.kind.published(self.configs)
        probed = PROBE_READOUTS if self.sweep.evaluate.probe is not None else ()
        predictors = dict.fromkeys(name for one in self.found for name in one.predictors)
        asked = [f"{name}/{way}" for name in predictors for way in self.kind.readouts]
        readouts = [*self.kind.readouts, *asked, *probed, *further]
        if readout and readout not in readouts:
            hint = nearest(readout, readouts)
            raise self.error(("published", key), f"unknown readout '{readout}'", hint)
        relative = {} if readout in further else self.kind.bound_metrics()
        valid = [*further.get(readout, self.kind.all_metrics()), *relative]
        if metric in relative and self.sweep.report.upper_bound is None:
            what = f"{metric} is relative to an upper bound, and the sweep names none"
            hint = "set report.upper_bound to the label of a method such as joint"
            raise self.error(("published", key), what, hint)
        if metric not in valid:
            hint = nearest(metric, valid)
            raise self.error(("published", key), f"unknown metric '{metric}'", hint)

    def _published_labels(
        self, key: str, numbers: Mapping[str, Any], methods: list[str]
    ) -> Iterator[tuple[KeyPath, str, list[str]]]:
        benchmarks = [config["label"] for config in self.configs]
        for label, value in numbers.items():
            path: KeyPath = ("published", key, label)
            if not isinstance(value, dict) or (label in methods and label not in benchmarks):
                yield path, label, methods
                continue
            yield path, label, benchmarks
            for method in value:
                yield (*path, method), method, methods


def _spaces(
    tree: Any, error: Callable[[KeyPath, str, str], UserError]
) -> Iterator[tuple[KeyPath, Space]]:
    try:
        yield from walk(tree)
    except SpaceError as e:
        raise error(e.path, e.what, e.hint) from e


Chosen = dict[KeyPath, tuple[KeyPath, Any]]
"""Path of a search space to one of its representatives: the place below the space, the value."""


def _representatives(
    spaces: Mapping[KeyPath, Space], pairs: bool
) -> Iterator[tuple[Chosen, KeyPath]]:
    """Values to try, and the path of the one that differs from the first try.

    Each space in turn takes each of its representative values while the others keep their first; so
    does each pair of spaces, if ``pairs``.
    """
    first = {path: space.representatives()[0] for path, space in spaces.items()}
    yield first, ()
    for path, space in spaces.items():
        for below, value in space.representatives()[1:]:
            yield first | {path: (below, value)}, (*path, *below)
    for (one, a), (two, b) in itertools.combinations(spaces.items(), 2) if pairs else ():
        for left, right in itertools.product(a.representatives()[1:], b.representatives()[1:]):
            yield first | {one: left, two: right}, (*two, *right[0])


def _finish(
    blocks: Blocks,
    chosen: Chosen,
    culprit: KeyPath,
    error: Callable[[KeyPath, str, str], UserError],
    kind: kinds.Kind,
) -> Blocks:
    """``blocks.finish`` with search spaces filled; an error names the option that causes it."""
    filled = deepcopy(blocks)
    for path, (_, value) in chosen.items():
        put(filled, path, deepcopy(value))
    try:
        return finish(filled, kind)
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


def check_length(sweep: Sweep, label: str, tasks: int) -> None:
    """Refuse to stop after more tasks than there are."""
    wanted_of = {("stop", "tasks"): sweep.stop.tasks, ("search", "tasks"): sweep.search.tasks}
    if sweep.search.benchmark is not None:
        del wanted_of["search", "tasks"]
    if sweep.tunes:  # which may be shorter than the sweep's own
        del wanted_of["stop", "tasks"]
    for path, wanted in wanted_of.items():
        if wanted is not None and wanted > tasks:
            raise sweep.source.error(path, f"{wanted} tasks, but {label} has {tasks}")


def check_metric(sweep: Sweep, tasks: int, has: str) -> None:
    """Refuse a search metric that is not defined for so few tasks.

    Args:
        sweep: The sweep.
        tasks: Number of tasks.
        has: Who has so many, as the beginning of a sentence.
    """
    metric = sweep.search.metric.rpartition("/")[2]
    least = sweep.kind.all_metrics()[metric].min_tasks
    if tasks < least:
        what = f"{metric} needs {least} tasks, {has} {tasks}"
        raise sweep.source.error(("search", "metric"), what)
