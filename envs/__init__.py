"""Gymnasium environments for sequential Atari; this package knows nothing of raycl or Ray.

Importing this package registers ``raycl/<Game>-v0`` for every game and ``raycl/Sequence-v0``, whose
argument ``games`` is a sequence: ``gymnasium.make("envs:raycl/Boxing-v0")`` imports it itself.

>>> import gymnasium, envs
>>> env = gymnasium.make("raycl/Sequence-v0", games=["Boxing", "Pong"], render_mode="rgb_array")
>>> vector = gymnasium.make_vec("raycl/Boxing-v0", num_envs=8, preset="faithful")
"""

from __future__ import annotations

import gymnasium

from envs import games

__all__ = ["register"]


def register() -> None:
    """Make the environments known to Gymnasium; a second call does nothing."""
    kwargs: dict[str, dict[str, str]] = {game: {"games": game} for game in games.names()}
    for name, defaults in {**kwargs, "Sequence": {}}.items():
        key = f"raycl/{name}-v0"
        if key not in gymnasium.registry:
            gymnasium.register(
                key,
                entry_point="envs.single:Atari",
                vector_entry_point="envs.vector:SequentialAtari",
                kwargs=defaults,
            )


register()
