"""Networks that a method's options name are treated as the sweep's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import Field
from safetensors.torch import save_file

from raycl.errors import UserError
from raycl.methods.base import Classifier, MethodConfig
from raycl.report.notes import _weights
from raycl.sweep.file import spec
from raycl.sweep.kinds import images
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data, read_weights
from raycl.sweep.record.tracked import Tracked
from raycl.testing import toy_data
from raycl.training.run import Run
from raycl.trial import weights as weights_module
from raycl.trial.weights import build_network

MLP = {"name": "mlp", "hidden": [8]}
METHOD = '''
from typing import Any, ClassVar

from raycl.methods.base import Classifier


class Taught(Classifier):
    """Fine-tuning beside another network. Departures: none."""

    class Config(Classifier.Config):
        networks: ClassVar[tuple[str, ...]] = ("teacher",)

        teacher: dict[str, Any] | None = None

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.teacher = None if config.teacher is None else context.build_network(config.teacher)
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the data root, with a method and a file of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    (tmp_path / "mine.py").write_text(METHOD)
    weights_file(tmp_path / "w.safetensors", 1.0)
    return tmp_path


def weights_file(path: Path, value: float) -> str:
    state = build_network(MLP, (1, 8, 8)).state_dict()
    save_file({name: torch.full_like(tensor, value) for name, tensor in state.items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sweep_of(root: Path, teacher: Any, **more: Any) -> spec.Sweep:
    sweep = {
        "name": "w",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
        "methods": [{"name": "mine.py:Taught", "teacher": teacher}],
        "network": "mlp",
    } | more
    (root / "w.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return spec.load(root / "w.yaml")


def from_file(name: str = "w.safetensors", **options: Any) -> dict[str, Any]:
    return MLP | {"weights": {"file": name, **options}}


def run_of(teacher: Any) -> Run:
    """A run without a sweep."""
    trial = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "method": {"name": "mine.py:Taught", "teacher": teacher},
        "network": MLP,
    }
    return Run(trial, toy_data())


def test_a_short_form_and_the_long_one_are_the_same_trial(root: Path) -> None:
    (short,) = expand.final_plans(sweep_of(root, "mlp"), {})
    full = short.config["method"]["teacher"]
    assert full["name"] == "mlp"
    assert full["hidden"], "defaults are part of the key"
    (long,) = expand.final_plans(sweep_of(root, full), {})
    (none,) = expand.final_plans(sweep_of(root, None), {})
    assert short.key == long.key != none.key


def test_the_hash_is_part_of_the_key_and_checked_before_any_work(root: Path) -> None:
    sweep = sweep_of(root, from_file())
    (before,) = expand.final_plans(sweep, {})
    found = before.config["method"]["teacher"]["weights"]["sha256"]
    assert found == hashlib.sha256((root / "w.safetensors").read_bytes()).hexdigest()
    weights_file(root / "w.safetensors", 2.0)
    with pytest.raises(UserError, match=r"methods\[0\]\.teacher\.weights\.sha256: .* has sha256"):
        check_data(sweep, root)
    (after,) = expand.final_plans(sweep_of(root, from_file()), {})
    assert before.key != after.key


def test_the_driver_reads_the_file_and_the_trial_needs_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(root, from_file())
    opened: list[str] = []
    before = weights_module._content
    monkeypatch.setattr(
        weights_module, "_content", lambda place: opened.append(place.path) or before(place)
    )
    weights_module._read.cache_clear()
    data = check_data(sweep, root)
    tensors = read_weights(sweep)
    assert opened == [str(root / "w.safetensors")]
    (root / "w.safetensors").unlink()
    (plan,) = expand.final_plans(sweep, {})
    run = images.build(plan.config, data, "cpu", {}, tensors)
    assert all(bool((p == 1).all()) for p in run.method.teacher.parameters())


def test_a_search_chooses_whole_networks(root: Path) -> None:
    shas = [weights_file(root / f"{i}.safetensors", i) for i in range(2)]
    blocks = [from_file(f"{i}.safetensors") for i in range(2)]
    sweep = sweep_of(root, {"grid": blocks})
    check_data(sweep, root)
    plans = expand.search_plans(sweep)
    assert [p.config["method"]["teacher"]["weights"]["sha256"] for p in plans] == shas
    assert list(read_weights(sweep)) == shas


@pytest.mark.parametrize(
    "teacher, message",
    [
        ("mpl", r"methods\[0\]\.teacher: unknown network 'mpl'; did you mean 'mlp'\?"),
        ({"hidden": [8]}, r"methods\[0\]\.teacher: a network needs a name"),
        (3, r"methods\[0\]\.teacher: it should be a valid mapping|a mapping"),
        (MLP | {"hiden": [8]}, r"methods\[0\]\.teacher: network mlp has no option 'hiden'; did"),
        ({"name": "sequence", "of": ["mlp"]}, r"\.teacher: sequence stands for several networks"),
        (from_file("no.pt"), r"methods\[0\]\.teacher\.weights\.file: there is no file"),
        (
            from_file() | {"hidden": [9]},
            r"methods\[0\]\.teacher\.weights: .* does not fit",
        ),
        (
            MLP | {"weights": {"file": {"grid": ["w.safetensors"]}}},
            r"methods\[0\]\.teacher\.weights: a search space cannot stand inside weights",
        ),
        (
            {"name": "timm", "model": "no_such_model"},
            r"methods\[0\]\.teacher\.model: timm has no 'no_such_model'",
        ),
    ],
)
def test_what_is_wrong_has_its_place(root: Path, teacher: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_data(sweep_of(root, teacher), root)


def test_the_hub_is_asked_before_any_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    teacher = {"name": "timm", "model": "mobilenetv3_small_050.lamb_in1k", "pretrained": True}
    with pytest.raises(UserError, match=r"methods\[0\]\.teacher\.pretrained: cannot create"):
        check_data(sweep_of(root, teacher), root)


def test_it_is_told_in_mlflow_and_below_the_table(root: Path) -> None:
    class Tracker:
        def trial_started(self, record: Any) -> None:
            self.tags = record.tags

    sweep, tracker = sweep_of(root, from_file()), Tracker()
    (plan,) = expand.final_plans(sweep, {})
    Tracked(tracker, "trials").started(plan)  # type: ignore[arg-type]
    sha = plan.config["method"]["teacher"]["weights"]["sha256"][:12]
    assert tracker.tags["weights"] == f"w.safetensors sha256:{sha}"
    assert list(_weights(sweep.resolved())) == [f"networks start from w.safetensors, sha256 {sha}"]


def test_a_run_without_a_sweep_hashes_too(root: Path) -> None:
    assert "sha256" in run_of(from_file()).config.method["teacher"]["weights"]


def test_other_images_than_the_streams(root: Path) -> None:
    network = run_of("mlp").method.context.build_network({"name": "mlp"}, shape=(1, 4, 4))
    assert next(network.parameters()).shape[1] == 16


def test_files_of_users_are_known(root: Path) -> None:
    (root / "net.py").write_text(
        "from raycl.networks.mlp import MLP\n\nclass Net(MLP):\n    pass\n"
    )
    finetune = [{"name": "finetune"}]
    assert not expand.own_files(sweep_of(root, None, methods=finetune))
    (root / "mine2.py").write_text(METHOD)
    sweep = sweep_of(root, {"name": "net.py:Net"})
    assert expand.own_files(sweep)
    assert expand.python_files(sweep) == ["mine.py", "net.py"]


def test_networks_are_options() -> None:
    with pytest.raises(TypeError, match="names no option: other"):

        class Config(MethodConfig):
            networks = ("other",)

    class Fine(Classifier.Config):
        networks = ("other",)
        other: dict[str, Any] = Field(description="another network")

    found = Fine(name="x", other="mlp")
    assert found.network_options()["other"]["name"] == "mlp"
    assert Fine.model_validate(found.model_dump()) == found
