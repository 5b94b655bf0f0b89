"""``evaluate`` and ``class_outputs`` in a sweep file: what is refused, and what trials get."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sweep_making import load

from raycl.cli import main
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.plan import expand
from raycl.training.config import TrialConfig

IMAGES = """\
name: demo
benchmark: {name: split, tasks: 5}
methods: [finetune, {name: online_ewc, lam: 5.0}]
network: {name: mlp, hidden: [32]}
train: {epochs: 2, lr: 0.05}
"""
GAMES = """\
name: demo
benchmark: {name: atari, games: [Pong, Boxing], frames: 100000}
methods: [finetune]
network: {name: atari_cnn}
"""
BARE = """\
from raycl.methods.base import Method
from raycl.methods.finetune import Finetune

class Bare(Finetune):
    features = Method.features
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bare.py").write_text(BARE)


@pytest.mark.parametrize(
    "text, override, expected",
    [
        (IMAGES, "evaluate.prob={}", "evaluate.prob: unknown key 'prob'; did you mean 'probe'?"),
        (IMAGES, "evaluate.probe.evry=end", "evaluate.probe.evry: unknown key 'evry'"),
        (
            IMAGES,
            "evaluate.probe.every=tasks",
            "evaluate.probe.every: unknown value 'tasks'; did you mean 'task'?",
        ),
        (IMAGES, "evaluate.probe.l2=0", "evaluate.probe.l2: it should be greater than 0, not 0"),
        (IMAGES, "evaluate.probe=end", "evaluate.probe: it should be a mapping, not 'end'"),
        (GAMES, "evaluate.probe={}", "evaluate.probe: games have no features for a linear probe"),
        (
            IMAGES.replace("finetune", "bare.py:Bare"),
            "evaluate.probe={}",
            "evaluate.probe: methods[0] (Bare) has no features to read; give its class a method",
        ),
        (
            IMAGES,
            "search.metric=validation/probe/class/average_accuracy",
            "search.metric: 'probe/class' is a diagnostic on test data, by which nothing may be "
            "selected; validation/class/average_accuracy is of the method itself",
        ),
        (
            IMAGES,
            "published={source: x, probe/class/average_accuracy: {finetune: 1}}",
            "published.probe/class/average_accuracy: unknown readout 'probe/class'",
        ),
        (IMAGES, "readouts=[probe/class]", "readouts[0]: unknown value 'probe/class'"),
        (
            IMAGES,
            "benchmark.class_outputs=every",
            "benchmark.class_outputs: unknown value 'every'; valid: all, seen",
        ),
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
    arguments = ["run", "s.yaml", "--set", override, "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["raycl", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert expected in error


def test_trials_get_it_only_where_it_is_asked_for() -> None:
    plain = load(IMAGES)
    assert plain.evaluate.probe is None
    assert load(IMAGES, "evaluate={}").evaluate == plain.evaluate
    plans = expand.final_plans(plain, {})
    assert all("evaluate" not in plan.config for plan in plans)
    asked = load(IMAGES, "evaluate.probe={}")
    assert spec.Sweep.model_validate(asked.resolved()).resolved() == asked.resolved()
    probes = expand.final_plans(asked, {})
    for before, plan in zip(plans, probes, strict=True):
        assert plan.config.pop("evaluate") == {"probe": {"every": "end", "l2": 1e-4}}
        assert plan.config == before.config
        assert plan.key != before.key
    assert expand.spec_hash(asked) != expand.spec_hash(plain)
    every = load(IMAGES, "evaluate.probe={every: task, l2: 0.5}")
    trial = TrialConfig.model_validate(expand.final_plans(every, {})[0].config)
    assert trial.evaluate == every.evaluate


def test_a_search_does_without() -> None:
    sweep = load(IMAGES, "evaluate.probe={}", "train.lr={grid: [0.1, 0.01]}")
    searched = expand.search_plans(sweep)
    assert searched
    assert all("evaluate" not in plan.config for plan in searched)
    won = {(p.benchmark, p.method): p.varied for p in searched}
    assert all("evaluate" in plan.config for plan in expand.final_plans(sweep, won))


def test_published_numbers_of_a_probe() -> None:
    published = "published={source: x, probe/class/average_accuracy: {finetune: 1}}"
    assert load(IMAGES, "evaluate.probe={}", published).published


def test_the_label_says_which_outputs_compete() -> None:
    sweep = load(IMAGES, "benchmark=[split, {name: split, class_outputs: all}]")
    labels = [config["label"] for config in benchmark_configs(sweep)]
    assert labels == ["split-digits-5", "split-digits-5-all-outputs"]
