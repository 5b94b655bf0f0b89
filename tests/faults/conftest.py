"""Real sweeps in real processes, with a method that can be killed at a chosen step."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from ray._private.utils import get_num_cpus

HALF = {"cpu": get_num_cpus() / 2}
"""Resources of a trial with which two run at a time, on any machine."""

METHOD = '''
"""Fine-tuning that leaves traces, sleeps, and kills its own process where it is told to."""

import os
import signal
import time
from pathlib import Path

from raycl.methods.base import MethodConfig
from raycl.methods.finetune import Finetune

HERE = Path(os.environ.get("RAYCL_SCENE", Path(__file__).parent))  # a cluster has a copy


class Fragile(Finetune):
    """Fragile (2026). Departures: none."""

    class Config(Finetune.Config):
        """Options."""

        sleep: float = 0.0
        explode: int = -1

    def begin_task(self, task):
        self.steps = 0
        with (HERE / "trace.txt").open("a") as file:
            node = os.readlink("/proc/self/ns/net")
            file.write(f"{os.getpid()} {self.tag(task)} {node}\\n")
        if task.info.index == self.config.explode:
            raise ValueError("exploded as asked")

    def tag(self, task):
        """Which trial and task."""
        seed = self.context.data_generator.initial_seed()
        return f"{self.config.sleep:g}-{seed}-{task.info.index}"

    def objective(self, task):
        """Cross-entropy, with an accident."""
        loss = super().objective(task)
        task_index, count = task.info.index, [0]

        def with_accident(batch):
            count[0] += 1
            time.sleep(self.config.sleep)
            order = HERE / f"kill-{task_index}-{count[0]}"
            try:
                order.rename(order.with_suffix(".done"))  # only one process gets to do this
            except FileNotFoundError:
                return loss(batch)
            os.kill(os.getpid(), signal.SIGKILL)

        return with_accident

    def pictures(self):
        """The head's weights."""
        grey = self.head.weight.sigmoid().mul(255).byte()
        return {"head": grey.expand(3, -1, -1)}
'''


@dataclass
class Lab:
    """A folder with a sweep file, a runs folder and processes that are ended at the end.

    Attributes:
        path: The folder.
        prefix: What a command begins with, to run it somewhere else.
    """

    path: Path
    prefix: tuple[str, ...] = ()
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        folders = {"RAYCL_RUNS": str(self.runs), "RAYCL_SCENE": str(self.path)}
        return folders | {"OMP_NUM_THREADS": "1"}

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def sweep(self, name: str = "fault", **changes: Any) -> Path:
        spec: dict[str, Any] = {
            "name": name,
            "benchmark": {"name": "split", "dataset": {"name": "digits", "limit": 30}, "tasks": 3},
            "methods": [{"name": "fragile.py:Fragile"}],
            "network": {"name": "mlp", "hidden": [16]},
            "train": {"epochs": 2, "batch_size": 16, "lr": 0.05},
            "seeds": 3,
        } | changes
        path = self.path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    def start(
        self, *arguments: str, to: IO[str] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command; what it says goes to a file, or into a pipe that is to be read."""
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "raycl", *arguments],
            cwd=self.path,
            env=os.environ | self.environment | environment,
            stdout=to or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, code: int | None = 0, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        output, _ = process.communicate()
        assert code is None or process.returncode == code, output
        return output

    def outcomes(self, name: str = "fault") -> list[Path]:
        return sorted((self.runs / name / "outcomes").glob("*.json"))

    def checkpoints(self, name: str = "fault") -> list[Path]:
        return sorted((self.runs / name / "trials").glob("*/step-*.pt"))

    def checkpoints_in(self, storage: str, name: str = "fault") -> list[Path]:
        return sorted((self.path / storage / name).glob("*/step-*.pt"))

    def trace(self) -> list[str]:
        """Trial and task of every task that was begun, in order."""
        return [line[1] for line in self.traced()]

    def traced(self) -> list[list[str]]:
        """Process, trial and task, and node, of every task that was begun, in order."""
        path = self.path / "trace.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[bool]:
    """A folder on a small file system of its own; whether it is, for only root can mount one."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and mount(*options)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    (tmp_path / "fragile.py").write_text(METHOD)
    yield found
    for process in found.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout:
            process.stdout.close()
