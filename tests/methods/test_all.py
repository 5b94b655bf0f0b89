"""What the four methods of this folder have in common, beside the conformance suite."""

from __future__ import annotations

import pytest
import torch

from raycl.errors import UserError

METHODS = ["finetune", "joint", "naive_rehearsal", "online_ewc"]


@pytest.mark.parametrize("method", METHODS)
def test_state_round_trip_after_add_task(build, method):
    first = build(method)
    while not first.done:
        first.advance()
    second = build(method)
    for info in second.stream.info.tasks:
        second.method.add_task(info)
    second.method.load_state_dict(first.method.state_dict(), strict=True)
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(first.method.logits(images, None), second.method.logits(images, None))
    assert first.method.diagnostics() == second.method.diagnostics()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", ["seen", "task", "all"])
def test_every_output_setting_learns(build, method, outputs):
    run = build(method, outputs=outputs, train={"epochs": 4})
    while not run.done:
        row = run.advance()
    matrix = row["result"]["matrices"]["task"]
    assert matrix[0][0] > 80
    assert matrix[1][1] > 80


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["permuted", "rotated", "split"])
def test_shared_outputs(build, method, name):
    run = build(method, benchmark={"name": name}, train={"augment": "flip", "clip_norm": 1.0})
    while not run.done:
        row = run.advance()
    assert row["finished"]


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_cannot_be_selected_without_validation_set(build, method):
    run = build(method, benchmark={"validation": 0}, train={"select": "validation_loss"})
    with pytest.raises(UserError, match=r"train\.select: validation_loss needs a validation set"):
        run.advance()
