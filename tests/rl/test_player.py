"""Who plays when a policy is scored."""

from __future__ import annotations

import torch
from sequence_making import tiny

from raycl.rl.player import Player
from raycl.rl.policy import Policy, build_policy


def policy() -> Policy:
    torch.manual_seed(0)
    found = build_policy(tiny())
    with torch.no_grad():
        found.actors[0].bias.copy_(torch.linspace(-2, 2, 18))
    return found


def observations(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 4, 84, 84), generator=generator).byte()


def test_sampled_actions_come_as_often_as_the_policy_says() -> None:
    found, obs = policy(), observations(1).expand(4000, -1, -1, -1)
    actions = Player(found, "sampled", range(4000)).actions(obs, 0)
    logits, _ = found.heads(found.features(obs[:1]), 0)
    shares = torch.bincount(actions, minlength=18) / 4000
    assert (shares - torch.softmax(logits, 1)[0]).abs().max() < 0.03
    assert actions.dtype == torch.int64


def test_a_game_is_the_same_whichever_others_are_beside_it() -> None:
    found, obs = policy(), observations(3)
    together = Player(found, "sampled", [5, 6, 7])
    first = together.actions(obs, 0).tolist()
    later = together.actions(obs[[0, 2]], 0, [0, 2]).tolist()  # the second game is over
    alone = Player(found, "sampled", [7])
    assert [alone.actions(obs[[2]], 0).tolist() for _ in range(2)] == [[first[2]], [later[1]]]


def test_greedy_draws_nothing() -> None:
    found, obs = policy(), observations(2)
    player = Player(found, "greedy", [5, 6])
    assert player.actions(obs, 0).tolist() == player.actions(obs, 0).tolist() == [17, 17]
