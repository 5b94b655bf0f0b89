"""Distil; with it what distil, distilbuf and qdi share: losses, kept epochs, teachers, streams."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from distilled_making import (
    CHANGING,
    CONSTANT,
    NORMED,
    PLAIN,
    PLAIN_SGD,
    SELECT,
    float64,
    follows,
    same,
    scripted,
    three_tasks,
    weights,
)
from stepping import until
from torch import nn

import raycl
from raycl.benchmarks.base import StreamInfo, TaskInfo
from raycl.datasets.examples import Batch
from raycl.methods.distil import Distil
from raycl.methods.distilbuf import DistilBuf
from raycl.methods.qdi import QDI
from raycl.networks.base import networks_of
from raycl.testing import finish
from raycl.training.evaluation import Evaluator
from raycl.training.phase import PhaseState

SWEEPS = Path(raycl.__file__).parent.parent / "sweeps" / "hcl"
DROPPING = {"name": "mlp", "hidden": [16], "dropout": 0.5}
SMALL = {"distil": {}, "distilbuf": {}, "qdi": {"inversion_steps": 3, "synthetic_images": 8}}
# ---------------------------------------------------------------------- the method as a whole


@pytest.mark.parametrize(
    "options, augment", [({}, "flip"), ({"alpha": 0.7, "temperature": 2.0}, "none")]
)
def test_is_the_method_written_out(options, augment):
    with float64():
        kept = follows(three_tasks({"name": "distil", **options}, augment=augment))
    # the case that matters: before the network stays, another epoch than the last is kept
    assert not kept[1]


def test_defaults():
    made = {cls: cls.Config(name="x") for cls in (Distil, DistilBuf, QDI)}
    assert [c.alpha for c in made.values()] == [3.0, 1.0, 1.0]
    for config in made.values():
        assert (config.temperature, config.label_smoothing, config.outputs) == (1.0, 0.1, "all")
    assert made[DistilBuf].replay_weight == 0.3
    assert (made[DistilBuf].memory_size, made[DistilBuf].replay_augment) == (200, "crop_flip")
    config = made[QDI]
    assert (config.synthetic_images, config.inversion_steps) == (200, 500)
    assert (config.inversion_lr, config.feature_weight) == (0.005, 0.1)
    assert (config.variation_weight, config.magnitude_weight) == (0.001, 0)
    assert (config.replay, config.teacher_mode) == ("all", "eval")


def test_losses_by_hand(build):
    method = build("distil", benchmark={"tasks": 4}).method
    z, label = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    batch = Batch(torch.zeros(1, 1, 8, 8), label, label)
    found = method.terms(z, batch, torch.arange(3))
    assert found.keys() == {"cross_entropy"}
    assert found["cross_entropy"].item() == pytest.approx(0.3365127, abs=1e-7)
    method.teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        method.teacher[1].bias.copy_(torch.tensor([1.0, 0.0]))
    found = method.terms(torch.zeros(1, 2), batch, torch.arange(2))
    assert found["distillation"].item() == pytest.approx(3 * 0.1109442, abs=1e-6)


def test_a_sure_student_of_a_sure_teacher_is_finite(build):
    method = build("distil").method
    student = torch.tensor([[900.0, -900.0]], requires_grad=True)
    method.distillation(student, torch.tensor([[-900.0, 900.0]])).backward()
    assert student.grad.isfinite().all()


def test_masks_by_hand():
    tasks = tuple(TaskInfo(i, str(i), (2 * i, 2 * i + 1)) for i in range(3))
    info = StreamInfo(tasks, (1, 1, 1), 6, tuple("abcdef"), ((0.0,),), ((1.0,),), ("class", "task"))
    logits = torch.tensor([[3.0, 1.0, 2.5, 2.0, 0.0, 1.0]])
    method = SimpleNamespace(uses_task_id=False, logits=lambda images, task_id: logits)

    def right(label: int) -> dict[str, float]:
        labels = torch.tensor([label])
        batch = Batch(torch.zeros(1, 1, 1, 1), labels, labels)
        examples: Any = type("One", (), {"batches": lambda *_: [batch], "__len__": lambda _: 1})()
        everything = Evaluator(info, ["class", "task"], torch.device("cpu"), 1, "all")
        return everything.accuracy(method, examples, 1, 2)

    assert right(2) == {"class": 0, "task": 100}  # class-incremental it says 0, in its task 2
    assert right(0) == {"class": 100, "task": 0}


# ---------------------------------------------------------------------- alpha 0 is fine-tuning


def history(run, scores=()):
    """Loss and weights after every epoch of training; runs share the process's generators."""
    found = []
    if scores:
        scripted(run, scores)
    while not run.done:
        row = run.advance()
        if row["phase"] == "train":
            found.append((row["train/loss"], weights(run.method.network)))
    return found


def same_history(one, other):
    assert len(one) == len(other) > 2
    assert all(a[0] == b[0] and same(a[1], b[1]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "network, scores",
    [
        (CONSTANT, ()),
        (CHANGING, ()),
        (CHANGING, (5, 60, 0, 9, 8, 7)),  # where networks change, only the kept epoch matters
        (CONSTANT, (1, 2, 3, 9, 8, 7)),
    ],
)
def test_alpha_zero_is_fine_tuning(build, network, scores):
    """Bit by bit."""
    train = {"augment": "flip", **(SELECT if scores else {"epochs": 3})}
    options = {"network": network, "train": train, "benchmark": {"validation": 0.2}}
    found = history(build("distil", alpha=0, **options), scores)
    same_history(found, history(build("finetune", **options, **PLAIN_SGD), scores))


@pytest.mark.parametrize("network", [PLAIN, {"name": "sequence", "of": [NORMED, PLAIN]}])
def test_qdi_with_alpha_zero_is_fine_tuning_without_batch_normalisation(build, network):
    options = {"network": network, "train": {"epochs": 2}}
    found = history(build("qdi", alpha=0, **options, **SMALL["qdi"]))
    same_history(found, history(build("finetune", **options, **PLAIN_SGD)))


def test_qdi_with_alpha_zero_shows_synthetic_images_to_normalisations(build):
    run = build("qdi", alpha=0, network=CONSTANT, **SMALL["qdi"])
    finish(run)
    plain = build("finetune", network=CONSTANT, **PLAIN_SGD)
    finish(plain)
    norm, other = (one.method.backbone.layers[1] for one in (run, plain))
    steps = -(-len(run.stream.data[1].train) // 8)
    assert int(norm.num_batches_tracked) == int(other.num_batches_tracked) + steps
    assert not torch.equal(norm.running_mean, other.running_mean)


# ---------------------------------------------------------------------- teachers


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("network", [NORMED, CHANGING, DROPPING], ids=["same", "other", "dropout"])
def test_the_teacher_keeps_every_bit(build, method, network):
    run = build(method, network=network, train={"epochs": 2}, **SMALL[method])
    until(run, 1)
    before = weights(run.method.teacher)
    finish(run)
    assert same(before, weights(run.method.teacher))
    assert not any(m.training for m in run.method.teacher.modules())
    run.method.train()
    assert run.method.backbone.training
    assert not any(m.training for m in run.method.teacher.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.method.modules())


def test_teacher_and_student_see_the_same_images(build):
    run = build("distil", train={"augment": "crop_flip"}, network=PLAIN)
    task = until(run, 1)
    got = []
    for module in (run.method.teacher[0], run.method.backbone):
        module.register_forward_pre_hook(lambda _, args: got.append(args[0]))
    batch = next(iter(run.method.train_batches(task)))
    run.method.objective(task)(batch)
    assert len(got) == 2
    assert got[0] is got[1] is batch.images


# ---------------------------------------------------------------------- which epoch is kept


@pytest.mark.parametrize(
    "scores, kept",
    [
        ((50, 49.9, 49.6, 49.75), 3),
        ((10, 60, 59.85, 59.7, 59.55), 4),
        ((50, 49.9, 49.6, 49.69), 1),
        ((0, 0, 0), 2),
    ],
)
@pytest.mark.parametrize("method", SMALL)
def test_selection_by_hand(build, method, scores, kept):
    train = {**SELECT, "epochs": len(scores)}
    run = build(method, benchmark={"validation": 0.2}, train=train, **SMALL[method])
    task = until(run, 0)
    given = iter(scores)
    (phase,) = run.method.phases(task)
    state = PhaseState(dataclasses.replace(phase, score=lambda: next(given)), run.method)
    for epoch in range(len(scores)):
        with torch.no_grad():
            run.method.head.bias.fill_(epoch)
        over = state.finish_epoch()
    assert over
    assert (state.kept_epoch - 1, state.kept_score) == (kept, scores[kept])
    state.close()
    assert run.method.head.bias.eq(kept).all(), "the kept epoch is evaluated"
    assert run.method.onward[1].bias.eq(len(scores) - 1).all(), "the last one goes on"


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("network", [CONSTANT, CHANGING], ids=["constant", "changing"])
def test_the_kept_epoch_teaches_and_the_last_one_goes_on(build, method, network):
    run = build(
        method, benchmark={"validation": 0.2}, network=network, train=SELECT, **SMALL[method]
    )
    epochs = scripted(run, [5.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    while run.task_index == 0:
        run.advance()
    assert same(weights(run.method.network), epochs[1]), "what is evaluated"
    constant = network is CONSTANT
    assert (run.method.onward is not None) == constant
    until(run, 1)
    assert same(weights(run.method.teacher), epochs[1])
    assert run.method.onward is None, "the last task has none to go on to"
    if constant:
        assert same(weights(run.method.network), epochs[2])
    else:
        assert run.method.head.in_features == NORMED["features"]
    finish(run)
    assert same(weights(run.method.network), epochs[5])


def test_without_selection_no_network_is_set_aside(build):
    run = build("distil", network=CONSTANT)
    until(run, 1)
    assert run.method.onward is None
    assert same(weights(run.method.network), weights(run.method.teacher))


# ---------------------------------------------------------------------- the three streams


@pytest.mark.parametrize(
    "name, tasks, changes", [("cifar10", 5, 4), ("cifar100", 20, 8), ("tiny", 10, 4)]
)
def test_networks_of_the_published_streams(build, name, tasks, changes):
    sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    assert sweep["benchmark"]["tasks"] == tasks
    blocks = networks_of(sweep["network"], tasks)
    assert sum(member.get("repeat", 1) for member in sweep["network"]["of"]) == tasks
    context = dataclasses.replace(build("distil").method.context, networks=blocks)
    assert sum(context.network_changes(task) for task in range(-1, tasks + 1)) == changes
    assert not context.network_changes(0), "the first is built once"


def test_options_of_the_published_streams():
    published = {
        "cifar10": (3, 1, (1, 0.005, 0.001, 0, 0.1)),
        "cifar100": (3, 3, (3, 0.03, 0.003, 0.003, 0.2)),
        "tiny": (3, 1, (1, 0.03, 0.003, 0.003, 0.2)),
    }
    names = ("alpha", "inversion_lr", "variation_weight", "magnitude_weight", "feature_weight")
    for name, (distil, distilbuf, qdi) in published.items():
        sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
        train = sweep["train"]
        assert (train["epochs"], train["batch_size"], train["lr"]) == (200, 32, 0.03)
        assert train.keys().isdisjoint({"momentum", "weight_decay", "schedule", "optimizer"})
        found = [m for m in sweep["methods"] if m["name"] in SMALL]
        without = [m["label"] for m in found if m.get("alpha") == 0]
        assert without == ["finetune-resnet18"], "the fine-tuning of that code"
        found = [m for m in found if m.get("label") not in without]
        assert len(found) == 6
        for method in found:
            cls = {"distil": Distil, "distilbuf": DistilBuf, "qdi": QDI}[method["name"]]
            options = {k: v for k, v in method.items() if k not in ("label", "network")}
            config = cls.Config(**options)
            expected = {Distil: (distil,), DistilBuf: (distilbuf,), QDI: qdi}[cls]
            assert tuple(getattr(config, n) for n in names[: len(expected)]) == expected
