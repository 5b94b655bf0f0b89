"""CLR: what a task owns, what nothing changes, the recipe, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raycl.datasets.base import Arrays, Dataset
from raycl.errors import UserError
from raycl.nn.optim import TrainConfig, make_optimizer, make_schedule
from raycl.testing import MethodConformance, finish, toy_data
from raycl.training.phase import PhaseState
from raycl.training.run import Run

CNN = {"name": "cnn", "channels": [8, 16], "features": 16, "batch_norm": True}
RESNET = {"name": "resnet32", "blocks": 1}


SMALL = {"name": "cnn", "channels": [8, 8], "features": 24, "batch_norm": True}


class TestScaled(MethodConformance):
    method = "clr"
    options = {"variant": "scaled"}
    network = SMALL
    train = {**MethodConformance.train, "epochs": 6}


class TestFirstTask(MethodConformance):
    method = "clr"
    options = {"anchor": "first_task"}
    network = SMALL


@pytest.fixture
def clr(build):
    def clr(**changes):
        return build("clr", **{"network": CNN, **changes})

    return clr


def convolutions(run):
    layers = run.method.backbone.modules()
    return [m.weight.detach().clone() for m in layers if isinstance(m, nn.Conv2d)]


def test_convolutions_are_those_of_the_backbone(clr):
    run = clr(train={"epochs": 2})
    before = convolutions(run)
    finish(run)
    assert all(torch.equal(a, b) for a, b in zip(before, convolutions(run), strict=True))
    assert not torch.equal(run.method.own(0).weights, run.method.own(1).weights)


def test_before_training_features_are_the_backbones(clr):
    run = clr(network=RESNET)
    plain = run.method.context.build_network()
    state = {
        k.replace(".0.weight", ".weight"): v for k, v in run.method.backbone.state_dict().items()
    }
    info = run.stream.info.tasks[0]
    run.method.add_task(info)
    run.method.eval()
    images = torch.randn(3, 1, 8, 8)
    wrapped = run.method.embed(images, 0)
    own = {k: v for k, v in state.items() if k in plain.state_dict()}
    assert own.keys() == plain.state_dict().keys()
    plain.load_state_dict(own)
    assert torch.equal(plain.eval()(images), wrapped)


def test_trained_parameters_of_a_task(clr):
    """9 C_w + 2 C_b + (d + 1) K: channels 8 and 16, d = 16."""
    run = clr()
    run.method.add_task(run.stream.info.tasks[0])
    own = sum(p.numel() for p in run.method.own_parameters(0))
    assert own == 9 * 24 + 2 * 24
    assert sum(p.numel() for p in run.method.trainable()) == own + 17 * 2
    for classes, total in ((3, 315), (4, 332)):
        assert own + 17 * classes == total


def test_a_row_is_measured_once(clr, monkeypatch):
    run = clr()
    measured = []
    accuracy = run.evaluator.accuracy
    monkeypatch.setattr(
        run.evaluator, "accuracy", lambda m, e, i, s: measured.append(i) or accuracy(m, e, i, s)
    )
    while not run.done:
        run.advance()
    assert measured.count(0) == measured.count(1) == 2  # test and validation images
    result = run.last_row["result"]
    assert result["metrics"]["task"]["forgetting"] == 0
    assert result["matrices"]["task"][1][0] == result["matrices"]["task"][0][0]
    assert list(result["matrices"]) == ["task"]


def test_53_tasks_make_53_evaluations():
    (key,) = toy_data()
    classes = 106
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, size=(2 * classes, 1, 8, 8)).astype(np.uint8)
    arrays = Arrays(images, np.repeat(np.arange(classes), 2))
    names = tuple(map(str, range(classes)))
    data = {key: Dataset("many", arrays, arrays, names, (0.5,), (0.3,))}
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 53, "validation": 0},
        "method": {"name": "linear_probe"},
        "network": {"name": "mlp", "hidden": [4]},
        "train": {"epochs": 1},
    }
    run = Run(config, data)
    calls = []
    accuracy = run.evaluator.accuracy
    run.evaluator.accuracy = lambda m, e, i, s: calls.append(i) or accuracy(m, e, i, s)
    result = finish(run)
    assert calls == list(range(53))
    found = result["metrics"]["task"]
    column = [result["matrices"]["task"][52][i] for i in range(53)]
    assert found["average_accuracy"] == pytest.approx(sum(column) / 53)
    running = [sum(column[: t + 1]) / (t + 1) for t in range(53)]
    assert found["average_incremental_accuracy"] == pytest.approx(sum(running) / 53)


def test_tasks_do_not_meet(clr):
    """What a task becomes does not depend on what was learnt before, given the same draws."""
    ends = []
    for spoilt in (False, True):
        run = clr(train={"epochs": 2})
        while run.task_index < 1:
            run.advance()
        if spoilt:
            with torch.no_grad():
                for value in [*run.method.own(0).parameters(), *run.method.heads[0].parameters()]:
                    value.normal_(generator=torch.Generator().manual_seed(0))
        finish(run)
        ends.append(run)
    first, second = ([*r.method.own(1).named().values(), r.method.heads[1].weight] for r in ends)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    matrices = [run.last_row["result"]["matrices"]["task"] for run in ends]
    assert matrices[0][1][1] == matrices[1][1][1]


def test_loss_by_hand(clr):
    run = clr(penalty=0.01)
    run.advance()
    method = run.method
    batch = next(run.stream.data[0].train.batches(8))
    task = run.stream.open(0, None)
    method.train()
    terms = method.objective(task)(batch)
    method.train()
    z = method.heads[0](method.embed(batch.images, 0))
    expected = F.cross_entropy(z, batch.labels)
    own = method.own(0)
    parts = [*own.part("weights").values(), *own.part("affine").values()]
    norms = sum(p.norm() for p in [*parts, *method.heads[0].parameters()])
    assert len(parts) == 2 + 4
    assert terms["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["penalty"].item() == pytest.approx(0.01 * norms.item(), rel=1e-5)


def test_factors_are_outside_the_penalty(clr):
    run = clr(network=RESNET, variant="scaled")
    run.method.add_task(run.stream.info.tasks[0])
    own = run.method.own(0)
    names = own.part("weights") | own.part("affine")
    scales = [name for name in names if name.endswith(".scale")]
    assert len(scales) == 7
    assert len(run.method.penalised()) == len(names) + 2 - len(scales)


def test_learning_rate_by_epoch():
    train = TrainConfig(
        optimizer="adam", lr=1e-3, epochs=60, schedule={"name": "step", "milestones": (20, 40)}
    )
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([parameter], train)
    schedule = make_schedule(optimizer, train)
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-3] * 20 + [1e-4] * 20 + [1e-5] * 20)


@pytest.mark.parametrize(
    "scores,last",
    [
        ([*range(1, 11), *[5] * 50], 32),  # best in epoch 10
        ([10, *[5] * 59], 23),  # only the first improves
        ([0] * 60, 23),  # never above 0
        ([*range(60)], 60),
    ],
)
def test_early_stop(clr, scores, last):
    """The reference stops once ``epoch - best > 21``; here patience counts to 22."""
    run = clr(
        benchmark={"validation": 0.2},
        train={"epochs": 60, "patience": 22, "select": "validation_accuracy"},
    )
    run._enter_task()
    state = PhaseState(run._phases[0], run.method)
    values = iter(scores)
    state.phase.score = lambda: float(next(values))
    epochs = 1
    while not state.finish_epoch():
        epochs += 1
    assert epochs == last
    assert state.kept is not None


def test_a_last_batch_of_one(clr):
    finish(clr(network={**CNN, "channels": [8, 8, 8]}, train={"batch_size": 64 + 1}))


def test_anchor_is_trained_on_the_first_task_only(clr):
    run = clr(network=RESNET, anchor="first_task", train={"epochs": 2})
    start = convolutions(run)
    phases = []
    states = []
    while not run.done:
        phases.append(run.advance()["phase"])
        states.append(convolutions(run))
    assert phases == ["anchor", "anchor", "train", "train", "train", "train"]
    assert not torch.equal(start[0], states[1][0])
    for later in states[2:]:
        assert all(torch.equal(a, b) for a, b in zip(states[1], later, strict=True))
    assert run.method.fixed == ()


def test_kernels_are_outside_the_penalty_of_the_anchor(clr):
    """Frozen weights do not count; with them the curve would have a constant that is no loss."""
    run = clr(network=RESNET, anchor="first_task", penalty=0.01)
    run._enter_task()
    method, own = run.method, run.method.own(0)
    counts = []
    for trained in (True, False):
        for parameter in method.backbone.parameters():
            parameter.requires_grad_(trained)
        counts.append(len(method.penalised()))
    affine, kernels = len(own.part("affine")), len(own.part("weights"))
    assert counts == [affine + 2, kernels + affine + 2]


def test_frozen_statistics(clr):
    run = clr(network=RESNET, anchor="first_task", statistics="frozen", train={"epochs": 1})
    run._enter_task()
    means = run.method.own(0).statistics()
    name = next(name for name in means if name.endswith("running_mean"))
    start = means[name].clone()
    run.advance()  # the anchor follows its batches
    anchored = means[name].clone()
    assert not torch.equal(start, anchored)
    weights = run.method.own(0).weights.clone()
    run.advance()
    assert torch.equal(means[name], anchored)
    assert not torch.equal(run.method.own(0).weights, weights)
    finish(run)
    assert torch.equal(run.method.own(1).statistics()[name], anchored)


def test_each_task_draws_its_scaled_kernels(clr):
    run = clr(network=RESNET, variant="scaled")
    for info in run.stream.info.tasks:
        run.method.add_task(info)
    first, second = (run.method.own(task).part("weights") for task in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]) == name.endswith(".scale")


@pytest.mark.parametrize("variant", ["reduced_v2", "scaled"])
def test_how_far_kernels_are_from_their_start(clr, variant):
    """``scaled`` draws K for each task: what is measured is A K, which the identity has beside."""
    run = clr(network=RESNET, variant=variant)
    while not run.done:
        run._enter_task()
        assert run.method.diagnostics() == {"kernel_change": 0}
        run.advance()
    own = run.method.own(1).part("weights")
    sums = count = 0
    for name, value in own.items():
        if name.endswith(".kernel"):
            side = value.shape[-1]
            change = value.clone()
            if variant == "scaled":
                change *= own[name.replace(".kernel", ".scale")].view(-1, 1, 1, 1)
            else:
                change[:, 0, side // 2, side // 2] -= 1
            sums, count = sums + float(change.square().sum()), count + change.numel()
    found = run.last_row["method/kernel_change"]
    assert found == pytest.approx((sums / count) ** 0.5, rel=1e-4)
    assert found > 0


def test_the_penalty_of_the_reference_is_the_default(clr):
    assert clr().method.config.penalty == 1e-5


def test_the_second_task_starts_from_the_anchor(clr):
    run = clr(network=RESNET, anchor="first_task", train={"epochs": 1})
    while run.task_index < 1:
        run.advance()
    run._enter_task()
    network = run.method.backbone.state_dict()
    for name, value in run.method.own(1).norms().items():
        assert torch.equal(value, network[name])
    means = [v for n, v in run.method.own(1).norms().items() if n.endswith("running_mean")]
    assert any(mean.any() for mean in means)


def test_the_backbone_is_in_no_checkpoint(clr):
    run = clr()
    run.advance()
    state = run.state_dict()
    assert not [name for name in state["method"] if name.startswith("backbone.")]
    assert len(state["fixed"]) == 64


def test_a_kept_epoch_is_that_of_the_current_task(clr):
    run = clr(benchmark={"validation": 0.2}, train={"epochs": 2, "select": "validation_accuracy"})
    while run.task_index < 1:
        run.advance()
    run.advance()
    kept = run._phase.kept
    assert any(name.startswith("task_1.") for name in kept)
    assert not any(name.startswith(("task_0.", "backbone.")) for name in kept)


def test_cost_of_a_task(clr):
    run = clr()
    cost = finish(run)["cost"]
    backbone = sum(p.numel() for p in run.method.context.build_network().parameters())
    assert cost["task_percent"] == pytest.approx(100 * 9 * 24 / backbone)
    assert cost["task_percent_affine"] == pytest.approx(100 * 11 * 24 / backbone)
    assert cost["task_percent_statistics"] == pytest.approx(100 * 13 * 24 / backbone)


@pytest.mark.parametrize("variant", ["reduced_v1", "full"])
def test_a_network_without_convolutions_is_refused(build, variant):
    with pytest.raises(UserError, match=r"method\.variant: .*none of the network's 0 convolutions"):
        build("clr", variant=variant)


def test_the_task_must_be_known(build):
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "method": {"name": "clr"},
        "network": CNN,
        "readouts": ["class"],
    }
    with pytest.raises(UserError, match=r"'class' cannot be evaluated: CLR supports task"):
        Run(config, toy_data())
