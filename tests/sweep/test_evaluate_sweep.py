"""``evaluate: {limit, every, precision}`` in a sweep file: what is refused, and what trials get."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_making import load

from raycl.cli import main
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import fill
from raycl.training.config import TrialConfig

IMAGES = """\
name: demo
benchmark: {name: split, tasks: 5}
methods: [finetune, {name: online_ewc, lam: {loguniform: [1, 10]}}]
network: {name: mlp, hidden: [32]}
train: {epochs: 2, lr: 0.05}
"""
GAMES = """\
name: demo
benchmark: {name: atari, games: [Pong, Boxing], frames: 100000}
methods: [finetune]
network: {name: atari_cnn}
"""
WINNER = {("split-digits-5", "online_ewc"): {"method.lam": 3.0}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text, override, expected",
    [
        (IMAGES, "evaluate.limit=0", "evaluate.limit: it should be greater than or equal to 1"),
        (IMAGES, "evaluate.every=0", "evaluate.every: it should be greater than or equal to 1"),
        (IMAGES, "evaluate.evry=2", "evaluate.evry: unknown key 'evry'; did you mean 'every'?"),
        (
            IMAGES,
            "evaluate.precision=bfloat16",
            "evaluate.precision: methods[0] (finetune) is trained in float32; set train.precision",
        ),
        (
            GAMES,
            "evaluate.limit=10",
            "evaluate.limit: is for images; games have benchmark.evaluation (episodes, every)",
        ),
        (GAMES, "evaluate.every=2", "evaluate.every: is for images; games have"),
        (GAMES, "evaluate.precision=bfloat16", "evaluate.precision: is for images; games have"),
        (GAMES, "evaluate.cache_mb=0", "evaluate.cache_mb: is for images; games have"),
    ],
)
def test_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    override: str,
    expected: str,
) -> None:
    Path("s.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["raycl", "run", "s.yaml", "--set", override, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error


def test_it_is_part_of_the_key_where_it_is_asked_for() -> None:
    plain = expand.final_plans(load(IMAGES), WINNER)
    for same in ("evaluate={limit: null, every: 1}", "evaluate.precision=float32"):
        assert expand.final_plans(load(IMAGES, same), WINNER) == plain
    keys = {plan.key for plan in plain}
    for other in ("evaluate.limit=500", "evaluate.limit=501", "evaluate.every=2"):
        sweep = load(IMAGES, other)
        plans = expand.final_plans(sweep, WINNER)
        assert keys.isdisjoint(plan.key for plan in plans)
        keys |= {plan.key for plan in plans}
        assert TrialConfig.model_validate(plans[0].config).evaluate == sweep.evaluate
        assert expand.spec_hash(sweep) != expand.spec_hash(load(IMAGES))


ALL = "evaluate={limit: 500, every: 10, precision: bfloat16, probe: {}, cache_mb: 5}"
ROUNDED = "train.precision=bfloat16"


@pytest.mark.parametrize(
    "further, every",
    [
        ([], True),
        (["scheduler=asha"], False),
        (["scheduler=median"], False),
        (["search.metric=validation/backward_transfer"], True),
        (["search.metric=validation/forgetting"], False),
        (["search.algorithm=optuna"], True),
    ],
)
def test_a_search_measures_the_rows_that_it_reads(further: list[str], every: bool) -> None:
    sweep = load(IMAGES, ALL, ROUNDED, *further)
    group = next(g for g in expand.groups(sweep) if g.spaces)
    expected = {"limit": 500, "precision": "bfloat16", "cache_mb": 5}
    expected |= {"every": 10} if every else {}
    base = expand.search_base(sweep, group)
    assert base.config["evaluate"] == expected
    less = replace(base, config=base.config | {"evaluate": expected | {"cache_mb": 6}})
    values = expand.first_values(group.spaces)
    keys = {fill(one, values, 0, "search").key for one in (base, less)}
    assert len(keys) == 1, "the cache changes no bit, and search trials had no such option once"
    assert set(group.base.config["evaluate"]) == {
        "limit",
        "every",
        "precision",
        "probe",
        "cache_mb",
    }


def test_one_method_in_float32_is_enough_to_refuse() -> None:
    assert load(IMAGES, ROUNDED, "evaluate.precision=bfloat16").evaluate.precision == "bfloat16"
    with pytest.raises(Exception, match=r"methods\[1\] \(online_ewc\) is trained in float32"):
        load(IMAGES, ROUNDED, "evaluate.precision=bfloat16", "methods[1].train.precision=float32")
