"""``raycl gif``: which games are played from which checkpoints, and where the pictures go."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from raycl.errors import UserError
from raycl.gif.command import Wish, find_trials, gif, track
from raycl.gif.drawing import Job, draw_cell, draw_grid, draw_methods
from raycl.gif.page import Chapter, Drawn, page
from raycl.networks.base import find_network
from raycl.rl.config import SequenceConfig
from raycl.rl.policy import build_policy
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome
from raycl.sweep.record.tracked import Tracked, sweep_record
from raycl.tracking import Tracker, store
from raycl.trial.checkpoint import CheckpointStore

GAMES = ["Boxing", "SpaceInvaders"]
NETWORK = {"name": "atari_cnn", "channels": [4], "kernels": [8], "strides": [8], "features": 8}


def sweep_of(root: Path, **changes: Any) -> tuple[spec.Sweep, SweepFolder]:
    """A sweep on two games, as ``raycl run`` would leave its folder before the first trial."""
    data: dict[str, Any] = {
        "name": "s",
        "benchmark": {"name": "atari", "games": GAMES, "frames": 8000},
        "methods": ["finetune", "blip"],
        "network": NETWORK,
        "seeds": [3, 4],
    } | changes
    path = root / "s.yaml"
    path.write_text(yaml.safe_dump(data))
    sweep = spec.load(path)
    folder = SweepFolder(root, "s")
    folder.claim(expand.spec_hash(sweep), sweep.resolved())
    return sweep, folder


def plans_of(sweep: spec.Sweep, seed: int = 3) -> list[TrialPlan]:
    return [plan for plan in expand.final_plans(sweep, {}) if plan.seed == seed]


def keep(folder: SweepFolder, plan: TrialPlan, after: int) -> None:
    """What a trial writes at the end of a game; the policy is as it was born."""
    torch.manual_seed(after)
    config = SequenceConfig.model_validate(plan.config)
    policy = build_policy(config)
    learnt = [10.0 * (i + 1) if i <= after else None for i in range(2)]
    state = {
        "config": config.model_dump(mode="json"),
        "games": GAMES,
        "num_actions": list(policy.num_actions),
        "game": after,
        "policy": policy.state_dict(),
        "scores": {"score": learnt, "normalised": learnt},
    }
    trial_store(folder, plan).put(f"after-{after:02d}", state)


def trial_store(folder: SweepFolder, plan: TrialPlan) -> CheckpointStore:
    return CheckpointStore(str(folder.path / "trials" / plan.key))


def places(trial: Any) -> list[tuple[int, int]]:
    return [(job.after, job.game) for job in trial.jobs(Wish())]


# ---------------------------------------------------------------------- which games


def test_rows_are_games_learnt_and_columns_games_seen(tmp_path: Path) -> None:
    sweep, folder = sweep_of(tmp_path)
    finetune, blip = plans_of(sweep)
    keep(folder, finetune, 0)
    keep(folder, finetune, 1)
    keep(folder, blip, 0)
    keep(folder, plans_of(sweep, 4)[1], 1)
    trials, seed = find_trials(sweep, folder, Wish())
    assert seed == 3, "the first seed of the sweep"
    assert [trial.plan.key for trial in trials] == [finetune.key, blip.key]
    assert places(trials[0]) == [(0, 0), (1, 0), (1, 1)]
    assert places(trials[1]) == [(0, 0)]
    assert [trial.note for trial in trials] == ["", "1 of 2 games learnt so far"]
    (other,), seed = find_trials(sweep, folder, Wish(seed=4, methods=("blip",)))
    assert seed == 4
    assert places(other) == [(0, 0), (1, 0), (1, 1)], "the file that is missing will be named"


def test_a_storage_that_does_not_answer_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(CheckpointStore, "named", away)
    with pytest.raises(UserError, match=r"^storage: .*/s/trials/\w+ cannot be used: timed out$"):
        find_trials(*sweep_of(tmp_path), Wish())


def test_games_to_come_are_played_where_they_are_scored(tmp_path: Path) -> None:
    benchmark = {"name": "atari", "games": GAMES, "frames": 8000, "evaluation": {"zero_shot": True}}
    sweep, folder = sweep_of(tmp_path, benchmark=benchmark)
    keep(folder, plans_of(sweep)[0], 0)
    trials, _ = find_trials(sweep, folder, Wish())
    assert places(trials[0]) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("zero_shot", [False, True])
def test_weights_of_ones_own_play_their_game(tmp_path: Path, zero_shot: bool) -> None:
    """No checkpoint has the network of a game that has not begun, which may be scored, too."""
    benchmark = {"name": "atari", "games": GAMES, "frames": 8000}
    benchmark["evaluation"] = {"zero_shot": zero_shot}
    sweep, folder = sweep_of(tmp_path, methods=["scratch"], benchmark=benchmark)
    for after in (0, 1):
        keep(folder, plans_of(sweep)[0], after)
    (trial,), _ = find_trials(sweep, folder, Wish())
    found = [(job.after, job.game, job.network) for job in trial.jobs(Wish())]
    assert found == [(0, 0, 0), (1, 0, 0), (1, 1, 1)]


def test_only_the_first_games_if_the_sweep_stops_there(tmp_path: Path) -> None:
    sweep, folder = sweep_of(tmp_path, stop={"tasks": 1})
    keep(folder, plans_of(sweep)[0], 0)
    trials, _ = find_trials(sweep, folder, Wish())
    assert trials[0].note == ""
    assert trials[0].jobs(Wish())[0].games == ("Boxing",)


def test_a_finished_trial_lacks_what_is_gone(tmp_path: Path) -> None:
    sweep, folder = sweep_of(tmp_path)
    plan = plans_of(sweep)[0]
    keep(folder, plan, 0)
    folder.outcomes.add(Outcome.of(plan, "finished", {}, ""))
    trials, _ = find_trials(sweep, folder, Wish())
    assert places(trials[0]) == [(0, 0), (1, 0), (1, 1)]
    assert draw_cell(trials[0].jobs(Wish(max_seconds=1))[1]).problem == "after-01.pt is missing"


def test_benchmarks_have_folders_of_their_own(tmp_path: Path) -> None:
    blocks = [{"name": "atari", "games": [game], "frames": 8000} for game in GAMES]
    sweep, folder = sweep_of(tmp_path, benchmark=blocks)
    for plan in plans_of(sweep):
        keep(folder, plan, 0)
    trials, _ = find_trials(sweep, folder, Wish())
    assert [trial.folder for trial in trials] == [
        "atari-Boxing/finetune",
        "atari-Boxing/blip",
        "atari-SpaceInvaders/finetune",
        "atari-SpaceInvaders/blip",
    ]


def test_benchmarks_that_are_spelt_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    games = {"name": "atari", "games": GAMES, "frames": 8000}
    labels = ("A → B", "A ← B")
    sweep, folder = sweep_of(tmp_path, benchmark=[{**games, "label": one} for one in labels])
    for plan in plans_of(sweep):
        keep(folder, plan, 0)
    trials, _ = find_trials(sweep, folder, Wish(methods=("blip",)))
    assert [trial.folder for trial in trials] == ["A___B/blip", "A___B-2/blip"]


def test_checkpoints_are_looked_for_where_the_sweep_keeps_them(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    sweep, folder = sweep_of(tmp_path, storage=str(shared))
    keep(folder, plans_of(sweep)[0], 0)
    with pytest.raises(UserError, match="has learnt a game yet"):
        find_trials(sweep, folder, Wish())
    shutil.copytree(folder.path / "trials", shared / "s")
    trials, _ = find_trials(sweep, folder, Wish())
    assert trials[0].learnt == 1


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "wish, text",
    [
        (Wish(seed=5), "--seed: 's' has no seed 5; valid: 3, 4"),
        (
            Wish(methods=("blib",)),
            "--methods: 's' has no method 'blib'; did you mean 'blip'?",
        ),
        (Wish(), "no trial of 's' with seed 3 has learnt a game yet"),
        (Wish(seed=4, methods=("blip",)), "no trial of 's' with seed 4 has learnt a game yet"),
    ],
)
def test_wishes_that_cannot_be_granted(tmp_path: Path, wish: Wish, text: str) -> None:
    sweep_of(tmp_path)
    with pytest.raises(UserError, match=re.escape(text)):
        gif("s", tmp_path, None, None, wish)


@pytest.mark.parametrize(
    "uri, out, text",
    [
        (None, "s.yaml", "--out: cannot make the folder"),
        (None, "s.yaml/below", "--out: cannot make the folder"),
        ("htp://tracker", "gifs", "unknown kind of tracking store"),
    ],
)
def test_no_game_is_played_for_pictures_that_have_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None, out: str, text: str
) -> None:
    sweep, folder = sweep_of(tmp_path)
    keep(folder, plans_of(sweep)[0], 0)
    monkeypatch.setattr(cluster, "connect", lambda *_: pytest.fail("games were played"))
    with pytest.raises(UserError, match=text):
        gif("s", tmp_path, None, uri, Wish(out=tmp_path / out))


def test_a_sweep_that_is_not_there(tmp_path: Path) -> None:
    sweep_of(tmp_path)
    with pytest.raises(UserError, match="no sweep named 't'"):
        gif("t", tmp_path, None, None, Wish())


def test_images_cannot_be_watched(tmp_path: Path) -> None:
    sweep_of(
        tmp_path,
        benchmark={"name": "split", "dataset": "digits", "tasks": 5},
        methods=["finetune"],
        network={"name": "mlp"},
    )
    with pytest.raises(UserError, match="'s' is a sweep on images; only games can be watched"):
        gif("s", tmp_path, None, None, Wish())


# ---------------------------------------------------------------------- one game


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, Job]:
    sweep, folder = sweep_of(tmp_path_factory.mktemp("kept"))
    plan = plans_of(sweep)[0]
    keep(folder, plan, 0)
    keep(folder, plan, 1)
    trials, _ = find_trials(sweep, folder, Wish())
    return folder, trials[0].jobs(Wish(max_seconds=2))[2]


def test_a_game_is_played_with_its_head_and_scores(kept: tuple[SweepFolder, Job]) -> None:
    _, job = kept
    cell = draw_cell(job)
    assert (job.after, job.game, job.file) == (1, 1, "01-SpaceInvaders.gif")
    assert (cell.score, cell.percent, cell.problem) == (20.0, 20.0, "")
    assert cell.tile.caption == "mean 20 · 20 %"
    cell = replace(cell, score=360.0, percent=-0.4)
    assert cell.tile.caption == "mean 360 · 0 %", "no minus zero"
    assert cell.clip is not None
    assert cell.clip.steps == 30, "2 s of 60 frames, 4 a step"
    assert cell.gif is not None
    assert Image.open(io.BytesIO(cell.gif.data)).n_frames > 20  # type: ignore[attr-defined]
    again = draw_cell(job)
    assert again.gif == cell.gif, "the same game every time"
    unseen = draw_cell(replace(job, after=0, network=0))
    assert unseen.tile.faded
    assert unseen.tile.caption == "", "it was not scored"


def test_a_damaged_checkpoint_is_named(kept: tuple[SweepFolder, Job], tmp_path: Path) -> None:
    _, job = kept
    path = Path(shutil.copytree(job.storage, tmp_path / "torn")) / "after-01.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cell = draw_cell(replace(job, storage=str(path.parent)))
    assert cell.problem == "after-01.pt is damaged"
    assert cell.clip is None
    path.unlink()
    assert draw_cell(replace(job, storage=str(path.parent))).problem == "after-01.pt is missing"


def test_weights_of_another_network_are_named(
    kept: tuple[SweepFolder, Job], tmp_path: Path
) -> None:
    _, job = kept
    state = CheckpointStore(job.storage).get("after-01")
    assert state is not None
    state["config"]["network"]["features"] = 9
    CheckpointStore(str(tmp_path)).put("after-01", state)
    cell = draw_cell(replace(job, storage=str(tmp_path)))
    assert cell.problem == "after-01.pt does not fit the network"


def test_the_weights_that_a_network_started_from_may_be_gone(tmp_path: Path) -> None:
    file = tmp_path / "start.pt"
    cls, config = find_network(NETWORK)
    torch.save(cls(config, (4, 84, 84)).state_dict(), file)
    sweep, folder = sweep_of(tmp_path, network=NETWORK | {"weights": {"file": str(file)}})
    keep(folder, plans_of(sweep)[0], 0)
    file.unlink()
    trials, _ = find_trials(sweep, folder, Wish())
    cell = draw_cell(trials[0].jobs(Wish(max_seconds=1))[0])
    assert cell.problem == ""
    assert cell.clip is not None


def test_a_network_of_ones_own_that_is_gone_is_named(
    kept: tuple[SweepFolder, Job], tmp_path: Path
) -> None:
    _, job = kept
    state = CheckpointStore(job.storage).get("after-01")
    assert state is not None
    state["config"]["network"] = {"name": str(tmp_path / "gone.py:Net")}
    CheckpointStore(str(tmp_path)).put("after-01", state)
    cell = draw_cell(replace(job, storage=str(tmp_path)))
    assert "gone.py" in cell.problem
    assert "\n" not in cell.problem
    assert cell.clip is None


def test_sheets_have_a_row_for_each_game_and_each_method(kept: tuple[SweepFolder, Job]) -> None:
    _, job = kept
    jobs = [
        replace(job, after=after, network=after, game=game)
        for after, game in ((0, 0), (1, 0), (1, 1))
    ]
    cells = [draw_cell(job) for job in jobs]
    grid = picture(draw_grid("t", *cells).data)
    others = [replace(cell, job=replace(cell.job, method="blip")) for cell in cells[1:]]
    methods = picture(draw_methods("t", *cells[1:], *others).data)
    assert grid.shape == methods.shape, "2 x 2"
    first, second = cells[0].clip, cells[2].clip
    assert first is not None
    assert second is not None
    boxing, invaders = (c.colours[next(c.frames())] for c in (first, second))
    rows, column = (44, 44 + 250), 108
    for sheet in (grid, methods):
        assert np.array_equal(tile(sheet, rows[1], column), boxing)
        assert np.array_equal(tile(sheet, rows[1], column + 168), invaders)
    assert np.array_equal(tile(grid, rows[0], column), boxing)
    assert len(np.unique(tile(grid, rows[0], column + 168))) == 1, "not learnt yet"
    assert np.array_equal(tile(methods, rows[0], column + 168), invaders)


def picture(data: bytes) -> np.ndarray[Any, Any]:
    """The first frame."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def tile(sheet: np.ndarray[Any, Any], top: int, left: int) -> np.ndarray[Any, Any]:
    return sheet[top : top + 210, left : left + 160]


# ---------------------------------------------------------------------- the page


def test_the_page_shows_all_with_scores(kept: tuple[SweepFolder, Job]) -> None:
    _, job = kept
    played = draw_cell(job)
    broken = replace(played, job=replace(job, game=0), clip=None, gif=None, problem="<torn>")
    assert played.gif is not None
    drawn = Drawn("m&m", "m", [broken, played], played.gif, "1 of 2 games")
    chapter = Chapter("b", "", GAMES, ((0.1, 12.1), (148.0, 1668.7)), [drawn], played.gif)
    html = page("s", 3, 30, [chapter], embed=False)
    for text in ("m&amp;m", "&lt;torn&gt;", "<b>20</b> · 20.0 %", "148 to 1,668.7", "1 of 2 games"):
        assert text in html
    sources = re.findall(r'<img src="([^"]+)"', html)
    assert sources == ["methods.gif", "m/grid.gif", "m/01-SpaceInvaders.gif"]
    alone = page("s", 3, 30, [chapter], embed=True)
    sources = re.findall(r'<img src="([^"]+)"', alone)
    assert len(sources) == 2
    assert all(source.startswith("data:image/gif;base64,") for source in sources)


# ---------------------------------------------------------------------- the command


def raycl(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "raycl", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_draws_on_ray_and_logs_to_mlflow(tmp_path: Path) -> None:
    """Two methods, one with a damaged checkpoint."""
    from mlflow import MlflowClient

    runs = tmp_path / "runs"
    runs.mkdir()
    sweep, folder = sweep_of(runs, seeds=[3])
    identity = folder.identity()
    where = store.resolve(runs)
    record = sweep_record(sweep, identity["sweep_id"], (runs / "s.yaml").read_text())
    tracker = Tracker(record, folder.path, *where)
    tracker.start()
    plans = plans_of(sweep)
    for plan in plans:
        Tracked(tracker, "trials").started(plan)
        keep(folder, plan, 0)
        keep(folder, plan, 1)
    assert tracker.close("FINISHED", 60) == 0
    torn = Path(trial_store(folder, plans[1]).root) / "after-00.pt"
    torn.write_bytes(torn.read_bytes()[:-9])
    stale = folder.path / "gifs" / "finetune" / "02-Krull.gif"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier call")

    code, text = raycl(tmp_path, "gif", "s", "--max-seconds", "2", "--fps", "50")
    assert code == 1, text
    assert "not drawn: blip, Boxing after Boxing: after-00.pt is damaged" in text
    assert "not in MLflow" not in text
    out = folder.path / "gifs"
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    cells = {"01-Boxing.gif", "01-SpaceInvaders.gif", "grid.gif"}
    assert made == {"index.html", "methods.gif", "finetune/00-Boxing.gif"} | {
        f"{method}/{name}" for method in ("finetune", "blip") for name in cells
    }
    for name in made - {"index.html"}:
        assert Image.open(out / name).n_frames > 20  # type: ignore[attr-defined]
    client = MlflowClient(where.uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    logged: dict[str, set[str]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found = client.list_artifacts(run.info.run_id, "gifs")
        logged[run.data.tags.get("raycl.method", "")] = {Path(file.path).name for file in found}
    assert logged == {
        "": {"index.html", "methods.gif"},
        "finetune": cells | {"00-Boxing.gif"},
        "blip": cells,
    }


def test_without_a_tracker_the_pictures_are_there_all_the_same(tmp_path: Path) -> None:
    sweep, folder = sweep_of(tmp_path)
    keep(folder, plans_of(sweep)[0], 0)
    trials, _ = find_trials(sweep, folder, Wish())
    text = track(folder, "http://127.0.0.1:9", tmp_path, trials, "")
    assert "no tracking server answers at http://127.0.0.1:9" in text
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert "there is no" in track(folder, uri, tmp_path, trials, ""), "nothing was tracked"
