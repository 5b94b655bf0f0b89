"""The JSON schema editors use accepts our sweep files and marks wrong ones where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from raycl import blocks
from raycl.sweep.file import json_schema, spec
from raycl.sweep.file.json_schema import schema
from raycl.sweep.file.source import read, read_text
from raycl.sweep.plan import expand

jsonschema = pytest.importorskip("jsonschema", reason="comes with MLflow, not required by raycl")

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").rglob("*.yaml"))
GOOD = """\
name: demo
benchmark: [{name: split, dataset: digits}, {name: permuted, dataset: {name: mnist, limit: 5}}]
methods:
  - finetune
  - {name: online_ewc, lam: {loguniform: [1, 10]}, train: {lr: {grid: [0.1, 0.2]}}}
  - {name: "file.py:Mine", anything: 3}
network: {name: mlp, hidden: [{choice: [10, 20]}]}
train: {schedule: {name: {choice: [constant, cosine]}}}
seeds: [1, 2]
scheduler: asha
search: {num_samples: 3}
"""


@pytest.fixture(scope="module")
def validator():
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(made)))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_our_sweeps_are_valid(validator, path):
    assert [e.json_path for e in validator.iter_errors(read(path).data)] == []


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
@pytest.mark.parametrize("smoke", [False, True])
def test_what_is_kept_of_our_sweeps_can_be_read_again(path, smoke, tmp_path):
    """``raycl resume`` and ``raycl gif`` read the complete sweep, its ``smoke`` block included."""
    sweep = spec.load(path, (), smoke)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep.resolved(), sort_keys=False))
    assert expand.spec_hash(spec.load(tmp_path / "sweep.yaml")) == expand.spec_hash(sweep)


GAMES = """\
name: demo
benchmark: {name: atari, games: [Pong], frames: 16000, evaluation: {every: 2}}
methods: [finetune, {name: blip, f_prior: {loguniform: [1.0e-18, 1.0e-16]}, train: {envs: 8}}]
network: {name: atari_cnn, channels: [4, 8, 8]}
train: {gamma: 0.99}
resources: {env_runners: 2}
"""


@pytest.mark.parametrize(
    "old, new, place",
    [
        ("", "", None),
        ("gamma:", "momentum:", "$.train"),
        ("0.99", "2", "$.train.gamma"),
        ("f_prior", "f_prio", "$.methods[1]"),
        ("envs: 8", "epoch: 8", "$.methods[1]"),
        ("finetune", "joint", "$.methods[0]"),
        ("env_runners: 2", "env_runners: -1", "$.resources.env_runners"),
    ],
)
def test_games_have_methods_and_training_of_their_own(validator, old, new, place):
    found = validator.iter_errors(read_text(GAMES.replace(old, new, 1), "x").data)
    places = [e.json_path for e in found]
    assert places == [] if place is None else place in places


def test_every_form_is_valid(validator):
    short = GOOD.replace("finetune", "{name: finetune, network: cnn}", 1)
    for text in (GOOD, short):
        assert [e.json_path for e in validator.iter_errors(read_text(text, "x").data)] == []


@pytest.mark.parametrize(
    "old, new, place",
    [
        ("seeds:", "sedes:", "$"),
        ("seeds: [1, 2]", "seeds: many", "$.seeds"),
        ("lam:", "lamb:", "$.methods[1]"),
        ("[0.1, 0.2]", "[]", "$.methods[1]"),
        ("finetune", "fintune", "$.methods[0]"),
        ("name: mlp", "name: mpl", "$.network"),
        ("name: split", "name: splt", "$.benchmark"),
        ("{schedule:", "{lr: -1, schedule:", "$.train.lr"),
        ("num_samples: 3", "num_samples: 0", "$.search.num_samples"),
        ("asha", "pbt", "$.scheduler"),
        ("name: demo\n", "", "$"),
    ],
)
def test_wrong_files_are_marked(validator, old, new, place):
    data = read_text(GOOD.replace(old, new, 1), "x").data
    assert place in [e.json_path for e in validator.iter_errors(data)]


def test_editors_know_all_search_spaces() -> None:
    """The sweep file, and its JSON schema for editors."""
    in_schema = [next(iter(one["properties"])) for one in json_schema._space()["anyOf"]]
    assert sorted(in_schema) == sorted(blocks.SPACES)
