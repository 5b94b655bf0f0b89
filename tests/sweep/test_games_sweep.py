"""Sweeps of games: the file, what a trial asks Ray for, the adapter, progress."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError
from rich.console import Console

from raycl.errors import UserError
from raycl.rl.benchmarks.base import build_games
from raycl.sweep import kinds
from raycl.sweep import run as sweep_run
from raycl.sweep.execution import cluster, trainable
from raycl.sweep.execution.progress import Progress
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.plan.expand import Preview
from raycl.sweep.plan.plan import TrialPlan, packed, plan_of
from raycl.sweep.record.folder import SweepFolder
from raycl.trial.checkpoint import CheckpointStore

GOOD = """\
name: demo
benchmark: {name: atari, games: [KungFuMaster, Boxing], frames: 16000, evaluation: {every: 2}}
methods:
  - finetune
  - {name: online_ewc, label: ewc}
  - blip
network: {name: atari_cnn, channels: [4, 4, 4], features: 16}
train: {envs: 8, rollout: 25}
seeds: 2
resources: {cpu: 1, env_runners: 2}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*overrides: str, smoke: bool = False, text: str = GOOD) -> spec.Sweep:
    Path("s.yaml").write_text(text)
    return spec.load(Path("s.yaml"), overrides, smoke)


# ---------------------------------------------------------------------- the file


def test_a_trial_is_a_sequence() -> None:
    sweep = load()
    assert sweep.kind is kinds.GAMES
    assert sweep.search.metric == "validation/average_performance"
    plan, *rest = expand.final_plans(sweep, {})
    assert len(rest) == 5
    assert plan.benchmark == "atari-KungFuMaster-Boxing"
    assert plan.config["train"]["gae_lambda"] == 0.95, "defaults of PPO are filled in"
    assert plan.config["benchmark"]["evaluation"]["episodes"] == 10
    assert plan.resources == {"cpu": 1.0, "gpu": 0.0, "memory": 0.0, "env_runners": 2}
    assert check_data(sweep, Path("nowhere")) == {}


def test_the_key_of_a_trial_is_what_it_was_before_games_had_a_precision() -> None:
    keys = ["84ecf8fc1aa08fb2", "2955c1490e0c2d42", "d45baa95ce5bf52c"]
    for override in ("seeds=1", "train.precision=float32"):
        plans = expand.final_plans(load("seeds=1", override), {})
        assert [plan.key for plan in plans] == keys
    plans = expand.final_plans(load("seeds=1", "train.precision=bfloat16"), {})
    assert not {plan.key for plan in plans} & set(keys)
    assert plans[0].config["train"]["precision"] == "bfloat16"


def test_a_search_over_the_precision_says_which_one_it_was() -> None:
    validated = ("benchmark.evaluation.validation_episodes=1", "seeds=1")
    sweep = load("train.precision={grid: [float32, bfloat16]}", "search.num_samples=1", *validated)
    plans = expand.search_plans(sweep)[:2]
    assert [plan.varied for plan in plans] == [
        {"train.precision": "float32"},
        {"train.precision": "bfloat16"},
    ]
    winner = {("atari-KungFuMaster-Boxing", "finetune"): plans[0].varied}
    (plan,) = expand.final_plans(sweep, winner)
    assert plan.key == expand.final_plans(load(*validated), {})[0].key


def test_the_limit_of_a_scored_game_may_be_that_of_training() -> None:
    def limit(*overrides: str) -> object:
        sweep = load("benchmark.games=SpaceInvaders", "benchmark.preset=faithful", *overrides)
        (block,) = benchmark_configs(sweep)
        env: Any = build_games(block).make(1, training=False)
        return env._playing._emulators[0].frames._max_frames

    assert limit() == 108_000
    assert limit("benchmark.evaluation.max_frames=null") == 300_000  # of the reference


def test_env_runners_are_no_part_of_a_trials_identity() -> None:
    keys = [
        [plan.key for plan in expand.final_plans(load(f"resources.env_runners={n}"), {})]
        for n in (0, 4)
    ]
    assert keys[0] == keys[1]
    assert expand.spec_hash(load()) == expand.spec_hash(load("resources.env_runners=0"))


@pytest.mark.parametrize(
    "override,expected",
    [
        ("benchmark.games=Boxin", "benchmark.games: unknown game 'Boxin'; did you mean 'Boxing'?"),
        (
            "benchmark.games=[Pong, KungfuMaster]",
            "benchmark.games: unknown game 'KungfuMaster'; did you mean 'KungFuMaster'?",
        ),
        ("benchmark.games=blib3", "unknown game 'blib3'; did you mean 'blip3'?"),
        ("benchmark.games=Qqq", "unknown game 'Qqq'; there are "),
        ("benchmark.games=[Pong, Pong]", "benchmark.games: "),
        ("benchmark.games=[]", "benchmark.games: "),
        ("benchmark.frames=0", "benchmark.frames: it should be greater than or equal to 1, not 0"),
        (
            "benchmark.frames=799",
            "benchmark.frames: must be at least 800, one update (8 envs x 25 steps x 4 frames), "
            "not 799",
        ),
        ("benchmark.preset=fats", "benchmark.preset: unknown value 'fats'; did you mean 'fast'?"),
        ("benchmark.evaluation.episodes=0", "benchmark.evaluation.episodes: "),
        (
            "benchmark.evaluation.episode=3",
            "unknown key 'episode'; did you mean 'episodes'?",
        ),
        ("benchmark.normalise={Boxing: [0, 1]}", "benchmark.normalise: KungFuMaster has no scores"),
        (
            "benchmark.normalise={Boxing: [0, 1], KungFuMaster: [3, 3]}",
            "KungFuMaster: low must be below high, not 3 and 3",
        ),
        (
            "benchmark.normalise={Boxing: [5, 1], KungFuMaster: [0, 9]}",
            "Boxing: low must be below high, not 5 and 1",
        ),
        ("benchmark.normalise={Boxing: 3}", "benchmark.normalise.Boxing: it should be a list"),
        ("benchmark.games=null", "benchmark.games: it should be a valid string, not null"),
        ("benchmark.games=BOXING", "unknown game 'BOXING'; did you mean 'Boxing'?"),
        ("benchmark.games=[ALE/Pong-v5]", "'ALE/Pong-v5'; did you mean 'Pong'?"),
        ("benchmark.games=PongNoFrameskip-v4", "; did you mean 'Pong'?"),
        (
            "benchmark.games=[blip3, Pong]",
            "unknown game 'blip3'; blip3 is a sequence, and stands alone: games: blip3",
        ),
        ("methods.blip.f_prior=0", "f_prior: it should be greater than 1e-30, not 0"),
        ("published={source: x, raw/Boxing: {blip: 3}}", "unknown readout 'raw'; valid: normal"),
        (
            "benchmark.normalise={Boxing: [0, 1], KungFuMaster: [0, 9], Kull: [0, 1]}",
            "'Kull' is none of the games",
        ),
        (
            "benchmark={name: atari, games: Adventure}",
            "nobody's score is known for Adventure; write GAME: [low, high] for each",
        ),
        (
            "benchmark.validation=0.1",
            "benchmark.validation: benchmark atari has no option 'validation'",
        ),
        ("benchmark.nam=3", "benchmark.nam: benchmark atari has no option 'nam'"),
        ("benchmark.name=atarri", "benchmark.name: unknown benchmark 'atarri'; did you mean 'atar"),
        (
            "benchmark=[{name: atari}, {name: split, dataset: digits}]",
            "benchmark[1].name: split is for images, and benchmark[0] for games",
        ),
        ("methods=[joint]", "methods[0]: unknown method 'joint'; it is for images; valid: "),
        ("methods.blip.f_prio=1", "method blip has no option 'f_prio'; did you mean 'f_prior'?"),
        ("train.epoch=3", "train.epoch: train has no option 'epoch'; did you mean 'epochs'?"),
        ("train.momentum=0.9", "train.momentum: train has no option 'momentum'"),
        ("train.minibatches=500", "train: 500 minibatches of 200 steps"),
        (
            "resources.env_runners=3",
            "resources.env_runners: 3 runners cannot share the 8 of train.envs equally; "
            "use 0, 1, 2, 4, 8",
        ),
        (
            "methods.blip.resources.env_runners=5",
            "methods[2].resources.env_runners: 5 runners cannot share",
        ),
        ("methods.blip.train.envs=9", "resources.env_runners: 2 runners cannot share the 9"),
        ("resources.env_runners=-1", "resources.env_runners: it should be greater than or equal"),
        ("resources.env_runner=1", "unknown key 'env_runner'; did you mean 'env_runners'?"),
        ("readouts=[class]", "readouts: games have no readouts to choose from"),
        (
            "report.upper_bound=finetune",
            "report.upper_bound: games have no metric that is relative to an upper bound",
        ),
        ("stop.tasks=3", "stop.tasks: 3 tasks, but atari-KungFuMaster-Boxing has 2"),
        ("fixed_seeds.class_order=1", "fixed_seeds.class_order: games have no such seed"),
        ("fixed_seeds={init: 0, data: 0}", "every seed would be the same trial"),
        (
            "train.lr={loguniform: [0.0001, 0.001]}",
            "benchmark.evaluation.validation_episodes: is 0, but methods[0] (finetune) is searched",
        ),
        (
            "search.metric=validation/average_accuracy",
            "unknown metric 'average_accuracy' on validation data; did you mean 'average_perform",
        ),
        (
            "search.metric=validation/class/forgetting",
            "unknown readout 'class'; valid: normalised",
        ),
        ("search.metric=validation/retention", "unknown metric 'retention' on validation data"),
        ("search.metric=validation/score/forgetting", "unknown readout 'score'; valid: normalis"),
        ("published={source: x, score/Krull: {blip: 3}}", "unknown metric 'Krull'"),
        ("published={source: x, score/forgetting: {blip: 3}}", "unknown metric 'forgetting'"),
        ("published={source: x, clas/forgetting: {blip: 3}}", "unknown readout 'clas'"),
        ("published={source: x, average_accuracy: {blip: 3}}", "unknown metric 'average_accuracy'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load(override)
    text = str(error.value)
    assert expected in text
    elsewhere = "train." in override  # the place that is named is not the one that was changed
    assert text.startswith("s.yaml:" if elsewhere and "--set" not in text else f"--set {override}")
    assert "\n" not in text


def test_images_have_no_env_runners() -> None:
    text = "name: x\nbenchmark: {name: split, dataset: digits}\nmethods: [finetune]\nnetwork: mlp\n"
    with pytest.raises(UserError, match=r"resources.env_runners: is for games"):
        load("resources.env_runners=1", text=text)
    with pytest.raises(UserError, match=r"unknown method 'scratch'; it is for games; valid"):
        load("methods=[scratch]", text=text)
    with pytest.raises(UserError, match=r"benchmark\[1\]: atari is for games"):
        load("benchmark=[split, atari]", text=text)


def test_a_published_score_belongs_to_a_game() -> None:
    numbers = "{source: x, score/Boxing: {blip: 80}, forgetting: {blip: 1}}"
    assert load(f"published={numbers}").published is not None


def test_games_are_searched_on_games_of_their_own() -> None:
    sweep = load(
        "benchmark.evaluation.validation_episodes=5", "methods.blip.f_prior={grid: [1e-18, 1e-17]}"
    )
    assert len(expand.search_plans(sweep)) == 2
    sweep = load("search.metric=validation/forgetting")
    assert sweep.search.mode == "min"


def test_labels_and_presets() -> None:
    def label(block: str) -> str:
        (config,) = benchmark_configs(load(f"benchmark={block}"))
        return str(config["label"])

    assert label("{name: atari}") == "atari-blip6"
    assert label("{name: atari, games: [KungFuMaster, Boxing, Jamesbond]}") == "atari-blip3"
    assert label("{name: atari, games: Pong, preset: faithful}") == "atari-Pong-faithful"
    assert label("{name: atari, games: [Pong, Krull, Boxing, Qbert]}") == "atari-4-games"
    assert label("{name: atari, label: mine}") == "mine"


def test_smoke_without_a_block() -> None:
    sweep = load(smoke=True)
    (block,) = benchmark_configs(sweep)
    assert block["frames"] == 4 * 4 * 32 * 4
    assert block["evaluation"]["episodes"] == 1
    assert (sweep.seeds, sweep.stop.tasks, sweep.resources.env_runners) == ((0,), 2, 0)
    one = GOOD.replace("[KungFuMaster, Boxing]", "Boxing")
    assert load(smoke=True, text=one).stop.tasks == 1
    own = GOOD.replace("- blip", "- {name: blip, train: {envs: 9}, resources: {env_runners: 3}}")
    method = load(smoke=True, text=own).methods[2]
    assert (method.train, method.resources) == ({"envs": 4}, {"env_runners": 0})


def test_a_class_from_outside_tells_its_kind(here: Path) -> None:
    (here / "mine.py").write_text(
        "from raycl.rl.benchmarks.atari import Atari\n\n\n"
        "class Mine(Atari):\n"
        '    """Mine."""\n\n\n'
        "class Nothing:\n"
        '    """None of ours."""\n'
    )
    assert load("benchmark.name=mine.py:Mine").kind is kinds.GAMES
    with pytest.raises(UserError, match="has no Benchmark 'Nothing'"):
        load("benchmark.name=mine.py:Nothing")


# ---------------------------------------------------------------------- resources


def preview(**resources: float) -> Preview:
    return Preview("final", "t-s0", "b", "m", 0, {}, {"cpu": 1.0, "gpu": 0.0} | resources)


def test_a_trial_asks_for_its_own_bundle_first() -> None:
    asked = {"cpu": 2.0, "gpu": 0.25, "env_runners": 2}
    assert cluster.bundles(asked) == [{"CPU": 2.0, "GPU": 0.25}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert cluster.bundles({"cpu": 0.5, "gpu": 0.0, "env_runners": 0}) == [{"CPU": 0.5}]
    from raycl.sweep.execution.stage import _request

    request = _request(
        {"plan": packed(replace(expand.final_plans(load(), {})[0], resources=asked))}
    )
    assert request.bundles == cluster.bundles(asked)
    assert request.strategy == "PACK"


@pytest.mark.parametrize(
    "nodes,runners,room",
    [
        ([{"CPU": 4.0}], 3, None),
        ([{"CPU": 4.0}], 4, "at most 3 fit"),
        ([{"CPU": 1.0}], 1, "use 0: the trial itself plays"),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 3, None),
        ([{"CPU": 1.5}, {"CPU": 1.5}], 2, "at most 1 fit"),  # half a core is of no use
        ([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}], 8, None),
    ],
)
def test_more_runners_than_cores_are_refused(
    nodes: list[dict[str, float]], runners: int, room: str | None
) -> None:
    plan = preview(env_runners=runners, gpu=float(any("GPU" in node for node in nodes)))
    if room is None:
        cluster._check([plan], nodes)
        return
    with pytest.raises(UserError) as error:
        cluster._check([plan], nodes)
    assert error.value.where == "resources.env_runners"
    assert f"asks for 1 CPUs and {runners} env runners" in error.value.what
    assert error.value.hint == room


def test_a_local_ray_is_not_started_for_too_many_runners() -> None:
    sizes = ["train.envs=1000", "train.rollout=1"]
    lines = expand.preview(load("resources.env_runners=1000", *sizes))
    with pytest.raises(UserError, match=r"resources.env_runners: .*1000 env runners of 1 each"):
        cluster.fits_here(lines)


def test_what_does_not_fit_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    text = GOOD.replace("env_runners: 2", "env_runners: 0")
    own = text.replace("- blip", "- {name: blip, resources: {env_runners: 4}}")
    for wrong, place in (
        (GOOD, "s.yaml:10: resources.env_runners: trial finetune-s0 asks for 1 CPUs and 2 env"),
        (own, "s.yaml:6: methods[2].resources.env_runners: trial blip-s0 asks for 1 CPUs and 4"),
    ):
        sweep = load(text=wrong)
        folder = SweepFolder(Path("runs"), "demo")
        with pytest.raises(UserError) as error:
            sweep_run.Execution(sweep, folder, "local", None, "sqlite:///x.db").run()
        assert str(error.value).startswith(place)


# ---------------------------------------------------------------------- the adapter


class FakeRun:
    """Two games of three rows, with the interface of ``SequenceRun``."""

    failures: ClassVar[list[Exception]] = []

    def __init__(self, config: Any, device: str, env_runners: int) -> None:
        self.position, self.closed, self.asked = 0, False, (device, env_runners)
        self.last_row: dict[str, Any] = {}

    @property
    def done(self) -> bool:
        return self.position == 6

    @property
    def progress(self) -> int:
        return 1000 * self.position

    def advance(self) -> dict[str, Any]:
        if FakeRun.failures and self.position == 4:
            raise FakeRun.failures.pop()
        task = self.position // 3
        self.position += 1
        end = self.position % 3 == 0
        self.last_row = {"task": task, "at_task_end": end, "progress": self.progress}
        self.last_row |= {"tasks_done": self.position // 3, "finished": self.done}
        return dict(self.last_row)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "weights": torch.zeros(2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def keepsake(self) -> dict[str, Any]:
        return {"game": self.position // 3 - 1, "policy": torch.ones(2)}

    exact = True

    def picture_files(self) -> dict[str, bytes]:
        return {}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that were built, instead of RLlib's."""
    found: list[FakeRun] = []

    def build(config: Any, device: str, env_runners: int) -> FakeRun:
        found.append(FakeRun(config, device, env_runners))
        return found[-1]

    module = ModuleType("raycl.rl.sequence")
    monkeypatch.setattr(module, "SequenceRun", build, raising=False)
    monkeypatch.setitem(sys.modules, "raycl.rl.sequence", module)
    return found


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable, "report", lambda row, settings: found.append(row))
    return found


@pytest.fixture
def settings(tmp_path: Path) -> trainable.Settings:
    return trainable.Settings(str(tmp_path / "store"), 1e9, 2, "validation/x", "max")


def a_trial() -> dict[str, Any]:
    plan: TrialPlan = expand.final_plans(load(), {})[0]
    return {"plan": packed(plan)}


def test_the_policy_after_each_game_is_kept(
    made: list[FakeRun], reports: list[dict[str, Any]], settings: trainable.Settings
) -> None:
    trainable.trial(a_trial(), {}, settings)
    (run,) = made
    assert run.closed
    assert run.asked == ("cpu", 2)
    store = CheckpointStore(f"{settings.storage}/{plan_of(a_trial()).key}")
    assert [store.get(f"after-0{i}")["game"] for i in (0, 1)] == [0, 1]  # type: ignore[index]
    assert store.get("after-02") is None
    assert [row["progress"] for row in reports if row["at_task_end"]] == [3000, 6000]
    assert "failed" not in reports[-1]


@pytest.mark.parametrize("units", [True, False])
def test_a_device_that_has_to_emulate_bfloat16_is_told_of_once(
    made: list[FakeRun],
    reports: list[dict[str, Any]],
    settings: trainable.Settings,
    monkeypatch: pytest.MonkeyPatch,
    units: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    for precision in ("float32", "bfloat16"):
        plan = expand.final_plans(load(f"train.precision={precision}"), {})[0]
        trainable.trial({"plan": packed(plan)}, {}, settings)
        assert reports[-1]["finished"]
    notes = [row["note"] for row in reports if "note" in row]
    wanted = "computes bfloat16 on a device without units for it: float32 would be faster"
    assert notes == ([] if units else [wanted])


def test_lost_runners_are_for_tune_to_retry_and_the_retry_goes_on(
    made: list[FakeRun], reports: list[dict[str, Any]], settings: trainable.Settings
) -> None:
    FakeRun.failures.append(ActorDiedError())
    with pytest.raises(ActorDiedError):
        trainable.trial(a_trial(), {}, settings)
    assert made[0].closed
    trainable.trial(a_trial(), {}, settings)
    assert "continues from" in next(row["note"] for row in reports if "note" in row)
    assert reports[-1]["finished"]
    assert "continued" not in reports[-1]["made"]
    ends = [row["progress"] for row in reports if row.get("at_task_end") and "note" not in row]
    assert ends == [3000, 6000]


def test_a_trial_that_was_disturbed_says_so(
    made: list[FakeRun],
    reports: list[dict[str, Any]],
    settings: trainable.Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other code, versions or devices on the way, or a game begun anew, are never forgotten."""
    FakeRun.failures.append(ActorDiedError())
    with pytest.raises(ActorDiedError):
        trainable.trial(a_trial(), {}, settings)
    other = replace(settings, made={"data": "a 0123456789ab", "split": "other"})
    FakeRun.failures.append(ActorDiedError())
    with pytest.raises(ActorDiedError):
        trainable.trial(a_trial(), {}, other)
    trainable.trial(a_trial(), {}, other)
    assert reports[-1]["made"]["continued"] == "with other split"
    reports.clear()
    monkeypatch.setattr(FakeRun, "exact", False)
    trainable.trial(a_trial(), {}, replace(settings, storage=f"{settings.storage}-b"))
    assert reports[-1]["made"]["continued"] == "inside a game, which began anew"


def test_a_worker_with_other_files_of_raycl_trains_nothing(
    made: list[FakeRun], reports: list[dict[str, Any]], settings: trainable.Settings
) -> None:
    trainable.trial(a_trial(), {}, replace(settings, made={"code": "raycl 0 (0123456789ab)"}))
    assert reports == [{"unkept": "files of raycl changed since the sweep was started"}]
    assert made[0].position == 0


def test_an_error_in_a_runner_is_not_retried(
    made: list[FakeRun], reports: list[dict[str, Any]], settings: trainable.Settings
) -> None:
    cause = ValueError("action 7 of Boxing")
    FakeRun.failures.append(RayTaskError("f", "text", cause))
    trainable.trial(a_trial(), {}, settings)
    assert reports[-1]["failed"].startswith("RayTaskError: ")
    assert "in _advance" in reports[-1]["traceback"]
    assert made[0].closed


def test_what_is_lost() -> None:
    assert trainable.lost(ActorDiedError())
    assert not trainable.lost(ValueError())
    assert not trainable.lost(RayTaskError("f", "text", ValueError()))
    assert trainable.lost(RayTaskError("f", "text", ActorDiedError()))


# ---------------------------------------------------------------------- progress


def test_progress_speaks_of_games() -> None:
    buffer = io.StringIO()
    console = Console(file=buffer, width=120)
    plan = expand.final_plans(load(), {})[0]
    progress = Progress(console, 1, 0, 2, "trials", kinds.GAMES.shown)
    row: dict[str, Any] = {"task": 1, "phase": "Boxing", "epoch": 119, "updates": 500}
    row |= {"train/return": 23.456, "time/steps_per_s": 1234.5}
    assert kinds.GAMES.shown.where(row, 2) == "game 2/2 Boxing update 120/500 (return 23.5)"
    assert kinds.GAMES.shown.where({}, 2) == "starting"
    assert kinds.GAMES.shown.cells(row, 2) == ["2/2", "Boxing", "120/500", "23.5", "1,234"]
    progress.started(plan)
    progress.row(plan, row)
    console.print(progress._render())
    result = {"metrics": {"normalised": {"average_performance": 12.34}, "score": {}}}
    progress.ended(plan, "finished", row | {"result": result}, "")
    shown = buffer.getvalue()
    for part in ("update", "Boxing", "120/500", "average performance 12.3 % of the reference"):
        assert part in shown
