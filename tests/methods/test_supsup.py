"""SupSup: constants, masks and statistics by hand, two tasks done again, what is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, RESNET, Reference, float64, method_on, run_of
from torch import nn

from raycl.methods.supsup import signed_constant_
from raycl.testing import MethodConformance, finish


class TestNormalised(MethodConformance):
    """Running statistics of each task beside its bits."""

    method = "supsup"
    options = {"keep": 0.5}
    network = CNN
    second = RESNET
    learns = 60.0


def test_constants_by_hand():
    layer = nn.Conv2d(8, 48, 3, groups=4)  # 2 channels of 9 pixels each
    signed_constant_(layer)
    assert layer.weight.abs().unique().tolist() == pytest.approx([1 / 3])
    assert 0.4 < (layer.weight > 0).float().mean() < 0.6
    assert not layer.bias.any()


def test_signs_are_drawn_on_the_cpu_wherever_the_layer_is():
    """No checkpoint holds them: a run that goes on elsewhere must find the same ones."""
    drawn_next = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2, device=device)
        torch.manual_seed(1)
        signed_constant_(layer)
        drawn_next.append(torch.rand(()))
    assert torch.equal(*drawn_next)


def test_the_network_is_random_whatever_it_was(build):
    run = build("supsup", network=CNN)
    backbone = run.method.backbone
    fan_ins = {"layers.0": 9, "layers.4": 36, "layers.9": 20}
    for name, fan_in in fan_ins.items():
        (size,) = backbone.get_submodule(name).weight.abs().unique().tolist()
        assert size == pytest.approx(math.sqrt(2 / fan_in))
    assert list(backbone.state_dict()) == [
        "layers.0.weight",
        *(f"layers.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
        "layers.4.weight",
        *(f"layers.5.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
        "layers.9.weight",
        "layers.9.bias",
    ]
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    finish(run)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_masks_have_the_number_of_zeros_and_the_largest_scores(build):
    run = build("supsup", network=CNN, keep=0.3)
    run._enter_task()
    scores = [s.detach().clone() for s in run.method.masks(0).real]
    for s, n, fan_in in zip(scores, (36, 180, 160), (9, 36, 20), strict=True):
        assert s.abs().max() <= 1 / math.sqrt(fan_in)  # uniform within 1 / sqrt(fan-in)
        assert s.abs().max() > 0.8 / math.sqrt(fan_in)
        assert s.numel() == n
    zeros = [int(0.7 * n) for n in (36, 180, 160)]
    assert zeros == [25, 125, 112]  # 25.2, 126 and 112 with exact numbers
    for s, mask, count in zip(scores, run.method.masks(0).masks(), zeros, strict=True):
        assert int((mask == 0).sum()) == count
        assert s.abs()[mask == 0].max() < s.abs()[mask == 1].min()
    run.advance()
    assert [int((~m).sum()) for m in run.method.masks(0).masks()] == zeros


def test_statistics_belong_to_the_task(build):
    run = build("supsup", network=CNN, train={"epochs": 2})
    finish(run)
    names = [
        f"layers.{i}.{name}"
        for i in (1, 5)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    own = [run.method.own(task).norms.named() for task in (0, 1)]
    assert [sorted(tensors) for tensors in own] == [sorted(names)] * 2
    assert not torch.equal(own[0][names[0]], own[1][names[0]])
    steps = 2 * math.ceil(len(run.stream.data[0].train) / 8)
    assert own[0][names[2]] == own[1][names[2]] == steps
    method = run.method.eval()
    images = torch.randn(4, 1, 8, 8)
    mean, var = own[0][names[0]], own[0][names[1]]
    by_hand = F.conv2d(images, method.weights(0)[0], padding=1)
    by_hand = (by_hand - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    seen = []
    hook = method.backbone.layers[1].register_forward_hook(lambda *a: seen.append(a[2]))
    method.embed(images, 0)
    hook.remove()
    torch.testing.assert_close(seen[0], by_hand, rtol=1e-5, atol=1e-5)


def test_statistics_of_the_network_are_forgotten():
    made = method_on("supsup", CNN, (1, 8, 8))

    def trained():
        network = made.context.build_network()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.running_mean, 3.0)
                nn.init.constant_(module.running_var, 4.0)
        return network

    method = type(made)(made.config, replace(made.context, build_network=trained))
    method.add_task(made.context.stream.tasks[0])
    statistics = method.own(0).norms.statistics()
    assert {value.unique().item() for value in statistics.values()} == {0.0, 1.0}


def test_two_tasks_done_again():
    with float64():
        run = run_of("supsup", keep=0.3, train={"lr": 0.5})
        for task in (0, 1):
            run._enter_task()
            reference = Reference(run, task)
            layers = reference.layers()
            scores = [s.detach().clone().requires_grad_() for s in run.method.masks(task).real]

            def masks():
                found = []
                for s in scores:  # noqa: B023  # used in this turn only
                    ranked = sorted(range(s.numel()), key=s.abs().flatten().tolist().__getitem__)
                    mask = torch.ones(s.numel())
                    mask[ranked[: int((1 - 0.3) * s.numel())]] = 0
                    found.append(mask.view(s.shape))
                return found

            first = masks()
            for _ in range(2):
                for x, y in reference.epoch():
                    for (w, b), s, m in zip(layers, scores, masks(), strict=True):
                        w = w * (m + s.abs() - s.abs().detach())
                        x = F.relu(F.linear(x, w, b))
                    reference.descend(reference.loss(x, y), scores)
            run.advance()
            run.advance()
            ends = masks()
            assert any(not torch.equal(a, b) for a, b in zip(first, ends, strict=True))
            for ours, theirs in zip(run.method.masks(task).masks(), ends, strict=True):
                assert torch.equal(ours, theirs.bool())
            for ours, theirs in zip(
                run.method.heads[task].parameters(), reference.head, strict=True
            ):
                assert (ours - theirs).abs().max() < 1e-7


def test_what_a_task_costs(build):
    run = build("supsup", network=CNN)
    for _ in range(2):
        row = run.advance()
        backbone = 36 + 180 + 168 + 2 * 9  # with the affine parameters that are not used
        assert row["cost/task_percent"] == pytest.approx(100 * (376 / 8) / 4 / backbone)
        assert row["cost/task_percent_affine"] == row["cost/task_percent"]
        assert row["cost/task_percent_statistics"] == pytest.approx(
            100 * (376 / 8 / 4 + 2 * 9) / backbone
        )
        expected = sum(n - int(0.92 * n) for n in (36, 180, 160)) / 376
        assert row["method/mask_share"] == pytest.approx(expected)
