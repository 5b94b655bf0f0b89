"""Against a real `mlflow server`: down, there, frozen, there again; read by its REST interface."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from tracking_helpers import Server, matrix, rows, trial

from raycl.errors import UserError
from raycl.tracking import SweepRecord, Tracker, check, sync
from tests.waiting import until


class Rest:
    """MLflow's REST interface."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __call__(self, path: str, **body: Any) -> Any:
        url = f"{self._uri}/api/2.0/mlflow/{path}"
        post = path == "runs/search"
        answer = requests.post(url, json=body) if post else requests.get(url, params=body)
        answer.raise_for_status()
        return answer.json()

    def runs(self, experiment: str, query: str = "") -> dict[str, Any]:
        found = self("runs/search", experiment_ids=[experiment], filter=query).get("runs", [])
        names = [run["info"]["run_name"] for run in found]
        assert len(names) == len(set(names))
        return dict(zip(names, found, strict=True))

    def history(self, run: Any, key: str) -> list[tuple[int, float]]:
        run_id = run["info"]["run_id"]
        points = self("metrics/get-history", run_id=run_id, metric_key=key)["metrics"]
        return [(int(point["step"]), point["value"]) for point in points]

    def file(self, run: Any, path: str) -> requests.Response:
        answer = requests.get(
            f"{self._uri}/get-artifact", params={"run_uuid": run["info"]["run_id"], "path": path}
        )
        answer.raise_for_status()
        return answer


def test_a_server_that_comes_and_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # longer than anybody is to wait
    server.stop()
    with pytest.raises(UserError, match=server.uri):
        check(server.uri)
    sweep = SweepRecord(
        "comes-and-goes", "id-comes-and-goes", "A note.", "name: x\n", {"name": "x"}
    )
    directory = tmp_path / sweep.name

    tracker = Tracker(sweep, directory, server.uri, None)
    tracker.start()
    for key, seed in (("a", "0"), ("b", "1")):
        tracker.trial_started(trial(key, seed=seed))
        for row in rows():
            tracker.trial_row(key, row)
        tracker.trial_ended(key, "finished", row)
    tracker.trial_started(trial("c", method="joint"))
    tracker.trial_ended("c", "error", rows()[0], "no memory")
    left = tracker.close("FAILED")
    assert left > 30
    with pytest.raises(UserError, match="no tracking server answers"):
        sync(directory)

    server.start()
    check(server.uri)
    assert sync(directory) == (left, 0, None)
    _verify(Rest(server.uri), sweep)

    server.signal(signal.SIGSTOP)  # answers nothing, but accepts connections
    try:
        tracker = Tracker(sweep, directory, server.uri, None)
        tracker.start()
        tracker.trial_started(trial("d"))
        begin = time.monotonic()
        assert tracker.close("KILLED", timeout_s=1.0) == 4
        assert time.monotonic() - begin < 300
    finally:
        server.signal(signal.SIGCONT)
    until(lambda: not tracker.alive)  # the thread gives up when its call returns
    assert sync(directory).left == 0
    run = Rest(server.uri).runs(_experiment(Rest(server.uri), sweep))["finetune-d"]
    assert run["info"]["status"] == "KILLED"


def _experiment(rest: Rest, sweep: SweepRecord) -> str:
    found = rest("experiments/get-by-name", experiment_name=sweep.name)["experiment"]
    assert "A note." in {tag["key"]: tag["value"] for tag in found["tags"]}["mlflow.note.content"]
    return str(found["experiment_id"])


def _verify(rest: Rest, sweep: SweepRecord) -> None:
    experiment = _experiment(rest, sweep)
    found = rest.runs(experiment)
    assert {name: run["info"]["status"] for name, run in found.items()} == {
        sweep.name: "FAILED",
        "finetune-a": "FINISHED",
        "finetune-b": "FINISHED",
        "finetune-c": "FAILED",
    }
    parent = found[sweep.name]["info"]["run_id"]
    below = rest.runs(experiment, f"tags.`mlflow.parentRunId` = '{parent}'")
    assert set(below) == {"finetune-a", "finetune-b", "finetune-c"}
    for query, names in (
        ("tags.`raycl.kind` = 'sweep'", {sweep.name}),
        ("tags.`raycl.method` = 'joint'", {"finetune-c"}),
        ("tags.`raycl.seed` = '1' and params.`train.lr` = '0.1'", {"finetune-b"}),
        ("metrics.`eval/class/average_accuracy` > 80", {"finetune-a", "finetune-b"}),
    ):
        assert set(rest.runs(experiment, query)) == names, query
    run = found["finetune-a"]
    assert rest.history(run, "train/loss") == [(i, 1 / i) for i in (1, 2, 3, 4)]
    assert rest.history(run, "eval/class/average_accuracy") == [(1, 90.0), (2, 85.0)]
    assert rest.file(run, "results/matrix.json").json()["matrices"]["class"] == matrix(2)
    assert rest.file(run, "plots/accuracy_matrix_class.png").content.startswith(b"\x89PNG")
    assert rest.file(run, "tables/final.json").json()["columns"][0] == "task"
    assert rest.file(found[sweep.name], "sweep/sweep.yaml").text == sweep.yaml_text
