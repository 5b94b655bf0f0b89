"""RLlib's share of the cost of PPO on Atari, and what bfloat16 saves of all of it.

RLlib is compared with a loop of one process without any of it, bfloat16 with float32.

CPU time, so that other load on the machine does not count; the same games, network, batch and
epochs. Run alone: pytest tests/perf -m perf -s -k rl_speed
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from raycl.nn.precision import emulated
from raycl.rl.config import PPOConfig, SequenceConfig
from raycl.rl.policy import Policy, build_policy
from raycl.rl.sequence import SequenceRun

pytestmark = pytest.mark.perf
ROUNDS, UPDATES = 4, 2
NETWORKS = {
    "null": {"channels": [1], "kernels": [8], "strides": [40], "features": 4},
    "small": {"channels": [16, 32], "kernels": [8, 4], "strides": [4, 2], "features": 256},
    "paper": {},
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def trial(network: str, precision: str = "float32") -> SequenceConfig:
    """Pong with the reference's batch: 16 x 125 steps, 8 minibatches, 4 epochs."""
    return SequenceConfig.model_validate(
        {
            "benchmark": {"name": "atari", "games": "Pong"},
            "method": {"name": "finetune"},
            "network": {"name": "atari_cnn", **NETWORKS[network]},
            "train": {"precision": precision},
        }
    )


def emulator() -> Any:
    return AtariVectorEnv(
        "pong",
        16,
        num_threads=1,
        autoreset_mode=AutoresetMode.SAME_STEP,
        reward_clipping=False,
        life_loss_info=True,
    )


class Loop:
    """PPO as one would write it in one file, nothing but torch and the emulator."""

    def __init__(self, config: SequenceConfig) -> None:
        torch.manual_seed(0)
        self.train: PPOConfig = config.train
        self.policy: Policy = build_policy(config)
        self.adam = torch.optim.Adam(self.policy.parameters(), lr=2.5e-4, eps=1e-5)
        self.env = emulator()
        self.obs, _ = self.env.reset(seed=0)

    def heads(self, obs: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.policy.heads(self.policy.features(torch.as_tensor(obs)), 0)

    @torch.no_grad()
    def rollout(self) -> dict[str, torch.Tensor]:
        steps, envs = self.train.rollout, self.train.envs
        obs = np.empty((steps, envs, 4, 84, 84), np.uint8)
        rows: list[tuple[torch.Tensor, ...]] = []
        for t in range(steps):
            obs[t] = self.obs
            logits, values = self.heads(self.obs)
            log_probs = torch.log_softmax(logits, 1)
            a = torch.multinomial(log_probs.exp(), 1)
            self.obs, reward, terminated, truncated, _ = self.env.step(a.squeeze(1).numpy())
            r = torch.from_numpy(np.sign(reward).astype(np.float32))
            m = torch.from_numpy(~(terminated | truncated)).float()
            rows.append((a.squeeze(1), log_probs.gather(1, a).squeeze(1), values, r, m))
        actions, log_probs, values, r, m = (torch.stack(c) for c in zip(*rows, strict=True))
        ahead = torch.cat([values[1:], self.heads(self.obs)[1][None]])
        gains, last = r + 0.99 * m * ahead - values, torch.zeros(envs)
        for t in reversed(range(steps)):
            gains[t] = last = gains[t] + 0.99 * 0.95 * m[t] * last
        found = [x.flatten() for x in (actions, log_probs, values, gains)]
        batch = dict(zip(("actions", "log_probs", "values", "gains"), found, strict=True))
        return batch | {"obs": torch.from_numpy(obs).flatten(0, 1)}

    def update(self) -> None:
        b = self.rollout()
        returns = b["gains"] + b["values"]
        gains = (b["gains"] - b["gains"].mean()) / (b["gains"].std() + 1e-5)
        for _ in range(self.train.epochs):
            for i in torch.randperm(len(gains)).split(len(gains) // self.train.minibatches):
                logits, values = self.heads(b["obs"][i])
                log_probs = torch.log_softmax(logits, 1)
                chosen = log_probs.gather(1, b["actions"][i][:, None]).squeeze(1)
                ratio = (chosen - b["log_probs"][i]).exp()
                gain = torch.min(ratio * gains[i], ratio.clamp(0.9, 1.1) * gains[i]).mean()
                near = b["values"][i] + (values - b["values"][i]).clamp(-0.1, 0.1)
                errors = torch.max((values - returns[i]) ** 2, (near - returns[i]) ** 2)
                entropy = -(log_probs.exp() * log_probs).sum(1).mean()
                self.adam.zero_grad()
                loss = -gain + 0.25 * errors.mean() - 0.01 * entropy
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
                self.adam.step()


def cheapest(*sides: tuple[Callable[[], None], Callable[[], float]]) -> list[float]:
    """CPU seconds of the cheapest round of each side, taken in turns.

    Args:
        sides: What to do, and a clock of the CPU time of all processes that do it.
    """
    best = [float("inf")] * len(sides)
    for _ in range(ROUNDS):
        for i, (work, clock) in enumerate(sides):
            started = clock()
            for _ in range(UPDATES):
                work()
            best[i] = min(best[i], clock() - started)
    return best


def clock_of(run: SequenceRun) -> Callable[[], float]:
    """CPU time of a trial: its own process and those of its env runners."""

    def clock() -> float:
        group = run.algorithm.env_runner_group
        times = group.foreach_env_runner(lambda _: time.process_time(), local_env_runner=False)
        return time.process_time() + sum(times)

    return clock


@pytest.mark.parametrize(
    "network, env_runners, least",
    [("null", 0, 0.9), ("small", 0, 0.9), ("null", 2, 0.85), ("small", 2, 0.85)],
)
def test_the_cost_of_a_step(network: str, env_runners: int, least: float) -> None:
    torch.set_num_threads(1)
    loop = Loop(trial(network))
    with closing(SequenceRun(trial(network), "cpu", env_runners)) as run:
        torch.use_deterministic_algorithms(False)  # the loop does without, too
        run.algorithm.begin_game(0)

        def ours() -> None:
            run.algorithm.train()
            run.algorithm.learner.means()

        ours(), loop.update()
        plain, mine = cheapest((loop.update, time.process_time), (ours, clock_of(run)))
    steps = UPDATES * 2000
    env = emulator()
    env.reset(seed=0)
    actions = np.zeros(16, np.int64)
    bare, _ = cheapest(
        (lambda: [env.step(actions) for _ in range(125)] and None, time.process_time),
        (lambda: None, time.process_time),
    )
    print(
        f"\n{network} network, {env_runners or 'local'} env runners, CPU microseconds per step: "
        f"loop {1e6 * plain / steps:.0f}, ours {1e6 * mine / steps:.0f}, "
        f"ratio {plain / mine:.2f} (at least {least}); "
        f"the emulator alone {1e6 * bare / steps:.0f}: {steps / bare:.0f} steps per CPU second"
    )
    assert plain / mine >= least


@pytest.mark.skipif(emulated(torch.device("cpu")), reason="no units for bfloat16")
@pytest.mark.parametrize("network, least", [("small", 1.15), ("paper", 1.5)])
def test_a_trial_in_bfloat16(network: str, least: float) -> None:
    """Updates as a trial makes them, emulator, playing and learning, in the trial's process."""
    torch.set_num_threads(1)
    times: list[float] = []
    with ExitStack() as stack:
        sides = []
        for precision in ("float32", "bfloat16"):
            run = stack.enter_context(closing(SequenceRun(trial(network, precision))))
            run.algorithm.begin_game(0)

            def update(run: SequenceRun = run) -> None:
                run.algorithm.train()
                run.algorithm.learner.means()

            update()
            sides.append((update, time.process_time))
        times = [seconds / (UPDATES * 2000) for seconds in cheapest(*sides)]
    print(
        f"\n{network} network, CPU microseconds per step: float32 {1e6 * times[0]:.0f}, "
        f"bfloat16 {1e6 * times[1]:.0f}, ratio {times[0] / times[1]:.2f} (at least {least})"
    )
    assert times[0] / times[1] >= least
