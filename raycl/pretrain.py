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
from raycl.datasets.ids import image_ids, unit
from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import weights_in
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
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
            file is in the way, or the trial's checkpoints are gone.
    """
    seeds = [] if wish.seed is None else [f"seeds=[{wish.seed}]"]
    sweep = spec.load(wish.sweep, [*wish.overrides, *seeds], wish.smoke)
    plan = _chosen(sweep, wish.trial)
    root = (data_root or datasets.data_root()).resolve()
    out = (wish.out or root / f"{sweep.name}{SUFFIX}").expanduser().resolve()
    _check_out(out, plan)
    folder = SweepFolder(runs_root(runs), sweep.name)
    execution = Execution(sweep, folder, address, root, tracking_uri, wish.accept_changes)
    if code := execution.run():
        return code
    state = _last_state(f"{execution.storage}/{plan.key}", plan, folder)
    named = {k: v for k, v in state["method"].items() if k.startswith(PREFIX)}
    tensors = {name.removeprefix(PREFIX): value for name, value in named.items()}
    row = next(one.row for one in folder.outcomes.all() if one.key == plan.key)
    about = _about(plan, execution.data, row)
    digest = write(out, tensors, about)
    _say(out, root, plan, about, digest)
    return 0


def _last_state(storage: str, plan: TrialPlan, folder: SweepFolder) -> dict[str, Any]:
    """The state in the last checkpoint of the trial.

    Raises:
        UserError: There is none, or all are damaged.
    """
    outcome = folder.outcomes.directory / f"{plan.key}.json"
    hint = f"remove {storage} and {outcome}, and the trial runs again"
    try:
        found = CheckpointStore(storage).load()
    except ValueError as error:
        what = f"trial {plan.key}: {str(error).removesuffix('; remove them')}"
        raise UserError("raycl pretrain", what, hint) from error
    if found is None:
        raise UserError("raycl pretrain", f"trial {plan.key} has left no checkpoint", hint)
    return found.state


def _chosen(sweep: spec.Sweep, key: str | None) -> TrialPlan:
    """The trial whose network is written.

    Raises:
        UserError: There are several and none is named, or none is of pre-training.
    """
    for i, entry in enumerate(sweep.methods):
        if entry.name not in METHODS:
            what = f"{entry.label} makes no weights for others"
            hint = f"a sweep for raycl pretrain has one of the methods {', '.join(METHODS)}"
            raise sweep.source.error(("methods", i, "name"), what, hint)
    if any(group.spaces for group in expand.groups(sweep)):
        what = "raycl pretrain takes a sweep without search spaces"
        raise sweep.source.error(("methods",), what, "search with raycl run, then write what won")
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


def _about(plan: TrialPlan, data: Mapping[str, Dataset], row: Mapping[str, Any]) -> About:
    """What the file says of itself; it has seen what the weights that it began with have seen."""
    benchmark = build_benchmark(plan.config["benchmark"])
    seeds = Seeds.derive(plan.seed, **plan.config["fixed_seeds"])
    info = normalised(benchmark.stream(data, seeds.class_order).info, [plan.config["network"]])
    statistics = set(zip(info.mean, info.std, strict=True))
    configs = {datasets.key(config): config for config in benchmark.datasets()}
    sets = [(data[key], config.invert) for key, config in configs.items()]
    parts = [(p, inv) for one, inv in sets for p in (one.train, one.validation) if p is not None]
    networks = list(weights_in(plan.config).values())
    earlier = [one for weights in named_in(networks) if (one := about(weights))]
    units = {unit(*part) for part in parts} | {one.unit for one in earlier}
    images = {image for part, _ in parts for image in image_ids(part)}
    metrics = row["result"]["metrics"]
    return About(
        trial=plan.key,
        recipe=plan.config,
        source=told(networks),
        accuracy={readout: found["average_accuracy"] for readout, found in metrics.items()},
        normalisation=statistics.pop() if len(statistics) == 1 else None,
        unit=", ".join(sorted(units)),
        images=tuple(sorted(images.union(*(one.images for one in earlier)))),
    )


def _say(out: Path, root: Path, plan: TrialPlan, about: About, digest: str) -> None:
    """Tell what was written, and print the block of a network that starts from it."""
    measured = ", ".join(f"{readout} {value:.1f} %" for readout, value in about.accuracy.items())
    print(f"wrote {out}: {len(about.images)} images seen, {measured}", file=sys.stderr)
    name = str(out.relative_to(root)) if out.is_relative_to(root) else str(out)
    weights: dict[str, Any] = {"file": name, "sha256": digest}
    if about.normalisation is not None:
        weights |= dict(zip(("mean", "std"), map(list, about.normalisation), strict=True))
    network = {k: v for k, v in plan.config["network"].items() if k != "weights" and v != {}}
    block = {"network": network | {"weights": weights}}
    print(yaml12.dump(json.loads(json.dumps(block)), default_flow_style=None))
