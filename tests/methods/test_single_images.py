"""A last batch of one image with maps of one pixel stops no method that gives tasks their own."""

from __future__ import annotations

import pytest

from raycl.testing import finish

DEEP = {"name": "torchvision", "model": "shufflenet_v2_x0_5"}
"""A network whose last normalisations see one pixel of images of 8 x 8."""
TRAIN = {"batch_size": 59, "lr": 0.001}
"""A task has 60 images."""


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
    run = build(method, network=DEEP, train=TRAIN)
    finish(run)


def test_the_network_is_one_that_stops(build):
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        finish(build("finetune", network=DEEP, train=TRAIN))
