"""``raycl bench pack``: how many trials at a time a device should be given."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from raycl import datasets
from raycl.datasets.base import Dataset
from raycl.errors import UserError, nearest
from raycl.networks.base import Tensors
from raycl.sweep import kinds
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data, read_weights
from raycl.sweep.plan.plan import TrialPlan, fill, threads_of
from raycl.trial.run import TrialRun

WORTH = 0.95
"""Fewer trials at a time are preferred if they reach this share of the highest throughput."""
START_S = 300.0
"""How long processes may take to be there; where others use the cluster, they may never be."""

Marks = list[tuple[int, float]]
"""Pairs, one for each epoch of a trial: training examples so far, seconds so far."""


@dataclass(frozen=True)
class Device:
    """What trials share: all CPU cores of a node, or one of its GPUs and its part of the rest.

    Attributes:
        node: Ray's id of the node.
        cpus: CPU cores that go with it.
        gpu: Whether it is a GPU.
        memory: GB of main memory that go with it.
    """

    node: str
    cpus: float
    gpu: bool
    memory: float

    def share(self, trials: int) -> dict[str, float]:
        """What each of so many trials asks for; never more than there is in all."""
        cpu = max(0.0001, math.floor(self.cpus / trials * 10_000) / 10_000)
        gpu = math.floor(10_000 / trials) / 10_000 if self.gpu else 0.0
        return {"cpu": cpu, "gpu": gpu}

    def holds(self, asked: Mapping[str, float]) -> int:
        """How many trials of these resources it holds at a time."""
        has = {"cpu": self.cpus, "gpu": float(self.gpu), "memory": self.memory}
        return int(min(has[kind] / asked[kind] for kind in has if asked[kind]) + 1e-6)


@dataclass(frozen=True)
class Packed:
    """Measurements with a certain number of trials at a time.

    Attributes:
        trials: Number of trials at a time.
        asked: CPUs and GPUs of each.
        threads: Number of PyTorch's threads in each trial.
        marks: Of each trial.
        rate: Training examples (agent steps of games) per second, in all; 0: failed.
        memory_mb: The largest of a trial: resident; on a GPU what PyTorch has reserved there.
        problem: Why it failed.
    """

    trials: int
    asked: dict[str, float]
    threads: int
    marks: Sequence[Marks] = ()
    rate: float = 0.0
    memory_mb: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Result:
    """What ``pack`` found.

    Attributes:
        plan: The trial.
        device: What was shared.
        rows: What was measured.
        now: How many trials at a time the sweep file asks for; 0: more than there is for one.
    """

    plan: TrialPlan
    device: Device
    rows: list[Packed]
    now: int

    @property
    def unit(self) -> str:
        """Unit of the rates: ``examples/s``; ``steps/s`` for games."""
        return _unit(self.plan)

    @property
    def epochs(self) -> int:
        """Epochs of each trial that the rates are computed over."""
        return _common(self.rows)

    @property
    def best(self) -> Packed | None:
        """The fewest trials at a time that reach almost the highest throughput, if any ran."""
        enough = WORTH * max(row.rate for row in self.rows)
        good = (row for row in self.rows if row.rate and row.rate >= enough)
        return min(good, key=lambda row: (row.trials, -row.rate), default=None)

    @property
    def present(self) -> Packed | None:
        """What the sweep file asks for, if it ran."""
        own = (self.now, threads_of(self.plan.resources["cpu"]))
        return next((r for r in self.rows if (r.trials, r.threads) == own and r.rate), None)


class Copy:
    """One trial that trains for a while; an actor of Ray."""

    def __init__(
        self,
        plan: dict[str, Any],
        data: Mapping[str, Dataset],
        weights: Mapping[str, Tensors] | None = None,
    ) -> None:
        self.plan, self.data, self.weights = TrialPlan(**plan), data, weights
        self.kind = kinds.of(self.plan.config["benchmark"])
        self.device = "cuda" if self.plan.resources["gpu"] else "cpu"
        self.limit = 0.0 if self.device == "cuda" else self.plan.resources["memory"]
        self.run: TrialRun | None = None
        self.examples, self.memory_mb = 0, 0.0

    def ready(self) -> None:
        """Return once the actor is up."""

    def warm(self) -> None:
        """One epoch, which starts what starts late."""
        from raycl.sweep.execution.trainable import at_most

        with at_most(self.limit):
            self._step()

    def measure(self, seconds: float) -> tuple[Marks, float]:
        """Train for so long, and the epoch to its end, for the others count on its load.

        Returns:
            The epochs that ended in time, at least one; and the most memory so far, in MB.
        """
        from raycl.sweep.execution.trainable import at_most

        marks: Marks = []
        before, took, began = self.examples, 0.0, time.perf_counter()
        with at_most(self.limit):
            while took < seconds:
                self._step()
                took = time.perf_counter() - began
                if took <= seconds or not marks:
                    marks.append((self.examples - before, took))
        return marks, self.memory_mb

    def close(self) -> None:
        """Let go what the run holds."""
        if self.run is not None:
            self.run.close()
        self.run = None

    def _step(self) -> None:
        """An epoch; a run that is done starts anew."""
        if self.run is None or self.run.done:
            self.close()
            plan = self.plan
            self.run = self.kind.build(
                plan.config, self.data, self.device, plan.resources, self.weights
            )
        before = self.run.costs.examples
        self.run.advance()
        self.examples += self.run.costs.examples - before
        self.memory_mb = max(self.memory_mb, self._memory())

    def _memory(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_reserved() / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def pack(
    sweep_path: Path,
    overrides: Sequence[str],
    method: str | None,
    trials: Sequence[int],
    seconds: float,
    address: str | None,
    data_root: Path | None,
) -> Result:
    """Measure.

    Args:
        sweep_path: Its first trial, or that of ``method``, is what runs.
        overrides: ``a.b=c``.
        method: A label.
        trials: How many at a time, besides what the file asks for; empty: powers of two.
        seconds: Length of each measurement.
        address: Address of a Ray cluster; default: this machine.
        data_root: Where data sets lie.

    Raises:
        UserError: The file or an argument is wrong, or the device is not there.
    """
    sweep = spec.load(sweep_path, overrides)
    plan = _plan(sweep, method)
    if plan.resources["env_runners"]:
        what = "raycl bench pack measures trials of one process"
        raise UserError("resources.env_runners", what, "--set resources.env_runners=0")
    if cluster.is_local(address):
        _check_gpu(plan)
    data = check_data(sweep, (data_root or datasets.data_root()).resolve())
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    found = []
    with cluster.connect(address, [], None, expand.own_files(sweep)):
        device = _device(plan)
        now = device.holds(plan.resources)
        import ray

        shared = (ray.put(data), ray.put(read_weights(sweep)))
        for count, asked in _requests(plan, device, trials or _counts(device), now):
            found.append(_measure(plan, device, count, asked, seconds, shared))
            done = found[-1]
            whole = max((len(marks) for marks in done.marks), default=0)
            told = done.problem or f"{_rate(done, whole):,.0f} {_unit(plan)}"
            say(f"{count} at a time, {asked['cpu']:g} cpu each: {told}")
    return Result(plan, device, rated(found), now)


def rated(rows: Sequence[Packed]) -> list[Packed]:
    """Recompute rates over the epochs that every trial has finished: the same first ones.

    An example does not cost the same in each task and phase, and packed trials get less far.
    """
    epochs = _common(rows)
    return [replace(row, rate=_rate(row, epochs)) for row in rows]


def _common(rows: Sequence[Packed]) -> int:
    """Epochs that every trial has done."""
    return min((len(marks) for row in rows for marks in row.marks), default=0)


def _rate(row: Packed, epochs: int) -> float:
    """Examples per second of the first so many epochs, or of all there are, in all."""
    last = [marks[min(epochs, len(marks)) - 1] for marks in row.marks]
    return sum(examples / seconds for examples, seconds in last)


def _plan(sweep: spec.Sweep, method: str | None) -> TrialPlan:
    labels = [entry.label for entry in sweep.methods]
    if method is not None and method not in labels:
        raise UserError("--method", f"no method has the label '{method}'", nearest(method, labels))
    group = next(g for g in expand.groups(sweep) if method in (None, g.method))
    return fill(group.base, expand.first_values(group.spaces), sweep.seeds[0], "trial")


def _unit(plan: TrialPlan) -> str:
    games = kinds.of(plan.config["benchmark"]) is kinds.GAMES
    return "steps/s" if games else "examples/s"


def _check_gpu(plan: TrialPlan) -> None:
    """A GPU of this machine, before Ray is started."""
    import torch

    if plan.resources["gpu"] and not torch.cuda.device_count():
        raise _no_gpu(plan)


def _no_gpu(plan: TrialPlan) -> UserError:
    what = f"{plan.method} asks for a GPU, and there is none"
    return UserError("resources.gpu", what, "--set resources.gpu=0 measures on the CPU")


def _device(plan: TrialPlan) -> Device:
    """The first device of the cluster that the trial could run on."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    gpu = plan.resources["gpu"] > 0
    for node in nodes:
        has = node["Resources"]
        if node["Alive"] and has.get("CPU") and (not gpu or has.get("GPU")):
            parts = has["GPU"] if gpu else 1
            memory = has.get("memory", 0.0) / cluster.GB
            return Device(node["NodeID"], has["CPU"] / parts, gpu, memory / parts)
    raise _no_gpu(plan) if gpu else UserError("--address", "no node has a CPU")


def _counts(device: Device) -> list[int]:
    """Powers of two: up to two trials per core, or eight per GPU; and one trial per core."""
    most = 8 if device.gpu else 2 * int(device.cpus)
    powers = {2**i for i in range(most.bit_length()) if 2**i <= most}
    return sorted(powers if device.gpu else powers | {int(device.cpus)})


def _requests(
    plan: TrialPlan, device: Device, counts: Sequence[int], now: int
) -> list[tuple[int, dict[str, float]]]:
    """How many at a time and what each asks for: equal shares of all, and what the file says."""
    wanted = {(k, threads_of(device.share(k)["cpu"])): device.share(k) for k in counts}
    if now:  # in place of a share that comes to the same
        own = {kind: plan.resources[kind] for kind in ("cpu", "gpu")}
        wanted[now, threads_of(own["cpu"])] = own
    return [(count, asked) for (count, _), asked in sorted(wanted.items())]


def _measure(
    plan: TrialPlan,
    device: Device,
    trials: int,
    asked: dict[str, float],
    seconds: float,
    shared: tuple[Any, Any],
) -> Packed:
    import ray

    row = Packed(trials, asked, threads_of(asked["cpu"]))
    resources = plan.resources | asked
    if device.holds(resources) < trials:
        what = f"{trials} times {resources['memory']:g} GB of memory"
        return replace(row, problem=f"{what} do not fit into {device.memory:.4g}")
    copies = _start(plan, device, row, resources, shared)
    try:
        try:
            ray.get([copy.ready.remote() for copy in copies], timeout=START_S)
        except ray.exceptions.GetTimeoutError:
            return replace(row, problem=f"did not start in {START_S:g} s: is the device busy?")
        ray.get([copy.warm.remote() for copy in copies])  # all wait for all
        found = ray.get([copy.measure.remote(seconds) for copy in copies])
        ray.get([copy.close.remote() for copy in copies])
    except ray.exceptions.RayError as error:
        return replace(row, problem=_told(error))
    finally:
        for copy in copies:
            ray.kill(copy)
    row = replace(row, marks=[marks for marks, _ in found], memory_mb=max(mb for _, mb in found))
    counted = all(marks[-1][0] for marks in row.marks)
    return row if counted else replace(row, marks=(), problem="trained on no examples: longer?")


def _start(
    plan: TrialPlan,
    device: Device,
    row: Packed,
    resources: dict[str, float],
    shared: tuple[Any, Any],
) -> list[Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own, *_ = cluster.bundles(resources)
    actor: Any = ray.remote(Copy).options(
        num_cpus=own["CPU"],
        num_gpus=own.get("GPU", 0),
        memory=own.get("memory"),
        scheduling_strategy=NodeAffinitySchedulingStrategy(device.node, soft=False),
    )
    plans = [
        replace(
            plan,
            config=plan.config | {"seed": plan.seed + i, "threads": row.threads},
            resources=resources,
        )
        for i in range(row.trials)
    ]
    return [actor.remote(asdict(one), *shared) for one in plans]


def _told(error: Exception) -> str:
    """The error in a few words; Ray's own are long."""
    cause = getattr(error, "cause", None) or error
    first = next(iter(str(cause).strip().splitlines()), "")
    return f"{type(cause).__name__}: {first}"[:120]
