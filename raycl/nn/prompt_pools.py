"""A pool of prompts from which each image takes those whose keys are closest to its query.

Shapes are written with B images, a pool of M prompts of L rows with C channels, and queries and
keys of Q channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from raycl.nn.prompted_vit import KeysValues, halves


class Chosen(NamedTuple):
    """Prompts that each image takes, the closest one first.

    Attributes:
        rows: Their numbers in the pool, (B, count).
        scores: Their cosines, (B, count).
    """

    rows: Tensor
    scores: Tensor


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosines between queries (B, Q) and keys (M, Q): (B, M)."""
    return F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T


def choose(scores: Tensor, count: int) -> Chosen:
    """Take the ``count`` prompts of the largest scores (B, M) for each image.

    Raises:
        ValueError: The pool has fewer prompts.
    """
    if not 1 <= count <= scores.shape[1]:
        raise ValueError(f"cannot take {count} prompts from a pool of {scores.shape[1]}")
    best = scores.topk(count, dim=1)
    return Chosen(best.indices, best.values)


def joined(prompts: Tensor, rows: Tensor) -> KeysValues:
    """Chosen prompts, one after another, as one prefix per image.

    Args:
        prompts: The pool, (M, L, C); see ``halves`` for which rows are keys.
        rows: Numbers of the prompts of each image, (B, count).

    Returns:
        Keys and values, (B, count * L/2, C) each.

    Raises:
        ValueError: L is odd.
    """
    keys, values = (half[rows].flatten(1, 2) for half in halves(prompts))
    return KeysValues(keys, values)


def key_loss(scores: Tensor) -> Tensor:
    """Mean over images of the sum of 1 - cosine over the chosen prompts (B, count): a scalar."""
    return (1 - scores).sum(1).mean()
