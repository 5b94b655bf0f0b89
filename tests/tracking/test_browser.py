"""What a person sees in MLflow's own pages, in a real browser."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import Server, rows, trial

from raycl.tracking import Store, SweepRecord, Tracker
from raycl.tracking.ui import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1200",
    "--virtual-time-budget=30000",
]

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")


def browse(address: str, profile: Path, *flags: str) -> str:
    """What Chromium prints of a page after its scripts ran; nothing of the browser is left."""
    browser = subprocess.Popen(
        [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        return browser.communicate(timeout=120)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)


def text_of(address: str, profile: Path) -> str:
    """A page's text, its tags as spaces."""
    dom = browse(address, profile, "--dump-dom")
    dom = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", dom, flags=re.DOTALL)
    return " ".join(html.unescape(dom).split())


def test_what_a_person_sees(
    server: Server,
    store: Store,
    sweep: SweepRecord,
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tracker = open_tracker()
    for method in ("finetune", "joint"):
        tracker.trial_started(trial(method, method=method))
        for row in rows():
            tracker.trial_row(method, row)
        tracker.trial_ended(method, "finished", row)
    tracker.trial_started(trial("broken"))
    tracker.trial_ended("broken", "error", {}, "TrainingError: loss became inf in task 4")
    assert tracker.close("FAILED") == 0
    server.start()

    first = text_of(page(store.uri, server.uri, sweep.name), tmp_path / "1")
    for text in (
        "What it is.",  # the description
        "Methods: mean over seeds",  # the saved view is there and chosen
        "Group: finetune",
        "Group: joint",
        "finetune-joint",  # a run
        "eval/class/average_accuracy",  # a column
    ):
        assert text in first, text
    assert "finetune-broken" not in first, "failed runs are not in the means"

    charts = text_of(
        page(store.uri, server.uri, sweep.name) + "&compareRunsMode=CHART", tmp_path / "2"
    )
    assert "eval/class (1)" in charts, "a section of charts for each readout that there is"
    for absent in ("eval/task", "cost (1)", "Error loading shared view"):
        assert absent not in charts, absent

    base = f"{server.uri}/#/experiments/{runs()[sweep.name].info.experiment_id}/runs"
    run = text_of(f"{base}/{runs()['finetune-joint'].info.run_id}", tmp_path / "3")
    for text in ("finetune-joint", "train/loss", "eval/class/average_accuracy", "method.name"):
        assert text in run, text
    for text in ("raycl.method", "joint", "raycl.end", "finished", "Finished"):
        assert text in run, text
    broken = text_of(f"{base}/{runs()['finetune-broken'].info.run_id}", tmp_path / "4")
    assert "TrainingError: loss became inf in task 4" in broken
    files = text_of(f"{base}/{runs()['finetune-joint'].info.run_id}/artifacts", tmp_path / "5")
    for text in ("plots", "results", "tables"):
        assert text in files, text
