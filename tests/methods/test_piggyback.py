"""Piggyback: the step function and its gradient by hand, two tasks done again, what is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, RESNET, Reference, float64, run_of, trained_whole
from torch import nn

from raycl.errors import UserError
from raycl.methods._layered import weighted_layers
from raycl.testing import MethodConformance, finish


class TestNormalised(MethodConformance):
    """Masks in a network with batch normalisations."""

    method = "piggyback"
    network = CNN
    second = RESNET
    train = {"epochs": 6, "batch_size": 8, "lr": 0.5}  # small features: not normalised at all
    learns = 60.0


class TestFirstTask(MethodConformance):
    method = "piggyback"
    options = {"anchor": "first_task"}
    network = CNN
    train = {"epochs": 6, "batch_size": 8, "lr": 0.003, "optimizer": "adam"}


def test_the_first_task_trains_the_whole_network(build):
    run = build("piggyback", network=CNN, anchor="first_task", train={"epochs": 2, "lr": 0.05})
    run._enter_task()
    method = run.method
    assert method.fixed == ()
    expected = trained_whole(run, penalty=0)
    for _ in range(2):
        assert run.advance()["phase"] == "anchor"
    found = method.backbone.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert method.masks(0).real
    assert all((real == 0.01).all() for real in method.masks(0).real)
    frozen = {name: value.clone() for name, value in found.items()}
    assert run.advance()["phase"] == "train"
    assert any((real != 0.01).any() for real in method.masks(0).real)
    finish(run)
    assert all(torch.equal(value, frozen[name]) for name, value in found.items())


def test_masks_that_leave_nothing_to_train_are_refused(build):
    build("piggyback", start=0.005)
    with pytest.raises(UserError, match=r"^method\.start: 0\.005 is not above threshold 0\.005"):
        build("piggyback", start=0.005, anchor="first_task")


def test_the_network_is_as_it_was_until_a_mask_falls_below_the_threshold(build):
    run = build("piggyback", network=CNN)
    run._enter_task()
    method, images = run.method.eval(), torch.randn(3, 1, 8, 8)
    assert torch.equal(method.embed(images, 0), method.backbone(images))
    real = method.masks(0).real
    assert [tuple(m.shape) for m in real] == [(4, 1, 3, 3), (5, 4, 3, 3), (8, 20)]
    assert all(torch.equal(m, torch.full_like(m, 0.01)) for m in real)
    real[1].data[2, 1] = 0.005  # not above
    changed = method.backbone.layers[4].weight.detach().clone()
    changed[2, 1] = 0
    weights = [w.detach() for w in method.weights(0)]
    assert torch.equal(weights[1], changed)
    assert torch.equal(weights[0], method.backbone.layers[0].weight)


def test_gradient_of_a_mask_is_the_weight_times_that_of_the_masked_weight(build):
    run = build("piggyback", network={"name": "mlp", "hidden": [2]}, threshold=0.5, start=0.6)
    run._enter_task()
    method = run.method
    real, layer = method.masks(0).real, method.backbone.layers[1]
    real[0].data[1] = 0.4  # the second unit is off
    images = torch.randn(5, 1, 8, 8)
    x, w = images.flatten(1), layer.weight.detach()
    z = x @ (w * torch.tensor([[1.0], [0.0]])).T + layer.bias.detach()
    (method.embed(images, 0) * torch.tensor([3.0, 5.0])).sum().backward()
    by_weight = (torch.tensor([3.0, 5.0]) * (z > 0)).T @ x
    torch.testing.assert_close(real[0].grad, w * by_weight)
    assert real[0].grad[1].any() == (z[:, 1] > 0).any()  # those that are off learn, too


def test_two_tasks_done_again():
    with float64():
        run = run_of("piggyback", threshold=0.095, start=0.1, train={"lr": 0.2})
        for task in (0, 1):
            run._enter_task()
            reference = Reference(run, task)
            layers = reference.layers()
            real = [torch.full_like(w, 0.1).requires_grad_() for w, _ in layers]
            for _ in range(2):
                for x, y in reference.epoch():
                    for (w, b), m in zip(layers, real, strict=True):
                        x = F.relu(F.linear(x, w * ((m > 0.095) + (m - m.detach())), b))
                    reference.descend(reference.loss(x, y), real)
            run.advance()
            run.advance()
            ends = [m > 0.095 for m in real]
            assert all(0 < (~m).sum() < m.numel() for m in ends)
            for ours, theirs in zip(run.method.masks(task).masks(), ends, strict=True):
                assert torch.equal(ours, theirs)
            for ours, theirs in zip(
                run.method.heads[task].parameters(), reference.head, strict=True
            ):
                assert (ours - theirs).abs().max() < 1e-7


def test_bits_are_all_that_remains_of_masks(build):
    run = build("piggyback", network=CNN)
    count = 36 + 180 + 160
    for task in (0, 1):
        run._enter_task()
        assert sum(m.numel() for m in run.method.masks(task).parameters()) == count
        row = run.advance()
        (bits,) = run.method.own(task).state_dict().values()
        assert (bits.dtype, len(bits)) == (torch.uint8, count // 8)
        backbone = sum(p.numel() for p in run.method.backbone.parameters())
        assert row["cost/task_percent"] == pytest.approx(100 * count / 32 / backbone)
        assert row["cost/task_percent_statistics"] == row["cost/task_percent"]
        assert row["method/mask_share"] == pytest.approx(
            sum(m.sum().item() for m in run.method.masks(task).masks()) / count
        )
    state = run.method.state_dict()
    plain = [name for name in state if not name.startswith(("backbone.", "heads."))]
    assert plain == ["task_0.values.bits", "task_1.values.bits"]


def test_normalisations_stay(build):
    run = build("piggyback", network=RESNET, train={"epochs": 2})
    before = {k: v.clone() for k, v in run.method.backbone.state_dict().items()}
    finish(run)
    after = run.method.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    run.method.train()
    norms = [m for m in run.method.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_the_kept_epoch_is_kept_as_bits(build):
    train = {"select": "validation_accuracy", "epochs": 4, "lr": 1.0}
    run = build("piggyback", benchmark={"validation": 0.2}, train=train)
    run._enter_task()
    scores = iter([1.0, 3.0, 2.0, 0.0])
    epochs = []

    def score(*_):
        epochs.append([m.bool() for m in run.method.masks(0).masks()])
        return next(scores)

    run.method.score = score
    while run.task_index == 0:
        run.advance()
    kept = run.method.masks(0).masks()
    assert all(torch.equal(a, b) for a, b in zip(kept, epochs[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(kept, epochs[3], strict=True))


def test_a_weight_that_layers_share_counts_once():
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    assert list(weighted_layers(nn.Sequential(one, two, one, nn.Linear(3, 3)), "m")) == ["0", "3"]


def test_a_network_without_layers_is_refused():
    with pytest.raises(UserError, match=r"^network: piggyback works on .* none; take one that has"):
        weighted_layers(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), "piggyback")
