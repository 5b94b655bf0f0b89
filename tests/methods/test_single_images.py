"""A last batch of one image with maps of one pixel stops no method that gives tasks their own."""

from __future__ import annotations

import pytest

from raycl.testing import finish

TINY = {"name": "cnn", "channels": [4, 4, 4], "features": 8, "batch_norm": True}
"""8 x 8 pixels end in maps of 1 x 1."""


@pytest.mark.parametrize(
    "method",
    [
        "batch_ensemble",
        "clr",
        "li_adapter",
        "linear_probe",
        "packnet",
        "piggyback",
        "pnn",
        "psp",
        "separate_finetune",
        "supsup",
    ],
)
def test_a_batch_of_one(build, method):
    run = build(method, network=TINY, train={"batch_size": 1, "lr": 0.001})
    finish(run)
