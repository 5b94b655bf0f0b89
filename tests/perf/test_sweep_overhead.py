"""What a sweep costs beyond the work of its trials, and what its data costs in memory."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

pytestmark = pytest.mark.perf

METHOD = '''
"""A trial of known length: computes nothing worth knowing for so many CPU seconds."""

import time

from raycl.methods.finetune import Finetune


class Busy(Finetune):
    """Busy (2026). Departures: none."""

    class Config(Finetune.Config):
        """Options."""

        seconds: float = 0.5
        wait: float = 0.0

    def begin_task(self, task):
        end = time.process_time() + self.config.seconds
        while time.process_time() < end:
            pass

    def end_task(self, task):
        for batch in task.train.batches(1000):  # touch every image
            del batch
        time.sleep(self.config.wait)
'''


def launch(folder: Path, name: str, **changes: Any) -> subprocess.Popen[bytes]:
    spec: dict[str, Any] = {
        "name": name,
        "benchmark": {"name": "split", "dataset": {"name": "digits", "limit": 10}, "tasks": 1},
        "methods": [{"name": "busy.py:Busy"}],
        "network": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1, "batch_size": 50, "lr": 0.01},
    } | changes
    (folder / "busy.py").write_text(METHOD)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return subprocess.Popen(
        [sys.executable, "-m", "raycl", "run", str(path)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAYCL_RUNS": str(folder / "runs")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wall(folder: Path, name: str, **changes: Any) -> float:
    started = time.perf_counter()
    assert launch(folder, name, **changes).wait(timeout=600) == 0
    return time.perf_counter() - started


def test_fixed_and_per_trial_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slots = os.cpu_count() or 1
    seconds = 0.5
    wall(tmp_path, "warm-up", seeds=1)  # the files of Python's packages come into memory
    few = wall(tmp_path, "few", seeds=slots)
    many = wall(tmp_path, "many", seeds=32 + slots)
    fixed = few - seconds
    marginal = (many - few - 32 * seconds / slots) / 32
    share = marginal / (60 / slots)
    with capsys.disabled():
        print(
            f"\nsweep on {slots} cores: {fixed:.1f} s fixed, {marginal:.3f} s per trial beyond its "
            f"work (at most 0.15 s): {share:.2%} of trials of 60 s (at most 1 %); ratio of the "
            f"whole to the bare work of 32 trials of {seconds} s: "
            f"{many / ((32 + slots) * seconds / slots):.2f}"
        )
    assert marginal <= 0.15
    assert share <= 0.01
    assert fixed <= 10 * 3, "three times the aim, for slow machines"


def idx(folder: Path, n: int) -> Path:
    """MNIST-like IDX files of random images."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for prefix, count in (("train", n), ("t10k", 1000)):
        images = generator.integers(0, 256, size=(count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(head + array.tobytes())
    return folder


def held(folder: Path, name: str, data: Path) -> tuple[float, int]:
    """Proportional memory of the workers of four concurrent trials that have touched all images."""
    changes = {
        "benchmark": {"name": "split", "dataset": {"name": "idx", "path": str(data)}, "tasks": 1},
        "methods": [{"name": "busy.py:Busy", "seconds": 0, "wait": 12}],
        "resources": {"cpu": (os.cpu_count() or 1) / 4},
        "train": {"epochs": 1, "batch_size": 1000, "lr": 0.01},
        "seeds": 4,
    }
    driver = launch(folder, name, **changes)
    peak, count = 0.0, 0
    while driver.poll() is None:
        workers = []
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if process.name().startswith("ray::") and "ImplicitFunc" in " ".join(
                    process.cmdline()
                ):
                    workers.append(process.memory_full_info().pss)
            except psutil.Error:
                continue  # it ended meanwhile
        if len(workers) == 4:
            peak, count = max(peak, sum(workers) / 1e6), 4
        time.sleep(0.5)
    assert driver.returncode == 0
    return peak, count


def test_images_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 60_000
    megabytes = n * 28 * 28 / 1e6
    small, small_count = held(tmp_path, "small", idx(tmp_path / "few-images", 600))
    large, large_count = held(tmp_path, "large", idx(tmp_path / "many-images", n))
    assert small_count == large_count == 4, "the trials did not run together"
    copies = (large - small) / megabytes
    with capsys.disabled():
        print(
            f"\nmemory of 4 concurrent trials on {megabytes:.0f} MB of images: {large:.0f} MB, on "
            f"almost none {small:.0f} MB: {copies:.2f} copies of the images (at most 2)"
        )
    assert copies <= 2.0, json.dumps({"small": small, "large": large})
