"""Games in bfloat16: what is rounded, what is not, and what PPO's ratio sees of it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sequence_making import Make, same, state, tiny
from torch import Tensor, nn

from envs.vector import SequentialAtari
from raycl.nn.precision import autocast, emulated, round_weights
from raycl.rl.config import PPOConfig, SequenceConfig
from raycl.rl.learner import _rows
from raycl.rl.policy import Policy, build_policy, layout_of
from raycl.rl.ppo import losses, normalised

CPU = torch.device("cpu")
BFLOAT16 = {"train": {"precision": "bfloat16"}}
NETWORK = {"channels": [8, 16], "kernels": [8, 4], "strides": [4, 2], "features": 64}


def confident(**options: Any) -> Policy:
    """A policy that is far from uniform, so that rounding its logits would be seen."""
    torch.manual_seed(0)
    policy = build_policy(tiny(network=NETWORK, **options))
    with torch.no_grad():
        for head in policy.actors:
            nn.init.normal_(head.weight, std=0.4)  # type: ignore[arg-type]
    return policy


@cache
def played() -> Tensor:
    """64 observations of random play."""
    env, draw = SequentialAtari("Boxing", 2), np.random.default_rng(0)
    found = [env.reset(seed=0)[0]]
    found += [env.step(draw.integers(0, 18, 2))[0] for _ in range(31 * 3)]
    env.close()
    return torch.from_numpy(np.concatenate(found[::3]))


def minibatch(policy: Policy, count: int = 64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    obs = played()[:count]
    actions, log_probs, values = policy.act(obs, 0, draw)
    raw = torch.randn(count, generator=draw)
    columns = {"log_probs": log_probs, "values": values, "returns": raw + values}
    return {"obs": obs, "actions": actions, "advantages": normalised(raw), **columns}


def gradient(policy: Policy, batch: dict[str, Tensor], config: PPOConfig) -> Tensor:
    policy.zero_grad()
    losses(policy, 0, batch, config)["loss"].backward()
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in found)
    return torch.cat([g.flatten() for g in found]).double()


def test_the_trunk_alone_may_be_rounded() -> None:
    """The trunk's gradient is float32's but for rounding; with heads and losses rounded, it is not.

    What all logits share does not matter to a policy, until they are rounded.
    """
    policy = confident()
    with torch.no_grad():
        policy.actors[0].bias += 30  # type: ignore[operator]
    batch, rounded = minibatch(policy), PPOConfig(precision="bfloat16")
    exact, trunk = gradient(policy, batch, PPOConfig()), gradient(policy, batch, rounded)
    with autocast(CPU):
        everywhere = gradient(policy, batch, rounded)
    near, far = (torch.cosine_similarity(exact, g, 0).item() for g in (trunk, everywhere))
    assert not torch.equal(exact, trunk)
    assert near > 0.999 > far


def test_everything_behind_the_trunk_is_float32() -> None:
    policy = confident()
    batch = minibatch(policy, 16)
    found = losses(policy, 0, batch, PPOConfig(precision="bfloat16"))
    assert {value.dtype for value in found.values()} == {torch.float32}
    features = policy.features(batch["obs"], "bfloat16")
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float())  # and was rounded
    assert not torch.equal(features, policy.features(batch["obs"]))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    log_probs = policy.act(batch["obs"], 0, precision="bfloat16")[1]
    assert not torch.equal(log_probs, log_probs.bfloat16().float())


def test_rounded_weights_give_the_bits_that_autocast_gives() -> None:
    policy, obs = confident(), played()[:16]
    copied = copy.deepcopy(policy)
    round_weights(copied.trunk)
    assert {p.dtype for p in copied.trunk.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in copied.actors.parameters()} == {torch.float32}
    for _ in range(2):
        draws = (torch.Generator().manual_seed(3) for _ in range(2))
        both = [p.act(obs, 0, g, "bfloat16") for p, g in zip((policy, copied), draws, strict=True)]
        assert all(map(torch.equal, *both))
        nn.init.normal_(policy.trunk.layers[0].weight)  # type: ignore[union-attr, index, arg-type]
        copied.load_state_dict(policy.state_dict())  # rounds


def test_norms_stay_float32_as_under_autocast() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    module.eval()
    x, wanted = torch.randn(5, 2, 4, 4), None
    for _ in range(2):
        with torch.no_grad(), autocast(CPU):
            found = module(x)
        assert wanted is None or torch.equal(wanted, found)
        wanted = found
        round_weights(module)
    assert module[1].weight.dtype == torch.float32


def test_a_device_without_units_for_bfloat16_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, wanted in (
        ({"avx2": True}, True),
        ({"avx512_f": True, "avx512_bf16": True}, False),
        ({"amx_bf16": True}, False),
        ({"bf16": True}, False),  # ARM
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert emulated(CPU) == wanted
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(True) or False
    )
    assert emulated(torch.device("cuda"))
    assert asked


# ---------------------------------------------------------------------- float32, as ever


def test_a_configuration_in_float32_is_what_it_was_before_there_was_a_choice() -> None:
    plain = tiny().model_dump(mode="json")
    assert "precision" not in plain["train"]
    assert plain == tiny(train={"precision": "float32"}).model_dump(mode="json")
    assert SequenceConfig.model_validate(plain).train.precision == "float32"
    rounded = tiny(**BFLOAT16)
    assert SequenceConfig.model_validate(rounded.model_dump(mode="json")) == rounded


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_of_a_column(layout: torch.memory_format) -> None:
    column = played()[:20].contiguous(memory_format=layout)
    index = torch.randperm(20)[:7]
    found = _rows(column, index)
    assert torch.equal(found, column[index])
    assert found.is_contiguous(memory_format=layout)
    numbers = torch.arange(20.0)
    assert torch.equal(_rows(numbers, index), numbers[index])


def test_pixels_in_the_order_of_learning_give_the_same_bits() -> None:
    policy = confident()
    batch = minibatch(policy)
    assert layout_of("float32", CPU) is torch.channels_last
    ordered = batch | {"obs": batch["obs"].contiguous(memory_format=torch.channels_last)}
    first, second = (gradient(policy, b, PPOConfig()) for b in (batch, ordered))
    assert torch.equal(first, second)


# ---------------------------------------------------------------------- whole runs


@pytest.mark.usefixtures("cluster")
def test_the_ratio_begins_at_one(make: Make) -> None:
    """What was played and what is learnt round in the same places; float32 would not."""
    run = make(tiny(network=NETWORK, train={"precision": "bfloat16", "envs": 4, "rollout": 16}))
    learner = run.algorithm.learner
    learner.policy.load_state_dict(confident().state_dict())
    run.algorithm.changed()
    first: list[Tensor] = []
    loss = learner.compute_loss_for_module

    def spy(*, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        if not first:
            for precision in ("bfloat16", "float32"):
                with torch.no_grad():
                    features = learner.policy.features(batch["obs"], precision)  # type: ignore[arg-type]
                    logits, _ = learner.policy.heads(features, 0)
                chosen = torch.log_softmax(logits, 1).gather(1, batch["actions"][:, None])
                first.append(((chosen.squeeze(1) - batch["log_probs"]).exp() - 1).abs().max())
        found: Tensor = loss(batch=batch, **kwargs)
        return found

    learner.compute_loss_for_module = spy
    run.advance()
    rounded, exact = first
    assert exact > 1e-3  # of float32: the test can tell
    assert rounded < exact / 10


@pytest.mark.usefixtures("cluster")
def test_a_run_in_bfloat16_keeps_and_scores_float32_and_resumes_to_the_bit(make: Make) -> None:
    config = tiny("online_ewc", **BFLOAT16)
    whole, saved = make(config), None
    runner = whole.algorithm.env_runner_group.local_env_runner
    while not whole.done:
        row = whole.advance()
        if row["tasks_done"] == 1 and saved is None:
            saved = copy.deepcopy(whole.state_dict())
    assert saved is not None
    assert {p.dtype for p in runner.acting.trunk.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in runner.policy.parameters()} == {torch.float32}
    assert same(dict(runner.policy.state_dict()), state(whole))  # the one that was scored
    moments = [v for one in saved["optimizer"]["state"].values() for v in one.values()]
    tensors = [*saved["policy"].values(), *moments]
    assert {t.dtype for t in tensors} == {torch.float32}
    resumed = make(config)
    resumed.load_state_dict(saved)
    while not resumed.done:
        resumed.advance()
    assert same(state(whole), state(resumed))
