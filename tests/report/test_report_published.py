"""Whether a method was run with the settings that published figures ask for."""

from __future__ import annotations

from typing import Any

import pytest

from raycl.report.published import _in_full as in_full

BFLOAT16 = {"epochs": 200, "precision": "bfloat16"}
WEIGHTS = {"name": "vit", "weights": {"package": "timm"}}


@pytest.mark.parametrize(
    "own, full",
    [
        ({}, True),
        ({"train": {"lr": 1}}, True),
        ({"train": {"choice": [{"epochs": 5}, {"epochs": 7}]}}, False),
        ({"train": {"epochs": {"choice": [5, 7]}}}, False),
        ({"network": {"grid": [{"name": "mlp"}, {"name": "cnn"}]}}, False),
        ({"network": {"weights": {"file": "x.pt"}}}, False),
    ],
)
def test_what_a_method_is_searched_over_is_not_what_the_sweep_has(
    own: dict[str, Any], full: bool
) -> None:
    wanted = {"in_full": {"train": {"epochs": 200}, "network": WEIGHTS}}
    methods = [{"name": "ours", **own}]
    spec = {"train": {"epochs": 200}, "network": WEIGHTS, "methods": methods, "published": wanted}
    assert in_full(spec, "ours") == full


def test_a_method_without_a_search_is_not_what_others_are_searched_over() -> None:
    wanted = {"in_full": {"train": {"choice": [{"epochs": 5}, {"epochs": 7}]}}}
    spec: dict[str, Any] = {"train": wanted["in_full"]["train"], "published": wanted}
    assert in_full(spec | {"methods": [{"name": "ours"}]}, "ours")
    assert not in_full(spec | {"methods": [{"name": "ours", "train": {"epochs": 5}}]}, "ours")


def test_no_value_of_a_search_may_be_bfloat16() -> None:
    for options, full in (([BFLOAT16, {}], False), ([{}, {"precision": "float32"}], True)):
        assert in_full({"train": {"choice": options}, "methods": [{"name": "a"}]}, "a") == full
