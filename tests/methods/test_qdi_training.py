"""QDI after its inversion: training, a run that is resumed, pictures."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from distilled_making import CHANGING, CONSTANT, NORMED, same, three_tasks
from stepping import until

from raycl.nn.inversion import normalisations
from raycl.testing import MethodConformance, finish, tensors, toy_data
from raycl.training.run import Run

SMALL: dict[str, Any] = {"inversion_steps": 3, "synthetic_images": 9}
DROPPING = {"name": "mlp", "hidden": [16], "dropout": 0.5}


class TestInOddForm(MethodConformance):
    """A teacher in train mode, some of the images in each step, an inversion of several epochs."""

    method = "qdi"
    options = {**SMALL, "replay": 5, "teacher_mode": "train"}
    network = NORMED
    second = {"name": "mlp", "hidden": [16]}
    train = {"epochs": 3, "batch_size": 8, "lr": 0.1}


@pytest.fixture
def build(build):
    return lambda **changes: build("qdi", **{"network": NORMED, **SMALL, **changes})


@pytest.mark.parametrize(
    "network, mode",
    [(CHANGING, "eval"), (CONSTANT, "train"), (DROPPING, "train")],
    ids=["other", "same", "mlp"],
)
@pytest.mark.parametrize("epochs", [5, 9, 10])
def test_resumed_in_the_middle(build, network, mode, epochs):
    """Resumed inside the inversion (third epoch of seven, last one) and inside training."""
    options = {
        "network": network,
        "inversion_steps": 7,
        "replay": 3,
        "teacher_mode": mode,
        "benchmark": {"validation": 0.2},
        "train": {"select": "validation_loss", "epochs": 2, "augment": "flip"},
    }
    whole = build(**options)
    finish(whole)
    run = build(**options)
    for _ in range(epochs):
        row = run.advance()
    assert (row["task"], row["phase"]) == (1, "inversion" if epochs < 10 else "train")
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    other = build(**options)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert finish(other)["matrices"] == whole.last_row["result"]["matrices"]
    states = [list(tensors(one.method.state_dict())) for one in (other, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


# ---------------------------------------------------------------------- training


def counted(module) -> list[int]:
    """Images in each pass from now on."""
    sizes: list[int] = []
    module.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("mode, teacher", [("eval", [8]), ("train", [8, 8])])
def test_passes_of_a_step(build, mode, teacher):
    """Two of the student; of the teacher only the batch, where its answers do not change."""
    run = build(teacher_mode=mode, synthetic_images=16)
    task = until(run, 1, phase=1)
    method = run.method
    method.train()
    passes, asked = counted(method.head), counted(method.teacher[1])
    batch = next(iter(task.train.batches(8)))
    with torch.no_grad():
        method.synthetic.images.mul_(1.5)  # what answers there are, is seen
    terms = method.objective(task)(batch)
    assert terms.keys() == {"cross_entropy", "distillation", "synthetic_distillation"}
    assert (passes, asked) == ([8, 16], [*teacher[:1], *[16] * (len(teacher) - 1)])
    torch.stack(list(terms.values())).sum().backward()
    assert method.synthetic.images.grad is None
    assert all(p.grad is None for p in method.teacher.parameters())


def test_a_teacher_in_train_mode_drifts(build):
    run = build(teacher_mode="train", network=CONSTANT)
    until(run, 1, phase=1)
    teacher = run.method.teacher
    parameters = [p.clone() for p in teacher.parameters()]
    norm = normalisations(teacher)[0]
    before, steps = norm.running_mean.clone(), int(norm.num_batches_tracked)
    answers = run.method.synthetic.answers.clone()
    finish(run)
    assert same(parameters, list(teacher.parameters()))
    assert not torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == steps + 2 * -(-len(run.stream.data[1].train) // 8)
    assert torch.equal(run.method.synthetic.answers, answers)
    assert not any(m.training for m in teacher.modules()), "evaluation"


def test_replay_of_some(build):
    run = build(replay=3, synthetic_images=20)
    until(run, 1, phase=1)
    method = run.method
    method.train()
    everything = method.synthetic.images.detach().flatten(1)
    draws = []
    for _ in range(30):
        images, answers = method.replayed(method.synthetic)
        rows = (images.flatten(1)[:, None] == everything).all(2).float().argmax(1)
        assert len(rows.unique()) == 3, "distinct"
        assert torch.equal(answers, method.synthetic.answers[rows])
        draws.append(rows)
    assert len(torch.stack(draws).unique(dim=0)) > 20, "drawn anew"
    assert len(torch.cat(draws).unique()) == 20


@pytest.mark.parametrize("replay, training", [(3, False), ("all", True), (8, True), (9, True)])
def test_all_are_replayed_without_a_draw(build, replay, training):
    run = build(replay=replay)
    until(run, 1, phase=1)
    method = run.method.train(training)
    before = run.random.method.get_state()
    images, answers = method.replayed(method.synthetic)
    assert torch.equal(images, method.synthetic.images)
    assert torch.equal(answers, method.synthetic.answers)
    assert torch.equal(run.random.method.get_state(), before)


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize("images, pairs", [(6, 3), (40, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(build, images, pairs, channels):
    (key, toy), *_ = toy_data().items()
    if channels == 3:
        shades = [1.0, 0.5, 0.25]
        parts = [
            dataclasses.replace(
                part, images=torch.tensor(part.images).mul(torch.tensor(shades).view(-1, 1, 1))
                .to(torch.uint8).numpy(),
            )
            for part in (toy.train, toy.test)
        ]  # fmt: skip
        toy = dataclasses.replace(
            toy, train=parts[0], test=parts[1], mean=(0.5, 0.3, 0.1), std=(0.3, 0.2, 0.1)
        )
    config = build(synthetic_images=images, inversion_lr=0.5).config
    run = Run(config, {key: toy})
    run.advance()
    assert run.method.pictures() == {}
    until(run, 1, phase=1)
    start = run.method.synthetic.start.clone()
    while not run.done:
        run.advance()
    ((name, picture),) = run.pictures.items()
    assert "inversion" in name
    assert picture.shape == (3, 2 * 9 - 1, 2 * pairs * 9 - 1), "no row of nothing"
    info = run.stream.info
    mean, std = (torch.tensor(values[1]).view(-1, 1, 1) for values in (info.mean, info.std))
    made = (run.method.synthetic.images.detach() * std + mean).clamp(0, 1) * 255
    for c in range(2):
        for i in range(pairs):
            rows, left = slice(9 * c, 9 * c + 8), 18 * i
            cells = picture[:, rows, left : left + 8], picture[:, rows, left + 9 : left + 17]
            assert torch.equal(cells[0], start[c, i].expand(3, 8, 8))
            wanted = made[c * (images // 2) + i].expand(3, 8, 8)
            assert (cells[1].float() - wanted).abs().max() <= 0.51
            assert not torch.equal(*cells)
    train = torch.tensor(toy.train.images)
    for value in tensors(run.method.state_dict()):
        if value.dtype == torch.uint8:
            assert not value.any(), "nothing is left of the images of the task"
    assert train.any()


def test_no_picture_of_more_than_eight_classes_in_a_row(build):
    """Twelve classes: eight of them, the first and the last among them."""
    run = three_tasks({"name": "qdi", **SMALL, "synthetic_images": 36}, epochs=1)
    finish(run)
    picture = run.method.pictures()["inversion"]
    assert picture.shape == (3, 8 * 9 - 1, 8 * 9 - 1)


@pytest.mark.parametrize("followed", ["both", "real"])
def test_what_running_statistics_follow(build, followed):
    run = build(student_statistics=followed)
    task = until(run, 1, phase=1)
    method = run.method
    (batch,) = task.train.batches(1000)
    loss = method.objective(task)
    first = normalisations(method.backbone)[0]
    seen = []
    first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    method.train()
    before = first.running_mean.clone()
    loss(batch)
    means = [maps.mean((0, *range(2, maps.dim()))) for maps in seen]
    assert len(means) == 2
    expected = before
    for mean in means if followed == "both" else means[:1]:
        expected = 0.9 * expected + 0.1 * mean
    assert torch.allclose(first.running_mean, expected, atol=1e-6)
    assert first.momentum == 0.1
