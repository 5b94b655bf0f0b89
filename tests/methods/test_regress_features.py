"""Regression of a frozen network's features: targets, what is seen, and that labels are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.errors import UserError
from raycl.methods.regress_features import least_squares
from raycl.testing import MethodConformance, finish, toy_data
from raycl.training.run import Run
from raycl.trial.weights import build_network

SOURCE = {"name": "cnn", "channels": [4], "features": 12, "batch_norm": True}


class TestMirrored(MethodConformance):
    method = "regress_features"
    options = {"source": SOURCE, "source_size": 12}
    train = {
        "epochs": 3,
        "batch_size": 8,
        "lr": 0.01,
        "optimizer": "adamw",
        "augment": "flip",
        "schedule": {"name": "cosine"},
    }


def build(data: Any = None, tasks: int = 1, **more: Any) -> Run:
    train = {"epochs": 3, "batch_size": 16, "lr": 0.01, "optimizer": "adamw"} | more.pop(
        "train", {}
    )
    method = {"name": "regress_features", "source": SOURCE} | more.pop("method", {})
    benchmark = {"name": "split", "dataset": "digits", "tasks": tasks, "validation": 0}
    config = {
        "benchmark": benchmark,
        "method": method,
        "network": {"name": "mlp", "hidden": [24]},
        "train": train,
        "evaluate": {"probe": {}},
    }
    return Run(config | more, data or toy_data())


def shuffled() -> Any:
    """The toy images under other labels."""
    (key, data), *_ = toy_data().items()
    labels = data.train.labels.copy()
    labels = torch.from_numpy(labels)[torch.randperm(len(labels))].numpy()
    return {key: dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))}


def test_no_label_has_a_part_in_what_is_trained() -> None:
    runs = [build(), build(shuffled())]
    for run in runs:
        finish(run)
    states = [run.method.state_dict() for run in runs]
    for name, value in states[0].items():
        same = torch.equal(value, states[1][name])
        assert same != name.startswith("head."), f"{name}: only the head may know of labels"


def test_it_learns_what_the_source_says_and_the_probe_sees_it() -> None:
    run = build(train={"epochs": 15, "lr": 0.005})
    losses = []
    while not run.done:
        losses.append(run.advance()["train/loss"])
    assert losses[-1] < 0.5 * losses[0]
    metrics = run.last_row["result"]["metrics"]
    assert metrics["class"]["average_accuracy"] > 90
    assert metrics["probe/class"]["average_accuracy"] > 90


@pytest.mark.parametrize("augment,passes", [("none", 1), ("flip", 2)])
def test_the_source_sees_each_image_once_as_it_is_and_once_mirrored(
    augment: str, passes: int
) -> None:
    run = build(train={"augment": augment})
    seen: list[int] = []
    run.method.source.register_forward_hook(lambda m, i, output: seen.append(len(output)))
    finish(run)
    assert sum(seen) == passes * len(run.stream.data[0].train)


def test_targets_are_standardised_and_belong_to_the_image() -> None:
    run = build(train={"augment": "flip"})
    run.advance()
    method, train = run.method, run.sets.data[0].train
    (batch,) = train.batches(len(train))
    both = (batch.frozen - method.centre) / method.scale
    assert both.mean((0, 1)).abs().max() < 1e-4
    deviation = both.reshape(-1, both.shape[-1]).std(0, correction=0)
    assert (deviation[method.scale != 1] - 1).abs().max() < 1e-3
    mirrored = 0
    for batch in method.train_batches(run.sets.open(0, None)):
        with torch.no_grad():
            wanted = method._source_features(batch.images)
        torch.testing.assert_close(batch.frozen, wanted, atol=1e-5, rtol=1e-4)
        raw = train.prepare(train.raw(batch.index))
        mirrored += int((batch.images != raw).flatten(1).any(1).sum())
    assert 0.3 < mirrored / len(train) < 0.7


def test_the_source_has_a_size_and_statistics_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey images of 8 pixels become what a source for three channels of 12 pixels needs."""
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    network = build_network(SOURCE, (3, 12, 12))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    weights = {"file": "w.pt", "mean": mean, "std": std}
    run = build(method={"source": SOURCE | {"weights": weights}, "source_size": 12})
    given: list[Tensor] = []
    run.method.source.register_forward_hook(lambda m, inputs, output: given.append(inputs[0]))
    train = run.stream.data[0].train
    raw = train.raw(torch.arange(5))
    run.method.eval()
    with torch.no_grad():
        run.method.frozen_values(train.prepare(raw))
    large = F.interpolate(raw / 255, (12, 12), mode="bilinear", antialias=True)
    expected = (large - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(given[0], expected, atol=1e-4, rtol=1e-4)


def test_a_cosine_falls_after_every_step() -> None:
    run = build(train={"schedule": {"name": "cosine"}, "epochs": 2, "batch_size": 20})
    assert len(run.stream.data[0].train) == 132
    run.advance()
    assert run._phase is not None
    assert run._phase.lr == pytest.approx(0.005), "half way"
    drop = build(train={"schedule": {"name": "cosine"}, "batch_size": 100, "drop_last": True})
    drop.advance()
    assert drop._phase is not None
    assert drop._phase.lr == pytest.approx(0.01 * 0.75)


def test_a_feature_that_is_always_the_same_is_no_target() -> None:
    run = build()
    with torch.no_grad():
        for parameter in run.method.source.parameters():
            parameter.zero_()
    row = run.advance()
    assert (run.method.scale == 1).all()
    assert row["train/loss"] < 1


def test_least_squares_finds_the_map() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found, bias = least_squares(features, features @ weight.T + 2)
    torch.testing.assert_close(found, weight, atol=0.02, rtol=0)
    torch.testing.assert_close(bias, torch.full((3,), 2.0, dtype=torch.float64), atol=0.02, rtol=0)
    flat, level = least_squares(torch.ones(4, 2, dtype=torch.float64), torch.ones(4, 1).double())
    assert (float(flat.abs().max()), float(level)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "more,message",
    [
        ({"train": {"select": "validation_loss"}}, r"train\.select: validation_loss chooses"),
        ({"method": {"source": {"name": "clip"}}}, r"unknown network 'clip'"),
    ],
)
def test_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        build(**more)
