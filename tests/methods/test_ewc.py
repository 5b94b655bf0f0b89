from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from raycl import datasets
from raycl.datasets import DatasetConfig
from raycl.nn.fisher import fisher_diagonal, squared_gradients
from raycl.testing import finish
from raycl.training.run import Run
from raycl.trial.run import TrainingError

SWEEPS = Path(__file__).parents[2] / "sweeps"


def flat(run):
    return torch.cat([p.detach().flatten() for p in run.method.parameters()])


def clone(generator):
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return copy


def test_penalty_by_hand(build):
    method = build("ewc", lam=5000).method
    parameters = list(method.protected().values())
    assert len(parameters) == len(list(method.parameters()))
    method.anchor.copy_(method.position())
    method.fisher.fill_(7)
    assert method.penalty()() == 0
    method.fisher.zero_()[-3:] = torch.tensor([0.1, 0.0, 2.0])
    method.anchor[-3:] -= torch.tensor([0.1, 5.0, -0.01])
    penalty = method.penalty()()
    assert penalty.item() == pytest.approx(3.0, rel=1e-4)  # 2500 * (0.1 * 0.01 + 2 * 0.0001)
    penalty.backward()
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    expected = torch.tensor([5000 * 0.1 * 0.1, 0.0, -5000 * 2 * 0.01])
    torch.testing.assert_close(gradient[-3:], expected, rtol=1e-3, atol=0)
    assert not gradient[:-3].any()


def test_mean_over_tasks_by_hand(build, monkeypatch):
    run = build("ewc", benchmark={"name": "permuted", "tasks": 3})
    method = run.method.eval()
    for index, (value, mean) in enumerate([(1.0, 1.0), (2.0, 1.5), (6.0, 3.0)]):
        new = torch.full_like(method.fisher, value)
        monkeypatch.setattr(method, "estimate_fisher", lambda _, new=new: new)
        with torch.no_grad():
            method.head.bias += 1
        method.end_task(run.stream.open(index, None))
        torch.testing.assert_close(method.fisher, torch.full_like(method.fisher, mean))
        assert torch.equal(method.anchor, flat(run))


@pytest.mark.parametrize("outputs, active", [("task", [2, 3]), ("seen", [0, 1, 2, 3])])
def test_batch_estimate_against_a_loop(build, outputs, active):
    network = {"name": "mlp", "hidden": [16], "dropout": 0.5}
    run = build("ewc", outputs=outputs, network=network)
    run.advance()
    task, method = run.stream.open(1, None), run.method
    generator = clone(method.context.method_generator)
    torch.manual_seed(3)
    got = method.batch_mean_fisher(task)
    assert not method.training

    torch.manual_seed(3)
    method.train()
    total, count = torch.zeros_like(got), 0
    for batch in task.train.batches(8, generator=generator):
        method.zero_grad()
        z = method.head(method.backbone(batch.images))[:, active]
        targets = torch.tensor([active.index(y) for y in batch.labels.tolist()])
        nn.functional.cross_entropy(z, targets).backward()
        total += torch.cat([p.grad.flatten() for p in method.parameters()]) ** 2
        count += 1
    assert len(batch) < 8  # a short last batch, which counts like the others
    torch.testing.assert_close(got, 20 * total / count)
    assert method.eval().batch_mean_fisher(task).ne(got).any()  # other dropout, other batches


def test_with_single_images_the_batch_estimate_is_twenty_times_the_empirical_fisher(build):
    run = build("ewc", train={"batch_size": 1})
    task, method = run.stream.open(0, None), run.method.eval()
    (batch,) = task.train.batches(1000)
    names = list(method.protected())
    active = torch.tensor([0, 1])
    squares = squared_gradients(method.network, names, batch.images, batch.labels, active)
    expected = 20 * squares / len(batch)
    torch.testing.assert_close(method.batch_mean_fisher(task), expected, rtol=1e-4, atol=1e-8)
    assert expected[-4:].ne(0).tolist() == [True, True, False, False]  # biases of the head


@pytest.mark.parametrize(
    "network, kind, mode",
    [
        ({"name": "resnet32"}, _BatchNorm, False),
        ({"name": "mlp", "hidden": [16], "dropout": 0.5}, nn.Dropout, True),
    ],
    ids=["batch norm", "dropout"],
)
def test_the_batch_estimate_leaves_the_model_alone(build, network, kind, mode):
    run = build("ewc", network=network)
    before = {k: v.clone() for k, v in run.method.state_dict().items()}
    data = run.random.data.get_state()
    modes = []
    for layer in run.method.modules():
        if isinstance(layer, kind):
            layer.register_forward_hook(lambda layer, *_: modes.append(layer.training))
    run.method.eval().batch_mean_fisher(run.stream.open(0, None))
    assert modes
    assert set(modes) == {mode}
    for name, value in run.method.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(run.random.data.get_state(), data), "the order of later data"
    assert all(p.grad is None for p in run.method.parameters())
    assert not any(module.training for module in run.method.modules())


def test_single_images(build):
    run = build("ewc", fisher="per_example", fisher_samples=20)
    task, method = run.stream.open(0, None), run.method.eval()
    generator = clone(method.context.method_generator)
    method.end_task(task)
    chosen = torch.randperm(len(task.train), generator=generator)[:20]
    images = task.train.prepare(task.train.raw(chosen))
    names = [name for name, _ in method.network.named_parameters()]
    expected = fisher_diagonal(method.network, names, [images], torch.tensor([0, 1]), generator)
    assert torch.equal(method.fisher, expected)


def test_the_published_strength_works_with_the_published_bound(build):
    train = {"epochs": 5, "clip_norm": 100.0}
    run = build("ewc", lam=5000, train=train)
    plain = build("finetune", outputs="task", train=train)
    while run.task_index == 0:
        run.advance()
        plain.advance()
    anchor, fisher = run.method.anchor.clone(), run.method.fisher.clone()
    assert torch.equal(anchor, flat(plain))
    matrices = finish(run)["matrices"]["task"]
    finish(plain)
    assert matrices[1][1] > 80
    distances = [(fisher * (flat(r) - anchor).square()).sum() for r in (run, plain)]
    assert distances[0] < 0.5 * distances[1]


def test_the_batch_estimate_sees_batches_as_training_does(build, monkeypatch):
    run = build("ewc", train={"drop_last": True, "augment": "flip"})
    task, sizes, augmented = run.stream.open(0, None), [], []
    augment = run.method.context.augment

    def spy(images):
        augmented.append(len(images))
        return augment(images)

    context = dataclasses.replace(run.method.context, augment=spy)
    monkeypatch.setattr(run.method, "context", context)
    run.method.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    run.method.eval().batch_mean_fisher(task)
    assert len(task.train) % 8
    assert sizes == augmented == [8] * (len(task.train) // 8)


def digits(method, **options):
    """A short run on scikit-learn's digits, five tasks of two."""
    wanted = DatasetConfig(name="digits")
    config = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 5},
        "method": {"name": method, **options},
        "network": {"name": "mlp", "hidden": [100]},
        "train": {"epochs": 2, "lr": 0.05, "batch_size": 32},
    }
    return Run(config, {datasets.key(wanted): datasets.load(wanted, Path())})


def test_the_default_strength_trains_where_the_published_one_diverges():
    run = digits("ewc")
    assert run.method.config.lam == 100
    assert finish(run)["metrics"]["task"]["average_accuracy"] > 95
    with pytest.raises(TrainingError, match="became nan"):
        finish(digits("ewc", lam=5000))


@pytest.mark.parametrize("name, lam", [("ewc", 1e7), ("online_ewc", 1e7)])
def test_a_loss_that_is_no_number_names_the_remedy(build, name, lam):
    run = build(name, lam=lam, train={"epochs": 8})
    while run.task_index == 0:
        run.advance()
    largest = run.method.diagnostics()["fisher_max"]
    with pytest.raises(TrainingError) as caught:
        finish(run)
    said = re.search(
        r"lr x lam x the largest Fisher entry is (\S+) x (\S+) x (\S+) = (\S+) and must "
        r"stay below about 2: try a lower lam or lr, or a clip_norm$",
        str(caught.value),
    )
    assert said, str(caught.value)
    lr, strength, entry, product = map(float, said.groups())
    assert (lr, strength) == (0.05, lam)
    assert entry == pytest.approx(largest, rel=0.01)
    assert product == pytest.approx(lr * lam * largest, rel=0.01)
    assert product > 2


def test_without_a_penalty_the_remedy_is_the_usual_one(build):
    for run in (build("ewc"), build("finetune")):  # the first task has no penalty
        assert run.method.remedy(0.05) == "try a lower lr or a clip_norm"
    adam = build("ewc", train={"optimizer": "adam"}).method
    adam.fisher.fill_(1.0)
    assert adam.remedy(0.05) == "try a lower lr or a clip_norm", "the bound is that of plain SGD"


def test_sweeps_have_the_published_strength():
    """Written out, so that the keys of their trials are what they were when it was the default."""
    found = []
    for path in sorted((SWEEPS / "blip").glob("*.yaml")):
        methods = yaml.safe_load(path.read_text())["methods"]
        found += [m["lam"] for m in methods if isinstance(m, dict) and m["name"] == "ewc"]
        assert "ewc" not in methods
    assert found == [5000] * 8
