"""Updates of a whole run against the equations, written once more in float64 and plain torch."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sequence_making import UPDATES, tiny
from torch import Tensor

from raycl.rl.config import PPOConfig
from raycl.rl.sequence import SequenceRun

pytestmark = pytest.mark.usefixtures("cluster")
STEPS, ENVS = 16, 4
LAM = 1e8
State = dict[str, Tensor]


def heads(p: State, obs: Tensor, game: int) -> tuple[Tensor, Tensor]:
    """Logits and values of the network of ``tiny``."""
    x = F.conv2d(obs / 255, p["trunk.layers.0.weight"], p["trunk.layers.0.bias"], 8).relu()
    x = F.linear(x.flatten(1), p["trunk.layers.3.weight"], p["trunk.layers.3.bias"]).relu()
    actor, critic = f"actors.{game}", f"critics.{game}"
    logits = F.linear(x, p[f"{actor}.weight"], p[f"{actor}.bias"])
    return logits, F.linear(x, p[f"{critic}.weight"], p[f"{critic}.bias"])[:, 0]


def estimates(rewards: Any, ended: Any, values: Any) -> Any:
    """A_t = delta_t + gamma lambda m A_{t+1}; values (T+1, N)."""
    found, following = np.zeros((STEPS, ENVS)), np.zeros(ENVS)
    for t in reversed(range(STEPS)):
        m = 1.0 - ended[t]
        delta = rewards[t] + 0.99 * m * values[t + 1] - values[t]
        found[t] = following = delta + 0.99 * 0.95 * m * following
    return found.ravel()


def loss(p: State, game: int, batch: State, train: PPOConfig, pull: tuple[State, State]) -> Tensor:
    """Clipped surrogate, clipped value loss, entropy, and EWC's penalty."""
    logits, values = heads(p, batch["obs"], game)
    log_probs = logits - logits.logsumexp(1, keepdim=True)
    r = (log_probs[range(len(logits)), batch["actions"]] - batch["log_probs"]).exp()
    c, gain, old = train.clip, batch["gains"], batch["values"]
    surrogate = torch.minimum(r * gain, r.clip(1 - c, 1 + c) * gain)
    near = old + (values - old).clip(-c, c)
    errors = [(v - batch["returns"]) ** 2 for v in (values, near)]
    entropy = -(log_probs.exp() * log_probs).sum(1)
    found = -surrogate.mean() + 0.5 * 0.5 * torch.maximum(*errors).mean() - 0.01 * entropy.mean()
    anchor, fisher = pull
    for name in anchor:
        found = found + LAM / 2 * (fisher[name] * (p[name] - anchor[name]) ** 2).sum()
    return found


class Adam:
    """Adam behind the bound on the norm of all gradients; knows how often it was in force."""

    def __init__(self) -> None:
        self.m: State = {}
        self.v: State = {}
        self.t = self.bounded = 0

    def step(self, p: State, gradients: State, lr: float) -> State:
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        self.t += 1
        self.bounded += bool(norm > 0.5)
        new = dict(p)
        for name, g in gradients.items():
            g = g * min(1.0, 0.5 / (norm.item() + 1e-6))
            self.m[name] = 0.9 * self.m.get(name, 0) + 0.1 * g
            self.v[name] = 0.999 * self.v.get(name, 0) + 0.001 * g * g
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            new[name] = p[name] - lr * m / (v.sqrt() + 1e-5)
        return new


def doubles(state: State) -> State:
    return {name: value.double().clone() for name, value in state.items()}


def trunk(run: SequenceRun, flat: Tensor) -> State:
    """A flat buffer of a method, by parameter."""
    named = {f"trunk.{n}": p for n, p in run.algorithm.learner.policy.trunk.named_parameters()}
    parts = torch.split(flat, [p.numel() for p in named.values()])
    return {n: q.view_as(p).double() for (n, p), q in zip(named.items(), parts, strict=True)}


def play_on(run: SequenceRun, rng: np.random.Generator, told: list[Any]) -> None:
    """Let the environment of a run tell made-up rewards and ends, and note them."""
    env = run.algorithm.env_runner_group.local_env_runner.env
    step = env.step

    def telling(actions: Any) -> Any:
        obs, *_ = step(actions)
        told.append((rng.integers(-1, 2, ENVS).astype(np.float32), rng.random(ENVS) < 0.2))
        return obs, told[-1][0].copy(), told[-1][1].copy(), np.zeros(ENVS, bool), {}

    env.step = telling


def test_updates_follow_the_equations() -> None:
    config = tiny(train={"minibatches": 3, "lr": 0.01})
    config = config.model_copy(update={"method": {"name": "online_ewc", "lam": LAM}})
    train = config.train
    told: list[Any] = []
    with closing(SequenceRun(config)) as run:
        learner, runner = (
            run.algorithm.learner,
            run.algorithm.env_runner_group.local_env_runner,
        )
        play_on(run, np.random.default_rng(0), told)
        pull: tuple[State, State] = ({}, {})
        bounded = 0
        for update in range(2 * UPDATES):
            game, number = divmod(update, UPDATES)
            if number == 0:
                adam = Adam()
            before = doubles(learner.policy.state_dict())
            told.clear()
            random = torch.get_rng_state()
            run.advance()
            after = torch.get_rng_state()
            torch.set_rng_state(random)
            orders = [torch.randperm(STEPS * ENVS) for _ in range(train.epochs)]
            torch.set_rng_state(after)

            arrays = run.algorithm.rollouts[0].arrays
            batch = {name: torch.from_numpy(arrays[name].copy()) for name in arrays}
            batch = {n: v if n == "actions" else v.double() for n, v in batch.items()}
            last = torch.from_numpy(runner._obs).double()
            values = [*arrays["values"].reshape(STEPS, ENVS), heads(before, last, game)[1].numpy()]
            gains = torch.from_numpy(estimates(*zip(*told, strict=True), values))
            batch["gains"] = (gains - gains.mean()) / (gains.std() + 1e-5)
            batch["returns"] = gains + batch["values"]
            p, lr = before, 0.01 * (1 - number / UPDATES)
            for order in orders:
                for index in order[:63].split(21):  # one step of 64 is left over
                    q = {name: value.requires_grad_() for name, value in doubles(p).items()}
                    part = {name: column[index] for name, column in batch.items()}
                    loss(q, game, part, train, pull).backward()
                    gradients = {n: v.grad for n, v in q.items() if v.grad is not None}
                    p = adam.step(p, gradients, lr)
            for name, value in learner.policy.state_dict().items():
                torch.testing.assert_close(value.double(), p[name], rtol=0, atol=3e-6)
            bounded += adam.bounded
            if number == UPDATES - 1:
                method = learner.method
                pull = trunk(run, method.anchor), trunk(run, method.fisher)
        assert bounded
        assert run.last_row["train/penalty"] > 1e-3
