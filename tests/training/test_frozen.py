"""What a method computes from each image once: kept, bounded, and without influence on results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.frozen import TRAINING, Budget, FrozenSet
from raycl.methods.base import Classifier, masked_cross_entropy
from raycl.testing import finish, toy_data
from raycl.training.run import Run

CALLS = [0]


class Projected(Classifier):
    """A linear layer on what a fixed layer says of an image."""

    fixed = ("layer.",)

    def __init__(self, config, context):
        super().__init__(config, context)
        self.layer = torch.nn.Linear(64, 16)

    def frozen_values(self, images: Tensor) -> Tensor:
        assert not self.training
        CALLS[0] += len(images)
        return self.layer(images.flatten(1)).relu()

    def logits(self, images: Tensor, task_id: int | None, frozen: Tensor | None = None) -> Tensor:
        if frozen is None:
            frozen = self.layer(images.flatten(1)).relu()
        return self.head(frozen)

    def objective(self, task: Task):
        active = self.active(task.info)

        def loss(batch):
            z = self.logits(batch.images, task.info.index, batch.frozen)
            return masked_cross_entropy(z, batch.labels, active)

        return loss

    def trainable(self):
        return list(self.head.parameters())


class Alone(Projected):
    frozen_alone = True


FILE = str(Path(__file__))


def config(name: str, cache_mb: int = 100, **train):
    return {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.1},
        "method": {"name": f"{FILE}:{name}"},
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 3, "batch_size": 8, "lr": 0.05, **train},
        "evaluate": {"cache_mb": cache_mb},
    }


def run(name: str, *args, **train):
    built = Run(config(name, *args, **train), toy_data())
    counter = type(built.method).frozen_values.__globals__["CALLS"]  # the file is loaded anew
    counter[0] = 0
    return finish(built), counter[0]


@pytest.mark.parametrize("name", ["Projected", "Alone"])
def test_kept_values_change_nothing(name):
    kept, calls = run(name)
    computed, more = run(name, 0)
    assert kept["matrices"] == computed["matrices"]
    assert kept["validation_matrices"] == computed["validation_matrices"]
    assert kept["metrics"]["task"]["average_accuracy"] > 80
    images = 4 * 33 + 2 * 40
    assert calls <= images < more / 2


def test_augmented_images_are_computed_anew():
    plain, calls = run("Projected")
    augmented, more = run("Projected", augment="flip")
    assert more > calls + 2 * 100
    assert augmented["matrices"] != plain["matrices"]


@pytest.mark.parametrize("cache_mb", [100, 0])
def test_values_are_not_rounded_where_a_score_is(cache_mb):
    options = {"precision": "bfloat16", "select": "validation_accuracy", "epochs": 1}
    built = Run(config("Projected", cache_mb, **options), toy_data())
    values = built.method.frozen_values
    kinds = []
    built.method.frozen_values = lambda x: kinds.append(values(x)) or kinds[-1]
    finish(built)
    assert {value.dtype for value in kinds} == {torch.float32}


def test_the_budget_is_for_all_sets():
    stream = Run(config("Projected"), toy_data()).stream
    budget = Budget(0)
    budget.bytes = 4 * len(stream.data[0].train) + 3
    calls = []

    def function(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images.flatten(1).mean(1, keepdim=True)

    first, second = (FrozenSet(stream.data[i].train, function, budget) for i in (0, 1))
    for one in (first, second):
        for _ in range(2):
            for batch in one.batches(7):
                assert torch.equal(batch.frozen, batch.images.flatten(1).mean(1, keepdim=True))
    assert calls[0] == len(first)  # once, all of them
    assert sum(calls) > len(first) + 2 * len(second)  # no room for the other


@pytest.mark.parametrize("first", [0, 1, 2])
def test_who_has_a_share_does_not_depend_on_who_is_read_first(first):
    stream = Run(config("Projected"), toy_data()).stream
    train, test = stream.data[0].train, stream.data[0].test
    budget = Budget(0)
    budget.bytes = 4 * (len(train) + 5)

    def function(images: Tensor) -> Tensor:
        return images.flatten(1).mean(1, keepdim=True)

    whole = FrozenSet(test, function, budget)
    sample = whole.sample(torch.arange(5))
    training = FrozenSet(train, function, budget, rank=TRAINING)
    augmented = FrozenSet(train, function, budget, rank=None)
    sets = [whole, sample, training, augmented]
    for one in [sets[first], *sets]:
        for _ in one.batches(7):
            pass
    assert [one._values is not None for one in sets] == [False, True, True, False]


def test_what_evaluation_kept_can_be_trained_on():
    stream = Run(config("Projected"), toy_data()).stream
    layer = torch.nn.Linear(64, 4)
    kept = FrozenSet(stream.data[0].train, lambda x: layer(x.flatten(1)), Budget(1))
    with torch.inference_mode():
        for _ in kept.batches(8):
            pass
    head = torch.nn.Linear(4, 2)
    for batch in kept.batches(8):
        head(batch.frozen).sum().backward()
    assert head.weight.grad is not None
    assert layer.weight.grad is None


def test_images_are_not_read_where_values_do():
    stream = Run(config("Projected"), toy_data()).stream
    kept = FrozenSet(stream.data[0].train, lambda x: x.mean((1, 2)), Budget(1), alone=True)
    batch = next(kept.batches(8))
    assert batch.images.shape == (8, 0)
    assert batch.frozen.shape == (8, 8)


def test_other_fixed_values_are_refused():
    first = Run(config("Projected"), toy_data())
    first.advance()
    state = first.state_dict()
    second = Run(config("Projected"), toy_data())
    with torch.no_grad():
        second.method.layer.weight.add_(1)
    with pytest.raises(ValueError, match=r"layer\. are not those of the checkpoint"):
        second.load_state_dict(state)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_without_images_come_in_the_order_of_those_with(drop_last):
    images = Run(config("Projected"), toy_data()).stream.data[0].train
    kept = FrozenSet(images, lambda x: x.mean((1, 2)), Budget(1), alone=True)
    options = {"drop_last": drop_last}
    plain = images.batches(8, generator=torch.Generator().manual_seed(3), **options)
    alone = kept.batches(8, generator=torch.Generator().manual_seed(3), **options)
    for batch, other in zip(plain, alone, strict=True):
        assert torch.equal(batch.index, other.index)
        assert torch.equal(batch.labels, other.labels)
        assert other.images.shape == (len(batch), 0)
        assert torch.equal(batch.images.mean((1, 2)), other.frozen)
    flipped = kept.batches(8, augment=lambda raw: raw.flip(3))
    for batch, other in zip(images.batches(8), flipped, strict=True):
        assert torch.equal(batch.images.flip(3), other.images)
        assert torch.equal(other.images.mean((1, 2)), other.frozen)


def test_images_that_are_drawn_for_evaluation_have_values_too():
    """Kept apart from those of the whole sets, and computed once as well."""
    found = []
    for cache_mb in (100, 0):
        settings = config("Projected", cache_mb)
        settings["benchmark"] |= {"name": "permuted", "tasks": 4}
        settings["evaluate"]["limit"] = 5
        built = Run(settings, toy_data())
        counter = type(built.method).frozen_values.__globals__["CALLS"]
        counter[0] = 0
        found.append((finish(built)["matrices"], counter[0]))
    assert found[0][0] == found[1][0]
    whole = sum(len(d.train) + len(d.validation) + len(d.test) for d in built.stream.data)
    assert found[0][1] == whole + (4 + 2) * 5  # the untrained network's are of the first step
    assert found[1][1] > 2 * found[0][1]
