"""Sequences of games whose env runners, workers and drivers are killed: nothing is skipped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Lab
from tests.faults.test_faults import steps, tracked
from tests.waiting import until

METHOD = '''
"""Fine-tuning that leaves traces, and kills a process where it is told to."""

import os
import signal
import time
from pathlib import Path

import psutil

from raycl.rl.methods.finetune import Finetune

HERE = Path(__file__).parent


class Fragile(Finetune):
    """Fragile (2026). Departures: none."""

    class Config(Finetune.Config):
        """Options."""

        sleep: float = 0.0

    def begin_game(self, policy, game):
        super().begin_game(policy, game)
        self.game, self.count = game, 0
        with (HERE / "trace.txt").open("a") as file:
            file.write(f"{os.getpid()} {game}\\n")

    def after_step(self, policy):
        self.count += 1
        time.sleep(self.config.sleep)
        for what in ("worker", "runner"):
            order = HERE / f"kill-{what}-{self.game}-{self.count}"
            try:
                order.rename(order.with_suffix(".done"))
            except FileNotFoundError:
                continue
            if what == "worker":
                os.kill(os.getpid(), signal.SIGKILL)
            for process in psutil.process_iter(["name", "cmdline"]):
                if "ArrayEnvRunner" in " ".join(process.info["cmdline"] or []):
                    if process.cwd() == os.getcwd():  # ours, and of no other test
                        process.kill()
'''
UPDATES, FRAMES = 4, 4 * 4 * 16
"""Updates of a game; emulator frames of one."""


def games(lab: Lab, name: str, **changes: Any) -> Path:
    """A sweep file of two games, four updates of eight steps each."""
    (lab.path / "fragile_games.py").write_text(METHOD)
    method = {"name": "fragile_games.py:Fragile"} | changes.pop("method", {})
    spec: dict[str, Any] = {
        "benchmark": {
            "name": "atari",
            "games": ["Boxing", "KungFuMaster"],
            "frames": FRAMES * UPDATES,
            "evaluation": {"episodes": 1, "max_frames": 400},
        },
        "methods": [method, *changes.pop("others", [])],
        "network": {
            "name": "atari_cnn",
            "channels": [4],
            "kernels": [8],
            "strides": [8],
            "features": 16,
        },
        "train": {"envs": 4, "rollout": 16, "minibatches": 4, "epochs": 2},
        "seeds": 1,
        "resources": {"cpu": 0.5},
    } | changes
    return lab.sweep(name, **spec)


def last_row(lab: Lab, name: str) -> dict[str, Any]:
    (path,) = lab.outcomes(name)
    row: dict[str, Any] = json.loads(path.read_text())["row"]
    return row


def check_whole(lab: Lab, name: str) -> dict[str, Any]:
    """Every frame was trained on and every row of R is there, in one run of MLflow."""
    row = last_row(lab, name)
    assert row["progress"] == row["cost/frames"] == 2 * UPDATES * FRAMES
    assert row["cost/examples"] == row["progress"] / 4
    result: dict[str, Any] = row["result"]
    assert None not in result["matrices"]["score"][1]
    (run,) = tracked(lab, name)
    assert run.info.status == "FINISHED"
    rates = steps(lab, run, "train/lr")
    assert rates[-1] == row["progress"]
    assert set(rates) <= {FRAMES * i for i in range(1, 2 * UPDATES + 1)}
    return result


def test_a_worker_and_an_env_runner_killed_in_mid_game(lab: Lab) -> None:
    """The worker's trial goes on from its last checkpoint, and the runner's as if nothing were."""
    resources = {"cpu": 0.5, "env_runners": 1}
    sweep = games(lab, "both", resources=resources, checkpoint={"every_s": 0})
    (lab.path / "kill-worker-0-20").touch()  # in the third update of four
    (lab.path / "kill-runner-1-9").touch()  # the first step of the second game's second update
    assert lab.run("run", str(sweep)).count("lost its worker") == 1
    assert len(list(lab.path.glob("kill-*.done"))) == 2, "not every accident happened"
    assert lab.trace() == ["0", "0", "1"]
    check_whole(lab, "both")
    assert last_row(lab, "both")["made"]["continued"] == "inside a game, which began anew"


@pytest.mark.slow
def test_a_worker_killed_at_the_start_of_a_game_changes_no_bit(lab: Lab) -> None:
    """Plain fine-tuning beside it is the run that nothing happened to."""
    sweep = games(lab, "start", others=["finetune"])
    (lab.path / "kill-worker-1-1").touch()
    assert lab.run("run", str(sweep)).count("lost its worker") == 1
    assert lab.trace() == ["0", "1", "1"]
    found = [json.loads(path.read_text())["row"] for path in lab.outcomes("start")]
    first, second = (row["result"] for row in found)
    assert first["matrices"] == second["matrices"]
    assert {row["progress"] for row in found} == {2 * UPDATES * FRAMES}
    assert not any("continued" in row["made"] for row in found)


@pytest.mark.slow
def test_a_driver_killed_goes_on_where_it_was(lab: Lab) -> None:
    sweep = games(lab, "driver", checkpoint={"every_s": 0}, method={"sleep": 0.3})
    process = lab.start("run", str(sweep))
    until(lambda: lab.trace() == ["0", "1"] and lab.checkpoints("driver"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    output = lab.run("resume", "driver")
    assert "continues from" in output
    assert lab.trace()[2:] == ["1"]
    check_whole(lab, "driver")
    kept = sorted(path.name for path in (lab.runs / "driver/trials").glob("*/after-*.pt"))
    assert kept == ["after-00.pt", "after-01.pt"]
