"""The linear probe: heads alone are trained, on features that are computed once."""

from __future__ import annotations

import torch

from raycl.testing import MethodConformance, finish

CNN = {"name": "cnn", "channels": [8], "features": 16, "batch_norm": True}


def test_the_network_stays_and_each_image_passes_it_once(build):
    run = build("linear_probe", network=CNN, train={"epochs": 5})
    network = run.method.backbone
    before = {name: value.clone() for name, value in network.state_dict().items()}
    passes = []
    network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    result = finish(run)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    data = run.stream.data
    assert sum(passes) == sum(len(d.train) + len(d.validation) + len(d.test) for d in data)
    assert result["cost"]["task_percent"] == 0
    assert result["metrics"]["task"]["average_accuracy"] > 80


class TestFirstTask(MethodConformance):
    method = "linear_probe"
    options = {"anchor": "first_task"}
    network = CNN


def test_the_first_task_may_train_the_network(build):
    run = build("linear_probe", network=CNN, anchor="first_task", train={"epochs": 2})
    seen = []
    while not run.done:
        before = [v.clone() for v in run.method.backbone.state_dict().values()]
        phase = run.advance()["phase"]
        after = run.method.backbone.state_dict().values()
        seen.append((phase, any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))))
    assert seen == [("anchor", True)] * 2 + [("train", False)] * 4


def test_augmented_images_pass_it_in_eval_mode(build):
    run = build("linear_probe", network=CNN, train={"epochs": 2, "augment": "flip"})
    modes = []
    run.method.backbone.register_forward_hook(lambda module, *_: modes.append(module.training))
    finish(run)
    assert not any(modes)


def test_the_penalty_is_that_of_the_head(build):
    run = build("linear_probe", network=CNN, penalty=0.1)
    run.advance()
    method = run.method
    assert [p.shape for p in method.penalised()] == [p.shape for p in method.heads[0].parameters()]


def test_all_that_is_trained_is_a_head(build):
    run = build("linear_probe", network=CNN)
    run.method.add_task(run.stream.info.tasks[0])
    assert sum(p.numel() for p in run.method.trainable()) == 17 * 2
