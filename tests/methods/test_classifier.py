"""How most methods score an epoch, and what a plateau schedule makes of it."""

from __future__ import annotations

import pytest
import torch

from raycl.benchmarks.base import Task, TaskData
from raycl.datasets.examples import concat
from raycl.methods.base import Classifier, masked_cross_entropy
from raycl.nn.optim import TrainConfig
from raycl.testing import tensors


def large_task(run, index):
    """The task with a validation set of more than one batch, the last of them shorter."""
    data = run.stream.data[index]
    validation = concat([data.train] * 20)
    assert 1024 < len(validation) < 2048
    return Task(run.stream.info.tasks[index], TaskData(data.train, validation, data.test), [])


@pytest.mark.parametrize("method", ["finetune", "joint", "naive_rehearsal"])
@pytest.mark.parametrize(
    "outputs, active", [("seen", [0, 1, 2, 3]), ("task", [2, 3]), ("all", [0, 1, 2, 3])]
)
def test_validation_loss_is_the_mean_over_all_examples(build, method, outputs, active):
    run = build(method, outputs=outputs, train={"select": "validation_loss"})
    run.advance()
    run.method.eval()
    task = large_task(run, 1)
    (phase,) = run.method.phases(task)
    (batch,) = task.validation.batches(10_000)
    with torch.no_grad():
        z = run.method.logits(batch.images, None)
        loss = masked_cross_entropy(z, batch.labels, torch.tensor(active))
    assert phase.score() == pytest.approx(-float(loss), rel=1e-5)


def test_validation_accuracy_is_among_the_outputs(build):
    run = build("finetune", outputs="task", train={"select": "validation_accuracy"})
    run.advance()
    run.method.eval()
    task = large_task(run, 1)
    (phase,) = run.method.phases(task)
    (batch,) = task.validation.batches(10_000)
    right = run.method.logits(batch.images, None)[:, [2, 3]].argmax(1) == batch.labels - 2
    assert 0 < right.float().mean() < 1
    assert phase.score() == pytest.approx(100 * float(right.float().mean()))
    assert run.method.logits(batch.images, None).argmax(1).lt(2).any()  # over all it is another


@pytest.mark.parametrize("lr, stages", [(0.01, 5), (0.05, 6)])
def test_an_epoch_that_never_improves(build, monkeypatch, lr, stages):
    """The schedule of arXiv 2105.04444: 1 + 25 epochs from 0.01, 1 + 30 from 0.05."""
    monkeypatch.setattr(Classifier, "score", lambda *_: -1.0)
    schedule = {"name": "plateau", "factor": 1 / 3, "patience": 5, "min_lr": 1e-4}
    train = {"lr": lr, "epochs": 200, "batch_size": 32}
    run = build("finetune", train={**train, "select": "validation_loss", "schedule": schedule})
    rates = []
    while run.task_index == 0:
        rates.append(run.advance()["train/lr"])
    expected = [lr] + [lr / 3**stage for stage in range(stages) for _ in range(5)]
    assert rates == pytest.approx(expected)
    assert run.advance()["train/lr"] == lr
    once = build("finetune", train={**train, "epochs": 1})
    once.advance()
    again = build("finetune", train={**train, "select": "validation_loss", "schedule": schedule})
    while again.task_index == 0:
        again.advance()
    pairs = zip(tensors(again.method.state_dict()), tensors(once.method.state_dict()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "the first epoch's weights are kept"


def test_a_rate_below_the_least_is_refused():
    """The plateau schedule would end every task after one epoch."""
    schedule = {"name": "plateau", "min_lr": 1e-4}
    with pytest.raises(ValueError, match=r"lr is below schedule\.min_lr"):
        TrainConfig(lr=5e-5, select="validation_loss", schedule=schedule)
    TrainConfig(lr=1e-4, select="validation_loss", schedule=schedule)
