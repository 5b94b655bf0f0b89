"""Losses in bfloat16 and weights in channels-last order: what changes, and what must not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycl import registry
from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.methods.base import Classifier, Losses, Phase
from raycl.methods.finetune import Finetune
from raycl.methods.joint import Joint
from raycl.nn.optim import TrainConfig, make_optimizer
from raycl.testing import MethodConformance, finish, tensors, toy_data
from raycl.training.precision import to_channels_last, with_precision
from raycl.training.run import Run

HERE = f"{__name__}:"
BOTH = {"precision": "bfloat16", "channels_last": True}
NETWORK = {"name": "resnet32", "blocks": 1}


def build(method: str = "finetune", options: Any = None, network: Any = None, **train: Any) -> Run:
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.2},
        "method": {"name": method, **(options or {})},
        "network": network or NETWORK,
        "train": {"epochs": 2, "batch_size": 16, "lr": 0.05, "momentum": 0.9, **train},
    }
    return Run(config, toy_data())


def is_channels_last(method: nn.Module) -> bool:
    weights = [p for p in method.parameters() if p.dim() == 4 and p.shape[1] > 1]
    assert weights
    return all(p.stride(1) == 1 and not p.is_contiguous() for p in weights)


class Spy(Classifier):
    """Notes what its loss, its score and its evaluation are computed in.

    Nobody, 2026. Departures: none.
    """

    zero_shot = False

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.seen: dict[str, set[torch.dtype]] = {}

    def note(self, where: str, images: Tensor) -> None:
        found = {torch.is_autocast_enabled("cpu"), self.head(self.backbone(images)).dtype}
        self.seen.setdefault(where, set()).update(found)

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        objective = super().objective(task)

        def loss(batch: Batch) -> Losses:
            self.note("loss", batch.images)
            return objective(batch)

        return loss

    def score(self, task: Task, objective: Any) -> float:
        self.note("score", torch.zeros(2, 1, 8, 8))
        return super().score(task, objective)

    def end_task(self, task: Task) -> None:
        self.note("end", torch.zeros(2, 1, 8, 8))

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        if not self.training and task_id is None:
            self.note("evaluation", images)
        logits = super().logits(images, task_id)
        assert logits.dtype == torch.float32
        return logits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_and_scores_are_rounded_and_nothing_else(precision: str) -> None:
    run = build(HERE + "Spy", precision=precision, select="validation_loss")
    result = finish(run)
    plain, rounded = {False, torch.float32}, {True, torch.bfloat16}
    inside = plain if precision == "float32" else rounded
    assert run.method.seen == {"loss": inside, "score": inside, "end": plain, "evaluation": plain}
    assert {t.dtype for t in tensors(run.method.state_dict())} == {torch.float32, torch.int64}
    assert not torch.is_autocast_enabled("cpu")
    assert min(result["matrices"]["task"][t][t] for t in range(2)) > 80


def test_bfloat16_rounds_the_loss_only_a_little() -> None:
    exact, rounded = build().advance(), build(precision="bfloat16").advance()
    assert exact["train/loss"] != rounded["train/loss"]
    assert rounded["train/loss"] == pytest.approx(exact["train/loss"], rel=0.05)


def test_float32_is_left_alone() -> None:
    phase = build().method.phases  # bound, not called: any phase will do
    one = Phase("one", 1, phase, list, lambda batch: torch.zeros(()))  # type: ignore[arg-type]
    assert with_precision(one, TrainConfig(), torch.device("cpu")) is one


def test_weights_seen_without_gradients_first_are_trained_all_the_same() -> None:
    """A cache of rounded weights would cut the second pass from the weights."""
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)

    def loss(batch: Any) -> Tensor:
        with torch.no_grad():
            target = layer(x)
        return nn.functional.mse_loss(layer(x), target + 1)

    train = TrainConfig(precision="bfloat16")
    phase = Phase("one", 1, lambda: torch.optim.SGD(layer.parameters()), list, loss)
    value = with_precision(phase, train, torch.device("cpu")).loss(None)
    assert isinstance(value, Tensor)
    value.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


class Terms(Finetune):
    """Terms of several types, one of them tiny beside the sum of an epoch."""

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        objective = super().objective(task)

        def loss(batch: Batch) -> Losses:
            one = torch.full((), 1 / 3).bfloat16()
            return {"cross_entropy": objective(batch), "small": one}  # type: ignore[dict-item]

        return loss


def test_means_over_an_epoch_are_not_rounded() -> None:
    row = build(HERE + "Terms", batch_size=1, precision="bfloat16").advance()
    third = float(torch.tensor(1 / 3).bfloat16())
    assert row["train/small"] == pytest.approx(third, rel=1e-6)
    total = row["train/cross_entropy"] + row["train/small"]
    assert row["train/loss"] == pytest.approx(total, rel=1e-5)


# ---------------------------------------------------------------------- channels-last


def test_channels_last_changes_rounding_only() -> None:
    plain, fast = build(), build(channels_last=True)
    pairs = zip(plain.method.parameters(), fast.method.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert is_channels_last(fast.method)
    assert not is_channels_last(plain.method)
    batch = next(iter(plain.method.train_batches(plain._enter_task())))
    grads = []
    for run in (plain, fast):
        task = run._enter_task()
        run.method.train()
        loss = run.method.objective(task)(batch)
        loss.backward()
        grads.append([p.grad for p in run.method.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Teacher(Joint):
    """Makes networks wherever a method may: a copy, one of the sweep's, and layers of its own.

    Nobody, 2026. Departures: none.
    """

    def add_task(self, task: TaskInfo) -> None:
        if task.index == 1:
            self.teacher = copy.deepcopy(self.backbone)
            self.own = nn.Conv2d(2, 3, 3)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.info.index == 1:
            self.own = nn.Conv2d(2, 3, 3)

    def phases(self, task: Task) -> list[Phase]:
        def renew() -> None:
            self.late = nn.Conv2d(2, 3, 3)

        if task.info.index == 0:
            return super().phases(task)
        first = Phase(
            name="renew",
            epochs=1,
            optimizer=lambda: make_optimizer(self.head.parameters(), self.context.train),
            batches=lambda: self.train_batches(task),
            loss=self.objective(task),
            before=renew,
        )
        return [first, *super().phases(task)]


def test_channels_last_reaches_every_network_at_every_time() -> None:
    run = build(HERE + "Teacher", channels_last=True)
    while not run.done:
        run.advance()
        assert is_channels_last(run.method)
    assert {name.partition(".")[0] for name, _ in run.method.named_parameters()} == {
        *("backbone", "head", "teacher", "own", "late")
    }


def test_channels_last_survives_copies_bytes_and_loading() -> None:
    run = build(channels_last=True)
    run.advance()
    assert is_channels_last(copy.deepcopy(run.method.backbone))
    assert is_channels_last(pickle.loads(pickle.dumps(run.method.backbone)))
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    other = build(channels_last=True)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert is_channels_last(other.method)


def test_stored_images_are_left_as_they_are() -> None:
    module = nn.Conv2d(2, 3, 3)
    module.register_buffer("images", torch.zeros(5, 3, 4, 4, dtype=torch.uint8))
    to_channels_last(module)
    assert module.images.is_contiguous()
    assert is_channels_last(module)


# ---------------------------------------------------------------------- everything else holds


class TestBoth(MethodConformance):
    """A method still proves everything with both on; resumed bitwise, above all."""

    method = "lwf"
    network = NETWORK
    train = {"epochs": 2, "batch_size": 16, "lr": 0.05, **BOTH}
    learns = 70.0


OPTIONS: dict[str, dict[str, Any]] = {
    "abd": {"power_iterations": 2, "latent": 8},
    "deep_inversion": {"power_iterations": 2, "latent": 8},
    "dgr": {"latent": 8, "width": 0.05},
    "lwf_synthetic": {"power_iterations": 2, "latent": 8},
    "qdi": {"inversion_steps": 4, "synthetic_images": 20},
    "regress_features": {"source": {"name": "mlp", "hidden": [24]}},
}
VIT = {
    "name": "timm",
    "model": "vit_tiny_patch16_224",
    "model_args": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
PROMPTS: dict[str, dict[str, Any]] = {
    "apt": {},
    "cdl": {"learner": {"name": "l2p", "size": 5}, "teacher_network": VIT},
    "coda_prompt": {"size": 6, "blocks": [0, 1]},
    "dual_prompt": {"size": 3, "blocks": [1], "general_blocks": [0]},
    "l2p": {"size": 5},
    "no_prompt": {},
    "one_prompt": {},
}
"""Methods that need a transformer, which the first task trains here."""


@pytest.mark.parametrize("method", sorted(set(registry.names("raycl.methods")) - {"finetune"}))
def test_methods_run_with_both(method: str) -> None:
    """Killed at the end of the first task, and resumed to the same bits."""

    def run() -> Run:
        if method in PROMPTS:
            options = {"anchor": "first_task", **PROMPTS[method]}
            return build(method, options, VIT, epochs=1, **BOTH)
        return build(method, OPTIONS.get(method, {}), epochs=1, **BOTH)

    reference = run()
    result = finish(reference)
    values = [v for rows in result["matrices"].values() for row in rows for v in row if v]
    assert all(0 <= value <= 100 for value in values)
    killed = run()
    while killed.task_index == 0:
        killed.advance()
    saved = killed.state_dict()  # before another run sets the process's generators
    resumed = run()
    resumed.load_state_dict(saved)
    assert not resumed.done
    finish(resumed)
    states = (tensors(r.method.state_dict()) for r in (reference, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


# ---------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("select", ["validation_loss", "seen_accuracy"])
def test_evaluation_is_rounded_where_that_is_asked_for_and_training_stays(select: str) -> None:
    train = {"epochs": 2, "batch_size": 16, "lr": 0.05, "precision": "bfloat16", "select": select}
    states = []
    for evaluate in ({}, {"precision": "bfloat16"}):
        config = build(HERE + "Spy").config.model_dump(mode="json")
        run = Run(config | {"train": train, "evaluate": evaluate}, toy_data())
        result = finish(run)
        rounded = {True, torch.bfloat16}
        inside = run.method.seen["evaluation"]
        assert inside == rounded if evaluate else inside >= {False, torch.float32}
        assert run.method.seen["end"] == {False, torch.float32}
        states.append((tensors(run.method.state_dict()), run.state_dict()["random"]["own"]))
        assert min(result["matrices"]["task"][t][t] for t in range(2)) > 80
    for plain, other in zip(*states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
