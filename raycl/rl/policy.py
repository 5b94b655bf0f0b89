"""The policy: one trunk for all games, and for each game a head for actions and one for values.

Plain torch: the same module samples on RLlib's env runners, learns, is scored, and is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raycl.networks.atari_cnn import orthogonal
from raycl.networks.base import Backbone, find_network
from raycl.nn.precision import Precision, autocast
from raycl.rl.benchmarks.base import build_games
from raycl.rl.config import SequenceConfig
from raycl.trial.weights import build_network

ACTOR_GAIN = 0.01
CRITIC_GAIN = 1.0
DORMANT = 0.025
"""Share of a layer's mean activation up to which a unit counts as dormant."""
CHUNK = 250
"""Number of observations at a time; a larger one only takes more memory."""


def layout_of(precision: Precision, device: torch.device) -> torch.memory_format:
    """The order in memory of the pixels that a trunk learns from.

    In float32, convolutions learn in 0.6 to 0.85 of the time on a CPU if channels come last; they
    only play a little more slowly. In bfloat16 nothing is gained, and in the order in which games
    are played, learning starts from the same bits as playing.
    """
    plain = precision == "float32" and device.type == "cpu"
    return torch.channels_last if plain else torch.preserve_format


class Policy(nn.Module):
    """Trunk and heads, with the heads of all games there from the start.

    Heads are linear layers with orthogonal weights, gain 0.01 (actors) and 1 (critics), and biases
    0: the first policy is close to uniform. It is in eval mode for ever: the ratio of PPO compares
    one function at two times, so nothing in it may be random, or differ between playing and
    learning.

    Args:
        trunk: Float images (B, C, H, W) in 0..1 to features (B, F).
        num_actions: Actions of each game, the width of its actor.
    """

    def __init__(self, trunk: Backbone, num_actions: Sequence[int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.actors = nn.ModuleList(nn.Linear(trunk.num_features, n) for n in num_actions)
        self.critics = nn.ModuleList(nn.Linear(trunk.num_features, 1) for _ in num_actions)
        for heads, gain in ((self.actors, ACTOR_GAIN), (self.critics, CRITIC_GAIN)):
            for head in heads:
                assert isinstance(head, nn.Linear)
                orthogonal(head, gain)
        self.eval()

    @property
    def num_actions(self) -> tuple[int, ...]:
        """Actions of each game."""
        return tuple(len(head.bias) for head in self.actors)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Policy:
        """Stay in eval mode, whatever is asked for; see the class."""
        if self.training:
            super().train(False)
        return self

    def features(self, obs: Tensor, precision: Precision = "float32") -> Tensor:
        """Compute the features of the trunk.

        Args:
            obs: uint8 (B, C, H, W), as the emulator gives them.
            precision: Precision of the layers; ``bfloat16``: see ``raycl.nn.precision.autocast``.

        Returns:
            float32 (B, F).
        """
        if precision == "bfloat16":
            with autocast(obs.device):
                rounded: Tensor = self.trunk(obs.to(torch.bfloat16).div_(255))
            return rounded.float()
        learning = torch.is_grad_enabled()
        layout = layout_of(precision, obs.device) if learning else torch.preserve_format
        features: Tensor = self.trunk(obs.to(torch.float32, memory_format=layout).div_(255))
        return features

    def heads(self, features: Tensor, game: int) -> tuple[Tensor, Tensor]:
        """Compute the answers of one game's heads.

        Args:
            features: (B, F).
            game: Index in the sequence.

        Returns:
            Logits (B, A) and values (B,).
        """
        return self.actors[game](features), self.critics[game](features).squeeze(1)

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        game: int,
        generator: torch.Generator | None = None,
        precision: Precision = "float32",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample actions, for training.

        Args:
            obs: uint8 (B, C, H, W).
            game: Index in the sequence.
            generator: On the device of ``obs``; ``None``: torch's own.
            precision: Precision of the trunk.

        Returns:
            Actions int64, their log-probabilities, and values, each (B,).

        Raises:
            RuntimeError: The network has diverged: its probabilities are no numbers.
        """
        logits, values = self.heads(self.features(obs, precision), game)
        log_probs = torch.log_softmax(logits, 1)
        actions = torch.multinomial(log_probs.exp(), 1, generator=generator)
        return actions.squeeze(1), log_probs.gather(1, actions).squeeze(1), values

    @torch.no_grad()
    def greedy(self, obs: Tensor, game: int) -> Tensor:
        """The most probable actions, for scores and pictures.

        Args:
            obs: uint8 (B, C, H, W).
            game: Index in the sequence.

        Returns:
            int64 (B,); the first of equally probable ones.
        """
        actor: nn.Module = self.actors[game]
        logits: Tensor = actor(self.features(obs))
        return logits.argmax(1)


def build_policy(config: SequenceConfig, *, random: bool = False) -> Policy:
    """Build the policy that a trial starts with; random weights are of torch's global generator.

    Args:
        config: ``benchmark``, ``network`` and ``tasks`` are used; one pair of heads for each game.
        random: All weights are random: no file or hub is asked for those that the trial starts
            from.

    Raises:
        UserError: An unknown name, a network that does not take the images, or weights that are not
            there or do not fit.
    """
    games = build_games(config.benchmark)
    if random:
        cls, options = find_network(config.network)
        trunk = cls(options.untrained(), games.input_shape)
    else:
        trunk = build_network(config.network, games.input_shape)
    return Policy(trunk, games.num_actions[: config.tasks])


@torch.no_grad()
def plasticity(policy: Policy, observations: Tensor) -> dict[str, float]:
    """Measure how plastic a trunk still is, on a batch of observations.

    With a_u the mean absolute activation of a unit (of a channel, over positions) after a ReLU, and
    m the mean of a_u over its layer, over the units of all layers:

        dead_units: share with a_u = 0
        dormant_units: share with a_u <= 0.025 m; Sokar et al., "The Dormant Neuron Phenomenon in
            Deep Reinforcement Learning", ICML 2023, arXiv 2302.12902
        active_features: share of features that are not 0, over units and observations
        effective_rank: exp(entropy of s / sum(s)), s the singular values of the features (n, F);
            Roy & Vetterli, "The effective rank", EUSIPCO 2007
        feature_norm: mean Euclidean norm of an observation's features

    Args:
        policy: The policy; the ReLU modules of its trunk count, or else its features alone.
        observations: uint8 (n, C, H, W).
    """
    sums: list[Tensor] = []

    def note(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        axes = [axis for axis in range(output.ndim) if axis != 1]
        seen.append(output.abs().mean(axes) * len(output))

    relus = [m for m in policy.trunk.modules() if isinstance(m, nn.ReLU)]
    handles = [m.register_forward_hook(note) for m in relus]
    parts = []
    try:
        for chunk in torch.split(observations, CHUNK):
            seen: list[Tensor] = []
            features = policy.features(chunk)
            if not relus:
                note(policy.trunk, (), features)
            parts.append(features)
            sums = seen if not sums else [a + b for a, b in zip(sums, seen, strict=True)]
    finally:
        for handle in handles:
            handle.remove()
    dead = torch.cat([a == 0 for a in sums]).float().mean()
    dormant = torch.cat([a <= DORMANT * a.mean() for a in sums]).float().mean()
    features = torch.cat(parts)
    return {
        "dead_units": float(dead),
        "dormant_units": float(dormant),
        "active_features": float((features != 0).float().mean()),
        "effective_rank": effective_rank(features),
        "feature_norm": float(features.norm(dim=1).mean()),
    }


def effective_rank(matrix: Tensor) -> float:
    """exp(entropy of s / sum(s)), s the singular values; 0 for zeros."""
    s = torch.linalg.svdvals(matrix)
    total = s.sum()
    return float(torch.special.entr(s / total).sum().exp()) if total > 0 else 0.0
