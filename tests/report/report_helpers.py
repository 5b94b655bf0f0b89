"""Hand-made runs in an MLflow store, made as the tracker makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from raycl.training import metrics


def result(matrices: Mapping[str, Any], **cost: float) -> dict[str, Any]:
    """The ``result`` of a trial's last row for these matrices (nested lists or arrays)."""
    arrays = {readout: np.array(rows, dtype=float) for readout, rows in matrices.items()}
    tasks = len(next(iter(arrays.values())))
    plain = {
        readout: [[None if np.isnan(v) else float(v) for v in row] for row in r]
        for readout, r in arrays.items()
    }
    return {
        "matrices": plain,
        "validation_matrices": {},
        "baseline": {readout: [None] * tasks for readout in arrays},
        "sizes": [100] * tasks,
        "metrics": {readout: metrics.compute(r) for readout, r in arrays.items()},
        "validation_metrics": {},
        "cost": {
            "seconds": 10.0,
            "peak_memory_mb": 300.0,
            "stored_bytes": 40_000.0,
            "extra_parameters": 0.0,
            "examples": 1000,
        }
        | cost,
        "tasks": [f"task {i}" for i in range(tasks)],
        "seeds": {"class_order": 0, "init": 0, "data": 0},
    }


def flat(average: float, tasks: int = 2) -> list[list[float | None]]:
    """A matrix whose metrics are easy: every entry that is measured is ``average``."""
    return [[average if i <= t else None for i in range(tasks)] for t in range(tasks)]


@dataclass
class Store:
    """One tracking store, and the shortest way to put a sweep into it."""

    uri: str
    artifacts: str | None

    def __post_init__(self) -> None:
        self.client = MlflowClient(self.uri)

    def sweep(self, name: str, spec: Mapping[str, Any], sweep_id: str = "01SWEEP") -> SweepWriter:
        found = self.client.get_experiment_by_name(name)
        experiment = (
            found.experiment_id
            if found
            else self.client.create_experiment(name, artifact_location=self.artifacts)
        )
        tags = {"raycl.kind": "sweep", "raycl.sweep_id": sweep_id}
        parent = self.client.create_run(experiment, tags=tags, run_name=name).info.run_id
        self.client.log_dict(parent, dict(spec), "sweep/resolved.yaml")
        return SweepWriter(self.client, experiment, parent, sweep_id)


@dataclass
class SweepWriter:
    client: MlflowClient
    experiment: str
    parent: str
    sweep_id: str

    def trial(
        self,
        method: str,
        seed: int,
        found: Mapping[str, Any] | None,
        *,
        end: str = "finished",
        benchmark: str = "split-digits",
        kind: str = "trial",
        error: str = "",
        key: str = "",
        config: str = "",
        last: Mapping[str, float] | None = None,
    ) -> str:
        config = config or f"{benchmark}-{method}"
        tags = {
            "mlflow.parentRunId": self.parent,
            "raycl.kind": kind,
            "raycl.sweep_id": self.sweep_id,
            "raycl.method": method,
            "raycl.benchmark": benchmark,
            "raycl.seed": str(seed),
            "raycl.config_key": config,
            "raycl.trial_key": key or f"{kind}-{config}-{seed}",
        }
        if end != "running":
            tags["raycl.end"] = end
        if error:
            tags["raycl.error"] = error
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"{method}-s{seed}")
        run_id: str = run.info.run_id
        points = [Metric(k, v, 0, 1) for k, v in (last or {}).items()]
        self.client.log_batch(run_id, points, [Param("seed", str(seed))], [RunTag("x", "y")])
        if found is not None:
            self.client.log_dict(run_id, dict(found), "results/matrix.json")
        status = {"finished": "FINISHED", "error": "FAILED"}.get(end, "KILLED")
        if end != "running":
            self.client.set_terminated(run_id, status)
        return run_id


def realistic(
    store: Store, name: str, methods: Sequence[str], seeds: int, tasks: int, **spec: Any
) -> SweepWriter:
    """A sweep whose matrices look like those of real methods, with both readouts."""
    writer = store.sweep(name, {"name": name, "methods": [{"name": m} for m in methods]} | spec)
    keep = {"finetune": 0.02, "online_ewc": 0.12, "naive_rehearsal": 0.75, "joint": 0.99}
    for method in methods:
        for seed in range(seeds):
            rng = np.random.default_rng([seed, len(method)])
            stay = keep.get(method, 0.5)
            classes, known = np.full((tasks, tasks), np.nan), np.full((tasks, tasks), np.nan)
            for t in range(tasks):
                for i in range(t + 1):
                    fresh = 98 - rng.uniform(0, 2)
                    classes[t, i] = fresh * stay ** (t - i) - rng.uniform(0, 4) * (stay > 0.1)
                    known[t, i] = min(100, fresh - (1 - stay) * 6 * (t - i) * rng.uniform(0, 1))
                if t + 1 < tasks:
                    known[t, t + 1] = 50 + rng.uniform(-8, 8)
            cost = {"seconds": 5 + 3 * len(method) + seed, "stored_bytes": 1e5 * len(method)}
            found = result({"class": np.clip(classes, 0, 100), "task": known}, **cost)
            writer.trial(method, seed, found)
    return writer
