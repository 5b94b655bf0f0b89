"""CPU seconds of a sweep's trials that share what they have in common, against ``share: false``.

The trials run in this process, one after the other, as workers run them: training, evaluation,
checkpoints, prefixes; Ray and tracking, which are the same with and without, are not in it. The
sweep is as on two cores: the second trial begins with the first, so it finds nothing there yet.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from perf_helpers import random_data
from safetensors.torch import save_file

from raycl.datasets.base import Arrays
from raycl.trial.weights import build_network
from tests.sweep.sharing_making import Lab, lab, text, without

pytestmark = [pytest.mark.perf, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
CORES = 2
TASKS = 5
VALUES = 20
IMAGES = 1_600


def ratio(folder: Path, one: Lab) -> float:
    """CPU with sharing over CPU without; trial by trial in turns, so both see the same machine."""
    plans = one.plans()
    Lab(one.sweep, one.data, str(folder / "warm")).run(without(plans[:1]))
    labs = [Lab(one.sweep, one.data, str(folder / name)) for name in ("alone", "shared")]
    spent = [0.0, 0.0]
    begun = time.process_time()
    one.plans()
    spent[1] = time.process_time() - begun
    for i, plan in enumerate(plans):
        alone = without([plan])
        for which, todo in enumerate((alone, alone if 0 < i < CORES else [plan])):
            begun = time.process_time()
            labs[which].run(todo)
            spent[which] += time.process_time() - begun
    ended = [row["result"] for _, row in labs[1].rows if "result" in row]
    assert any("shared_seconds" in result for result in ended)
    return spent[1] / spent[0]


def search(folder: Path, option: str, values: list[float]) -> Lab:
    """A grid over one option of online EWC on five tasks of images of MNIST's size.

    A small convolutional network, and a sixth as many test images as training images, as in MNIST.
    """
    method: dict[str, Any] = {"name": "online_ewc", "lam": 1.0, option: {"grid": values}}
    spec = text(
        methods=[method],
        benchmark={"name": "split", "dataset": "digits", "tasks": TASKS, "validation": 0.1},
        network={"name": "cnn", "channels": [8, 16], "features": 32},
        train={"epochs": 8, "batch_size": 64, "lr": 0.01},
        search={"num_samples": 1},
    )
    one = lab(folder, spec)
    data, arrays = random_data((1, 28, 28), IMAGES)
    test = Arrays(arrays.images[: IMAGES // 6], arrays.labels[: IMAGES // 6])
    return Lab(one.sweep, {key: replace(d, test=test) for key, d in data.items()}, one.storage)


@pytest.mark.parametrize(
    "option, values, bound",
    [
        ("lam", [0.1 * n for n in range(1, VALUES + 1)], 0.85),
        ("gamma", [n / VALUES for n in range(1, VALUES + 1)], 0.7),  # from the third task on
    ],
)
def test_search(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    values: list[float],
    bound: float,
) -> None:
    found = ratio(tmp_path, search(tmp_path, option, values))
    with capsys.disabled():
        print(
            f"\nsearch over {VALUES} values of {option} on {TASKS} tasks: {found:.2f} of the CPU "
            f"seconds of share: false (at most {bound})"
        )
    assert found <= bound


def test_blip_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed of five: seeds share nothing with each other."""
    path = str(ROOT / "sweeps" / "blip" / "digits.yaml")
    found = ratio(tmp_path, lab(tmp_path, path, "seeds=1"))
    with capsys.disabled():
        print(f"\nsweeps/blip/digits.yaml: {found:.2f} of the CPU seconds of share: false")
    assert found <= 1.0


def test_games(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    games = {
        "name": "atari",
        "games": ["Boxing", "KungFuMaster", "Pong"],
        "frames": 24_000,
        "evaluation": {"episodes": 1, "max_frames": 400},
    }
    spec = text(
        benchmark=games,
        methods=["finetune", "online_ewc", "scratch", "blip"],
        network={"name": "atari_cnn", "channels": [8, 16, 16], "features": 64},
        train={"envs": 16, "rollout": 50, "minibatches": 4},
    )
    found = ratio(tmp_path, lab(tmp_path, spec))
    with capsys.disabled():
        print(
            f"\nthree games, four methods: {found:.2f} of the CPU seconds of share: false "
            "(at most 0.87)"
        )
    assert found <= 0.87


def vit(folder: Path, width: int) -> dict[str, Any]:
    """A vision transformer of so many channels, with weights that lie in a file."""
    size = {"img_size": 8, "patch_size": 2, "embed_dim": width, "depth": 4, "num_heads": 2}
    block: dict[str, Any] = {"name": "timm", "model": "vit_tiny_patch16_224", "model_args": size}
    save_file(build_network(block, (1, 8, 8)).state_dict(), folder / f"{width}.safetensors")
    return block | {"weights": {"file": f"{width}.safetensors", "mean": [0.5], "std": [0.3]}}


def test_one_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four schemes of distillation; the first two trials train the teacher each for itself."""
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    learner = {"name": "l2p", "size": 5, "length": 4}
    methods = [
        {
            "name": "cdl",
            "label": scheme,
            "scheme": scheme,
            "learner": learner,
            "teacher_network": vit(tmp_path, 96),
        }
        for scheme in ("kd", "fitnets", "kd_token", "kdp")
    ]
    train = {"epochs": 10, "batch_size": 16, "lr": 0.003, "optimizer": "adam"}
    spec = text(methods=methods, network=vit(tmp_path, 48), train=train)
    found = ratio(tmp_path, lab(tmp_path, spec))
    with capsys.disabled():
        print(
            f"\none teacher, twice as wide as its students of four schemes: {found:.2f} of the CPU "
            "seconds of share: false (at most 0.8)"
        )
    assert found <= 0.8


def test_nothing_to_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is looked for is looked for while the sweep is planned; trials do nothing more."""
    method = {"name": "online_ewc"}
    rates = {"grid": [0.01 * n for n in range(1, VALUES + 1)]}
    train = {"epochs": 5, "batch_size": 64, "lr": rates}
    one = search(tmp_path, "lam", [1.0, 2.0])
    other = lab(tmp_path / "rates", text(methods=[method], train=train, search={"num_samples": 1}))
    begun = time.process_time()
    plans = other.plans(share=True)
    shared = time.process_time() - begun
    begun = time.process_time()
    other.plans(share=False)
    extra = shared - (time.process_time() - begun)
    assert not any(plan.points for plan in plans)
    begun = time.process_time()
    Lab(one.sweep, one.data, str(tmp_path / "alone")).run(one.plans(share=False))
    trial = (time.process_time() - begun) / 2
    found = 1 + extra / VALUES / trial
    with capsys.disabled():
        print(
            f"\nnothing to share: {extra / VALUES * 1000:.1f} ms of planning for each trial of "
            f"{trial:.1f} CPU seconds: {found:.4f} (at most 1.01)"
        )
    assert found <= 1.01
