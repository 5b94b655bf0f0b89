"""Sequences of games in MLflow: curves over frames, matrices of scores, words of the pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tracking_helpers import history, trial

from raycl.tracking import Store, SweepRecord, Tracker, names, plots, views
from raycl.tracking.plots import LEFT, TOP, _colours

FRAMES = 40_000_000
REFERENCES = {"KungFuMaster": [258.5, 22736.3], "Boxing": [0.1, 12.1]}
RESULT: dict[str, Any] = {
    "matrices": {
        "normalised": [[50.0, None], [-10.0, 400.0]],
        "score": [[11497.4, None], [-1989.28, 48.1]],
    },
    "references": REFERENCES,
    "tasks": list(REFERENCES),
}


def game_rows() -> list[dict[str, Any]]:
    """The rows of one trial on two games: one in each game, one at its end."""
    made = []
    for task in (0, 1):
        for end in (False, True):
            row: dict[str, Any] = {
                "task": task,
                "tasks_done": task + end,
                "phase": list(REFERENCES)[task],
                "progress": (2 * task + end + 1) * FRAMES // 2,
                "at_task_end": end,
                "finished": end and task == 1,
                "train/return": 10.0 * task + end,
                "curve/score/KungFuMaster": 100.0 - task,
            }
            if end:
                row["eval/score/task_00"] = 90.0 - task
            made.append(row)
    made[-1]["result"] = RESULT
    return made


def test_curves_are_drawn_over_frames(
    open_tracker: Callable[..., Tracker],
    runs: Callable[[], dict[str, Any]],
    client: Any,
    tmp_path: Path,
) -> None:
    tracker = open_tracker()
    tracker.trial_started(trial("a"))
    *before, last = game_rows()
    for row in before:
        tracker.trial_row("a", row)
    tracker.trial_ended("a", "finished", last)
    assert tracker.close("FINISHED") == 0
    run = runs()["finetune-a"]
    steps = [FRAMES // 2, FRAMES, 3 * FRAMES // 2, 2 * FRAMES]
    curve = history(client, run, "curve/score/KungFuMaster")
    assert curve == list(zip(steps, [100.0, 100.0, 99.0, 99.0], strict=True))
    assert [step for step, _ in history(client, run, "train/return")] == steps
    assert history(client, run, "eval/score/task_00") == [(1, 90.0), (2, 89.0)]
    drawn = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert drawn == {"plots/score_matrix_normalised.png", "plots/score_matrix_score.png"}
    path = client.download_artifacts(run.info.run_id, "tables/final.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {
        "columns": ["game", "normalised score (%)", "raw score"],
        "data": [["KungFuMaster", -10.0, -1989.28], ["Boxing", 400.0, 48.1]],
    }


def test_both_matrices_are_coloured_by_the_reference() -> None:
    for readout, matrix in RESULT["matrices"].items():
        picture = plots.score_matrix(matrix, readout, REFERENCES)
        pixels = np.asarray(picture.convert("RGB"))
        width = (picture.width - LEFT - plots.RIGHT) // 2
        cells = [[pixels[TOP + 72 * t + 3, LEFT + width * i + 3] for i in (0, 1)] for t in (0, 1)]
        wanted = _colours(np.array([[50.0, np.nan], [0.0, 100.0]]))  # what is beyond is as the end
        np.testing.assert_array_equal(cells, wanted)


def test_many_games_and_long_names_fit() -> None:
    many = {f"Game{i}": (0.0, 1.0) for i in range(30)}
    assert max(plots.score_matrix(np.eye(30).tolist(), "score", many).size) < 1000
    long = {"MontezumaRevenge" * 2: (0.0, 1.0), "Pong": (0.0, 1.0)}
    pixels = np.asarray(plots.score_matrix([[1, None], [1, 1]], "score", long).convert("L"))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, -2:] == 255).all()


def test_the_title_of_a_single_game_fits() -> None:
    for readout in ("normalised", "score"):
        picture = plots.score_matrix([[54.0]], readout, {"Pong": (-20.7, 14.6)})
        title = np.asarray(picture.convert("L"))[:TOP]
        assert (title < 255).any()
        assert (title[:, -2:] == 255).all()


def test_pages_use_the_words_of_games() -> None:
    sweep = SweepRecord("s", "id", kind="games")
    note = names.experiment_note(sweep)
    assert "emulator frames" in note
    assert "epochs" not in note
    state = json.loads(views.saved_views(sweep)[f"mlflow.sharedViewState.{views.METHODS}"])
    shown = json.loads(state["state"])["selectedColumns"]
    assert "metrics.`eval/normalised/average_performance`" in shown
    assert "metrics.`eval/class/average_accuracy`" not in shown
    assert "epochs" in names.experiment_note(SweepRecord("s", "id"))


def test_the_kind_is_kept_for_whoever_sends_the_journal_later(
    tmp_path: Path, store: Store, client: Any
) -> None:
    tracker = Tracker(SweepRecord("kept", "id", kind="games"), tmp_path, *store)
    tracker.start()
    assert tracker.close("FINISHED") == 0
    note = client.get_experiment_by_name("kept").tags["mlflow.note.content"]
    assert "emulator frames" in note


def test_pictures_are_named_by_what_they_show() -> None:
    found = dict(plots.pictures(RESULT))
    assert set(found) == {"score_matrix_normalised", "score_matrix_score"}
    assert all(isinstance(picture, Image.Image) for picture in found.values())


def test_pictures_say_game() -> None:
    bits = {"bits/a": [[1, 2], [3, 0]]}
    pictures = dict(plots.pictures(RESULT | {"histograms": bits}))
    named = {
        word: plots.histograms({"a": [[1, 2], [3, 0]]}, "bits", word) for word in ("task", "game")
    }
    assert pictures["bits"].tobytes() == named["game"].tobytes() != named["task"].tobytes()
