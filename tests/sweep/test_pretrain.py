"""`raycl pretrain`: the file it writes, and what is said of trials that start from it.

Trials are run in this process, as Ray would run them; `tests/end_to_end` has the real thing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from raycl import pretrain
from raycl.cli import main
from raycl.errors import UserError
from raycl.networks._hub import LOADED
from raycl.networks.base import weights_of
from raycl.report.load import TrackedRun
from raycl.report.notes import pretrained_notes
from raycl.report.published import join_published
from raycl.sweep.file import spec
from raycl.sweep.kinds import images
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.record import made_of
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.outcomes import Outcome
from raycl.sweep.record.provenance import Provenance
from raycl.training import check
from raycl.training.pretrained import KEY, about, read_about
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.weights import build_network

Cli = Callable[..., tuple[int, str, str]]
NETWORK = {"name": "mlp", "hidden": [16]}
SWEEP = {
    "name": "pre",
    "benchmark": {
        "name": "split",
        "dataset": {"name": "digits", "part": {"of": 2, "take": 0}},
        "tasks": 1,
        "validation": 0,
    },
    "methods": [{"name": "regress_features", "source": {"name": "mlp", "hidden": [8]}}],
    "network": NETWORK,
    "train": {"epochs": 1, "batch_size": 50},
    "evaluate": {"probe": {"l2": 0.01}},
}


class InProcess:
    """One trial without Ray, in place of ``Execution``."""

    accepted: list[bool] = []

    def __init__(
        self,
        sweep: Any,
        folder: SweepFolder,
        address: Any,
        root: Path,
        uri: Any,
        accept_changes: bool = False,
    ) -> None:
        self.accepted.append(accept_changes)
        self.sweep, self.folder, self.root = sweep, folder, root
        self.storage = folder.storage(None)
        self.data: Any = {}

    def run(self) -> int:
        self.data = check_data(self.sweep, self.root)
        for plan in expand.final_plans(self.sweep, {}):
            store = CheckpointStore(f"{self.storage}/{plan.key}")
            if plan.key not in self.folder.outcomes:
                LOADED.clear()
                run = images.build(plan.config, self.data, "cpu", {})
                while not run.done:
                    row = run.advance()
                row[made_of.MADE] = {
                    "data": made_of.data(self.data),
                    "weights": made_of.process("cpu").get("weights", ""),
                }
                store.save(run.state_dict(), run.progress)
                self.folder.outcomes.add(Outcome.of(plan, "finished", row, ""))
        return 0


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RAYCL_DATA", "RAYCL_RUNS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(pretrain, "Execution", InProcess)
    return tmp_path


@pytest.fixture
def cli(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str, **changes: Any) -> tuple[int, str, str]:
        write(root, **changes)
        monkeypatch.setattr(sys, "argv", ["raycl", "pretrain", "sweep.yaml", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def write(root: Path, **changes: Any) -> Path:
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
    return path


def stream(root: Path, network: Any, take: int, **changes: Any) -> spec.Sweep:
    """A sweep that starts from such weights, on one of the two halves."""
    benchmark = SWEEP["benchmark"] | {  # type: ignore[operator]
        "dataset": {"name": "digits", "part": {"of": 2, "take": take}},
        "tasks": 5,
    }
    changes = {"name": "s", "benchmark": benchmark, "methods": ["finetune"]} | changes
    return spec.load(write(root, network=network, **changes))


def test_the_printed_block_starts_a_network_with_what_was_learnt(root: Path, cli: Cli) -> None:
    code, out, err = cli()
    assert code == 0, err
    assert "pre.safetensors: 723 images seen" in err.replace("\n", "")
    assert "probe/class" in err
    block = yaml.safe_load(out)["network"]
    assert block["weights"]["file"] == "pre.safetensors"
    assert len(block["weights"]["mean"]) == 1
    network = build_network(block, (1, 8, 8))
    (plan,) = expand.final_plans(spec.load(write(root)), {})
    state = CheckpointStore(f"{root}/pre/trials/{plan.key}").load()
    assert state is not None
    for name, value in network.state_dict().items():
        assert torch.equal(value, state.state["method"][f"backbone.{name}"])
    with safe_open(root / "pre.safetensors", "np") as file:
        assert set(file.keys()) == set(network.state_dict()), "neither head nor projection"
        assert list(file.metadata()) == [KEY]
        told = json.loads(file.metadata()[KEY])
    assert told["recipe"] == json.loads(json.dumps(plan.config))
    assert told["source"] == "", "random weights"
    assert told["count"] == 723
    assert told["origin"] == "pretrain"
    assert 0 <= told["accuracy"]["probe/class"] <= 100


def test_writing_again_gives_the_same_file_and_another_one_is_not_overwritten(
    root: Path, cli: Cli
) -> None:
    path = root / "pre.safetensors"
    assert cli()[0] == 0
    before = path.read_bytes()
    assert cli()[0] == 0
    assert path.read_bytes() == before
    code, _, err = cli(train={"epochs": 2, "batch_size": 50}, name="other")
    assert code == 0, err
    code, _, err = cli("--out", str(path), train={"epochs": 2, "batch_size": 50}, name="other")
    assert code == 2
    assert "is there, and is no weights file of trial" in err
    assert path.read_bytes() == before
    assert not list(root.glob(".*tmp"))


def test_checkpoints_that_are_damaged_or_gone_are_told_in_one_line(root: Path, cli: Cli) -> None:
    assert cli()[0] == 0
    (plan,) = expand.final_plans(spec.load(write(root)), {})
    trials = root / "pre" / "trials" / plan.key
    hint = f"remove {trials} and {root}/pre/outcomes/{plan.key}.json, and the trial runs again"
    (path,) = trials.glob("step-*.pt")
    path.write_bytes(b"torn")
    code, _, err = cli()
    what = f"error: raycl pretrain: trial {plan.key}: every checkpoint is damaged: {path}; "
    assert (code, err) == (2, f"{what}{hint}\n")
    path.unlink()
    code, _, err = cli()
    assert (code, err.partition("; ")[2]) == (2, f"{hint}\n")


def test_a_storage_that_does_not_answer_is_told_in_one_line(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli()[0] == 0

    def away(_: CheckpointStore) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(CheckpointStore, "load", away)
    code, _, err = cli()
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: storage: {root}/pre/trials/")
    assert err.endswith(" cannot be used: timed out\n")


def test_changes_are_accepted_as_by_raycl_run(cli: Cli) -> None:
    assert cli("--accept-changes")[0] == 0
    assert InProcess.accepted[-1] is True
    assert cli()[0] == 0
    assert InProcess.accepted[-1] is False


def test_one_of_several_trials(root: Path, cli: Cli) -> None:
    code, _, err = cli(seeds=2)
    assert code == 2
    assert "--trial: the sweep has 2 trials, and one makes the file; give --seed, or" in err
    _, second = expand.final_plans(spec.load(write(root, seeds=2)), {})
    assert cli("--trial", second.key, seeds=2)[0] == 0
    found = read_about(root / "pre.safetensors")
    assert found is not None
    assert (found.trial, found.recipe["seed"]) == (second.key, 1)
    code, _, err = cli("--trial", "beef", seeds=2)
    assert code == 2
    assert "no trial 'beef'; valid: " in err
    code, _, err = cli("--seed", "1", "--out", "s1.safetensors", seeds=2, name="single")
    assert code == 0, err
    found = read_about(root / "s1.safetensors")
    assert found is not None
    assert found.recipe["seed"] == 1


@pytest.mark.parametrize(
    "arguments,changes,message",
    [
        (
            (),
            {"methods": ["lwf"]},
            "lwf makes no weights for others; a sweep for raycl pretrain has",
        ),
        (
            (),
            {
                "train": {"lr": {"loguniform": [0.01, 0.1]}},
                "benchmark": SWEEP["benchmark"] | {"validation": 0.2},  # type: ignore[operator]
            },
            "methods: raycl pretrain takes a sweep without search spaces",
        ),
        (
            (),
            {"methods": ["finetune"], "network": {"name": "sequence", "of": [NETWORK]}},
            "network.name: sequence stands for several networks, and raycl pretrain writes one",
        ),
        (("--out", "x.pt"), {}, "--out: 'x.pt' does not end in .safetensors"),
        (("--out", "no/x.safetensors"), {}, "--out: there is no folder"),
        (("--out", "~ghost/x.safetensors"), {}, "--out: '~ghost/x.safetensors' begins"),
    ],
)
def test_refused_before_any_work(
    cli: Cli, root: Path, arguments: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    code, _, err = cli(*arguments, **changes)
    assert code == 2
    assert message in err
    assert not (root / "pre").exists()


def test_games_are_refused() -> None:
    sweep = Path(__file__).parents[2] / "sweeps" / "atari" / "quick.yaml"
    with pytest.raises(UserError, match=r"benchmark.*name: raycl pretrain trains .* for images"):
        pretrain._chosen(spec.load(sweep, ["methods=[finetune]"]), None)


def test_the_block_of_a_network_from_a_hub_starts_from_the_file_alone(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own options, which cannot stand beside a file, are left out; its hash is kept."""
    fetched = root / "hub.safetensors"
    safetensors.torch.save_file(timm.create_model("mobilenetv3_small_050").state_dict(), fetched)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: str(fetched))
    monkeypatch.setattr("raycl.networks.timm.ANSWER_S", 0.01)  # nobody is asked for long
    check._load_from_hub.cache_clear()
    model = "mobilenetv3_small_050.lamb_in1k"
    network = {"name": "timm", "model": model, "pretrained": True}
    network |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    dataset = {"name": "digits", "size": 32, "limit": 2}
    benchmark = SWEEP["benchmark"] | {"dataset": dataset}  # type: ignore[operator]
    code, out, err = cli(methods=["finetune"], network=network, benchmark=benchmark)
    assert code == 0, err
    block = yaml.safe_load(out)["network"]
    assert (block["pretrained"], "mean" in block, "std" in block) == (False, False, False)
    assert block["weights"]["mean"] == [0.5] * 3
    check_data(stream(root, block, 0, benchmark=benchmark), root)
    found = read_about(root / "pre.safetensors")
    assert found is not None
    digest = hashlib.sha256(fetched.read_bytes()).hexdigest()[:16]
    assert found.source == f"weights of timm's {model} sha256 {digest}"


def test_images_that_came_after_the_training_are_not_written_as_seen(root: Path, cli: Cli) -> None:
    def image(split: str, name: str, number: int) -> None:
        path = root / "photos" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(2):
                image(split, name, number)
    dataset = {"dataset": {"name": "folder", "path": "photos"}}
    benchmark = SWEEP["benchmark"] | dataset  # type: ignore[operator]
    code, _, err = cli(benchmark=benchmark)
    assert code == 0, err
    before = (root / "pre.safetensors").read_bytes()
    image("train", "cat", 3)
    code, _, err = cli(benchmark=benchmark)
    assert code == 2
    assert " may have seen other images than are there now: data: folder-" in err
    assert ".json, and the trial runs again" in err
    (root / "photos/train/cat/3.png").unlink()
    (outcome,) = (root / "pre" / "outcomes").glob("*.json")
    content = json.loads(outcome.read_text())
    content["row"]["made"]["continued"] = "with other code, data"
    outcome.write_text(json.dumps(content))
    code, _, err = cli(benchmark=benchmark)
    assert code == 2
    assert " changed while it was trained; remove " in err
    content["row"]["made"]["continued"] = "with other code"
    outcome.write_text(json.dumps(content))
    assert cli(benchmark=benchmark)[0] == 0
    assert (root / "pre.safetensors").read_bytes() == before


@pytest.fixture
def block(cli: Cli) -> dict[str, Any]:
    code, out, err = cli()
    assert code == 0, err
    found: dict[str, Any] = yaml.safe_load(out)["network"]
    return found


@pytest.mark.parametrize("take,seen", [(0, 723), (1, 0)])
def test_images_that_were_seen_are_counted(
    root: Path, block: dict[str, Any], take: int, seen: int
) -> None:
    sweep = stream(root, block, take)
    data = check_data(sweep, root)
    (one,) = data.values()
    total = len(one.train.labels) + len(one.test.labels)
    provenance = Provenance(sweep, data)
    (plan,) = expand.final_plans(sweep, {})
    text = f"{seen} of {total}"
    assert provenance.tags(plan) == {"pretrained": "own", "seen_images": text}
    (line,) = provenance.lines()
    assert line == f"images of {plan.benchmark} that were seen in pre-training: {text}"


def test_what_earlier_weights_have_seen_counts(root: Path, cli: Cli, block: dict[str, Any]) -> None:
    other = {"dataset": {"name": "digits", "part": {"of": 2, "take": 1}}}
    later = {
        "name": "later",
        "benchmark": SWEEP["benchmark"] | other,  # type: ignore[operator]
        "methods": ["finetune"],
        "network": block,
    }
    code, out, err = cli("--out", str(root / "later.safetensors"), **later)
    assert code == 0, err
    assert "later.safetensors: 1442 images seen" in err.replace("\n", "")
    sweep = stream(root, yaml.safe_load(out)["network"], 0)
    data = check_data(sweep, root)
    (plan,) = expand.final_plans(sweep, {})
    assert Provenance(sweep, data).tags(plan)["seen_images"].startswith("723 of ")
    inverted = {"dataset": {"name": "digits", "invert": True}}
    sweep = stream(root, block, 0, benchmark=SWEEP["benchmark"] | inverted)  # type: ignore[operator]
    (plan,) = expand.final_plans(sweep, {})
    tags = Provenance(sweep, check_data(sweep, root)).tags(plan)
    assert tags["seen_images"] == "unknown", "an inverted image has other bytes"


def test_what_a_trial_has_seen_before_is_not_known(root: Path, cli: Cli) -> None:
    assert cli(methods=["finetune"], name="first")[0] == 0
    (plan,) = expand.final_plans(spec.load(write(root, methods=["finetune"], name="first")), {})
    start = NETWORK | {"weights": {"trial": f"first/{plan.key}"}}
    other = {"dataset": {"name": "digits", "part": {"of": 2, "take": 1}}}
    benchmark = SWEEP["benchmark"] | other  # type: ignore[operator]
    later = {"methods": ["finetune"], "network": start, "benchmark": benchmark, "name": "later"}
    code, out, err = cli(**later)
    assert code == 0, err
    sweep = stream(root, yaml.safe_load(out)["network"], 0)
    (plan,) = expand.final_plans(sweep, {})
    tags = Provenance(sweep, check_data(sweep, root)).tags(plan)
    assert tags["seen_images"] == "unknown"


def test_images_of_another_size_cannot_be_compared(root: Path, block: dict[str, Any]) -> None:
    weights = block["weights"]
    network = {"name": "cnn"}
    method = {"name": "regress_features", "source": NETWORK | {"weights": weights}}
    benchmark = SWEEP["benchmark"] | {"dataset": {"name": "digits", "size": 12}}  # type: ignore[operator]
    sweep = stream(root, network, 0, benchmark=benchmark, methods=[method | {"source_size": 8}])
    (plan,) = expand.final_plans(sweep, {})
    tags = Provenance(sweep, check_data(sweep, root)).tags(plan)
    assert tags == {"pretrained": "own", "seen_images": "unknown"}, "networks in options count"


def test_a_trial_of_pre_training_is_one_without_ids(root: Path, block: dict[str, Any]) -> None:
    (plan,) = expand.final_plans(spec.load(write(root)), {})
    for start, tags in (
        (f"pre/{plan.key}", {"pretrained": "own", "seen_images": "unknown"}),
        ("fine/0", {}),
    ):
        if start == "fine/0":
            plain = {**plan.config, "method": {"name": "finetune"}}
            run = images.build(plain, check_data(spec.load(write(root)), root), "cpu", {})
            CheckpointStore(f"{root}/fine/trials/0").save(run.state_dict(), 1)
        sweep = stream(root, NETWORK | {"weights": {"trial": start}}, 1)
        data = check_data(sweep, root)
        (found,) = expand.final_plans(sweep, {})
        assert Provenance(sweep, data).tags(found) == tags


@pytest.mark.parametrize("source", ["file", "trial"])
def test_weights_may_go_while_the_sweep_runs(
    root: Path, block: dict[str, Any], source: str
) -> None:
    """Each trial is tagged as it starts and as it ends, inside Tune's callbacks."""
    (before,) = expand.final_plans(spec.load(write(root)), {})
    start = block if source == "file" else NETWORK | {"weights": {"trial": f"pre/{before.key}"}}
    grid = {"grid": [start["weights"], start["weights"] | {"mean": [0.5], "std": [0.5]}]}
    benchmark = SWEEP["benchmark"] | {"validation": 0.1}  # type: ignore[operator]
    sweep = stream(root, NETWORK | {"weights": grid}, 0, benchmark=benchmark)
    plans = expand.search_plans(sweep)
    assert len(plans) == 2
    data = check_data(sweep, root)
    expected = [Provenance(sweep, data).tags(plan) for plan in plans]
    provenance = Provenance(sweep, data)
    said = provenance.lines()
    (root / "pre").rename(root / "gone")
    for path in root.rglob("*.safetensors"):
        path.write_bytes(b"another file")
    assert [provenance.tags(plan) for plan in plans] == expected
    assert provenance.lines() == said
    assert [tags["pretrained"] for tags in expected] == ["own", "own"]


def test_other_weights_are_not_tagged(root: Path, block: dict[str, Any]) -> None:
    network = build_network(block, (1, 8, 8))
    torch.save(network.state_dict(), root / "w.pt")
    for weights in ({"file": "w.pt"}, None):
        sweep = stream(root, NETWORK | ({"weights": weights} if weights else {}), 0)
        (plan,) = expand.final_plans(sweep, {})
        provenance = Provenance(sweep, check_data(sweep, root))
        assert (provenance.tags(plan), provenance.lines()) == ({}, [])


def test_the_file_says_of_itself_what_was_written(root: Path, block: dict[str, Any]) -> None:
    weights = weights_of(block)
    assert weights is not None
    found = about(weights)
    assert found is not None
    again = json.loads(found.as_json())
    assert again["images_sha256"] == found.images_sha256
    assert found.unit == "pixels of 1x8x8"
    assert (len(found.images), found.seen(found.images[:3]), found.seen(["f" * 16])) == (723, 3, 0)
    assert found.normalisation == (tuple(weights.mean or ()), tuple(weights.std or ()))


def tracked(method: str, pretrained: str = "", seen: str = "") -> TrackedRun:
    return TrackedRun(
        *("id", "n", "trial", "b", method, 0, "c", "t", "finished", "", 0, {}, None),
        pretrained=pretrained,
        seen=seen,
    )


def test_published_figures_are_not_printed_beside_them() -> None:
    rows: list[dict[str, Any]] = [
        {"benchmark": "b", "method": m, "readout": "class", "metric": "a"}
        | {"mean": 1.0, "n": 1, "published": None, "sampled": False}
        for m in ("own", "hub", "unpublished")
    ]
    published = {"source": "x", "a": {"own": 90.0, "hub": 80.0}}
    spared = join_published(rows, {"published": published}, {("b", "own"), ("b", "unpublished")})
    assert [row["published"] for row in rows] == [None, 80.0, None]
    assert spared == {"own"}
    runs = [tracked("own", "own", "3 of 9"), tracked("hub")]
    first, second = pretrained_notes(runs, spared)
    assert first.startswith("own on b: weights pre-trained here by raycl pretrain; ")
    assert first.endswith(": 3 of 9")
    assert second.startswith("published figures are not printed for own: ")
    assert list(pretrained_notes([tracked("hub")], set())) == []
