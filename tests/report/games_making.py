"""Hand-made runs on sequences of games, in an MLflow store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from report_helpers import Store, SweepWriter

from raycl.rl.scores import Scores

GAMES = ("KungFuMaster", "Boxing", "Jamesbond")
REFERENCES = ((258.5, 22736.3), (0.1, 12.1), (29.0, 302.8))
BEST = (18_000.0, 60.0, 400.0)
FRAMES = 1000
POINTS = 5


def game_result(
    keep: float, seed: int, games: int = 3, speed: float = 1.0, learnt: bool = True
) -> dict[str, Any]:
    """A result as ``SequenceRun`` makes it: each later game leaves ``keep`` of what was learnt.

    If it is not ``learnt``, no game ends in training, and the first gets worse than random.
    """
    rng = np.random.default_rng(seed)
    scores = Scores(GAMES[:games], REFERENCES[:games], FRAMES)
    start = [low for low, _ in REFERENCES]
    now = list(start)
    for t in range(games):
        before = list(now)
        for k in range(1, POINTS + 1):
            share = k / POINTS
            for i in range(t + 1):
                goal = BEST[i] if i == t else start[i] + keep * (before[i] - start[i])
                now[i] = before[i] + min(1.0, share * speed) * (goal - before[i])
                now[i] += rng.normal(0, 0.01 * (BEST[i] - start[i]))
                frames = t * FRAMES + share * FRAMES
                scores.evaluation[GAMES[i]].append([frames, now[i]])
            scores.training[GAMES[t]].append([t * FRAMES + share * FRAMES, now[t]])
        scores.test[t, : t + 1] = now[: t + 1]
    if not learnt:
        scores.training = {game: [] for game in GAMES[:games]}
        scores.test[0, 0] = 0.0
    cost = {
        "seconds": 100.0 + seed,
        "frames": float(games * FRAMES),
        "examples": games * FRAMES / 4,
        "peak_memory_mb": 900.0,
        "stored_bytes": 1e6,
        "extra_parameters": 0.0,
    }
    return scores.as_dict(5) | {"cost": cost, "tasks": list(GAMES[:games]), "seeds": {"init": 0}}


def games_sweep(
    store: Store, name: str, methods: Sequence[Any], seeds: int = 3, **spec: Any
) -> SweepWriter:
    """A sweep of games whose methods keep the less the earlier they come."""
    entries = [{"name": m, "label": m} if isinstance(m, str) else m for m in methods]
    block = {"name": "atari", "games": "blip3", "label": "atari-blip3", "normalise": "human"}
    writer = store.sweep(name, {"name": name, "methods": entries, "benchmark": [block]} | spec)
    keep = {"finetune": 0.1, "online_ewc": 0.5, "blip": 0.8, "scratch": 0.0}
    speed = {"blip": 0.9, "scratch": 0.8}
    for entry in entries:
        for seed in range(seeds):
            found = game_result(keep[entry["name"]], seed, speed=speed.get(entry["name"], 1.0))
            writer.trial(entry["label"], seed, found, benchmark="atari-blip3")
    return writer
