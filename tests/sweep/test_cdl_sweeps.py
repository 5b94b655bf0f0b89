"""The sweeps of continual distillation: complete, as published, and their smoke form trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycl import datasets
from raycl.sweep.file import spec
from raycl.sweep.file.model import Sweep
from raycl.sweep.plan import expand
from raycl.training.run import Run

FOLDER = Path(__file__).parents[2] / "sweeps" / "cdl"
NAMES = ("cifar100", "cifar100-large", "imagenet_r", "imagenet_r-large")
LEARNERS = {"l2p": "l2p", "dual": "dual_prompt", "coda": "coda_prompt", "apt": "apt"}
SCHEMES = ("kd", "dkd", "fitnets", "review_kd", "kd_token", "kdp")
UNCHANGED = {"mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.fixture(scope="module", params=NAMES)
def sweep(request: pytest.FixtureRequest) -> Sweep:
    return spec.load(FOLDER / f"{request.param}.yaml")


def test_every_learner_has_every_scheme(sweep: Sweep) -> None:
    rows = {entry.label: entry for entry in sweep.methods}
    for short, name in LEARNERS.items():
        assert rows[f"{short}-alone"].name == name
        for scheme in SCHEMES if short == "apt" else (*SCHEMES, "cdl_prompt"):
            options = rows[f"{short}-{scheme}"].options
            assert (options["learner"], options["scheme"]) == (name, scheme)


def test_training_is_the_published_one(sweep: Sweep) -> None:
    large = sweep.name.endswith("-large")
    train = {k: v for k, v in sweep.train.items() if k not in ("epochs", "batch_size")}
    assert train == {
        "optimizer": "adam",
        "lr": 0.001,
        "schedule": {"name": "coda_cosine"},
        "augment": "original_crop_flip",
        "drop_last": True,
    }
    assert sweep.train["epochs"] == (20 if "cifar100" in sweep.name else 35)
    assert sweep.train["batch_size"] == (32 if large else 64)
    assert sweep.seeds == (0, 1, 2)
    student, teacher = ("base", "large") if large else ("small", "base")
    networks = [(sweep.network, student)]
    for entry in sweep.methods:
        if "teacher_network" in entry.options:
            networks.append((entry.options["teacher_network"], teacher))
    for block, size in networks:
        assert block["model"] == f"vit_{size}_patch16_224.augreg_in21k_ft_in1k"
        assert block["pretrained"]
        assert {name: [*block[name]] for name in UNCHANGED} == UNCHANGED


def test_every_row_has_published_figures(sweep: Sweep) -> None:
    assert sweep.published is not None
    numbers: dict[str, Any] = sweep.published.model_extra or {}
    labels = [e.label for e in sweep.methods if e.label not in ("no_prompt", "one_prompt")]
    for key in ("class/average_accuracy", "class/backward_transfer_all"):
        assert [*numbers[key]] == labels
        for found in numbers[key].values():
            revisions = [revision.removesuffix("-log") for revision in found]
            assert revisions == sorted(revisions, reverse=True)
            assert all(
                0 < (value if "accuracy" in key else -value) < 100 for value in found.values()
            )
    kd = numbers["class/average_accuracy"]["l2p-kd"]
    assert (
        kd
        == {
            "cdl-cifar100": {"2025-03": 79.64, "2024-12": 77.92},
            "cdl-cifar100-large": {"2025-03": 85.0, "2024-12": 80.96},
            "cdl-imagenet_r": {"2025-03": 63.97, "2024-12": 63.36},
            "cdl-imagenet_r-large": {"2024-12": 74.12},
        }[sweep.name]
    )


def test_all_have_the_same_smoke_form() -> None:
    found = [spec.load(FOLDER / f"{name}.yaml").smoke for name in NAMES]
    assert found == found[:1] * len(NAMES)


@pytest.mark.parametrize("label", ["coda-kdp", "l2p-cdl_prompt"])
def test_the_smoke_form_trains(label: str) -> None:
    small = spec.load(FOLDER / "imagenet_r.yaml", (), True)
    (plan,) = [one for one in expand.final_plans(small, {}) if one.method == label]
    config = plan.config
    dataset = datasets.DatasetConfig(**config["benchmark"]["dataset"])
    run = Run(config, {datasets.key(dataset): datasets.load(dataset, Path())})
    while not run.done:
        run.advance()
    matrices = run.last_row["result"]["matrices"]
    assert {"class", "teacher/class", "head/class", "kd_head/class"} == set(matrices)
    assert len(matrices["class"]) == 2
