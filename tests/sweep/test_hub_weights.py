"""Weights from a hub are part of what results are made of; a folder stands for the hub."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from email.message import Message
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
import yaml

from raycl.errors import UserError
from raycl.networks import _hub
from raycl.networks.base import from_hubs
from raycl.sweep import run
from raycl.sweep.execution import trainable
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.record.folder import SweepFolder
from raycl.sweep.record.made_of import MadeOf, process
from raycl.tracking.journal import JOURNAL
from raycl.training import check
from raycl.training.run import Run

TORCHVISION = {"name": "torchvision", "model": "mobilenet_v3_small", "weights": "DEFAULT"}
TIMM = {"name": "timm", "model": "mobilenetv3_small_050.lamb_in1k", "pretrained": True}
NAME = "weights DEFAULT of torchvision's mobilenet_v3_small"


class Hub:
    """A folder with one file for each model, which libraries take for what they fetched."""

    def __init__(self, root: Path) -> None:
        url = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT.url
        self.torchvision = root / "hub" / "checkpoints" / url.rpartition("/")[2]
        self.torchvision.parent.mkdir(parents=True)
        self.timm = root / "model.safetensors"

    def put(self, seed: int) -> None:
        torch.manual_seed(seed)
        torch.save(torchvision.models.mobilenet_v3_small().state_dict(), self.torchvision)
        model = timm.create_model("mobilenetv3_small_050")
        safetensors.torch.save_file(model.state_dict(), self.timm)
        _hub.LOADED.clear()  # another process
        check._load_from_hub.cache_clear()


def sha(path: Path) -> str:
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    made = Hub(tmp_path)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: str(made.timm))
    made.put(0)
    return made


def execution(path: Path, **changes: Any) -> run.Execution:
    sweep = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": {"name": "digits", "size": 32}, "tasks": 5},
        "methods": ["finetune"],
        "network": TORCHVISION,
        "stop": {"tasks": 1},
        "seeds": 1,
    } | changes
    (path / "s.yaml").write_text(yaml.safe_dump(sweep))
    return run.Execution(
        spec.load(path / "s.yaml"), SweepFolder(path / "runs", "s"), None, None, None
    )


def now(found: run.Execution) -> MadeOf:
    check_data(found.sweep, found.data_root)
    return MadeOf.of(found.sweep, found.data_root, found.folder.root)


def begin(found: run.Execution, made_of: MadeOf) -> None:
    found.folder.claim(expand.spec_hash(found.sweep), found.sweep.resolved())
    found.folder.record_made_of(made_of, [])
    (found.folder.path / JOURNAL).touch()


def test_a_sweep_does_not_go_on_with_other_weights(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = execution(tmp_path)
    before = now(found)
    assert before.weights == {NAME: sha(hub.torchvision)}
    begin(found, before)
    found._accept(now(found))
    hub.put(1)
    after = now(found)
    with pytest.raises(UserError, match=f"begun with other code or data: {NAME}; "):
        found._accept(after)
    found.accept_changes = True
    found._accept(after)
    assert f"accepted: {NAME} changed" in capsys.readouterr().err
    assert found.made_of == after
    assert after.key != before.key, "the report tells the results apart"
    assert MadeOf.recorded({"made_of": after.plain()}) == after


def test_a_sweep_that_was_begun_before_weights_were_recorded_goes_on(
    hub: Hub, tmp_path: Path
) -> None:
    found = execution(tmp_path)
    old = MadeOf(now(found).raycl, {}, now(found).data)
    begin(found, old)
    found._accept(now(found))
    assert found.made_of == old
    recorded = MadeOf("0.1", {"mine.py": {"mine.py": "a"}}, {"data set digits": "bundled"})
    assert "weights" not in recorded.plain()
    assert recorded.key == "fb6092f3be10", "of all the runs folders there are"


def test_every_network_of_a_sweep_counts(hub: Hub, tmp_path: Path) -> None:
    """Networks of a sequence, a search and a method's options are found, grey or in colour."""
    teacher = {"name": "regress_features", "source": TORCHVISION}
    networks = {"name": "sequence", "of": [TIMM, {"name": "mlp", "repeat": 4}]}
    found = execution(tmp_path, methods=["finetune"], network=networks, stop={"tasks": 2})
    name = "weights of timm's mobilenetv3_small_050.lamb_in1k"
    assert now(found).weights == {name: sha(hub.timm)}
    drawn = TORCHVISION | {"weights": {"choice": ["DEFAULT", "IMAGENET1K_V1"]}}
    found = execution(tmp_path, network=drawn, search={"num_samples": 2})
    other = NAME.replace("DEFAULT", "IMAGENET1K_V1")
    assert now(found).weights == dict.fromkeys((NAME, other), sha(hub.torchvision))
    found = execution(tmp_path, methods=[teacher], network={"name": "mlp"})
    assert now(found).weights == {NAME: sha(hub.torchvision)}
    assert list(from_hubs({"name": "mlp"})) == []


def test_a_trial_that_has_loaded_others_ends_the_sweep(hub: Hub, tmp_path: Path) -> None:
    """Another node has another cache; nothing of it is kept."""
    found = execution(tmp_path)
    (plan,) = expand.final_plans(found.sweep, {})
    data = check_data(found.sweep, found.data_root)
    made_of = now(found)
    settings = trainable.Settings("s", 60, 2, "m", "max", made_of=made_of)
    Run(plan.config, data)
    trainable._check_made_of(settings, plan)
    assert process("cpu")["weights"] == f"{NAME} {sha(hub.torchvision)}"
    hub.put(1)
    Run(plan.config, data)
    with pytest.raises(trainable.Unkept, match=f"{NAME} changed since the sweep was started"):
        trainable._check_made_of(settings, plan)
    _hub.LOADED.clear()
    assert "weights" not in process("cpu")


CUT = {"empty": 0, "in its head": 40, "in its middle": 300_000, "at its end": -100}


@pytest.mark.parametrize("how", CUT)
@pytest.mark.parametrize("network", [TORCHVISION, TIMM], ids=lambda block: block["name"])
def test_a_fetched_file_that_is_cut_off_is_one_line(
    hub: Hub, tmp_path: Path, network: dict[str, Any], how: str
) -> None:
    file = hub.torchvision if network is TORCHVISION else hub.timm
    file.write_bytes(file.read_bytes()[: CUT[how]])
    found = execution(tmp_path, network=network)
    with pytest.raises(UserError, match=rf"'{file}', which was fetched, is cut off") as caught:
        check_data(found.sweep, found.data_root)
    option = "weights" if network is TORCHVISION else "pretrained"
    assert f": network.{option}: cannot " in str(caught.value)
    assert str(caught.value).endswith("; remove that file, and it is fetched again")
    assert "\n" not in str(caught.value)


def test_a_download_that_is_cut_off_is_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.torchvision.unlink()
    answer = io.BytesIO(b"half of it")
    answer.info = Message  # type: ignore[attr-defined]
    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: answer)
    found = execution(tmp_path)
    with pytest.raises(UserError, match=r"network\.weights: cannot load DEFAULT .*invalid hash"):
        check_data(found.sweep, found.data_root)


@pytest.mark.parametrize("network", [TORCHVISION, TIMM], ids=lambda block: block["name"])
def test_a_lack_of_memory_is_no_damage(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: dict[str, Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")

    for module, name in _hub.READERS:
        monkeypatch.setattr(module, name, refuse)
    found = execution(tmp_path, network=network)
    with pytest.raises(RuntimeError, match="allocate memory"):
        check_data(found.sweep, found.data_root)


def test_a_file_with_code_is_told_as_it_is(hub: Hub, tmp_path: Path) -> None:
    """PyTorch does not run what a file holds beside tensors; removing the file would not help."""
    torch.save(Path("x"), hub.torchvision)
    with pytest.raises(UnpicklingError, match="allowed global"), _hub.noted("w"):
        torch.load(hub.torchvision, weights_only=True)


def test_readers_are_as_before(hub: Hub, tmp_path: Path) -> None:
    """Also when a network cannot be built; and what is read without a name is not noted."""
    readers = [getattr(module, name) for module, name in _hub.READERS]
    with pytest.raises(FileNotFoundError), _hub.noted("w"):
        torch.load(tmp_path / "none")
    torch.load(hub.torchvision)
    with _hub.noted(""):
        torch.load(hub.torchvision)
    assert [getattr(module, name) for module, name in _hub.READERS] == readers
    assert _hub.LOADED == {}
