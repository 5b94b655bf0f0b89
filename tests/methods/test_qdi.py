"""QDI: how many images, where they start, how they are inverted; see test_qdi_training.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from distilled_making import (
    CHANGING,
    NORMED,
    PLAIN,
    float64,
    follows,
    same,
    three_tasks,
    weights,
)
from replay_making import make, split
from stepping import until

from raycl import datasets
from raycl.datasets.base import DatasetConfig
from raycl.errors import UserError
from raycl.testing import finish, toy_data
from raycl.training.phase import PhaseState, train_one_epoch
from raycl.training.run import Run

SMALL: dict[str, Any] = {"inversion_steps": 3, "synthetic_images": 9}
DROPPING = {"name": "mlp", "hidden": [16], "dropout": 0.5}


@pytest.fixture
def build(build):
    return lambda **changes: build("qdi", **{"network": NORMED, **SMALL, **changes})


PUBLISHED: dict[str, Any] = {}
"""Defaults, which are the published options for CIFAR-10."""
ALL_TERMS = {
    "alpha": 3.0,
    "inversion_lr": 0.01,
    "feature_weight": 0.2,
    "variation_weight": 0.003,
    "magnitude_weight": 0.003,
}
TRAIN_MODE = {"teacher_mode": "train", "replay": 5, "temperature": 2.0}


@pytest.mark.parametrize(
    "options, augment, lr",
    [(PUBLISHED, "none", 0.3), (ALL_TERMS, "flip", 0.1), (TRAIN_MODE, "none", 0.3)],
    ids=["published", "all terms", "train mode"],
)
def test_is_the_method_written_out(options, augment, lr):
    """4 S = 84 of 106 images give statistics; M is 20, then 16."""
    method = {"name": "qdi", "inversion_steps": 110, "synthetic_images": 21, **options}
    with float64():
        kept = follows(three_tasks(method, augment=augment, lr=lr))
    if options is PUBLISHED:  # the case that matters, see test_distil.py
        assert not kept[1]


# ---------------------------------------------------------------------- how many images, of what

CLASSES = {"cifar10": (10, 5), "cifar100": (100, 20), "tiny": (200, 10)}
USED = {
    "cifar10": {2: 200, 4: 200, 6: 198, 8: 200},
    "cifar100": {5: 200, 10: 200, 15: 195, 20: 200, 25: 200, 30: 180, 35: 175, 40: 200, 45: 180,
                 50: 200, 55: 165, 60: 180, 65: 195, 70: 140, 75: 150, 80: 160, 85: 170, 90: 180,
                 95: 190},
    "tiny": {20: 200, 40: 200, 60: 180, 80: 160, 100: 200, 120: 120, 140: 140, 160: 160, 180: 180},
}  # fmt: skip


@pytest.mark.parametrize("stream", USED)
def test_images_of_the_published_streams(stream):
    made = make("qdi", split(*CLASSES[stream]))
    found = {}
    for info in made.context.stream.tasks:
        made.add_task(info)
        if not info.index:
            assert made.synthetic is None
            continue
        labels = made.labels(info)
        n_old = info.classes[0]
        assert labels.bincount().tolist() == [200 // n_old] * n_old
        assert made.synthetic.images.shape == (len(labels), 3, 1, 1)
        found[n_old] = len(labels)
    assert found == USED[stream]


def test_too_few_images_for_the_old_classes():
    with pytest.raises(
        UserError, match=r"method\.synthetic_images: 179 images are too few for 180"
    ):
        make("qdi", split(200, 10), synthetic_images=179)
    make("qdi", split(200, 10), synthetic_images=180)
    make("qdi", split(200, 1), synthetic_images=1)


def test_only_old_classes_of_tasks_that_are_run_count():
    with pytest.raises(UserError, match=r"19 images are too few for 20 old classes"):
        make("qdi", split(200, 10), synthetic_images=19, stop=2)
    make("qdi", split(200, 10), synthetic_images=20, stop=2)
    make("qdi", split(200, 10), synthetic_images=1, stop=1)


@pytest.mark.parametrize("replay", [0, -1])
def test_no_replay_is_refused(build, replay):
    with pytest.raises(
        UserError, match=rf"method\.replay: must be all or at least 1, not {replay}"
    ):
        build(replay=replay)


# ---------------------------------------------------------------------- where images start


def started(run) -> Any:
    """The run in its second task, the images at their start."""
    until(run, 1)
    run.method.eval()
    run._phases[0].before()
    return run.method.synthetic


@pytest.mark.parametrize("images", [9, 60, 200])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_images_of_the_new_task_are_the_start(build, images, augment):
    run = build(synthetic_images=images, train={"augment": augment})
    synthetic = started(run)
    train = run._task.train
    everything = train.prepare(train.raw(torch.arange(len(train)))).flatten(1)
    start = synthetic.images.detach().flatten(1)
    assert len(start) == images // 2 * 2
    rows = (start[:, None] == everything).all(2)
    if augment == "none":
        assert rows.any(1).all()
        used = rows.sum(0)
        assert used.max() - used.min() <= 1, "no image twice before all are used"
    else:
        assert not rows.any(1).all()
        assert len(start.unique(dim=0)) == min(len(start), len(train)), "one view of each image"
    each = synthetic.images.view(2, -1, 1, 8, 8)[:, :4]
    assert torch.equal(each, train.prepare(synthetic.start.flatten(0, 1)).view(each.shape))


def test_statistics_of_a_network_without_normalisation(build):
    """Images are the first 4 S of a permutation; all, if there are fewer."""
    run = build(network=CHANGING, synthetic_images=8)
    until(run, 1)
    state = run.random.method.get_state()
    synthetic = started(run)
    train, teacher = run._task.train, run.method.teacher
    run.random.method.set_state(state)
    first = torch.randperm(len(train), generator=run.random.method)[:32]
    for images, wanted in ((8, first), (50, torch.arange(len(train)))):
        if images == 50:
            run = build(network=CHANGING, synthetic_images=50)
            synthetic, teacher = started(run), run.method.teacher
        maps = teacher[0].layers[0](train.prepare(train.raw(wanted)))
        torch.testing.assert_close(synthetic.mean, maps.mean((0, 2, 3)))
        torch.testing.assert_close(synthetic.var, maps.var((0, 2, 3), correction=0))


def test_images_are_normalised_as_those_of_the_new_task():
    """The picture undoes the normalisation of its task, in a mixture of data sets too."""
    toy = next(iter(toy_data().values()))
    other = dataclasses.replace(toy, mean=(0.2,), std=(0.7,))
    configs = [DatasetConfig(name=name) for name in ("digits", "mnist")]
    stream = {"name": "mixture", "datasets": ["digits", "mnist"], "size": 8, "order": "none"}
    config = {
        "benchmark": stream,
        "method": {"name": "qdi", **SMALL, "inversion_lr": 1e-6},
        "network": PLAIN,
        "train": {"epochs": 1, "batch_size": 8},
    }
    run = Run(config, {datasets.key(c): d for c, d in zip(configs, (toy, other), strict=True)})
    assert run.stream.info.std[1] == pytest.approx((0.7,))
    synthetic = started(run)
    made = synthetic.first(synthetic.images.detach()) * 0.7 + 0.2
    torch.testing.assert_close(made, synthetic.start / 255, rtol=0, atol=1e-6)
    picture = run.method.pictures()["inversion"]
    assert torch.equal(picture[:, :8, :8], picture[:, :8, 9:17])


# ---------------------------------------------------------------------- steps of the inversion


def test_rate_by_hand(build):
    run = build(inversion_steps=500, inversion_lr=0.005)
    until(run, 1)
    phase = run._phases[0]
    assert phase.epochs * len(list(phase.batches())) == 500
    state = PhaseState(phase, run.method)
    (group,) = state.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.9), 1e-8, 0)
    assert not group["amsgrad"]
    rates = []
    for _ in range(501):
        rates.append(state.lr)
        state.optimizer.step()
        state.schedule.step()
    by_hand = {0: 5e-5, 49: 0.0025, 99: 0.005, 100: 0.005, 200: 0.0042678, 300: 0.0025,
               400: 0.00073223, 500: 0}  # fmt: skip
    for k, expected in by_hand.items():
        assert rates[k] == pytest.approx(expected, rel=1e-5, abs=1e-15)
    assert sum(rates) == pytest.approx(251.0 * 0.005)


def test_few_steps_only_warm_up(build):
    run = build(inversion_steps=100)
    until(run, 1)
    state = PhaseState(run._phases[0], run.method)
    for k in range(100):
        assert state.lr == pytest.approx(0.005 * (k + 1) / 100)
        state.optimizer.step()
        state.schedule.step()


def test_the_step_after_the_last_changes_nothing(build):
    """Step K of the published code has the rate 0; here it is not made."""
    run = build(inversion_steps=120)
    until(run, 1)
    phase, method = run._phases[0], run.method
    method.eval()
    phase.before()
    start = method.synthetic.images.detach().clone()
    state = PhaseState(phase, method)
    for _ in range(phase.epochs):
        train_one_epoch(phase, state.optimizer, method, state.schedule)
    assert not torch.equal(method.synthetic.images, start)
    assert state.lr == 0
    before = method.synthetic.images.detach().clone()
    torch.stack(list(phase.loss(0).values())).sum().backward()
    assert method.synthetic.images.grad.abs().max() > 1e-6
    state.optimizer.step()
    assert torch.equal(method.synthetic.images, before)


def test_images_become_images_of_old_classes(build):
    run = build(inversion_steps=110, inversion_lr=0.1, train={"epochs": 4})
    started(run)
    synthetic, teacher = run.method.synthetic, run.method.teacher
    with torch.no_grad():
        before = teacher(synthetic.images).softmax(1)
    until(run, 1, phase=1)
    labels = run.method.labels(run._task.info)
    after = synthetic.answers.softmax(1)
    rows = torch.arange(len(labels))
    assert after[rows, labels].min() > before[rows, labels].mean()
    assert run.method.diagnostics()["synthetic_right_teacher"] == 100


@pytest.mark.parametrize("network", [NORMED, DROPPING, CHANGING], ids=["same", "dropout", "other"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_inversion_leaves_networks_as_they_are(build, network, mode):
    """The inversion has the teacher in eval mode, also where it will be in train mode later."""
    run = build(network=network, teacher_mode=mode)
    until(run, 1)
    networks = [run.method.teacher, run.method.network]
    before = [weights(network) for network in networks]
    until(run, 1, phase=1)
    assert all(same(weights(n), b) for n, b in zip(networks, before, strict=True))
    assert all(p.grad is None for p in run.method.parameters())
    run.method.eval()
    with torch.no_grad():
        logits = run.method.teacher(run.method.synthetic.images)
    assert torch.equal(run.method.synthetic.answers, logits)


def test_a_network_without_layers_to_watch(build):
    run = build(network=DROPPING)
    until(run, 1)
    row = run.advance()
    assert "train/statistics" not in row
    assert row["train/content"] > 0
    finish(run)
    assert run.last_row["method/watched_layers"] == 0
    assert run.last_row["method/synthetic_images"] == 8


@pytest.mark.parametrize("network, layers", [(PLAIN, 1), (NORMED, 2)])
def test_diagnostics(build, network, layers):
    run = build(network=network)
    run.advance()
    assert run.method.diagnostics() == {}
    finish(run)
    found = run.method.diagnostics()
    assert (found["watched_layers"], found["synthetic_images"]) == (layers, 8)
    z = run.method.network(run.method.synthetic.images)
    right = (z.argmax(1) == torch.tensor([0] * 4 + [1] * 4)).double().mean() * 100
    assert found["synthetic_right_student"] == pytest.approx(float(right))
