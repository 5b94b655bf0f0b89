"""A pool of prompts from which each image takes those whose keys are closest to its query.

Shapes are written with B images, a pool of M prompts of L rows with C channels, and queries and
keys of Q channels. What chooses prompts, and what is a loss, keeps the precision of the keys where
layers compute in bfloat16: training chooses as evaluation does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.nn.precision import exactly
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
    with exactly(keys.device):
        return F.normalize(queries.to(keys.dtype), dim=-1) @ F.normalize(keys, dim=-1).T


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


def all_pairs_key_loss(scores: Tensor, chosen: Chosen) -> Tensor:
    """Sum of 1 - cosine over all pairs of an image and a prompt that any image has chosen.

    A prompt counts as often as it was chosen, so there are B * B * count terms: a scalar.

    Args:
        scores: All cosines, (B, M).
        chosen: The prompts that ``choose`` gave for them.
    """
    return (1 - scores[:, chosen.rows]).sum()


def weighted(queries: Tensor, attention: Tensor, keys: Tensor, prompts: Tensor) -> Tensor:
    """Sum of prompts, each weighted by cos(q * A_m, K_m), which may be negative.

    (Smith et al., "CODA-Prompt", CVPR 2023, arXiv 2211.13218, equations 3 and 4.)

    Args:
        queries: (B, Q).
        attention: A, (M, Q), which says what of a query a prompt looks at.
        keys: (M, Q).
        prompts: (M, L, C).

    Returns:
        (B, L, C).
    """
    with exactly(keys.device):
        queries = queries.to(keys.dtype)
        # as products of matrices, without the B x M x Q numbers q * A
        squares = queries.square() @ attention.square().T * keys.square().sum(1)
        weights = queries @ (attention * keys).T / squares.clamp_min(1e-16).sqrt()
    return torch.einsum("bm,mlc->blc", weights, prompts)


def orthonormal_rows(earlier: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random rows of length 1, orthogonal to each other and to all earlier rows.

    Each is v minus the projections of v itself onto the rows before it (classical Gram-Schmidt),
    with v of independent standard normal numbers. If earlier rows are not orthogonal to each other,
    the new ones are only nearly orthogonal to them.

    Args:
        earlier: (M, D).
        count: Rows wanted; M + count must be at most D.
        generator: CPU generator.

    Returns:
        (count, D).
    """
    drawn = torch.randn(count, earlier.shape[1], generator=generator, device="cpu").to(earlier)
    rows = list(earlier)
    for vector in drawn:
        basis = torch.stack(rows) if rows else vector.new_empty(0, len(vector))
        shares = (basis @ vector) / basis.square().sum(1)
        rows.append(vector - shares @ basis)
    return F.normalize(torch.stack(rows[len(earlier) :]), dim=1)


def orthogonality_penalty(rows: Tensor) -> Tensor:
    """Mean of the squared entries of R R^T - I for rows R (M, D): a scalar, 0 if orthonormal."""
    with exactly(rows.device):
        products = rows @ rows.T
    return (products - torch.eye(len(rows), device=rows.device)).square().mean()
