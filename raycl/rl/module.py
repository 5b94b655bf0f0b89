"""The policy as RLlib holds it: one module in the learner, one in every env runner."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from raycl.rl.config import SequenceConfig
from raycl.rl.policy import Policy, build_policy


class TaskModule(TorchRLModule):  # type: ignore[misc]
    """RLlib's module around a ``Policy``; its initial weights depend on the configured seed only.

    ``model_config`` is ``{"config": a SequenceConfig as JSON, "init": a seed}``.
    """

    policy: Policy

    def setup(self) -> None:
        """RLlib's hook; the constructor is never overridden."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.model_config["init"])
            self.policy = build_policy(SequenceConfig.model_validate(self.model_config["config"]))
        self.eval()  # for good: nothing in it behaves otherwise while it is trained

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Compute nothing: actions and losses come from the policy itself."""
        return {}
