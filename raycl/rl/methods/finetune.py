"""Plain fine-tuning: PPO, game after game."""

from __future__ import annotations

from pydantic import Field

from raycl.rl.methods.base import SequenceMethod, from_task


class Finetune(SequenceMethod):
    """Nothing but PPO: the lower bound on what is kept, and the upper one on what can be learnt.

    Paper:
        The baseline "fine-tuning" of Shi et al., "Continual Learning via Bit-Level Information
        Preserving", CVPR 2021, arXiv 2105.04444. Schulman et al., "Proximal Policy Optimization
        Algorithms", arXiv 1707.06347; see ``raycl.rl.ppo`` for the loss.

    Loss of every game:
        The loss of PPO. No state; heads of other games are not touched, as they get no gradient and
        the optimiser is a new one for each game.

    Departures from the code: none. ``freeze_trunk: true`` is its variant ``ft-fix``: after the
    first game only heads are learnt, so that nothing can be forgotten. A frozen trunk has no part
    in the bound on the gradient's norm.
    """

    class Config(SequenceMethod.Config):
        """Options of fine-tuning."""

        freeze_trunk: bool = Field(
            False,
            description="learn only the heads of a game, after the first game",
            json_schema_extra=from_task(2),
        )

    def frozen(self, game: int) -> bool:
        """See ``SequenceMethod.frozen``."""
        return bool(self.config.freeze_trunk) and game > 0
