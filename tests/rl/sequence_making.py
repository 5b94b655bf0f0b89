"""A sequence that is learnt in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from raycl.rl.config import SequenceConfig

if TYPE_CHECKING:
    from raycl.rl.sequence import SequenceRun

UPDATES = 3
Make = Callable[..., "SequenceRun"]


def tiny(method: str = "finetune", **options: Any) -> SequenceConfig:
    """Two games of three updates each, four environments, a network of a few thousand weights.

    Args:
        method: Its name.
        options: Of the configuration; mappings are merged into what there is.
    """
    config: dict[str, Any] = {
        "benchmark": {
            "name": "atari",
            "games": ["Boxing", "KungFuMaster"],
            "frames": 4 * 4 * 16 * UPDATES,
            "evaluation": {"episodes": 2, "max_frames": 400},
        },
        "method": {"name": method},
        "network": {
            "name": "atari_cnn",
            "channels": [4],
            "kernels": [8],
            "strides": [8],
            "features": 16,
        },
        "train": {"envs": 4, "rollout": 16, "minibatches": 4, "epochs": 2, "lr": 0.001},
    }
    for key, value in options.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    return SequenceConfig.model_validate(config)


def state(run: SequenceRun) -> dict[str, torch.Tensor]:
    """A copy of the policy's weights."""
    policy = run.algorithm.learner.policy.state_dict()
    return {name: value.clone() for name, value in policy.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left if name.startswith(prefix)
    )
