"""``raycl verify``: run some finished trials again, and compare every bit of their matrices."""

from __future__ import annotations

import json
import logging
import math
import random
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycl import datasets
from raycl.errors import Problem, UserError
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data, read_weights
from raycl.sweep.plan.expand import Preview
from raycl.sweep.plan.plan import TrialPlan, fill
from raycl.sweep.record import made_of
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome, Status
from raycl.trial.checkpoint import filesystem, runs_root

if TYPE_CHECKING:
    from raycl.datasets.base import Dataset

log = logging.getLogger(__name__)

COMPARED = ("matrices", "validation_matrices", "baseline")
SHOWN = 3
"""How many differing entries of a trial are shown."""


class Again:
    """The listener that keeps what the trials come to, by key."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, str] = {}

    def started(self, plan: TrialPlan) -> None:
        """Nothing is over yet."""

    def row(self, plan: TrialPlan, row: dict[str, Any]) -> None:
        """Nothing is over yet."""

    def lost(self, plan: TrialPlan, error: str) -> None:
        """Nothing is over yet."""

    def ended(self, plan: TrialPlan, status: Status, row: dict[str, Any], error: str) -> None:
        """Keep it."""
        if status == "finished":
            self.rows[plan.key] = row
        else:
            self.errors[plan.key] = error or status


def verify(
    name: str, share: float, runs: Path | None, address: str | None, data_root: Path | None
) -> int:
    """Run a random share of a sweep's finished trials again and compare what they come to.

    Nothing of the sweep is changed: the trials run in a folder of their own, which is removed.

    Args:
        name: The sweep's name.
        share: Share of the finished trials that is run, from 0 to 1; the number is rounded up.
        runs: The runs folder.
        address: Ray cluster, see ``cluster.connect``.
        data_root: Where data sets lie.

    Returns:
        0 if every matrix is the same to the last bit, and so are code, data and weights; 1 if not,
        or if a trial did not finish again; 130 interrupted.

    Raises:
        UserError: No such sweep, nothing finished, data that is missing, or Ray does not start.
    """
    folder = SweepFolder.existing(runs_root(runs), name)
    sweep = spec.load_begun(folder.resolved_file)
    finished = [outcome for outcome in folder.outcomes.all() if outcome.status == "finished"]
    if not finished:
        raise UserError("raycl verify", f"no trial of '{name}' has finished")
    data = check_data(sweep, (data_root or datasets.data_root()).resolve())
    count = min(len(finished), max(1, math.ceil(share * len(finished))))
    chosen = sorted(random.sample(finished, count), key=lambda outcome: outcome.name)
    plans = {outcome.key: plan_again(sweep, outcome) for outcome in chosen}
    print(f"{count} of {len(finished)} finished trials of {name} run again", flush=True)
    try:
        again = _run(sweep, folder, address, data, list(plans.values()))
    except (cluster.Interrupted, KeyboardInterrupt):
        print("interrupted; nothing was compared")
        return 130
    differ = 0
    noted: list[str] = []
    for outcome in chosen:
        key = plans[outcome.key].key
        found, changed = compare(outcome, key, again.rows.get(key), again.errors.get(key, ""))
        differ += bool(found)
        print(f"{outcome.name}: {'; '.join(found) if found else 'the same to the last bit'}")
        noted += [line for line in changed if line not in noted]
    for line in noted:
        print(f"not as it was: {line}")
    print(f"{count - differ} of {count} are the same" + (f", {differ} differ" if differ else ""))
    return int(differ > 0 or any(line.startswith(("code:", "data:", "weights:")) for line in noted))


def plan_again(sweep: spec.Sweep, outcome: Outcome) -> TrialPlan:
    """The plan of a trial that is over, made anew from the specification.

    Its threads are those that it had, for more of them may round otherwise, and so are its env
    runners, each of which draws actions of its own. Neither is part of a trial's key.

    Raises:
        UserError: Its method, benchmark or options are no longer there.
    """
    searching = outcome.kind == "search"
    for group in expand.groups(sweep.for_search if searching else sweep):
        if (group.benchmark, group.method) == (outcome.benchmark, outcome.method):
            base = expand.search_base(sweep, group) if searching else group.base
            try:
                plan = fill(base, outcome.varied, outcome.seed, outcome.kind)
            except (Problem, KeyError) as error:
                what = f"{outcome.name} cannot be made again: {error}"
                raise UserError("raycl verify", what) from error
            threads = outcome.config.get("threads", plan.config["threads"])
            made = outcome.row.get(made_of.MADE, {})
            runners = float(made.get("env_runners", plan.resources["env_runners"]))
            return replace(
                plan,
                name=outcome.name,
                config=plan.config | {"threads": threads},
                resources=plan.resources | {"env_runners": runners},
            )
    what = f"the sweep has no {outcome.method} on {outcome.benchmark}, as {outcome.name} was"
    raise UserError("raycl verify", what)


def compare(
    outcome: Outcome, key: str, row: Mapping[str, Any] | None, error: str
) -> tuple[list[str], list[str]]:
    """What differs between a trial and its repetition.

    Args:
        outcome: The trial, as it was written down.
        key: Key of the repetition.
        row: Last row of the repetition; ``None``: it did not finish.
        error: Why the repetition did not finish.

    Returns:
        Differences of the matrices; and of what they are made of.
    """
    then = outcome.row.get(made_of.MADE, {})
    changed = []
    if key != outcome.key:
        changed.append("code: options, defaults or a file of a method have changed since")
    if row is None:
        return [f"did not finish again: {error or 'no result'}"], changed
    changed += made_of.differences(then, json.loads(json.dumps(row[made_of.MADE])))
    old, new = (_plain(result.get("result", {})) for result in (outcome.row, row))
    lines = [
        f"{path} was {a!r}, is {b!r}"
        for name in COMPARED
        for path, a, b in entries(old.get(name), new.get(name), name)
    ]
    more = [f"and {len(lines) - SHOWN} more entries"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more, changed


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """The same value as it comes back from an outcome's JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(result, default=float))
    return plain


def entries(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Path, old and new value of every entry of two trees that differs in a bit."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        found = [entries(old.get(k), new.get(k), f"{path}.{k}") for k in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        found = [entries(a, b, f"{path}[{i}]") for i, (a, b) in pairs]
    else:
        return [] if json.dumps(old) == json.dumps(new) else [(path, old, new)]
    return [entry for several in found for entry in several]


def _run(
    sweep: spec.Sweep,
    folder: SweepFolder,
    address: str | None,
    data: Mapping[str, Dataset],
    plans: Sequence[TrialPlan],
) -> Again:
    """Run the plans in a scratch folder beside the sweep's checkpoints, where all nodes write."""
    previews = [
        Preview("verify", p.name, p.benchmark, p.method, p.seed, p.varied, p.resources)
        for p in plans
    ]
    if cluster.is_local(address):
        cluster.fits_here(previews)
    storage = f"{folder.storage(sweep.storage)}/verify-{uuid.uuid4().hex[:8]}"
    again = Again()
    try:
        with cluster.connect(address, previews, storage, expand.own_files(sweep)):
            from raycl.sweep.execution.events import Hub
            from raycl.sweep.execution.stage import Stage
            from raycl.sweep.execution.trainable import Settings

            settings = Settings(
                storage=storage,
                every_s=sweep.checkpoint.every_s,
                keep=sweep.checkpoint.keep,
                metric=sweep.search.metric,
                mode=sweep.search.mode,
                variables=cluster.hidden(address),
                made=made_of.driver(data),
            )
            with tempfile.TemporaryDirectory(prefix="raycl-verify-") as scratch:
                Stage(
                    data,
                    settings,
                    sweep.failures.max_retries,
                    0.0,
                    Path(scratch) / "tune",
                    Hub([again]),
                    read_weights(sweep),
                ).fit(plans)
    finally:
        _remove(storage)
    return again


def _remove(storage: str) -> None:
    """Delete the scratch folder; one that cannot be deleted is only in the way."""
    try:
        fs, place = filesystem(storage)
        if fs.exists(place):
            fs.rm(place, recursive=True)
    except Exception as error:  # noqa: BLE001  (file systems raise what they like)
        log.warning("%s cannot be removed: %s", storage, error)
