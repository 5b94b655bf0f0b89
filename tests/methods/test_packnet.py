"""PackNet: pruning by hand, two tasks done again, and what stays to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, RESNET, Reference, float64, method_on, run_of

from raycl.errors import UserError
from raycl.methods.packnet import PackNet
from raycl.testing import MethodConformance, finish


class TestNormalised(MethodConformance):
    """Normalisations that stop learning, weight decay, and an epoch that is chosen."""

    method = "packnet"
    options = {"prune": 0.5}
    network = CNN
    second = RESNET
    train = {
        "epochs": 4,
        "batch_size": 8,
        "lr": 0.01,
        "optimizer": "adam",
        "weight_decay": 0.01,
        "select": "validation_accuracy",
    }
    learns = 60.0


class TestEqual(MethodConformance):
    method = "packnet"
    options = {"prune": "equal", "retrain_epochs": 1}


def two_units(build, **options):
    """A layer of two units whose weights are 1, -2, 3, ..., 128 in magnitude."""
    run = build("packnet", network={"name": "mlp", "hidden": [2]}, **options)
    weight = run.method.backbone.layers[1].weight
    numbers = torch.arange(1.0, 129).view(2, 64)
    weight.data.copy_(numbers * torch.tensor([[1.0], [-1.0]]))
    return run, weight, numbers


def test_pruning_by_hand(build):
    run, weight, numbers = two_units(build, prune=0.75)
    run._enter_task()
    owner = run.method.owner.view(2, 64)
    assert (owner == 1).all()
    run.method.prune(0)
    assert torch.equal(owner, (numbers > 96).byte())
    assert torch.equal(weight.abs(), torch.where(numbers > 96, numbers, 0))
    run.method.end_task(run._task)
    run.method.owner[run.method.owner == 0] = 2
    weight.data[numbers <= 96] = numbers[numbers <= 96].flip(0)  # small ones are large now
    run.method.prune(1)  # 72 of 96
    expected = torch.where(numbers > 96, 1, torch.where(numbers <= 24, 2, 0))
    assert torch.equal(owner, expected.byte())
    assert run.method.diagnostics() == {"free_share": 72 / 128}


@pytest.mark.parametrize(
    "prune, left", [(0.5, [32, 16]), ("equal", [32, 0]), (0.0, [0, 0])], ids=str
)
def test_what_is_left_of_64_weights(build, prune, left):
    run = build("packnet", network={"name": "mlp", "hidden": [1]}, prune=prune)
    for count, each in enumerate(left, 1):
        while run.task_index < count:
            run.advance()
        assert int((run.method.owner == 0).sum()) == each


def test_equal_shares_of_five():
    made = method_on("packnet", {"name": "mlp", "hidden": [3]}, (1, 5, 1))
    made.config = PackNet.Config(name="packnet", prune="equal")
    object.__setattr__(made.context.stream, "tasks", made.context.stream.tasks[:1] * 5)
    free, kept = 1003, []
    for index in range(5):
        kept.append(free - made.pruned(free, index))
        free -= kept[-1]
    assert kept == [201, 200, 201, 200, 201]


def test_a_task_reads_its_own_and_earlier_weights(build):
    run, weight, _ = two_units(build)
    tasks = run.stream.info.tasks
    for info in tasks:
        run.method.add_task(info)
    run.method.owner.copy_(torch.arange(128) % 3)  # free, first, second
    method, images = run.method.eval(), torch.rand(3, 1, 8, 8)
    owner, bias = run.method.owner.view(2, 64), method.backbone.layers[1].bias
    for task in (0, 1):
        read = torch.where((owner > 0) & (owner <= task + 1), weight, 0)
        by_hand = F.relu(images.flatten(1) @ read.T + bias)
        torch.testing.assert_close(method.embed(images, task), by_hand)
    method.embed(images, 1).sum().backward()
    assert torch.equal(weight.grad[0] != 0, owner[0] == 2)


def test_two_tasks_done_again():
    with float64():
        run = run_of("packnet", prune=0.6, train={"lr": 0.3, "weight_decay": 0.0})
        run._enter_task()
        layers = Reference(run, 0).layers()
        weights = [w.requires_grad_() for w, _ in layers]
        biases = [b.requires_grad_() for _, b in layers]
        owners = [torch.zeros_like(w, dtype=torch.int64) for w in weights]
        for task in (0, 1):
            run._enter_task()
            reference = Reference(run, task)

            def epoch(may, read):
                for x, y in reference.epoch():  # noqa: B023
                    for w, m, r, b in zip(weights, may, read, biases, strict=True):
                        x = F.relu(F.linear(x, torch.where(m, w, w.detach()) * r, b))
                    trained = [*weights, *biases] if task == 0 else weights  # noqa: B023
                    reference.descend(reference.loss(x, y), trained)  # noqa: B023

            free = [o == 0 for o in owners]
            everything = [torch.ones_like(o) for o in owners]
            for _ in range(2):
                epoch(free, everything)
            for w, o, f in zip(weights, owners, free, strict=True):
                ranked = sorted(torch.nonzero(f).tolist(), key=lambda at: w[tuple(at)].abs().item())
                for at in ranked[round(0.6 * len(ranked)) :]:
                    o[tuple(at)] = task + 1
                w.data[o == 0] = 0
            epoch([o == task + 1 for o in owners], [o > 0 for o in owners])
            while run.task_index == task:
                row = run.advance()
            assert row["phase"] == "retrain"
            assert torch.equal(run.method.owner, torch.cat([o.flatten() for o in owners]).byte())
            ours = run.method.backbone.named_parameters()
            ours = [p for n, p in ours if "weight" in n], [p for n, p in ours if "bias" in n]
            for mine, theirs in zip(ours[0], weights, strict=True):
                assert (mine - theirs).abs().max() < 1e-7
            assert reference.head_difference() < 1e-7


@pytest.mark.parametrize(
    "train",
    [
        {"momentum": 0.9, "weight_decay": 0.1},
        {"optimizer": "adam", "weight_decay": 0.1, "lr": 0.01},
        {"optimizer": "adamw", "weight_decay": 0.5, "lr": 0.01, "clip_norm": 1.0},
    ],
    ids=["momentum", "adam", "adamw"],
)
def test_what_earlier_tasks_read_keeps_every_bit(build, train):
    run = build("packnet", network=RESNET, prune=0.5, train={"epochs": 2, **train})
    while run.task_index == 0:
        run.advance()
    method, images = run.method.eval(), torch.randn(6, 1, 8, 8)
    before, answers = copy.deepcopy(method.state_dict()), method.logits(images, 0)
    finish(run)
    method.eval()
    assert torch.equal(method.logits(images, 0), answers)
    first = before["owner"] == 1
    assert torch.equal(method.owner[first], before["owner"][first])
    flat = torch.cat([weight.detach().flatten() for weight, _ in method.owned()])
    names = [f"backbone.{name}.weight" for name in method.layers]
    old = torch.cat([before[name].flatten() for name in names])
    assert torch.equal(flat[first], old[first])
    assert not flat[method.owner == 0].any()
    assert (flat[method.owner == 2] != 0).any()
    for name, value in method.state_dict().items():
        if name.startswith("backbone.") and name not in names:
            assert torch.equal(value, before[name])


def test_phases_and_their_lengths(build):
    train = {"epochs": 5, "schedule": {"name": "cosine"}}
    run = build("packnet", train=train)
    seen = []
    while run.task_index == 0:
        row = run.advance()
        seen.append((row["phase"], row["epoch"], round(row["train/lr"], 4)))
    assert [name for name, _, _ in seen] == ["train"] * 5 + ["retrain"] * 3
    assert [lr for _, _, lr in seen[5:]] == [0.05, 0.0375, 0.0125]  # a cosine over 3 epochs


def test_what_a_task_costs(build):
    run = build("packnet", network=CNN)
    total = sum(p.numel() for p in run.method.backbone.parameters())
    costs = []
    while not run.done:
        row = run.advance()
        if row["at_task_end"]:
            costs.append(row["cost/task_percent"])
    kept = [(36 - 27) + (180 - 135) + (160 - 120), (27 - 20) + (135 - 101) + (120 - 90)]
    assert run.method.owner[run.method.owner > 0].bincount()[1:].tolist() == kept
    assert costs == [
        pytest.approx(100 * count / 4 / total) for count in kept
    ]  # a byte is a quarter


def test_too_many_tasks_are_refused(monkeypatch):
    monkeypatch.setattr("raycl.methods.packnet.MOST_TASKS", 1)
    with pytest.raises(UserError, match=r"^benchmark: packnet counts up to 1 tasks .* are 2"):
        method_on("packnet", {"name": "mlp", "hidden": [3]}, (1, 5, 1))
