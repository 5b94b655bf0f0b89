"""What all methods on sequences of games have in common; fine-tuning and its relatives."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from game_playing import adam, gen, new_policy, pair, play, rollout, same, start, train, trunk

from raycl import registry
from raycl.errors import UserError
from raycl.rl.methods.base import SequenceMethod, build_method

NAMES = registry.names("raycl.rl.methods")


def test_registered_names():
    assert set(NAMES) >= {"blip", "finetune", "online_ewc", "scratch"}
    with pytest.raises(UserError, match="did you mean 'finetune'"):
        build_method({"name": "finetun"}, new_policy())


@pytest.mark.parametrize("name", NAMES)
def test_heads_of_other_games_are_untouched(name):
    policy, method = pair(name)
    for game in range(3):
        before = copy.deepcopy(policy.state_dict())
        play(policy, method, game)
        after = policy.state_dict()
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        heads = {f"{kind}.{game}" for kind in ("actors", "critics")}
        assert {n.rpartition(".")[0] for n in changed if not n.startswith("trunk.")} == heads
        assert any(n.startswith("trunk.") for n in changed)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_in_a_game_changes_nothing(name):
    """State is complete: a fresh method and policy, loaded, go on bit by bit as the old ones."""
    policy, method = pair(name)
    play(policy, method, 0)
    optimizer = start(policy, method, 1)
    train(policy, method, 1, optimizer)
    saved = copy.deepcopy((policy.state_dict(), method.state_dict(), optimizer.state_dict()))
    train(policy, method, 1, optimizer)
    method.end_game(policy, 1, rollout(1), gen())
    play(policy, method, 2)

    again, fresh = pair(name, seed=9)
    again.load_state_dict(saved[0], strict=True)
    fresh.load_state_dict(saved[1], strict=True)
    fresh.begin_game(again, 1)  # a restore does not call start_weights
    optimizer = adam(again)
    optimizer.load_state_dict(saved[2])
    train(again, fresh, 1, optimizer)
    fresh.end_game(again, 1, rollout(1), gen())
    play(again, fresh, 2)
    assert same(policy.state_dict(), again.state_dict())
    assert same(method.state_dict(), fresh.state_dict())
    assert method.diagnostics() == fresh.diagnostics()


@pytest.mark.parametrize("name", NAMES)
def test_randomness_comes_from_the_given_generator(name):
    policy, method = pair(name)
    train(policy, method, 0, start(policy, method, 0))
    found = []
    for seed in (1, 1, 2):
        one, other = copy.deepcopy((policy, method))
        state = torch.get_rng_state()
        other.end_game(one, 0, rollout(0), gen(seed))
        assert torch.equal(state, torch.get_rng_state())
        found.append(other.state_dict())
    assert same(found[0], found[1])
    drawn = name in {"blip", "online_ewc"}
    assert same(found[0], found[2]) == (not drawn)


@pytest.mark.parametrize("name", NAMES)
def test_asking_for_numbers_changes_nothing(name):
    policy, method = pair(name)
    play(policy, method, 0)
    before = copy.deepcopy(policy.state_dict()), copy.deepcopy(method.state_dict())
    first = method.diagnostics(), method.histograms()
    assert (method.diagnostics(), method.histograms()) == first
    assert all(type(value) is float and math.isfinite(value) for value in first[0].values())
    assert same(before[0], policy.state_dict())
    assert same(before[1], method.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_policy_is_no_part_of_a_method(name):
    _, method = pair(name)
    assert not list(method.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_say_where_it_comes_from(name):
    text = registry.find("raycl.rl.methods", SequenceMethod, name).__doc__
    assert "Paper:" in text
    assert "arXiv" in text
    assert "Departures" in text
    assert "Loss of" in text


@pytest.mark.parametrize(
    "name, options", [("online_ewc", {"lam": 0.0}), ("blip", {"f_prior": 1e6, "zero_bits": "keep"})]
)
def test_without_strength_it_is_fine_tuning(name, options):
    """No pull; no bits. Bounds of BLIP are far away."""
    plain, finetune = pair("finetune")
    policy, method = pair(name, **options)
    for game in range(3):
        play(plain, finetune, game)
        play(policy, method, game)
        assert same(plain.state_dict(), policy.state_dict())


def test_a_frozen_trunk_learns_in_the_first_game_only():
    policy, method = pair("finetune", freeze_trunk=True)
    initial = trunk(policy)
    play(policy, method, 0)
    learnt = trunk(policy)
    assert not torch.equal(initial, learnt)
    play(policy, method, 1)
    assert torch.equal(trunk(policy), learnt)
    assert [method.frozen(game) for game in range(3)] == [False, True, True]
    assert not any(pair("finetune")[1].frozen(game) for game in range(3))


def test_scratch_starts_every_game_where_the_first_began():
    policy, method = pair("scratch")
    initial = trunk(policy)
    play(policy, method, 0)
    plain, finetune = pair("finetune")
    play(plain, finetune, 0)
    assert same(policy.state_dict(), plain.state_dict())
    heads = copy.deepcopy(policy.actors.state_dict())
    method.start_weights(policy, 1)
    assert torch.equal(trunk(policy), initial)
    assert same(heads, policy.actors.state_dict())
    method.begin_game(policy, 1)  # as after a restore: leaves weights alone
    policy.trunk.layers[0].bias.data.fill_(1)
    method.begin_game(policy, 1)
    assert policy.trunk.layers[0].bias.eq(1).all()
