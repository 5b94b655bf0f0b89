from __future__ import annotations

import logging
import math

import pytest
import torch
from game_playing import gen, new_policy, pair, play, rollout, same, start, train, trunk
from torch import nn

from raycl.errors import UserError
from raycl.networks.atari_cnn import AtariCNN
from raycl.networks.base import Backbone, NetworkConfig
from raycl.nn.quantised import quantise
from raycl.rl.methods import _fisher
from raycl.rl.methods.base import build_method
from raycl.rl.policy import Policy


def bits_of(method):
    """(parameter, bound, previous, bits) of everything quantised, flat."""
    kept = method.frozen_bits
    parts = (torch.split(t, kept.sizes) for t in (kept.previous, kept.bits))
    found = zip(kept.of, *parts, strict=True)
    return [(q.parameter.detach().flatten(), q.bound, p, b) for q, p, b in found]


def test_blip_defaults_are_the_published_ones():
    config = build_method({"name": "blip"}, new_policy()).config
    assert (config.f_prior, config.max_bits, config.bound) == (5e-18, 20, 6.0)
    assert (config.fisher_batches, config.drift, config.zero_bits) == (32, "full_step", "reset")


def test_bounds_and_priors_of_the_published_network():
    with torch.device("meta"):
        policy = Policy(AtariCNN(AtariCNN.Config(name="atari_cnn"), (4, 84, 84)), [14])
        method = build_method({"name": "blip"}, policy)
    kept = method.frozen_bits
    found = {n: (q.bound, q.prior) for n, q in zip(kept.names, kept.of, strict=True)}
    layers = [f"layers.{index}" for index in (0, 2, 4, 7)]
    bounds = (0.375, 0.2651650, 0.25, 0.0757614)
    priors = (1.280e-15, 2.560e-15, 2.880e-15, 3.136e-14)
    for layer, bound, prior in zip(layers, bounds, priors, strict=True):
        assert found[f"{layer}.weight"] == pytest.approx((bound, prior), rel=1e-6)
        assert found[f"{layer}.bias"] == pytest.approx((1.0, prior), rel=1e-6)
    assert len(found) == 8


def test_the_fan_is_the_larger_of_inputs_and_outputs():
    config = AtariCNN.Config(
        name="atari_cnn", channels=[20], kernels=[3], strides=[1], features=400
    )
    policy = Policy(AtariCNN(config, (2, 4, 4)), [3])
    method = build_method({"name": "blip", "f_prior": 1e-10}, policy)
    found = [q.bound for q in method.frozen_bits.of]
    # 20 outputs against 2 * 9 inputs, 400 outputs against 20 * 4
    assert found == pytest.approx([6 / math.sqrt(20), 1, 6 / 20, 1])
    assert method.frozen_bits.of[-1].prior == pytest.approx(400e-10)


def test_initial_weights_are_the_network_s_within_bounds():
    plain = new_policy()
    policy, _ = pair("blip")
    assert same(plain.state_dict(), policy.state_dict())
    policy, method = pair("blip", bound=0.5)
    assert not same(plain.state_dict(), policy.state_dict())
    for w, bound, previous, bits in bits_of(method):
        assert w.abs().max() <= bound
        assert not previous.any()
        assert not bits.any()


def test_the_worked_weight(monkeypatch):
    """A weight of the first convolution over three games, pushed against its limits in between."""
    config = AtariCNN.Config(name="atari_cnn", channels=[2], kernels=[8], strides=[1], features=2)
    policy = Policy(AtariCNN(config, (4, 8, 8)), [3, 3, 3])
    method = build_method({"name": "blip"}, policy)
    weight = policy.trunk.layers[0].weight
    first = weight.data.view(-1)[:1]
    first[0] = 0.1234567
    rows = [
        (2.6e-10, 9, 0.123779296875, 0.000732421875, 1.3000064e-10),
        (4.0e-11, 9, 0.12451171875, 0.000732421875, 1.00000427e-10),
        (9.0e-10, 10, 0.125244140625, 0.0003662109375, 3.0000032e-10),
    ]
    for game, (fisher, bits, rounded, reach, mean) in enumerate(rows):
        method.begin_game(policy, game)
        if game:
            first += 0.01
            method.after_step(policy)
            assert first.item() == rounded  # one step of the grid, which is a carry
        given = torch.zeros_like(method.frozen_bits.fisher)
        given[0] = fisher * 62**2  # before it is scaled
        monkeypatch.setattr(_fisher, "per_example", lambda *_, f=given: f.clone())
        method.end_game(policy, game, torch.zeros(2000, 1), gen())
        assert first.item() == rounded
        assert method.frozen_bits.bits[0] == bits
        assert method.frozen_bits.fisher[0].item() == pytest.approx(mean, rel=1e-6)
        low, high = method.frozen_bits.limits()
        assert low[0].view(-1)[0].item() == pytest.approx(rounded - reach, rel=1e-6)
        assert high[0].view(-1)[0].item() == pytest.approx(rounded + reach, rel=1e-6)
    assert not weight.view(-1)[1:].any()  # no information, no bits


def test_the_order_of_a_boundary(monkeypatch):
    """The Fisher is that of the weights before rounding, over the square of the minibatch."""
    policy, method = pair("blip", fisher_batches=8)
    train(policy, method, 0, start(policy, method, 0))
    expected = _fisher.per_example(policy, 0, rollout(0, 70), 8, gen(4)) / 8**2
    seen = []
    consolidate = type(method.frozen_bits).consolidate

    def spy(self, fisher, tasks):
        seen.append((fisher.clone(), tasks))
        consolidate(self, fisher, tasks)

    monkeypatch.setattr(type(method.frozen_bits), "consolidate", spy)
    method.end_game(policy, 0, rollout(0, 70), gen(4))
    assert torch.equal(seen[0][0], expected)
    assert seen[0][1] == 0


def test_weights_stay_within_the_limits_of_their_bits():
    policy, method = pair("blip")
    moved = 0
    before = torch.zeros_like(method.frozen_bits.bits)
    for game in range(3):
        optimizer = start(policy, method, game)
        for _ in range(3):
            train(policy, method, game, optimizer, steps=4)
            for w, bound, previous, bits in bits_of(method):
                reach = torch.where(bits == 0, math.inf, bound * 0.5 ** bits.double())
                assert ((w - previous).abs() <= reach + 1e-7).all()
                assert (w.abs() <= bound * (1 - 2**-20)).all()
                moved += int(((w != previous) & (bits > 0)).sum()) if game else 0
            now = trunk(policy)
            method.after_step(policy)
            assert torch.equal(trunk(policy), now)  # projecting again changes nothing
        method.end_game(policy, game, rollout(game), gen(game))
        for w, bound, previous, bits in bits_of(method):
            assert torch.equal(w, previous)
            assert torch.equal(w, quantise(w, bits, bound))
            assert not w[bits == 0].any()
        bits = method.frozen_bits.bits
        assert (bits >= before).all()
        assert bits.max() <= 20
        before = bits.clone()
    assert moved > 0
    assert (before == 0).any()
    assert (before > 4).any()


def test_a_step_before_the_game_has_begun_is_an_error():
    policy, method = pair("blip")
    with pytest.raises(RuntimeError, match="begin_game"):
        method.after_step(policy)
    play(policy, method, 0)
    with pytest.raises(RuntimeError, match="begin_game"):
        method.after_step(policy)


def test_what_blip_says_of_itself():
    _, method = pair("blip")
    kept = method.frozen_bits
    kept.bits.zero_()
    kept.previous.zero_()
    first, bias = kept.sizes[:2]  # 3 units of 18 weights, 3 biases
    kept.bits[:18] = 20
    kept.previous[3] = 0.5
    kept.previous[first + 1] = 0.1
    found = method.diagnostics()
    total = sum(kept.sizes)
    units = 3 + 4 + 12
    assert (first, bias) == (54, 3)
    assert found["capacity"] == pytest.approx(18 / total)
    assert found["share_of_zero_bits"] == pytest.approx(1 - 18 / total)
    assert found["share_of_all_bits"] == pytest.approx(18 / total)
    assert found["share_of_zero_units"] == pytest.approx((units - 2) / units)
    assert found["mean_bits/layers.0"] == pytest.approx(20 / 3)
    assert found["mean_bits/layers.2"] == found["mean_bits/layers.5"] == 0
    counts = method.histograms()
    assert counts["bits/layers.0.weight"] == [36] + [0] * 19 + [18]
    assert len(counts) == 6


def test_a_policy_without_information_is_warned_of(caplog):
    policy, method = pair("blip", f_prior=1e6)
    with caplog.at_level(logging.WARNING):
        play(policy, method, 0)
    assert "100 % of the trunk's weights have no bit after game 1" in caplog.text
    assert not trunk(policy).any()
    caplog.clear()
    for options in ({"f_prior": 1e-20}, {"f_prior": 1e6, "zero_bits": "keep"}):
        with caplog.at_level(logging.WARNING):
            play(*pair("blip", **options), 0)
    assert not caplog.text


class Normalised(Backbone):
    """A trunk with a layer that is neither linear nor a convolution."""

    Config = NetworkConfig

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.num_features = nn.Linear(8, 4), nn.LayerNorm(4), 4

    def forward(self, images):
        return self.norm(self.linear(images.flatten(1)))


def test_other_layers_are_refused():
    with pytest.raises(UserError, match=r"network: blip quantises .* norm\.bias is of another"):
        build_method({"name": "blip"}, Policy(Normalised(), [3]))
