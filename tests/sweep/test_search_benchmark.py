"""``search: {benchmark: ...}``: values are chosen on one stream, and reported on another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sweep_making import load

from raycl import datasets
from raycl.cli import main
from raycl.datasets.base import DatasetConfig
from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data, data_of
from raycl.sweep.record.made_of import MadeOf
from raycl.testing import finish
from raycl.training.run import Run

PLAIN = """\
name: demo
benchmark: {name: split, dataset: digits, tasks: 5}
methods: [finetune, {name: online_ewc, lam: {loguniform: [1, 10]}}]
network: {name: mlp, hidden: [32]}
train: {epochs: 2, lr: 0.05}
fixed_seeds: {class_order: 7}
search: {num_samples: 2, seeds: 2}
"""
OTHER = "search.benchmark={name: permuted, dataset: digits, tasks: 3}"
GAMES = """\
name: demo
benchmark: {name: atari, games: [Pong, Boxing], frames: 100000}
methods: [{name: online_ewc, lam: {loguniform: [1, 10]}}]
network: {name: atari_cnn}
search:
  benchmark:
    name: atari
    games: [Breakout]
    frames: 100000
    evaluation: {validation_episodes: 5}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_search_trials_are_of_the_other_stream_and_the_others_are_not() -> None:
    plain, sweep = load(PLAIN), load(PLAIN, OTHER)
    search, before = expand.search_plans(sweep), expand.search_plans(plain)
    assert len(search) == len(before) == 4
    for plan in search:
        assert plan.benchmark == "permuted-digits-3"
        assert (plan.config["benchmark"]["name"], plan.config["benchmark"]["tasks"]) == (
            "permuted",
            3,
        )
        assert plan.config["fixed_seeds"]["class_order"] is None
        assert plan.config["seed"] in sweep.search_seeds()
    assert {plan.key for plan in search}.isdisjoint(plan.key for plan in before)
    won = {("permuted-digits-3", "online_ewc"): {"method.lam": 3.0}}
    finals = expand.final_plans(sweep, won)
    assert finals == expand.final_plans(
        plain, {("split-digits-5", "online_ewc"): {"method.lam": 3.0}}
    )
    assert {plan.config["fixed_seeds"]["class_order"] for plan in finals} == {7}
    assert expand.searches(sweep) == {
        ("split-digits-5", "online_ewc"): ("permuted-digits-3", "online_ewc")
    }
    assert expand.spec_hash(sweep) != expand.spec_hash(plain)
    again = expand.spec_hash(load(PLAIN, OTHER, "search.benchmark.tasks=4"))
    assert again != expand.spec_hash(sweep)
    assert spec.Sweep.model_validate(sweep.resolved()).resolved() == sweep.resolved()


def test_one_search_is_enough_for_several_benchmarks() -> None:
    several = "benchmark=[{name: split, tasks: 5}, {name: split, tasks: 2}]"
    sweep = load(PLAIN, OTHER, several)
    assert len(expand.search_plans(sweep)) == 4
    finals = expand.final_plans(sweep, {("permuted-digits-3", "online_ewc"): {"method.lam": 3.0}})
    winners = [plan for plan in finals if plan.kind == "winner"]
    assert {plan.benchmark for plan in winners} == {"split-digits-5", "split-digits-2"}


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_the_list_of_trials_says_which_stream(
    algorithm: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("s.yaml").write_text(PLAIN)
    words = ["--set", OTHER, "--set", f"search.algorithm={algorithm}", "--set", "search.seeds=1"]
    monkeypatch.setattr(sys, "argv", ["raycl", "run", "s.yaml", *words, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[2] for line in lines if line.startswith("search")} == {"permuted-digits-3"}
    assert {line.split()[2] for line in lines if line.startswith("final")} == {"split-digits-5"}


def test_trials_of_the_search_see_the_other_data_only() -> None:
    """Both streams are checked and loaded; a search trial gets, and needs, its own data alone."""
    glyphs = "search.benchmark={name: split, dataset: glyphs, tasks: 2, label: tuning}"
    sweep = load(
        PLAIN, glyphs, "train.epochs=1", "search.benchmark.dataset={name: glyphs, limit: 20}"
    )
    both = check_data(sweep, Path("data"))
    other = data_of(sweep.for_search, both)
    main_key = datasets.key(DatasetConfig(name="digits"))
    assert main_key in both
    assert set(data_of(sweep, both)) == {main_key}
    assert set(both) == {main_key, *other}
    assert main_key not in other
    plan = expand.search_plans(sweep)[0]
    run = Run(plan.config, other)
    assert run.stream.info.num_outputs == 64
    assert finish(run)["validation_metrics"]["class"]["average_accuracy"] >= 0
    final = expand.final_plans(sweep, {})[0]
    with pytest.raises(KeyError):
        Run(final.config, other)
    assert len(MadeOf.of(sweep, Path("data"), Path()).data) == 2


@pytest.mark.parametrize(
    "text, overrides, expected",
    [
        (PLAIN, ["search.benchmark=splt"], "search.benchmark: unknown benchmark 'splt'"),
        (
            PLAIN,
            [OTHER, "search.benchmark.taks=3"],
            "search.benchmark.taks: benchmark permuted has",
        ),
        (
            PLAIN,
            [OTHER, "search.benchmark.dataset=digit"],
            "search.benchmark.dataset: unknown data set 'digit'; did you mean 'digits'?",
        ),
        (
            PLAIN,
            ["search.benchmark={name: split, tasks: 5, class_order: none}"],
            "search.benchmark.label: the label 'split-digits-5' is taken by benchmark[0]; give",
        ),
        (
            PLAIN,
            [OTHER, "search.benchmark.validation=0"],
            "search.benchmark.validation: is 0, but methods[1] (online_ewc) is searched on",
        ),
        (
            PLAIN,
            ["search.benchmark={name: atari, games: [Pong], frames: 100000}"],
            "search.benchmark.name: atari is for games, and benchmark[0] for images",
        ),
        (PLAIN, [OTHER, "methods=[finetune]"], "search.benchmark: no value is searched"),
        (
            PLAIN,
            [OTHER, "search.benchmark.tasks={grid: [2, 3]}"],
            "search.benchmark.tasks: a search space is for methods, network and train",
        ),
        (
            GAMES,
            ["search.benchmark.frames=100"],
            "search.benchmark.frames: must be at least",
        ),
        (
            GAMES,
            ["search.benchmark.evaluation.validation_episodes=0"],
            "search.benchmark.evaluation.validation_episodes: is 0, but methods[0] (online_ewc)",
        ),
        (
            GAMES,
            ["search.protocol=first_tasks", "search.tasks=2"],
            "search.tasks: 2 tasks, but",
        ),
    ],
)
def test_it_is_refused_as_the_sweeps_own_would_be(
    text: str, overrides: list[str], expected: str
) -> None:
    with pytest.raises(UserError) as refused:
        load(text, *overrides)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([OTHER, "search.benchmark.dataset=mnist"], "search.benchmark.dataset"),
        (["search.benchmark={name: split, tasks: 11, label: a}"], "search.benchmark.tasks"),
        ([OTHER, "search.metric=validation/class/average_accuracy"], "search.metric"),
        (
            [OTHER, "search.protocol=first_tasks", "search.tasks=4"],
            "search.tasks: 4 tasks, but perm",
        ),
    ],
)
def test_its_data_are_checked_like_the_sweeps_own(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=r".") as refused:
        check_data(load(PLAIN, *overrides), Path("data"))
    assert expected in str(refused.value)


def test_what_only_the_sweeps_own_stream_needs_is_not_asked_of_the_other() -> None:
    first = "search={protocol: first_tasks, tasks: 4, benchmark: {name: permuted, tasks: 4}}"
    sweep = load(PLAIN, first, "benchmark.tasks=2", "benchmark.validation=0")
    assert check_data(sweep, Path("data"))
    assert {plan.config["tasks"] for plan in expand.search_plans(sweep)} == {4}
    stopped = load(PLAIN, OTHER, "stop.tasks=5")
    assert check_data(stopped, Path("data"))


def test_smoke_makes_the_other_stream_small_too() -> None:
    sweep = load(PLAIN, OTHER, smoke=True)
    assert {plan.config["tasks"] for plan in expand.search_plans(sweep)} == {2}
    games = load(GAMES, smoke=True)
    own, other = games.benchmark[0], games.search.benchmark
    assert other is not None
    assert own["frames"] == other["frames"] < 100000
    assert other["evaluation"]["validation_episodes"] == 1
