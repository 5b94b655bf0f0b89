"""The stages of a sweep on a cluster that is up: its search, then its final trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console

from raycl.datasets.base import Dataset
from raycl.sweep.execution.optuna_search import search_adaptively
from raycl.sweep.execution.prefixes import Spent, remove
from raycl.sweep.execution.progress import Progress
from raycl.sweep.execution.schedulers import make_scheduler
from raycl.sweep.execution.stage import Stage
from raycl.sweep.execution.taken_over import finished_elsewhere, take_over
from raycl.sweep.execution.trainable import made_with
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.plan import expand, sharing
from raycl.sweep.plan.check_data import data_of
from raycl.sweep.plan.expand import Preview
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome, Outcomes
from raycl.sweep.record.winners import choose_winners


@dataclass
class Stages:
    """Runs what is missing of each stage.

    Attributes:
        sweep: The sweep.
        folder: Where it lives.
        outcomes: Trials that are over; those of this run are added by the hub's listeners.
        stage: The way through Tune, with the data of the final trials.
        data: Data sets of all streams.
        console: Where progress is shown.
        say: Prints one line.
    """

    sweep: spec.Sweep
    folder: SweepFolder
    outcomes: Outcomes
    stage: Stage
    data: Mapping[str, Dataset]
    console: Console
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.storage = self.stage.settings.storage
        streams = [b for s in (self.sweep, self.sweep.for_search) for b in benchmark_configs(s)]
        kind = self.sweep.kind
        self.tasks = {block["label"]: kind.tasks(block, self.data) for block in streams}

    def search(self) -> None:
        """Run what is missing of the search, and choose the winners.

        In a search that was opened again, groups that have a winner keep it, and nothing of them
        runs.
        """
        sweep, search, scheduler = self.sweep.for_search, self.sweep.search, self.sweep.scheduler
        stage = replace(self.stage, data=data_of(sweep, self.data))
        longest = self._longest(sweep)
        tasks = min(longest, search.tasks or longest)
        winners = self.folder.winners() or {}

        def is_open(of: Preview | Outcome | TrialPlan) -> bool:
            return (of.benchmark, of.method) not in winners

        preview, outcomes = expand.preview(self.sweep), self.outcomes.all()
        total = sum(line.stage == "search" and is_open(line) for line in preview)
        over = sum(outcome.kind == "search" and is_open(outcome) for outcome in outcomes)
        with self._progress(total, over, tasks, "search"):
            if search.algorithm == "random":
                self._fit(
                    stage,
                    [plan for plan in expand.search_plans(self.sweep) if is_open(plan)],
                    # where trials are stopped, who starts first decides which
                    reorder=scheduler.name == "fifo" and search.time_budget is None,
                    scheduler=make_scheduler(
                        scheduler.name,
                        search.mode,
                        tasks,
                        scheduler.grace_period,
                        scheduler.reduction_factor,
                    ),
                    max_concurrent=search.max_concurrent,
                    time_budget_s=search.time_budget,
                )
            else:
                search_adaptively(
                    self.sweep, stage, self.outcomes, tasks, self.say, self.tasks, winners
                )
                remove(self.storage)
        chosen = choose_winners(self.outcomes.all(), search.metric, search.mode, search.seeds)
        chosen |= winners  # of a search that was opened again: they stay
        self.folder.record_winners(chosen)
        for (benchmark, method), values in chosen.items():
            shown = ", ".join(
                f"{path.rpartition('.')[2]} {_short(v)}" for path, v in values.items()
            )
            self.say(f"winner of {method} on {benchmark}: {shown}")

    def final(self, plans: Sequence[TrialPlan]) -> None:
        """Run what is missing of the final trials.

        Args:
            plans: All of them.
        """
        over = sum(plan.key in self.outcomes for plan in plans)
        with self._progress(len(plans), over, self._longest(self.sweep), "trials"):
            self._fit(self.stage, plans)

    def _longest(self, sweep: spec.Sweep) -> int:
        """Tasks of the longest stream."""
        longest = max(sweep.kind.tasks(block, self.data) for block in benchmark_configs(sweep))
        return min(longest, sweep.stop.tasks or longest)

    def _fit(
        self, stage: Stage, plans: Sequence[TrialPlan], reorder: bool = True, **options: Any
    ) -> None:
        """Run those of a list of plans that are not over, so that they share what they can.

        Args:
            stage: Where they run.
            plans: What may run.
            reorder: Whether those that leave what others need may go first.
            **options: For ``Stage.fit``.
        """
        if self.sweep.reuse:
            self._take_over([plan for plan in plans if plan.key not in self.outcomes])
        if self.sweep.share:
            plans = sharing.with_shared(plans, self.tasks)
        todo = [plan for plan in plans if plan.key not in self.outcomes]
        if reorder:
            todo = sharing.in_order(todo)
        spent = Spent(self.storage, todo)
        stage.hub.listeners.append(spent)
        try:
            stage.fit(todo, **options)
        finally:
            stage.hub.listeners.remove(spent)
            spent.close()

    def _take_over(self, plans: Sequence[TrialPlan]) -> None:
        """Take over what other sweeps of the runs folder have finished."""
        settings = self.stage.settings
        unknown: set[str] = set()

        def made(plan: TrialPlan) -> Mapping[str, str] | None:
            if plan.resources.get("gpu") and not torch.cuda.is_available():
                unknown.add(plan.key)  # which device its worker has
                return None
            device = "cuda" if plan.resources.get("gpu") else "cpu"
            return made_with(settings, device, plan)

        assert settings.made_of is not None
        found = finished_elsewhere(self.folder, plans, made, settings.made_of)
        wanted = [plan for plan in plans if plan.key in found]
        hub = self.stage.hub
        count = sum(take_over(plan, found[plan.key], self.storage, hub) for plan in wanted)
        if count:
            self.say(f"{count} trials were taken over from other sweeps")
        if unknown:
            what = f"{len(unknown)} trials that other sweeps have finished are not taken over"
            self.say(f"{what}: they ask for a GPU, and the driver sees none to compare with")

    @contextmanager
    def _progress(self, total: int, over: int, tasks: int, title: str) -> Iterator[None]:
        listeners = self.stage.hub.listeners
        with Progress(self.console, total, over, tasks, title, self.sweep.kind.shown) as progress:
            listeners.append(progress)
            try:
                yield
            finally:
                listeners.remove(progress)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
