"""1 x 1 adapters: the sum by hand, maps that do not fit, and a network that nothing changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, trained_whole
from timm.layers import Conv2dSame
from torch import nn

from raycl.errors import UserError
from raycl.methods.li_adapter import fitted
from raycl.testing import MethodConformance, finish


class TestFirstTask(MethodConformance):
    method = "li_adapter"
    options = {"anchor": "first_task", "penalty": 1e-3}
    network = CNN
    train = {"epochs": 8, "batch_size": 8, "lr": 0.03, "optimizer": "adam"}


def test_the_sum_by_hand(build):
    run = build("li_adapter", network=CNN)
    run._enter_task()
    method, images = run.method.eval(), torch.randn(3, 1, 8, 8)
    plain = method.backbone(images)
    layers, (first, second) = method.backbone.layers, method.adapters[0]
    assert (first.kernel_size, first.weight.shape, first.bias.shape) == ((1, 1), (4, 1, 1, 1), (4,))
    x = F.conv2d(images, layers[0].weight, padding=1) + first(images)
    x = layers[3](layers[2](layers[1](x)))
    x = layers[4](x) + second(x)
    for layer in layers[5:]:
        x = layer(x)
    torch.testing.assert_close(method.embed(images, 0), x)
    assert not torch.equal(plain, x)
    assert torch.equal(method.backbone(images), plain)  # no hook is left


def test_each_task_reads_its_own_adapters_of_the_stride_of_the_layer(build):
    run = build("li_adapter", network={"name": "resnet32", "blocks": 1})
    for info in run.stream.info.tasks:
        run.method.add_task(info)
    method, images = run.method.eval(), torch.randn(3, 1, 8, 8)
    layers = method.convolutions.values()
    assert {layer.stride for layer in layers} == {(1, 1), (2, 2)}
    for adapters in method.adapters:
        assert [one.stride for one in adapters] == [layer.stride for layer in layers]
    first, second = method.embed(images, 0), method.embed(images, 1)
    assert not torch.equal(first, second)
    with torch.no_grad():
        for parameter in method.own_parameters(1):
            parameter.zero_()
    assert torch.equal(method.embed(images, 0), first)
    assert torch.equal(method.embed(images, 1), method.backbone(images))


def test_hooks_go_when_a_pass_fails(build):
    run = build("li_adapter", network=CNN)
    run._enter_task()
    with pytest.raises(RuntimeError):
        run.method.embed(torch.randn(3, 2, 8, 8), 0)
    layers = [m for m in run.method.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert layers
    assert not any(layer._forward_hooks for layer in layers)


@pytest.mark.parametrize(
    "layer, side, reads",
    [
        (nn.Conv2d(1, 1, 3, padding=1), 6, range(6)),
        (nn.Conv2d(1, 1, 3, 2, padding=1), 6, range(0, 6, 2)),
        (nn.Conv2d(1, 1, 7, 2, padding=3), 7, range(0, 7, 2)),
        (nn.Conv2d(1, 1, 1, 2), 6, range(0, 6, 2)),
        (nn.Conv2d(1, 1, 5), 8, range(2, 6)),  # LeNet: the middle of the window
        (nn.Conv2d(1, 1, 2), 6, range(5)),
        (nn.Conv2d(1, 1, 11, 4, padding=2), 35, range(3, 35, 4)),
        (nn.Conv2d(1, 1, 3, padding=2), 4, [None, 0, 1, 2, 3, None]),
        (Conv2dSame(1, 1, 3, 2), 6, range(0, 6, 2)),  # which pads by itself
        (Conv2dSame(1, 1, 3), 6, range(6)),
    ],
)
def test_maps_are_made_to_fit(layer, side, reads):
    maps = torch.arange(1.0, side + 1)[None, None, None].expand(1, 1, side, side)
    size = layer(maps).shape[2:]
    found = fitted(maps, size, layer.stride)[:, :, :: layer.stride[0], :: layer.stride[1]]
    assert found.shape[2:] == size
    rows = [0 if i is None else i + 1 for i in reads]
    middle = found.shape[2] // 2
    assert found[0, 0, middle].tolist() == rows


def test_the_network_stays_in_eval_mode(build):
    network = {**CNN, "channels": [4]}
    run = build("li_adapter", network=network, train={"epochs": 2})
    run.method.backbone.layers.append(nn.Dropout(0.5))
    before = {k: v.clone() for k, v in run.method.backbone.state_dict().items()}
    finish(run)
    run.method.train()
    assert run.method.heads.training
    assert not any(module.training for module in run.method.backbone.modules())
    after = run.method.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_penalty_sums_adapters_and_head(build):
    run = build("li_adapter", network=CNN, penalty=0.5)
    task = run._enter_task()
    (phase,) = run.method.phases(task)
    batch = next(iter(phase.batches()))
    trained = run.method.trainable()
    assert len(trained) == 2 * 2 + 2
    expected = 0.5 * sum(p.norm() for p in trained)
    torch.testing.assert_close(phase.loss(batch)["penalty"], expected)


def test_what_a_task_costs(build):
    run = build("li_adapter", network=CNN)
    total = sum(p.numel() for p in run.method.backbone.parameters())
    row = run.advance()
    adapters = (4 + 4) + (20 + 5)
    for part in ("", "_affine", "_statistics"):
        assert row[f"cost/task_percent{part}"] == pytest.approx(100 * adapters / total)


def test_the_first_task_trains_the_network_without_adapters(build):
    """Then it is another one, because adapters are random, and only they and the head learn."""
    train = {"epochs": 2, "lr": 0.05}
    run = build("li_adapter", network=CNN, anchor="first_task", penalty=0.5, train=train)
    task = run._enter_task()
    method = run.method
    assert method.fixed == ()
    expected = trained_whole(run, penalty=0.5)
    for _ in range(2):
        assert run.advance()["phase"] == "anchor"
    found = method.backbone.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    images = task.train.prepare(task.train.raw(torch.arange(9)))
    assert torch.equal(method.eval().embed(images, 0), method.backbone(images))
    frozen = {name: value.clone() for name, value in found.items()}
    adapters = [layer.weight for layer in method.adapters[0]]
    run._phases[1].before()
    assert all((weight != 0).all() for weight in adapters)
    assert not torch.equal(method.embed(images, 0), method.backbone(images))
    finish(run)
    assert all(torch.equal(value, frozen[name]) for name, value in found.items())


def test_a_network_without_convolutions_is_refused(build):
    with pytest.raises(UserError, match=r"^network: li_adapter adds to convolutions, and .* none"):
        build("li_adapter")
