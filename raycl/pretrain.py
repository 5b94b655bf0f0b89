"""Weights without a hub: a sweep of one trial, and the weights file that its network becomes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycl import datasets, yaml12
from raycl.datasets.base import Dataset
from raycl.datasets.disk import expanded
from raycl.datasets.ids import image_ids, unit
from raycl.errors import UserError
from raycl.networks.base import find_network, from_hubs
from raycl.sweep.execution.storage import unusable
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import networks_in, place, weights_in
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record import made_of
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.made_of import CONTINUED, MADE
from raycl.sweep.run import Execution
from raycl.training.pretrained import SUFFIX, About, about, read_about, write
from raycl.training.run import build_benchmark
from raycl.trial.checkpoint import CheckpointStore, runs_root
from raycl.trial.randomness import Seeds
from raycl.trial.weights import named_in, normalised, told

PREFIX = "backbone."
METHODS = ("regress_features", "finetune", "joint")
"""Methods that train one network, whole: without labels, or on tasks with labels."""


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        sweep: The sweep file.
        overrides: As for `raycl run`.
        smoke: As for `raycl run`.
        out: The weights file; ``None``: named after the sweep, in the data root.
        seed: The only seed, instead of those of the file.
        trial: Key of the trial whose network is written, where there are several.
        accept_changes: As for `raycl run`.
    """

    sweep: Path
    overrides: list[str]
    smoke: bool
    out: Path | None
    seed: int | None
    trial: str | None
    accept_changes: bool = False


def pretrain(
    wish: Wish,
    address: str | None,
    runs: Path | None,
    data_root: Path | None,
    tracking_uri: str | None,
) -> int:
    """Run the sweep, or find that it has run; write the file and print the block that names it.

    Returns:
        As ``raycl.sweep.run.run``; the file is written if that is 0.

    Raises:
        UserError: The sweep is none of pre-training, has several trials and none is chosen, the
            file is in the way, the trial's checkpoints are gone, or its data have changed.
    """
    seeds = [] if wish.seed is None else [f"seeds=[{wish.seed}]"]
    sweep = spec.load(wish.sweep, [*wish.overrides, *seeds], wish.smoke)
    plan = _chosen(sweep, wish.trial)
    root = (data_root or datasets.data_root()).resolve()
    out = expanded(wish.out or root / f"{sweep.name}{SUFFIX}", "--out").resolve()
    _check_out(out, plan)
    folder = SweepFolder(runs_root(runs), sweep.name)
    execution = Execution(sweep, folder, address, root, tracking_uri, wish.accept_changes)
    if code := execution.run():
        return code
    storage = f"{execution.storage}/{plan.key}"
    outcome = folder.outcomes.directory / f"{plan.key}.json"
    again = f"remove {storage} and {outcome}, and the trial runs again"
    state = _last_state(storage, plan, again)
    named = {k: v for k, v in state["method"].items() if k.startswith(PREFIX)}
    tensors = {name.removeprefix(PREFIX): value for name, value in named.items()}
    row = next(one.row for one in folder.outcomes.all() if one.key == plan.key)
    sets = _sets(plan, execution.data)
    _check_data(plan, sets, row.get(MADE, {}), again)
    about = _about(plan, sets, row)
    digest = write(out, tensors, about)
    _say(out, root, plan, about, digest)
    return 0


def _last_state(storage: str, plan: TrialPlan, hint: str) -> dict[str, Any]:
    """The state in the last checkpoint of the trial.

    Raises:
        UserError: There is none, all are damaged, or the storage does not answer.
    """
    try:
        found = CheckpointStore(storage).load()
    except ValueError as error:
        what = f"trial {plan.key}: {str(error).removesuffix('; remove them')}"
        raise UserError("raycl pretrain", what, hint) from error
    except Exception as error:
        raise unusable(storage, error) from error
    if found is None:
        raise UserError("raycl pretrain", f"trial {plan.key} has left no checkpoint", hint)
    return found.state


def _sets(plan: TrialPlan, loaded: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The data sets of a trial's benchmark, by ``datasets.key``."""
    wanted = build_benchmark(plan.config["benchmark"]).datasets()
    return {key: loaded[key] for key in map(datasets.key, wanted)}


def _check_data(
    plan: TrialPlan, sets: Mapping[str, Dataset], made: Mapping[str, str], hint: str
) -> None:
    """Refuse to write ids of images that the trial has perhaps not seen.

    Args:
        plan: The trial.
        sets: Its data sets, as they are now.
        made: What it was made with; see ``raycl.sweep.record.made_of``.
        hint: How it would run again.

    Raises:
        UserError: The data sets are others than those that the trial began or ended with.
    """
    then = {"data": made.get("data", "not recorded")}
    if changed := made_of.differences(then, {"data": made_of.data(sets)}):
        what = f"trial {plan.key} may have seen other images than are there now: {changed[0]}"
        raise UserError("raycl pretrain", what, hint)
    if "data" in made.get(CONTINUED, "").replace(",", "").split():
        what = f"the images of trial {plan.key} changed while it was trained"
        raise UserError("raycl pretrain", what, hint)


def _chosen(sweep: spec.Sweep, key: str | None) -> TrialPlan:
    """The trial whose network is written.

    Raises:
        UserError: There are several and none is named, or none is of pre-training one network.
    """
    if not sweep.kind.needs_data:
        what = "raycl pretrain trains networks for images"
        raise sweep.source.error(("benchmark", 0, "name"), what)
    for i, entry in enumerate(sweep.methods):
        if entry.name not in METHODS:
            what = f"{entry.label} makes no weights for others"
            hint = f"a sweep for raycl pretrain has one of the methods {', '.join(METHODS)}"
            raise sweep.source.error(("methods", i, "name"), what, hint)
    groups = expand.groups(sweep)
    if any(group.spaces for group in groups):
        what = "raycl pretrain takes a sweep without search spaces"
        raise sweep.source.error(("methods",), what, "search with raycl run, then write what won")
    for group in groups:
        network, config = find_network(group.base.config["network"])
        if network.per_task(config) is not None:
            what = f"{config.name} stands for several networks, and raycl pretrain writes one"
            raise sweep.source.error(place(sweep, group.index, ("network", "name")), what)
    plans = expand.final_plans(sweep, {})
    keys = ", ".join(f"{plan.key} ({plan.name})" for plan in plans[:8])
    if key is None and len(plans) > 1:
        what = f"the sweep has {len(plans)} trials, and one makes the file"
        raise UserError("--trial", what, f"give --seed, or one of {keys}")
    found = [plan for plan in plans if key in (None, plan.key)]
    if not found:
        raise UserError("--trial", f"the sweep has no trial '{key}'", f"valid: {keys}")
    return found[0]


def _check_out(out: Path, plan: TrialPlan) -> None:
    """Refuse a file that cannot be written, or that is of something else.

    Raises:
        UserError: The file is not one that this trial may write.
    """
    if out.suffix != SUFFIX:
        raise UserError("--out", f"'{out.name}' does not end in {SUFFIX}")
    if not out.parent.is_dir():
        raise UserError("--out", f"there is no folder '{out.parent}'")
    if out.exists() and ((there := read_about(out)) is None or there.trial != plan.key):
        what = f"'{out}' is there, and is no weights file of trial {plan.key}"
        raise UserError("--out", what, "sweeps may depend on it: remove it, or name another file")


def _about(plan: TrialPlan, loaded: Mapping[str, Dataset], row: Mapping[str, Any]) -> About:
    """What the file says of itself; it has seen what the weights that it began with have seen."""
    benchmark = build_benchmark(plan.config["benchmark"])
    seeds = Seeds.derive(plan.seed, **plan.config["fixed_seeds"])
    info = normalised(benchmark.stream(loaded, seeds.class_order).info, [plan.config["network"]])
    statistics = set(zip(info.mean, info.std, strict=True))
    configs = {datasets.key(config): config for config in benchmark.datasets()}
    sets = [(loaded[key], config.invert) for key, config in configs.items()]
    parts = [(p, inv) for one, inv in sets for p in (one.train, one.validation) if p is not None]
    networks = list(weights_in(plan.config).values())
    starts = named_in(networks)
    said = [about(weights) for weights in starts]
    earlier = [one for one in said if one is not None]
    hubs = _from_hubs(plan, row)
    unknown = {""} if hubs or len(earlier) < len(starts) else set()  # who knows what those saw?
    units = {unit(*part) for part in parts} | {one.unit for one in earlier} | unknown
    images = {image for part, _ in parts for image in image_ids(part)}
    metrics = row["result"]["metrics"]
    return About(
        trial=plan.key,
        recipe=plan.config,
        source=", ".join(filter(None, [told(networks), hubs])),
        accuracy={readout: found["average_accuracy"] for readout, found in metrics.items()},
        normalisation=statistics.pop() if len(statistics) == 1 else None,
        unit=", ".join(sorted(units)),
        images=tuple(sorted(images.union(*(one.images for one in earlier)))),
    )


def _from_hubs(plan: TrialPlan, row: Mapping[str, Any]) -> str:
    """Name and hash of each of the hub's weights that the trial learnt from."""
    blocks = networks_in(plan.config).values()
    names = dict.fromkeys(name for block in blocks for name in from_hubs(block))
    recorded: str = row.get(MADE, {}).get("weights", "")
    return recorded if names and recorded else ", ".join(names)


def _say(out: Path, root: Path, plan: TrialPlan, about: About, digest: str) -> None:
    """Tell what was written, and print the block of a network that starts from it."""
    measured = ", ".join(f"{readout} {value:.1f} %" for readout, value in about.accuracy.items())
    least = "at least " if "" in about.unit.split(", ") else ""
    print(f"wrote {out}: {least}{len(about.images)} images seen, {measured}", file=sys.stderr)
    name = str(out.relative_to(root)) if out.is_relative_to(root) else str(out)
    weights: dict[str, Any] = {"file": name, "sha256": digest}
    if about.normalisation is not None:
        weights |= dict(zip(("mean", "std"), map(list, about.normalisation), strict=True))
    untrained = find_network(plan.config["network"])[1].untrained().model_dump(mode="json")
    network = {k: v for k, v in untrained.items() if k != "weights" and v != {}}
    block = {"network": network | {"weights": weights}}
    print(yaml12.dump(json.loads(json.dumps(block)), default_flow_style=None))
