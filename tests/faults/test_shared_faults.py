"""Trials that share a prefix lose workers and their driver: the same bits, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import HALF, Lab
from tests.faults.test_faults import results, steps, tracked, undisturbed
from tests.waiting import until

LATE = '''

class Late(Fragile):
    """Late (2026). Departures: none."""

    first_task_of = "finetune"

    class Config(Fragile.Config):
        """Options."""

        late: float = Field(1.0, json_schema_extra=from_task(3))

    def begin_task(self, task):
        super().begin_task(task)
        self.scale = self.config.late if task.info.index == 2 else 1.0

    def tag(self, task):
        """Which trial and task."""
        return f"{self.config.late:g}-{task.info.index}"

    def objective(self, task):
        """A loss of another size from the third task on."""
        loss, scale = super().objective(task), self.config.late if task.info.index == 2 else 1.0
        return lambda batch: scale * loss(batch)
'''


def sweep(lab: Lab) -> Path:
    file = lab.path / "fragile.py"
    head = "from pydantic import Field\nfrom raycl.methods.base import from_task\n"
    file.write_text(file.read_text().replace("import os\n", f"import os\n{head}", 1) + LATE)
    methods = [
        {"name": "fragile.py:Late", "label": f"late{n}", "late": n, "sleep": 0.02}
        for n in (1, 2, 3, 4)
    ]
    return lab.sweep(methods=["finetune", *methods], seeds=1, resources=HALF)


@pytest.mark.slow
def test_trials_that_share_survive_lost_workers_and_a_lost_driver(lab: Lab) -> None:
    file = sweep(lab)
    (lab.path / "kill-1-1").touch()  # of one trial, in the part that four share
    (lab.path / "kill-2-1").touch()  # of another, after it
    driver = lab.start("run", str(file))
    prefixes = lab.runs / "fault" / "trials" / "prefix"
    until(lambda: len(lab.outcomes()) >= 2, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    output = lab.run("resume", "fault")
    assert not list(lab.path.glob("kill-*-1")), "nobody was killed"
    assert results(lab) == undisturbed(file, lab.path)
    assert "shared: " in output
    assert not prefixes.exists()
    took = [json.loads(path.read_text())["row"]["result"] for path in lab.outcomes()]
    assert sum("shared_seconds" in result for result in took) >= 2
    for run in tracked(lab):
        assert steps(lab, run, "eval/class/average_accuracy") == [1, 2, 3]
