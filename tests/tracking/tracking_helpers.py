"""Rows like those of a real trial, and a real tracking server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import psutil

from raycl.tracking import Store, TrialRecord
from tests.waiting import free_port, until_answered


def trial(key: str, **tags: str) -> TrialRecord:
    given = {"kind": "trial", "method": "finetune", "benchmark": "digits", "seed": "0"}
    config = {"method": {"name": "finetune"}, "seed": 0, "train": {"lr": 0.1, "augment": None}}
    return TrialRecord(key, f"finetune-{key}", given | {"config_key": "c"} | tags, config)


def matrix(tasks: int) -> list[list[float | None]]:
    return [[90.0 - 10 * (t - i) if i <= t else None for i in range(tasks)] for t in range(tasks)]


def rows(tasks: int = 2, epochs: int = 2) -> list[dict[str, Any]]:
    """The rows of one trial as `training.Run` makes them."""
    made: list[dict[str, Any]] = []
    for task in range(tasks):
        for epoch in range(epochs):
            end = epoch == epochs - 1
            progress = task * epochs + epoch + 1
            row: dict[str, Any] = {
                "task": task,
                "tasks_done": task + end,
                "phase": "train",
                "epoch": epoch,
                "progress": progress,
                "at_task_end": end,
                "finished": end and task == tasks - 1,
                "train/loss": 1 / progress,
                "time/epoch_s": 0.5,
                "validation/accuracy_current": 80.0 + progress,
                "validation/average_accuracy": 70.0 + task,
            }
            if end:
                row["eval/class/average_accuracy"] = 90.0 - 5 * task
                row["cost/seconds"] = float(task + 1)
            if row["finished"]:
                row["result"] = {
                    "matrices": {"task": matrix(tasks), "class": matrix(tasks)},
                    "tasks": [f"digits {i}" for i in range(tasks)],
                }
            made.append(row)
    return made


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    """(step, value) of every point of a metric, in order of step."""
    points = client.get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


SERVE = """
import sys
from raycl.tracking.ui import serve
sys.exit(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


class Server:
    """`raycl.tracking.ui.serve` in a process of its own, on a free port."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, if it is not running, and wait until it answers."""
        if self.process is not None:
            return
        command = [sys.executable, "-c", SERVE, *map(str, self._store), str(self.port)]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        until_answered(f"{self.uri}/health", self.process)

    def processes(self) -> list[int]:
        """Ids of `serve` and of everything below it."""
        if self.process is None:
            return []
        top = psutil.Process(self.process.pid)
        return [top.pid, *(child.pid for child in top.children(recursive=True))]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's processes, not to `serve` itself."""
        for pid in self.processes()[1:]:
            os.kill(pid, number)

    def stop(self) -> None:
        """SIGTERM to `serve`, if it is running: it ends well and leaves no process."""
        if self.process is None:
            return
        before = self.processes()
        assert len(before) >= 3, "serve, mlflow and its worker"
        self.process.terminate()
        assert self.process.wait() == 0
        assert not [pid for pid in before if psutil.pid_exists(pid)]
        self.process = None
