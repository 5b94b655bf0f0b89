"""``raycl bench pack``: how many trials at a time a device should be given."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from raycl import datasets
from raycl.datasets.base import Dataset
from raycl.errors import UserError, nearest
from raycl.sweep import cluster, expand, kinds, spec
from raycl.sweep.expand import TrialPlan

WORTH = 0.95
"""Fewer trials at a time are preferred if they reach this share of the highest throughput."""
START_S = 600.0


@dataclass(frozen=True)
class Device:
    """What trials share: all CPU cores of a node, or one of its GPUs and its part of the cores.

    Attributes:
        node: Ray's id of the node.
        cpus: CPU cores that go with it.
        gpu: Whether it is a GPU.
    """

    node: str
    cpus: float
    gpu: bool

    def share(self, trials: int) -> dict[str, float]:
        """What each of so many trials asks for; never more than there is in all."""
        cpu = max(0.0001, math.floor(self.cpus / trials * 10_000) / 10_000)
        gpu = math.floor(10_000 / trials) / 10_000 if self.gpu else 0.0
        return {"cpu": cpu, "gpu": gpu}

    def holds(self, asked: Mapping[str, float]) -> int:
        """How many trials of these resources it holds at a time, at least one."""
        fits = [self.cpus / asked["cpu"], *([1 / asked["gpu"]] if self.gpu else [])]
        return max(1, int(min(fits) + 1e-6))


@dataclass(frozen=True)
class Packed:
    """What was measured with so many trials at a time.

    Attributes:
        trials: At a time.
        asked: CPUs and GPUs of each.
        threads: Of PyTorch, in each.
        rate: Training examples (frames of a game: agent steps) per second, in all; 0: failed.
        memory_mb: The largest of a trial: resident, on a GPU allocated.
        problem: Why it failed.
    """

    trials: int
    asked: dict[str, float]
    threads: int
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
        now: How many trials at a time the sweep file asks for.
    """

    plan: TrialPlan
    device: Device
    rows: list[Packed]
    now: int

    @property
    def best(self) -> Packed | None:
        """The fewest trials at a time that reach almost the highest throughput, if any ran."""
        enough = WORTH * max(row.rate for row in self.rows)
        good = (row for row in self.rows if row.rate and row.rate >= enough)
        return min(good, key=lambda row: row.trials, default=None)

    @property
    def present(self) -> Packed | None:
        """What the sweep file asks for, if it was measured and ran."""
        return next((row for row in self.rows if row.trials == self.now and row.rate), None)


class Copy:
    """One trial that trains for a while; an actor of Ray."""

    def __init__(self, plan: dict[str, Any], data: Mapping[str, Dataset]) -> None:
        self.plan, self.data = TrialPlan(**plan), data
        self.kind = kinds.of(self.plan.config["benchmark"])
        self.run = self._build()

    def _build(self) -> Any:
        device = "cuda" if self.plan.resources["gpu"] else "cpu"
        return self.kind.build(self.plan.config, self.data, device, self.plan.resources)

    def warm(self) -> None:
        """One epoch, which starts what starts late."""
        self.run.advance()

    def measure(self, seconds: float) -> tuple[float, float]:
        """Train whole epochs for at least so long.

        Returns:
            Examples per second of training and evaluation, and the largest memory in MB.
        """
        examples, before = 0, self.run.costs.examples
        memory, began = 0.0, time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            if self.run.done:
                examples, before = examples + self.run.costs.examples - before, 0
                if self.kind.close is not None:
                    self.kind.close(self.run)
                self.run = self._build()
            self.run.advance()
            memory = max(memory, self.run.costs.peak_memory_mb)
            now = time.perf_counter()
        return (examples + self.run.costs.examples - before) / (now - began), memory


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
        trials: How many at a time; empty: powers of two, and what the file asks for.
        seconds: Of each measurement.
        address: Of a Ray cluster; default: this machine.
        data_root: Where data sets lie.

    Raises:
        UserError: The file or an argument is wrong, or the device is not there.
    """
    sweep = spec.load(sweep_path, overrides)
    plan = _plan(sweep, method)
    if plan.resources["env_runners"]:
        what = "raycl bench pack measures trials of one process"
        raise UserError("resources.env_runners", what, "--set resources.env_runners=0")
    data = spec.check_data(sweep, (data_root or datasets.data_root()).resolve())
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    found = []
    with cluster.connect(address, [], None, expand.own_files(sweep)):
        device = _device(plan)
        now = device.holds(plan.resources)
        import ray

        shared = ray.put(data)
        for count in sorted(set(trials) or {*_counts(device), now}):
            found.append(_measure(plan, device, count, seconds, shared))
            done = found[-1]
            say(f"{count} at a time: {done.problem or f'{done.rate:,.0f} examples/s'}")
    return Result(plan, device, found, now)


def _plan(sweep: spec.Sweep, method: str | None) -> TrialPlan:
    labels = [entry.label for entry in sweep.methods]
    if method is not None and method not in labels:
        raise UserError("--method", f"no method has the label '{method}'", nearest(method, labels))
    group = next(g for g in expand.groups(sweep) if method in (None, g.method))
    return expand.fill(group.base, expand.first_values(group.spaces), sweep.seeds[0], "trial")


def _device(plan: TrialPlan) -> Device:
    """The first device of the cluster that the trial could run on."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    gpu = plan.resources["gpu"] > 0
    for node in nodes:
        has = node["Resources"]
        if node["Alive"] and has.get("CPU") and (not gpu or has.get("GPU")):
            return Device(node["NodeID"], has["CPU"] / (has["GPU"] if gpu else 1), gpu)
    what = "the sweep asks for a GPU, and there is none" if gpu else "no node has a CPU"
    raise UserError("resources", what, "--set resources.gpu=0 measures on the CPU" if gpu else "")


def _counts(device: Device) -> list[int]:
    """Powers of two: up to two trials per core, or eight per GPU."""
    most = 8 if device.gpu else 2 * int(device.cpus)
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def _measure(plan: TrialPlan, device: Device, trials: int, seconds: float, data: Any) -> Packed:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = device.share(trials)
    threads = expand.threads(asked["cpu"])
    resources = plan.resources | asked
    there = NodeAffinitySchedulingStrategy(device.node, soft=False)
    actor: Any = ray.remote(Copy).options(
        num_cpus=asked["cpu"], num_gpus=asked["gpu"], scheduling_strategy=there
    )
    copies: list[Any] = [
        actor.remote(asdict(_seeded(plan, plan.seed + i, threads, resources)), data)
        for i in range(trials)
    ]
    row = Packed(trials, asked, threads)
    try:
        ray.get([copy.warm.remote() for copy in copies], timeout=START_S)  # all wait for all
        rates = ray.get([copy.measure.remote(seconds) for copy in copies])
    except (ray.exceptions.RayError, TimeoutError) as error:
        cause = getattr(error, "cause", None) or error
        text = " ".join(f"{type(cause).__name__}: {cause}".split())
        return replace(row, problem=text[:120])
    finally:
        for copy in copies:
            ray.kill(copy)
    memory = max(memory for _, memory in rates)
    return replace(row, rate=sum(rate for rate, _ in rates), memory_mb=memory)


def _seeded(plan: TrialPlan, seed: int, threads: int, resources: dict[str, float]) -> TrialPlan:
    return replace(
        plan, config=plan.config | {"seed": seed, "threads": threads}, resources=resources
    )
