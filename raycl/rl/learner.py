"""One update: epochs of minibatches of PPO's loss and the method's penalty, and its projection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from raycl.rl.config import SequenceConfig
from raycl.rl.methods.base import SequenceMethod, build_method
from raycl.rl.policy import Policy, layout_of
from raycl.rl.ppo import losses, normalised


class SequenceLearner(TorchLearner):  # type: ignore[misc]
    """RLlib's learner: PPO on the current game, with the hooks of a method.

    ``config.learner_config_dict`` is ``{"config": a SequenceConfig as JSON, "updates": per game}``.

    Attributes:
        method: The method against forgetting.
        game: Index of the current game.
        update_index: Updates made on it.
    """

    method: SequenceMethod

    def build(self) -> None:
        """RLlib's hook: module, optimiser, and the method with the module's policy."""
        super().build()
        given = self.config.learner_config_dict
        self.trial = SequenceConfig.model_validate(given["config"])
        self.updates: int = given["updates"]
        self.method = build_method(self.trial.method, self.policy).to(self.device)
        self.game = self.update_index = 0
        self._sums: dict[str, Tensor] = {}

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        found: Policy = self._module[DEFAULT_MODULE_ID].policy
        return found

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one optimiser."""
        found: torch.optim.Optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        return found

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """RLlib's hook: Adam with the reference's eps."""
        parameters = self.get_parameters(self._module[module_id])
        train = SequenceConfig.model_validate(self.config.learner_config_dict["config"]).train
        adam = torch.optim.Adam(parameters, lr=train.lr, eps=train.adam_eps)
        self.register_optimizer(
            module_id=module_id, optimizer=adam, params=parameters, lr_or_lr_schedule=train.lr
        )

    # ------------------------------------------------------------------ games

    def begin_game(self, game: int, update: int = 0) -> None:
        """Start a game with a new optimiser, or go on with it after a restore.

        Args:
            game: Index in the sequence.
            update: Updates made on it; above 0 the optimiser keeps what was restored.
        """
        self.game, self.update_index = game, update
        if not update:
            self.optimizer.state.clear()
            self.method.start_weights(self.policy, game)
        self.policy.trunk.requires_grad_(not self.method.frozen(game))
        self.method.begin_game(self.policy, game)

    def end_game(self, observations: Any, generator: torch.Generator) -> None:
        """Hand the method the last rollout.

        Args:
            observations: uint8 (n, C, H, W), an array.
            generator: For sampling.
        """
        found = torch.from_numpy(observations).to(self.device)
        self.method.end_game(self.policy, self.game, found, generator)
        self.optimizer.zero_grad(set_to_none=True)

    def means(self) -> dict[str, float]:
        """Means over the minibatches of the last update, and its learning rate."""
        names = list(self._sums)
        count = self.trial.train.epochs * self.trial.train.minibatches
        found = torch.stack([self._sums[name] for name in names]) / count
        lr = self.optimizer.param_groups[0]["lr"]  # self.lr is already that of the next update
        return dict(zip(names, found.tolist(), strict=True)) | {"lr": lr}

    @property
    def lr(self) -> float:
        """Learning rate of the coming update: it falls by the same amount in each."""
        return self.trial.train.learning_rate(self.update_index, self.updates)

    # ------------------------------------------------------------------ one update

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """RLlib's hook, before each update."""
        self._sums = {}
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """RLlib's hook, after each update; RLlib's own schedules are not used."""
        self.update_index += 1

    def _create_iterator_if_necessary(
        self, *, training_data: Any, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        """Draw minibatches as BLIP's code does: a permutation per epoch, the rest is dropped.

        RLlib's own iterator leaves the first epoch in order and copies each column in every epoch.
        """
        columns = training_data.batch.policy_batches[DEFAULT_MODULE_ID]
        batch = {name: torch.as_tensor(columns[name]).to(self.device) for name in columns}
        batch["advantages"] = normalised(batch["advantages"])
        train = self.trial.train
        if layout_of(train.precision, self.device) is torch.channels_last:
            # once here instead of in every minibatch; stack is the fastest way
            batch["obs"] = torch.stack(batch["obs"].unbind(1), -1).permute(0, 3, 1, 2)
        count = len(batch["actions"])
        size = count // train.minibatches
        for _ in range(train.epochs):
            for index in torch.split(torch.randperm(count)[: size * train.minibatches], size):
                index = index.to(self.device)
                part = SampleBatch({name: _rows(column, index) for name, column in batch.items()})
                yield MultiAgentBatch({DEFAULT_MODULE_ID: part}, env_steps=size)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """RLlib's hook: the scalar that is minimised."""
        found = losses(self.policy, self.game, batch, self.trial.train)
        loss = found["loss"]
        penalty = self.method.penalty(self.policy, self.game)
        if penalty is not None:
            loss = loss + penalty
            found["penalty"] = penalty
        for name, value in found.items():
            if name != "loss":
                self._add(name, value)
        return loss

    def postprocess_gradients(self, gradients_dict: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """RLlib's hook: one bound on the norm of all gradients, the penalty's included."""
        found: Sequence[Tensor] = [p for p in self.policy.parameters() if p.grad is not None]
        bound = self.trial.train.max_grad_norm
        self._add("grad_norm", torch.nn.utils.clip_grad_norm_(found, bound))
        return gradients_dict

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """RLlib's hook: a step of the optimiser, and then the method's projection."""
        self.optimizer.step()
        self.method.after_step(self.policy)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def _rows(column: Tensor, index: Tensor) -> Tensor:
    """``column[index]`` in the same memory format, copied row by row and not number by number."""
    if column.dim() == 4 and column.is_contiguous(memory_format=torch.channels_last):
        return column.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return column.index_select(0, index)
