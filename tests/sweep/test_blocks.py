"""What a method has of the blocks of a sweep file, and which params hold what was searched."""

from __future__ import annotations

from typing import Any

import pytest

from raycl import blocks
from raycl.tracking import SweepRecord, views

WEIGHTS = {"name": "vit", "weights": {"package": "timm", "variant": "b"}}


@pytest.mark.parametrize(
    "base, over, expected",
    [
        ({"epochs": 200, "lr": 1}, {}, {"epochs": 200, "lr": 1}),
        ({"epochs": 200, "lr": 1}, {"epochs": 5}, {"epochs": 5, "lr": 1}),
        ({"epochs": 200}, {"schedule": None}, {"epochs": 200, "schedule": None}),
        ({"epochs": 200}, {"choice": [{"epochs": 5}]}, {"choice": [{"epochs": 5}]}),
        ({"choice": [{"epochs": 5}]}, {"epochs": 200}, {"epochs": 200}),
        ({"lr": {"choice": [1, 2]}}, {"lr": {"uniform": [1, 2]}}, {"lr": {"uniform": [1, 2]}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"name": "mlp", "hidden": [4]}, {"name": "cnn"}, {"name": "cnn"}),
        ({"name": "mlp", "hidden": [4]}, {"hidden": [5]}, {"name": "mlp", "hidden": [5]}),
        (WEIGHTS, {"weights": {"file": "x.pt"}}, {"name": "vit", "weights": {"file": "x.pt"}}),
        (WEIGHTS, {"grid": ["mlp", "cnn"]}, {"grid": ["mlp", "cnn"]}),
    ],
)
def test_a_methods_part_goes_on_top_of_the_sweeps(base: Any, over: Any, expected: Any) -> None:
    assert blocks.merged(base, over) == expected


@pytest.mark.parametrize(
    "base, own, names",
    [
        ({"train": {"lr": {"uniform": [0, 1]}}}, {}, ("train.lr",)),
        ({"train": {"lr": {"uniform": [0, 1]}}}, {"train": {"lr": 0.1}}, ()),
        ({"train": {"choice": [{"lr": 1}, {"lr": 2, "augment": None}]}}, {}, ("train.lr",)),
        (
            {"train": {"epochs": 200}},
            {"train": {"choice": [{"lr": 1, "optimizer": {"name": "sgd"}}, {"epochs": 2}]}},
            ("train.epochs", "train.lr", "train.optimizer.name"),
        ),
        ({"train": {"grid": [{"lr": 1}, {"lr": 2}]}}, {"train": {"lr": 3}}, ()),
        (
            {"train": {"optimizer": {"name": "sgd", "lr": {"grid": [1, 2]}}}},
            {"train": {"optimizer": {"momentum": 0.9}}},
            ("train.optimizer.lr",),
        ),
        (
            {"network": {"grid": ["mlp", {"name": "mlp", "hidden": [4]}]}},
            {},
            ("network.hidden", "network.name"),
        ),
        ({}, {"lam": {"choice": [None, 3]}}, ("method.lam",)),
        ({}, {"teacher_network": {"choice": ["mlp", "cnn"]}}, ("method.teacher_network.name",)),
        (
            {},
            {"judge": {"choice": ["mlp", {"name": "cnn", "pool": "max"}]}},
            ("method.judge.name", "method.judge.pool"),
        ),
        ({}, {"init": {"choice": ["normal", "network"]}}, ("method.init",)),
        ({}, {"steps": [{"lr": {"choice": [1, 2]}}, {"lr": 3}]}, ("method.steps",)),
    ],
)
def test_the_view_of_a_search_names_the_params_that_hold_its_values(
    base: dict[str, Any], own: dict[str, Any], names: tuple[str, ...]
) -> None:
    method = {"name": "finetune", "label": "finetune", "train": {}, "network": {}} | own
    resolved = {"train": {}, "network": {"name": "mlp"}, "methods": [method]} | base
    found = views.searched(SweepRecord("s", "id", resolved=resolved))
    assert found == ([names] if names else [])
