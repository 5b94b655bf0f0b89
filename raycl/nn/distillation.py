"""Losses that keep a network close to an older copy of itself.

In all of them the teacher's values are constants: pass what was computed without gradients. Class
ranges are slices of the logits, so that an output which does not take part never enters a softmax.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """H_tau: cross-entropy of softened outputs, with the teacher's as target.

    mean_i of -sum_c softmax(q_i / tau)_c log softmax(s_i / tau)_c. There is no factor tau^2, and
    it is no divergence: its least value is the entropy of the target. (Hinton et al., "Distilling
    the Knowledge in a Neural Network", arXiv 1503.02531, as the code of arXiv 2106.09701 has it.)

    Args:
        student: Logits s (B, K).
        teacher: Logits q (B, K), without gradient.
        temperature: tau.

    Returns:
        A scalar.
    """
    target = (teacher / temperature).softmax(1)
    return F.cross_entropy(student / temperature, target)


def binary_distillation(student: Tensor, target: Tensor) -> Tensor:
    """Independent sigmoids: (1/B) sum_i sum_c BCE(sigmoid(s_ic), u_ic).

    The sum over classes and the mean over the batch, from logits (stable).

    Args:
        student: Logits s (B, K).
        target: Probabilities u (B, K), without gradient.

    Returns:
        A scalar.
    """
    return F.binary_cross_entropy_with_logits(student, target, reduction="sum") / len(student)


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of softened outputs from the teacher's, which is 0 where they agree.

    T^2 mean_i KL(softmax(q_i / T) || softmax(s_i / T)). (Hinton et al., arXiv 1503.02531, as the
    code of arXiv 2306.08593 has it.)

    Args:
        student: Logits s (B, K).
        teacher: Logits q (B, K), without gradient.
        temperature: T.

    Returns:
        A scalar.
    """
    log_p, log_q = ((z / temperature).log_softmax(1) for z in (student, teacher))
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
