"""Search with Optuna: one Tuner per benchmark and method, learning from trials that are over."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from raycl.errors import Problem
from raycl.sweep.execution.cluster import bundles
from raycl.sweep.execution.rows import row_of
from raycl.sweep.execution.schedulers import make_scheduler
from raycl.sweep.execution.stage import Stage
from raycl.sweep.file.model import Sweep
from raycl.sweep.file.spaces import Space
from raycl.sweep.plan import expand
from raycl.sweep.plan.expand import Group
from raycl.sweep.plan.plan import TrialPlan, fill
from raycl.sweep.plan.sharing import shared_by_any
from raycl.sweep.record.outcomes import Outcome, Outcomes, Status
from raycl.sweep.record.winners import Labels, search_value
from raycl.tracking.journal import Journal
from raycl.trial.run import FAILED, Row, known

log = logging.getLogger(__name__)

SAMPLERS = {"optuna": optuna.samplers.TPESampler, "optuna_gp": optuna.samplers.GPSampler}
ATTEMPTS = 5
"""Number of times that Optuna is asked for an untried point, before one is drawn instead."""


def search_adaptively(
    sweep: Sweep,
    stage: Stage,
    outcomes: Outcomes,
    tasks: int,
    say: Callable[[str], None],
    tasks_of: Mapping[str, int],
    over: Container[Labels] = (),
) -> None:
    """Run what is left of the search of every group.

    A continued search tells Optuna every outcome there is and proposes the unfinished
    configurations again, so that they go on from their checkpoints.

    Args:
        sweep: The sweep, whose ``search.algorithm`` is ``optuna`` (TPE) or ``optuna_gp``
            (Gaussian process).
        stage: Runs the trials.
        outcomes: Outcomes of the sweep so far.
        tasks: Tasks of a search trial.
        say: Prints one line.
        tasks_of: Tasks of each benchmark, by its label.
        over: Groups that have a winner already: nothing of them runs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposals = Proposals(outcomes.directory.parent / "proposals.jsonl")
    stage.hub.listeners.append(proposals)
    try:
        groups = [group for group in expand.groups(sweep.for_search) if group.spaces]
        searched = [group for group in groups if (group.benchmark, group.method) not in over]
        started, budget = time.monotonic(), sweep.search.time_budget
        for i, group in enumerate(searched):
            if budget is not None:  # what is left of it, shared by the groups that are left
                left = budget - (time.monotonic() - started)
                share = max(1.0, left / (len(searched) - i))
            else:
                share = None
            base = _base(sweep, group, tasks_of)
            tried = _search_group(sweep, group, stage, outcomes, proposals, tasks, share, base)
            if tried is not None:
                what = (
                    f"search of {group.method} on {group.benchmark}: its space has {tried} points"
                )
                say(f"{what}, all tried; num_samples: {sweep.search.num_samples} asks for more")
    finally:
        stage.hub.listeners.remove(proposals)


def _search_group(
    sweep: Sweep,
    group: Group,
    stage: Stage,
    outcomes: Outcomes,
    proposals: Proposals,
    tasks: int,
    time_budget_s: float | None,
    base: TrialPlan,
) -> int | None:
    """Search one group; how many points its space has, if they were fewer than were asked for."""
    search = sweep.search
    over = [
        o
        for o in outcomes.all()
        if o.kind == "search" and (o.benchmark, o.method) == (group.benchmark, group.method)
    ]
    left = search.num_samples - len(over)
    if left <= 0:
        return None
    known = proposals.of(group)
    searcher = make_searcher(
        base,
        group.spaces,
        search.algorithm,
        _drawn(search.seed, len(known)),
        search.mode,
        [varied for key, varied in known.items() if key not in outcomes][:left],
    )
    for outcome in over:
        _tell(searcher, outcome, search.metric)
    scheduler = sweep.scheduler
    stage.fit_proposed(
        base,
        searcher,
        left,
        scheduler=make_scheduler(
            scheduler.name, search.mode, tasks, scheduler.grace_period, scheduler.reduction_factor
        ),
        max_concurrent=search.max_concurrent or _slots(base),
        time_budget_s=time_budget_s,
    )
    return len(searcher.tried) if searcher.exhausted else None


def _base(sweep: Sweep, group: Group, tasks_of: Mapping[str, int]) -> TrialPlan:
    """The plan that proposals are filled into, with what all that may be proposed share."""
    (seed,) = sweep.search_seeds()
    base = replace(expand.search_base(sweep, group), seed=seed)
    if not sweep.share:
        return base
    values = expand.each_value(group.spaces)
    samples = [fill(base, one, seed, base.kind) for one in values]
    return shared_by_any(base, samples, tasks_of[base.benchmark])


class Searcher(OptunaSearch):
    """Tune's searcher for Optuna, with three repairs.

    It takes the last value of a stopped trial for a result. That is the accuracy after fewer tasks,
    which is higher; such a trial counts as pruned here, and one that failed as failed.

    It drops the step of a quantised logarithmic space. Here Optuna is asked for the number of steps
    of every quantised space, and learns from what was run.

    Optuna proposes again what it has proposed. Here it is asked again, and when that does not help
    a point that was not tried is drawn; when there is none left, the search is over.

    Attributes:
        base: The plan that proposals are filled into.
        spaces: Dotted path to search space.
        distributions: The same in Optuna's words, by its names.
        generator: Draws points where Optuna repeats itself.
        tried: Keys of the plans that were proposed or told.
        exhausted: Whether a proposal was asked for when every point had been tried.
    """

    base: TrialPlan
    spaces: Mapping[str, Space]
    distributions: Mapping[str, BaseDistribution]
    generator: np.random.Generator
    tried: set[str]
    exhausted: bool

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Tune's hook: ``{"space": {dotted path: value}}``, or ``FINISHED``: nothing is left."""
        study: Any = self._ot_study
        for _ in range(ATTEMPTS):
            proposed = super().suggest(trial_id)
            if proposed is None:
                return None
            values = self._values(proposed["space"])
            if self._is_new(values):
                return {"space": values}
            study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        for point in self._points():
            values = self._values(point)
            if self._is_new(values):
                study.enqueue_trial({f"space/{k}": value for k, value in point.items()})
                super().suggest(trial_id)
                return {"space": values}
        self.exhausted = True
        return self.FINISHED  # type: ignore[return-value]

    def _is_new(self, values: Mapping[str, Any]) -> bool:
        """Whether a proposal is of a plan, and of none that was tried; from now on it is."""
        try:
            key = fill(self.base, values, self.base.seed, self.base.kind).key
        except Problem as problem:  # options that exclude each other only three at a time
            log.warning("passed over a proposal: %s", problem.what)
            return False
        new = key not in self.tried
        self.tried.add(key)
        return new

    def _values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a point of Optuna's into values for a plan."""
        return {
            path: self.spaces[path].on_grid(value) if self.spaces[path].is_quantised else value
            for path, value in point.items()
        }

    def _points(self) -> Iterator[dict[str, Any]]:
        """Every point of the space, from a random one on; one draw stands for an interval."""
        axes: dict[str, Sequence[Any]] = {}
        for path, space in self.spaces.items():
            found = self.distributions[f"space/{path}"]
            if isinstance(found, CategoricalDistribution):
                axes[path] = found.choices
            elif isinstance(found, IntDistribution):
                axes[path] = range(found.low, found.high + 1)
            else:
                axes[path] = (space.draw(self.generator),)
        total = math.prod(len(axis) for axis in axes.values())
        start = int(self.generator.random() * total)
        for i in range(total):
            index, point = (start + i) % total, {}
            for path, axis in axes.items():
                index, at = divmod(index, len(axis))
                point[path] = axis[at]
            yield point

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tune's hook; ``result`` is flattened."""
        row = row_of(result)
        finished = result if known(row).get("finished") else None
        super().on_trial_complete(trial_id, finished, error or FAILED in row)


def make_searcher(
    base: TrialPlan,
    spaces: Mapping[str, Space],
    algorithm: str,
    drawn: int,
    mode: str,
    first: list[dict[str, Any]],
) -> Searcher:
    """A searcher that proposes ``{"space": {dotted path: value}}``.

    Args:
        base: The plan that will be filled.
        spaces: Dotted path to search space.
        algorithm: ``optuna`` or ``optuna_gp``.
        drawn: Seed of the sampler, and of what is drawn in its place.
        mode: ``max`` or ``min``.
        first: Dotted path to value: what is proposed first.
    """
    domains = {path: _domain(base, spaces, path) for path in spaces}
    distributions = OptunaSearch.convert_search_space({"space": domains})
    searcher = Searcher(
        space=distributions,
        metric="score",
        mode=mode,
        sampler=SAMPLERS[algorithm](seed=drawn),
        points_to_evaluate=[_flat(varied, spaces) for varied in first],
    )
    searcher.base, searcher.spaces, searcher.distributions = base, spaces, distributions
    searcher.generator = np.random.default_rng(drawn)
    searcher.tried, searcher.exhausted = set(), False
    return searcher


def _domain(base: TrialPlan, spaces: Mapping[str, Space], path: str) -> Any:
    """A search space in Tune's words; options as they stand in a finished plan."""
    space = spaces[path]
    if space.is_quantised:
        low, high = (space.steps(bound) for bound in space.args[:2])
        return (tune.lograndint if "log" in space.kind else tune.randint)(low, high + 1)
    if space.kind != "choice":
        return getattr(tune, space.kind)(*space.args)
    options = ({**expand.first_values(spaces), path: option} for option in space.args)
    return tune.choice([fill(base, o, base.seed, base.kind).varied[path] for o in options])


def _flat(varied: Mapping[str, Any], spaces: Mapping[str, Space]) -> dict[str, Any]:
    """Turn the values of a plan into a point of Optuna's."""
    return {
        f"space/{path}": spaces[path].steps(value) if spaces[path].is_quantised else value
        for path, value in varied.items()
    }


def _drawn(seed: int, proposed: int) -> int:
    """Seed of a searcher; a continued search must not draw the same points again."""
    return int(np.random.SeedSequence([seed, proposed]).generate_state(1)[0])


def _tell(searcher: Searcher, outcome: Outcome, metric: str) -> None:
    """Tell a searcher of a trial that is over, so that it is not proposed again."""
    searcher.tried.add(outcome.key)
    finished = outcome.status == "finished"
    searcher.add_evaluated_point(
        _flat(outcome.varied, searcher.spaces),
        search_value(outcome, metric) if finished else None,  # type: ignore[arg-type]
        error=outcome.status == "error",
        pruned=outcome.status == "stopped-early",
    )


def _slots(plan: TrialPlan) -> int:
    """Number of such trials that the cluster holds at a time."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted = sum((Counter(bundle) for bundle in bundles(plan.resources)), Counter())
    return max(1, int(min(total.get(kind, 0) / n for kind, n in wanted.items())))


_PROPOSED = ("key", "benchmark", "method", "varied")


class Proposals:
    """The listener that keeps what a searcher proposed, for a driver that does not come back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_bytes().splitlines() if path.is_file() else []
        self._rows: dict[str, dict[str, Any]] = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # written by halves
                row = json.loads(line)
                self._rows[row["key"]] = {name: row[name] for name in _PROPOSED}

    def of(self, group: Group) -> dict[str, dict[str, Any]]:
        """Trial key to values, of one group."""
        return {
            key: row["varied"]
            for key, row in self._rows.items()
            if (row["benchmark"], row["method"]) == (group.benchmark, group.method)
        }

    def started(self, plan: TrialPlan) -> None:
        """Write a new proposal down."""
        if plan.key in self._rows:
            return
        row = {name: getattr(plan, name) for name in _PROPOSED}
        appended = Journal(self.path)
        appended.append([row])
        appended.close()
        self._rows[plan.key] = row

    def row(self, plan: TrialPlan, row: Row) -> None:
        """Do nothing: a proposal is written when its trial starts."""

    def lost(self, plan: TrialPlan, error: str) -> None:
        """Do nothing: the proposal is already written."""

    def ended(self, plan: TrialPlan, status: Status, row: Row, error: str) -> None:
        """Do nothing: ``Recorder`` writes the outcome."""
