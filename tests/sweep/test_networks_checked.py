"""What does not go together is refused before any work: networks, methods, images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raycl.errors import UserError
from raycl.sweep.file.spec import load
from raycl.sweep.plan.check_data import check_data

SWEEP = """
name: changing
benchmark: {name: split, dataset: {name: digits, size: 16}, tasks: 3}
network: {name: sequence, of: [{name: cifar, model: lenet}, {name: cnn, repeat: 2}]}
methods: [finetune, qdi]
train: {epochs: 1, batch_size: 16}
"""
PLAYING = """
name: playing
benchmark: {name: atari, games: [KungFuMaster, Boxing], frames: 16000}
network: {name: atari_cnn, channels: [4, 4, 4], features: 16}
methods: [finetune, blip]
train: {envs: 8, rollout: 25}
"""


def checked(folder: Path, *overrides: str, text: str = SWEEP) -> None:
    path = folder / "changing.yaml"
    path.write_text(text)
    check_data(load(path, overrides), folder)


def test_a_sequence_is_taken(tmp_path: Path) -> None:
    checked(tmp_path)
    checked(tmp_path, "stop.tasks=2", "methods.qdi.synthetic_images=5")  # 4 old classes of 7


@pytest.mark.parametrize(
    "overrides, what",
    [
        (["network.of=[cnn, cnn]"], "network: 2 networks for 3 tasks; give every task one"),
        (["methods=[finetune, ewc]"], "methods[1]: ewc cannot change networks"),
        (
            ["methods.qdi.synthetic_images=5"],
            "methods[1].synthetic_images: 5 images are too few for 7 old classes; at least 7",
        ),
        (
            ["methods.qdi.synthetic_images={choice: [50, 5]}"],
            "methods[1].synthetic_images: 5 images are too few",
        ),
        (["methods.qdi.replay=0"], "methods[1].replay: must be all or at least 1, not 0"),
        (
            ["benchmark.dataset.size=8"],
            "network: lenet does not take images of 8x8, but sides of at least 16 pixels",
        ),
        (
            ["network.of=[cnn, {name: cifar, model: densenet, repeat: 2}]",
             "benchmark.dataset.size=64"],
            "network: densenet does not take images of 64x64, but sides of 8 to 32 pixels",
        ),
        (
            ["network={name: cnn, channels: [8, 8, 8, 8, 8]}"],
            "network.channels: 5 stages halve an image of 16x16 to nothing",
        ),
        (
            ["methods.qdi.network={name: cifar, model: vgg16}"],
            "methods[1].network.model: vgg16 does not take images of 16x16",
        ),
        (["methods=[{name: e2e, memory_size: 3}]"], "methods[0].memory_size: 3 images are too few"),
        (
            ["network.of=[cnn, {name: cifar, modle: lenet}, cnn]"],
            "network.of[1]: network cifar has no option 'modle'; did you mean 'model'?",
        ),
        (
            ["train.select=seen_accuracy", "benchmark.validation=0"],
            "benchmark.validation: is 0, but methods[0] (finetune) selects epochs",
        ),
        (
            ["benchmark={name: atari, games: blip3}", "methods=[finetune]", "train={}"],
            "network.name: sequence is for images; all games of a sequence share a network",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together(tmp_path: Path, overrides: list[str], what: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(tmp_path, *overrides)
    line = str(caught.value)
    assert what in line
    assert "\n" not in line


def test_only_as_many_networks_as_tasks_are_needed(tmp_path: Path) -> None:
    checked(tmp_path, "network.of=[cnn, mlp]", "stop.tasks=2")


@pytest.mark.parametrize(
    "overrides, what",
    [
        (
            ["network.kernels=[8, 4, 30]"],
            "network.kernels: 2 convolutions leave 9x9 of an image of 84x84",
        ),
        (
            ["network.kernels={choice: [[8, 4, 3], [8, 4, 30]]}",
             "benchmark.evaluation.validation_episodes=1"],
            "network.kernels: 2 convolutions leave 9x9 of an image of 84x84",
        ),
        (["network=torchvision"], "network: torchvision's models take 1 or 3 channels, not 4"),
        (
            ["network={name: cifar, model: vgg16}"],
            "network.model: vgg16 does not take images of 84x84",
        ),
        (
            ["network={name: timm, model: resnett18}"],
            "network.model: timm has no 'resnett18'; did you mean 'resnet18'?",
        ),
        (
            ["network={name: cnn, batch_norm: true}"],
            "network: blip quantises linear layers and convolutions; layers.1.bias is of another",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_on_games(
    tmp_path: Path, overrides: list[str], what: str
) -> None:
    before = torch.get_rng_state()
    checked(tmp_path, text=PLAYING)
    with pytest.raises(UserError) as caught:
        checked(tmp_path, *overrides, text=PLAYING)
    line = str(caught.value)
    assert what in line
    assert line.startswith(f"--set {overrides[0]}: ")
    assert "\n" not in line
    assert torch.equal(before, torch.get_rng_state())
