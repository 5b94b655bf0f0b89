"""What can be wrong with a sweep that only its data can tell."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from raycl import datasets
from raycl.benchmarks.base import Benchmark, Stream, StreamInfo
from raycl.datasets.base import Dataset
from raycl.datasets.left_out import LeftOut
from raycl.errors import UserError
from raycl.networks.base import Tensors, from_hubs, weights_of
from raycl.rl.benchmarks.base import build_games
from raycl.rl.methods.base import try_out as try_out_games
from raycl.sweep.file.blocks import benchmark_configs, place, weights_in
from raycl.sweep.file.check import check_length, check_metric
from raycl.sweep.file.model import Sweep
from raycl.sweep.file.source import undotted
from raycl.sweep.plan.expand import each_value, filled, groups
from raycl.sweep.plan.plan import canonical
from raycl.training.check import check_batches, load_from_hub, try_out
from raycl.training.run import build_benchmark
from raycl.trial.randomness import Seeds
from raycl.trial.weights import build_network, named_in, read, sha256

log = logging.getLogger(__name__)


def check_data(sweep: Sweep, root: Path) -> dict[str, Dataset]:
    """Load every data set and build every stream, in each class order; games need none.

    Class orders are those of the sweep's seeds, and of its search's. The stream of a search counts
    like the sweep's own. Networks and methods are tried out on the first class order.

    What was passed over while images were looked for is one line of the log.

    Args:
        sweep: The sweep.
        root: The data folder.

    Returns:
        Loaded data sets, by ``raycl.datasets.key``.

    Raises:
        UserError: A data set is missing, or does not fit its benchmark (more tasks than classes),
            or the benchmark does not define a readout that was asked for, or ``drop_last`` leaves
            nothing of a task.
    """
    data: dict[str, Dataset] = {}
    left_out: list[LeftOut] = []
    try:
        for one in [sweep] if sweep.search.benchmark is None else [sweep, sweep.for_search]:
            if one.kind.needs_data:
                _check_images(one, root, data, left_out)
            else:
                _check_games(one)
    finally:
        if said := LeftOut.merged(left_out):
            log.warning("warning: left out: %s", said)
    return data


def data_of(sweep: Sweep, data: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The loaded data sets that the sweep's own streams are made of; games have none."""
    if not sweep.kind.needs_data:
        return {}
    wanted = [one for c in benchmark_configs(sweep) for one in build_benchmark(c).datasets()]
    return {key: data[key] for key in map(datasets.key, wanted)}


def _check_images(
    sweep: Sweep, root: Path, data: dict[str, Dataset], left_out: list[LeftOut]
) -> None:
    """Fill in the data sets, and what was passed over in them."""
    for index, config in enumerate(benchmark_configs(sweep)):
        benchmark = build_benchmark(config)
        try:
            for wanted in benchmark.datasets():
                key = datasets.key(wanted)
                if key not in data:
                    data[key] = datasets.load(wanted, root)
                    left_out.append(data[key].left_out)
            left_out.append(benchmark.left_out())
            stream, images = _streams(sweep, benchmark, data)
        except UserError as error:
            raise _placed(sweep, index, error) from error
        _check_top(sweep, index, benchmark.config.top_k, stream.info)
        _check_stream(sweep, config["label"], stream.info)
        _check_trials(sweep, index, config["label"], stream.info, images)


def _streams(
    sweep: Sweep, benchmark: Benchmark, data: Mapping[str, Dataset]
) -> tuple[Stream, list[int]]:
    """Build the stream of each class order, which copies no image.

    Returns:
        The first one, and for each task the least number of training images over all of them; of
        those that only search trials see, the tasks that these run.
    """
    seeds: list[tuple[int, int | None]] = []
    if not sweep.tunes:
        seeds += [(seed, None) for seed in sweep.seeds]
    if sweep.tunes or _is_searched(sweep):
        seeds += [(seed, sweep.search.tasks) for seed in sweep.search_seeds()]
    orders: dict[int, int | None] = {}
    for seed, tasks in seeds:
        order = Seeds.derive(seed, **sweep.fixed_seeds.model_dump()).class_order
        orders.setdefault(order, tasks)
    streams = (benchmark.stream(data, order) for order in orders)
    first = next(streams)
    counts = [
        [len(task.train) for task in stream.data[:tasks]]
        for stream, tasks in zip(chain([first], streams), orders.values(), strict=True)
    ]
    return first, [min(column) for column in zip_longest(*counts, fillvalue=sys.maxsize)]


def read_weights(sweep: Sweep) -> dict[str, Tensors]:
    """The tensors of every weights file that trials on images start from, by hash.

    To be called after ``check_data``, which has read them already.
    """
    if not sweep.kind.needs_data:
        return {}
    found = [w for group in groups(sweep) for w in named_in(weights_in(group.base.config))]
    return {weights.sha256 or sha256(weights): read(weights) for weights in found}


def _check_games(sweep: Sweep) -> None:
    """What networks and methods for games say when they are built; weights are read once."""
    for index, config in enumerate(benchmark_configs(sweep)):
        tried = set()
        shape = build_games(config).input_shape
        if _is_searched(sweep):
            check_metric(sweep, sweep.kind.tasks(config, {}), f"{config['label']} has")
        for group in groups(sweep):
            if group.benchmark != config["label"]:
                continue
            for values in each_value(group.spaces):
                trial = filled(sweep, group, group.base, values, 0, "").config
                built = canonical({name: trial[name] for name in ("method", "network")})
                if built in tried:
                    continue
                tried.add(built)
                try:
                    if weights_of(trial["network"]) or [*from_hubs(trial["network"])]:
                        build_network(trial["network"], shape)
                        _check_hashed(trial)
                    try_out_games(trial)
                except UserError as error:
                    raise _in_trial(sweep, index, group.index, trial, error) from error


def _check_hashed(config: Mapping[str, Any]) -> None:
    """A file that a search space names has no hash before it is drawn."""
    for where, block in weights_in(config).items():
        if any(weights.sha256 is None for weights in named_in(block)):
            what = "a search space cannot stand inside weights, whose hash is part of a trial's key"
            hint = "let it choose whole blocks: {choice: [{...}]}"
            raise UserError(f"{where}.weights", what, hint)


def _check_trials(
    sweep: Sweep, index: int, label: str, info: StreamInfo, images: Sequence[int]
) -> None:
    """What the networks and the methods on benchmark ``label`` say when they are built."""
    tried = set()
    for group in groups(sweep):
        if group.benchmark != label:
            continue
        for values in each_value(group.spaces):
            config = filled(sweep, group, group.base, values, 0, "").config
            try:
                check_batches(config, images)
            except UserError as error:
                raise _in_trial(sweep, index, group.index, config, error) from error
            asked = {name: config["train"].get(name) for name in ("schedule", "select")}
            built = canonical({**{name: config[name] for name in ("method", "network")}, **asked})
            if built in tried:
                continue
            tried.add(built)
            try:
                try_out(config, info)
                load_from_hub(config, info)
                _check_hashed(config)
            except UserError as error:
                raise _in_trial(sweep, index, group.index, config, error) from error


def _in_trial(
    sweep: Sweep, benchmark: int, method: int, config: Mapping[str, Any], error: UserError
) -> UserError:
    """An error about a block of a trial with its place in the file.

    Of a sequence the whole is meant, where the error's path is from the root of one of its
    networks and not from ``network.of``.
    """
    block, *rest = undotted(error.where) if error.where else ("method",)
    if block == "benchmark":
        return _placed(sweep, benchmark, error)
    if block not in ("method", "network", "train"):
        return error
    several = (
        block == "network" and "of" in config["network"] and not (rest[:1] == ["of"] and rest[1:])
    )
    path = place(sweep, method, (block,) if several else (block, *rest))
    return sweep.source.error(path, error.what, error.hint)


def _placed(sweep: Sweep, index: int, error: UserError) -> UserError:
    """An error about ``benchmark...`` with its place in the file."""
    if not error.where.startswith("benchmark"):
        return error
    path = ("benchmark", index, *undotted(error.where)[1:])
    return sweep.source.error(path, error.what, error.hint)


def _check_top(sweep: Sweep, index: int, top_k: int, info: StreamInfo) -> None:
    """Among as many outputs as there are, every image would be right."""
    if top_k > 1 and top_k >= info.num_outputs:
        what = f"is {top_k}, but there are {info.num_outputs} outputs: every image would be right"
        raise sweep.source.error(("benchmark", index, "top_k"), what)


def _check_stream(sweep: Sweep, label: str, info: StreamInfo) -> None:
    """What was asked for against what the stream of benchmark ``label`` is."""
    check_length(sweep, label, len(info.tasks))
    defined = f"it defines {', '.join(info.readouts)}"
    for i, readout in enumerate(sweep.readouts or ()):
        if readout not in info.readouts:
            what = f"{label} has no readout '{readout}'"
            raise sweep.source.error(("readouts", i), what, defined)
    for i in sorted({group.index for group in groups(sweep)}):
        entry = sweep.methods[i]
        settings = sweep.kind.settings(sweep.kind.named("method", {"name": entry.name}))
        if not settings & set(info.readouts):
            what = f"{entry.label} can be evaluated by none of the readouts of {label}"
            hint = f"{defined}; {entry.label} supports {', '.join(sorted(settings))}"
            raise sweep.source.error(("methods", i), what, hint)
    if not _is_searched(sweep):
        return
    check_metric(sweep, len(info.tasks), f"{label} has")
    searched = sweep.search.readout
    if searched is not None and searched not in info.readouts:
        what = f"{label} has no readout '{searched}'"
        raise sweep.source.error(("search", "metric"), what, defined)


def _is_searched(sweep: Sweep) -> bool:
    """Whether values are chosen on the streams of this sweep, not on one of the search's."""
    return sweep.search.benchmark is None and any(group.spaces for group in groups(sweep))
