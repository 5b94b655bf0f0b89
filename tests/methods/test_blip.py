from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from torch import nn

from raycl.errors import UserError
from raycl.methods import base
from raycl.networks.base import Backbone, NetworkConfig
from raycl.nn.fisher import squared_gradients
from raycl.nn.quantised import quantise
from raycl.testing import finish
from raycl.trial.run import TrainingError

ALL = {"fisher_samples": 60}
RESNET = {"name": "resnet32"}


def until_task(run, index):
    while run.task_index < index:
        run.advance()


def parts(run):
    """(name, parameter, bound, previous, bits) of everything quantised."""
    state = run.method.frozen
    found = zip(
        state.names,
        state.of,
        torch.split(state.previous, state.sizes),
        torch.split(state.bits, state.sizes),
        strict=True,
    )
    return [(n, q.parameter.detach().flatten(), q.bound, p, b) for n, q, p, b in found]


def test_bounds_and_priors_follow_the_fan_in(build):
    method = build("blip", network={"name": "cnn"}, f_prior=1e-12).method
    quantised = zip(method.frozen.names, method.frozen.of, strict=True)
    found = {name: (q.bound, q.prior) for name, q in quantised}
    assert found["layers.0.weight"] == pytest.approx((6 / 3, 9e-12))  # 3x3 on one channel
    assert found["layers.3.weight"] == pytest.approx((6 / math.sqrt(288), 288e-12))
    assert found["layers.3.bias"] == pytest.approx((1.0, 288e-12))
    assert set(found) == {f"layers.{i}.{kind}" for i in (0, 3, 7) for kind in ("weight", "bias")}
    assert sum(method.frozen.sizes) == sum(p.numel() for p in method.backbone.parameters())


def test_defaults_are_the_published_ones_for_mnist(build):
    config = build("blip").method.config
    assert (config.f_prior, config.max_bits, config.bound) == (1e-15, 20, 6.0)
    assert (config.fisher_samples, config.fisher_batch_size) == (8000, 100)
    assert (config.init, config.drift, config.zero_bits) == ("normal", "full_step", "reset")
    assert config.outputs == "task"


def test_initial_weights(build):
    wide = {"name": "mlp", "hidden": [2000]}
    weight, bias = build("blip", network=wide).method.backbone.parameters()
    assert weight.std().item() * 8 == pytest.approx(1, abs=0.01)  # fan-in 64
    assert weight.abs().max() * 8 > 3.5  # normal, not uniform
    assert not bias.any()
    weight, bias = build("blip", network=wide, init="network").method.backbone.parameters()
    assert weight.abs().max().item() * 8 == pytest.approx(1, abs=0.01)  # PyTorch's uniform
    assert not bias.any()
    kept = build("blip", network=wide, init="keep").method.backbone
    plain = build("finetune", network=wide).method.backbone
    assert all(map(torch.equal, kept.parameters(), plain.parameters()))
    weight, _ = build("blip", network=wide, bound=1.0).method.backbone.parameters()
    assert weight.abs().max().item() * 8 == pytest.approx(1, abs=1e-6)


def test_every_step_ends_inside_the_limits(build, monkeypatch):
    run = build("blip", train={"lr": 20.0, "clip_norm": 1.0, "epochs": 2}, f_prior=1e-8, **ALL)
    steps = []
    clamp = type(run.method.frozen).clamp_

    def spy(self, low, high):
        before = torch.cat([q.parameter.detach().flatten() for q in self.of])
        clamp(self, low, high)
        steps.append((before != torch.cat([q.parameter.flatten() for q in self.of])).sum())
        for name, w, bound, previous, bits in parts(run):
            step = torch.where(bits == 0, math.inf, bound * 0.5 ** bits.double())
            assert ((w - previous).abs() <= step * (1 + 1e-5) + 1e-7).all(), name
            assert (w.abs() <= bound * (1 - 2**-20) + 1e-7).all(), name

    monkeypatch.setattr(type(run.method.frozen), "clamp_", spy)
    finish(run)
    assert len(steps) == 2 * 2 * 8  # tasks, epochs, batches of 8 of 60 images
    assert max(steps) > 0


def test_a_task_ends_with_rounded_weights(build):
    run = build("blip", f_prior=1e-8, **ALL)
    for task in (1, 2):
        until_task(run, task)
        for _, w, bound, previous, bits in parts(run):
            assert torch.equal(w, quantise(w, bits, bound))
            assert torch.equal(w, previous)
            assert not w[bits == 0].any()
    assert (run.method.frozen.bits == 0).any()
    assert (run.method.frozen.bits > 0).any()


def test_the_boundary_in_its_order(build, monkeypatch):
    """Fisher of the unrounded weights in eval mode, over N^2, then bits, then rounding."""
    run = build("blip", fisher_batch_size=10, f_prior=1e-7, fisher_samples=25)
    state = run.method.frozen
    seen = {}
    fisher_diagonal, consolidate = base.fisher_diagonal, type(state).consolidate

    def fisher(network, names, batches, outputs, generator):
        batches = list(batches)
        seen["images"], seen["outputs"] = torch.cat(batches), outputs.tolist()
        seen["weights"] = torch.cat([q.parameter.detach().flatten() for q in state.of])
        assert not network[0].training
        assert [dict(network.named_parameters())[n].shape for n in names] == [
            q.parameter.shape for q in state.of
        ]
        seen["fisher"] = fisher_diagonal(network, names, iter(batches), outputs, generator)
        # whichever labels were drawn, each image gives the square of one label's gradient
        squares = [
            [squared_gradients(network, names, x[None], torch.tensor([y]), outputs) for y in (0, 1)]
            for x in seen["images"]
        ]
        least = torch.stack([torch.minimum(*pair) for pair in squares]).mean(0)
        most = torch.stack([torch.maximum(*pair) for pair in squares]).mean(0)
        assert (seen["fisher"] >= 0.999 * least).all()
        assert (seen["fisher"] <= 1.001 * most).all()
        assert most.max() > 1.5 * least.max() > 0
        return seen["fisher"].clone()

    def spy(self, fisher, tasks):
        torch.testing.assert_close(fisher, seen["fisher"] / 100)
        assert tasks == run.task_index
        assert torch.equal(
            seen["weights"], torch.cat([q.parameter.detach().flatten() for q in state.of])
        )
        consolidate(self, fisher, tasks)

    monkeypatch.setattr(base, "fisher_diagonal", fisher)
    monkeypatch.setattr(type(state), "consolidate", spy)
    for task, outputs in ((0, [0, 1]), (1, [2, 3])):
        until_task(run, task + 1)
        assert seen["outputs"] == outputs
        assert len(seen["images"]) == 25
        assert len(seen["images"].flatten(1).unique(dim=0)) == 25  # without replacement
        train = run.stream.data[task].train
        assert not torch.equal(seen["images"], train.prepare(train.raw(torch.arange(25))))
        assert not torch.equal(seen["weights"], state.previous)


def test_the_scale_of_the_fisher_is_the_scale_of_the_prior(build):
    one = finish(build("blip", fisher_batch_size=32, f_prior=1e-9, **ALL))
    run = build("blip", fisher_batch_size=1, f_prior=1e-9 * 32**2, **ALL)
    assert finish(run)["matrices"] == one["matrices"]
    other = build("blip", fisher_batch_size=1, f_prior=1e-9, **ALL)
    finish(other)
    more = (other.method.frozen.bits.float() - run.method.frozen.bits.float()).mean()
    assert 3 < more < 6  # about log2(32) bits more for weights that count at all


def test_all_images_where_there_are_fewer(build):
    run = build("blip")
    until_task(run, 1)
    assert run.method.frozen.bits.any()
    assert len(run.stream.data[0].train) < run.method.config.fisher_samples


def test_heads_of_other_tasks_keep_every_bit(build):
    run = build("blip", train={"epochs": 3}, **ALL)
    start = run.method.head.weight.detach().clone()
    until_task(run, 1)
    middle = run.method.head.weight.detach().clone()
    assert torch.equal(middle[2:], start[2:])
    assert not torch.equal(middle[:2], start[:2])
    finish(run)
    assert torch.equal(run.method.head.weight[:2], middle[:2])
    assert not torch.equal(run.method.head.weight[2:], middle[2:])


def test_batch_normalisation_learns_in_the_first_task_only(build):
    run = build("blip", network=RESNET, **ALL)
    quantised = {f"backbone.{name}" for name in run.method.frozen.names}
    names = [
        name
        for name in run.method.state_dict()
        if name.startswith("backbone.") and name not in quantised
    ]
    assert any("running_mean" in name for name in names)
    assert any(name.endswith("bn1.weight") for name in names)  # affine: learnt in the first task
    start = {name: run.method.state_dict()[name].clone() for name in names}
    until_task(run, 1)
    middle = {name: run.method.state_dict()[name].clone() for name in names}
    assert all(not torch.equal(start[n], middle[n]) for n in names)
    before = run.method.backbone.stem[0].weight.detach().clone()
    run.advance()
    assert all(torch.equal(run.method.state_dict()[n], middle[n]) for n in names)
    assert not torch.equal(run.method.backbone.stem[0].weight, before)


def test_memory_does_not_grow(build):
    run = build("blip", **ALL)
    rows = []
    while not run.done:
        rows.append(run.advance())
    stored = [row["cost/stored_bytes"] for row in rows if row["at_task_end"]]
    plain = build("finetune")
    shared = sum(p.numel() for p in plain.method.backbone.parameters())
    head = sum(p.numel() for p in plain.method.head.parameters())
    assert stored == [4 * head + 13 * shared + 16] * 2  # and the two accuracies


def test_what_it_says_of_itself(build):
    run = build("blip", f_prior=1e-8, benchmark={"validation": 0.2}, **ALL)
    rows = [run.advance() for _ in range(2)]
    said = {k.removeprefix("method/"): v for k, v in rows[-1].items() if k.startswith("method/")}
    bits = run.method.frozen.bits.double()
    assert said["capacity"] == pytest.approx(bits.mean().item() / 20)
    assert said["share_of_zero_bits"] == pytest.approx((bits == 0).double().mean().item(), rel=1e-5)
    assert said["share_of_all_bits"] == 0
    validation = run.stream.data[1].validation
    measured = run.evaluator.accuracy(run.method, validation, 1, 2)["task"]
    assert said["accuracy_after_rounding"] == measured
    counts = rows[-1]["result"]["histograms"]
    assert set(counts) == {"bits/layers.1.weight", "bits/layers.1.bias"}
    assert [sum(row) for row in counts["bits/layers.1.weight"]] == [64 * 16] * 2
    assert all(len(row) == 21 for row in counts["bits/layers.1.bias"])


def test_a_prior_too_large_wipes_the_task(build):
    """Weights without bits become 0; training had learnt the task, the rounded network has not."""
    run = build("blip", f_prior=1e6, train={"epochs": 5}, **ALL)
    while run.task_index == 0:
        row = run.advance()
    assert row["method/share_of_zero_bits"] == 1
    assert row["method/accuracy_before_rounding"] > 90
    assert row["method/accuracy_after_rounding"] < 70
    kept = build("blip", f_prior=1e6, zero_bits="keep", train={"epochs": 5}, **ALL)
    while kept.task_index == 0:
        row = kept.advance()
    assert row["method/accuracy_after_rounding"] == row["method/accuracy_before_rounding"] > 90


def test_more_prior_is_less_stable(build):
    moved = []
    for f_prior in (1e-17, 1e-14, 1e-11):
        run = build("blip", f_prior=f_prior, train={"epochs": 5}, **ALL)
        until_task(run, 1)
        previous = run.method.frozen.previous.clone()
        finish(run)
        moved.append((run.method.frozen.previous - previous).norm().item())
    assert moved[0] < moved[1] < moved[2]


def test_divergence_keeps_the_best_epoch(build):
    select = {"select": "validation_loss", "epochs": 4}
    run = build("blip", benchmark={"validation": 0.2}, train=select, **ALL)
    run.advance()
    best = {k: v.clone() for k, v in run.method.state_dict().items() if k.startswith("head")}
    with torch.no_grad():
        run.method.head.weight[0, 0] = torch.nan
    row = run.advance()
    assert row["at_task_end"]
    assert all(torch.equal(run.method.state_dict()[k], v) for k, v in best.items())
    fresh = build("blip", benchmark={"validation": 0.2}, train=select, **ALL)
    with torch.no_grad():
        fresh.method.head.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="task 0"):
        fresh.advance()


class Shared(Backbone):
    """Two layers with one weight, or weights that are made of others."""

    Config = NetworkConfig
    num_features = 64
    kind = "tied"

    def __init__(self, config, input_shape):
        super().__init__()
        self.flat, self.one, self.two = nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64)
        if self.kind == "tied":
            self.two.weight = self.one.weight
        elif self.kind == "computed":
            nn.utils.parametrizations.weight_norm(self.two)
        else:
            self.one = self.two = nn.Identity()

    def forward(self, images):
        return self.two(self.one(self.flat(images)))


@pytest.mark.parametrize(
    "kind, message",
    [
        ("tied", "two has not"),
        ("computed", "two has not"),
        ("none", "linear layers and convolutions"),
    ],
)
def test_networks_without_weights_of_their_own_are_refused(build, monkeypatch, kind, message):
    monkeypatch.setattr(Shared, "kind", kind)
    monkeypatch.setitem(sys.modules, "shared_weights", types.SimpleNamespace(Shared=Shared))
    with pytest.raises(UserError, match=message):
        build("blip", network={"name": "shared_weights:Shared"})


def test_weights_that_are_no_numbers_after_the_last_step(build, monkeypatch):
    run = build("blip", **ALL)
    clamp = type(run.method.frozen).clamp_

    def spoil(self, low, high):
        clamp(self, low, high)
        self.of[0].parameter.data[0] = torch.nan

    monkeypatch.setattr(type(run.method.frozen), "clamp_", spoil)
    with pytest.raises((ValueError, TrainingError), match=r"diverged|lower lr"):
        run.advance()
