from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from raycl.nn.distillation import soft_cross_entropy
from raycl.testing import finish


def entered(build, **options):
    """A run in its second task, before the first step."""
    run = build("lwf_coreset", **{"memory_size": 12, **options})
    run.advance()
    run._enter_task()
    return run


def test_the_first_task_is_fine_tuning(build):
    ours, theirs = build("lwf_coreset"), build("finetune")
    assert ours.advance()["train/loss"] == theirs.advance()["train/loss"]
    assert torch.equal(ours.method.head.weight, theirs.method.head.weight)


@pytest.mark.parametrize("replay", ["batch", "list", "list_with_duplicates"])
def test_both_terms_are_on_every_image(build, replay):
    run = entered(build, replay=replay, mu=0.5, temperature=3)
    method, task = run.method, run._task
    torch.nn.init.normal_(method.head.weight)  # away from the teacher
    batch = next(iter(method.train_batches(task)))
    assert {c < 2 for c in batch.labels.tolist()} == {True, False}
    z, q = method.logits(batch.images, None), method.teacher(batch.images)
    assert not torch.allclose(z, q)
    terms = method.objective(task)(batch)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(z, batch.labels))
    torch.testing.assert_close(
        terms["distillation"], 0.5 * soft_cross_entropy(z[:, :2], q[:, :2], 3.0)
    )


def test_without_distillation_it_is_naive_rehearsal(build):
    options = {"memory_size": 12, "train": {"epochs": 2}}
    ours, theirs = build("lwf_coreset", mu=0, **options), build("naive_rehearsal", **options)
    assert finish(ours)["matrices"] == finish(theirs)["matrices"]
    assert torch.equal(ours.method.head.weight, theirs.method.head.weight)
    assert torch.equal(ours.method.exemplars.images, theirs.method.exemplars.images)


def test_images_of_their_own_task_compete_alone(build):
    run = entered(build, outputs="task")
    batch = next(iter(run.method.train_batches(run._task)))
    z = run.method.logits(batch.images, None)
    first, y = batch.labels < 2, batch.labels
    sums = F.cross_entropy(z[first][:, :2], y[first], reduction="sum")
    sums += F.cross_entropy(z[~first][:, 2:], y[~first] - 2, reduction="sum")
    found = run.method.objective(run._task)(batch)["cross_entropy"]
    torch.testing.assert_close(found, sums / len(batch))


def test_defaults(build):
    config = build("lwf_coreset").method.config
    assert (config.memory_size, config.mu, config.temperature) == (2000, 1.0, 2.0)
    assert (config.replay, config.outputs) == ("batch", "seen")
