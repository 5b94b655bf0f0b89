"""A sequence that is learnt in seconds."""

from __future__ import annotations

from typing import Any

from raycl.rl.config import SequenceConfig

UPDATES = 3


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
