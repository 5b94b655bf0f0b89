"""Trials on Tune: a list of finished plans, or configurations that Optuna proposes."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import TrialScheduler

from raycl.datasets.base import Dataset
from raycl.networks.base import Tensors
from raycl.secrets import is_secret
from raycl.sweep.execution import signals
from raycl.sweep.execution.cluster import Broken, Interrupted, bundles
from raycl.sweep.execution.events import Events, Hub
from raycl.sweep.execution.parking import Parking
from raycl.sweep.execution.trainable import Settings, trial
from raycl.sweep.plan.plan import TrialPlan, packed, plan_of

CHUNK = 1000
"""Trials per Tuner: the driver's memory grows with them (ray-project/ray#64231)."""


@dataclass(frozen=True)
class Stage:
    """The things that all trials of a sweep have in common, and their way through Tune.

    Attributes:
        data: Loaded data sets; put once into each node's object store, shared by its trials.
        settings: Settings that every trial gets.
        max_retries: How often a trial is started again when its worker or node is lost.
        grace_s: How long running trials have to save when the driver is told to stop.
        scratch: Folder for Tune's own files, which nothing reads again.
        hub: Who follows the trials.
        weights: Tensors of weights files by hash; shared like the data sets.
    """

    data: Mapping[str, Dataset]
    settings: Settings
    max_retries: int
    grace_s: float
    scratch: Path
    hub: Hub
    weights: Mapping[str, Tensors] = field(default_factory=dict)

    def fit(
        self,
        plans: Sequence[TrialPlan],
        *,
        scheduler: TrialScheduler | None = None,
        max_concurrent: int | None = None,
        time_budget_s: float | None = None,
    ) -> None:
        """Run finished plans, all packed onto the cluster together.

        Args:
            plans: What to run.
            scheduler: Early stopping.
            max_concurrent: Trials at a time.
            time_budget_s: After this many seconds, stop what runs and start nothing more.

        Raises:
            Interrupted: A signal came.
            Broken: Nothing more can be kept.
        """
        deadline = time.monotonic() + (math.inf if time_budget_s is None else time_budget_s)
        for start in range(0, len(plans), CHUNK):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            chunk = [packed(plan) for plan in plans[start : start + CHUNK]]
            self._fit(
                {"plan": tune.grid_search(chunk)},
                tune.TuneConfig(
                    scheduler=scheduler,
                    max_concurrent_trials=max_concurrent,
                    time_budget_s=left if math.isfinite(left) else None,
                ),
            )

    def fit_proposed(
        self,
        base: TrialPlan,
        searcher: Any,
        num_samples: int,
        *,
        scheduler: TrialScheduler,
        max_concurrent: int,
        time_budget_s: float | None,
    ) -> None:
        """Run configurations of one method as a searcher proposes them.

        Args:
            base: The plan without the values of the search space.
            searcher: A ``ray.tune.search.Searcher`` that knows its space, metric and mode, and
                proposes ``{"space": {dotted path: value}}``.
            num_samples: How many to run.
            scheduler: Early stopping.
            max_concurrent: Trials at a time; a searcher learns only from those that are over.
            time_budget_s: Stop after this many seconds.

        Raises:
            Interrupted: A signal came.
            Broken: Nothing more can be kept.
        """
        self._fit(
            {"plan": packed(base)},
            tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=num_samples,
                max_concurrent_trials=max_concurrent,
                time_budget_s=time_budget_s,
            ),
        )

    def _fit(self, param_space: dict[str, Any], config: tune.TuneConfig) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        hide_keys()
        config.reuse_actors = True
        config.trial_name_creator = lambda t: f"{plan_of(t.config).name}-{plan_of(t.config).key}"
        config.trial_dirname_creator = lambda t: plan_of(t.config).key
        trainable = tune.with_resources(
            tune.with_parameters(
                trial, data=dict(self.data), settings=self.settings, weights=dict(self.weights)
            ),
            _request,
        )
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=config,
            run_config=tune.RunConfig(
                name=self.scratch.name,
                storage_path=str(self.scratch.parent),
                failure_config=tune.FailureConfig(max_failures=self.max_retries),
                callbacks=[Events(self.hub, Parking(self.settings.execution).ask, self.grace_s)],
                verbose=0,
            ),
        )
        with _signals(self.hub, self.grace_s), _quiet_stdout(self.scratch.parent / "tune.log"):
            tuner.fit()
        self.hub.end_all("killed" if self.hub.ending else "stopped-early")
        if self.hub.broken:
            raise Broken(self.hub.broken)
        if self.hub.interrupted:
            raise Interrupted


def hide_keys() -> None:
    """Keep Tune from writing keys of AWS into the runtime environment of every trial.

    Everybody who sees the dashboard sees that; trials have them by ``Settings.variables``.
    """
    names = class_cache.ENV_VARS_TO_PROPAGATE
    names -= {name for name in names if is_secret(name, "")}


def _request(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """The request of a trial to Ray: a bundle of its own, then one for each env runner.

    RLlib addresses the bundles of a trial by their index: env runner i is on bundle i, from 1.
    """
    return tune.PlacementGroupFactory(bundles(plan_of(config).resources), strategy="PACK")


@contextlib.contextmanager
def _signals(hub: Hub, grace_s: float) -> Iterator[None]:
    """Signals are noted while Tune runs; how the stage then ends is told in ``signals``."""

    def note() -> None:
        hub.interrupted = True

    before = signal.signal(signal.SIGUSR1, lambda number, frame: note())  # until Tune sets its own
    try:
        with signals.noted(note, grace_s):
            yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextlib.contextmanager
def _quiet_stdout(path: Path) -> Iterator[None]:
    """Send what Tune prints, even at verbose=0, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file, contextlib.redirect_stdout(Spare(file)):
        yield


class Spare(io.TextIOBase):
    """Text that goes to a file, or nowhere if that cannot be written: nobody's work depends on it.

    Args:
        file: Without a buffer, which would raise when it is closed.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.file = file

    def write(self, text: str) -> int:
        """Write as much as fits."""
        with contextlib.suppress(OSError):
            self.file.write(text.encode(errors="replace"))
        return len(text)
