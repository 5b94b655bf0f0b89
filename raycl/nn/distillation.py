"""Losses that keep a network close to an older copy of itself.

In all of them the teacher's values are constants: pass what was computed without gradients. Class
ranges are slices of the logits, so that an output which does not take part never enters a softmax.
"""

from __future__ import annotations

import torch
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


def decoupled_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, others: float = 4.0
) -> Tensor:
    """Divergence in two parts: the right class against the rest, and the rest among themselves.

    TCKD + ``others`` NCKD. TCKD = T^2 mean_i KL([q_y, 1 - q_y] || [s_y, 1 - s_y]) of softened
    probabilities; NCKD = T^2 mean_i KL between the softened distributions over the classes that are
    not right. (Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, equation 7.)
    Finite also where the probability of the right class rounds to 1.

    Args:
        student: Logits s (B, K), K >= 2.
        teacher: Logits q (B, K), without gradient.
        labels: int64 (B,), columns of the right classes.
        temperature: T.
        others: Weight of NCKD.

    Returns:
        A scalar.
    """
    right = F.one_hot(labels, student.shape[1]).bool()

    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        logs = (z / temperature).log_softmax(1)
        rest = logs[~right].view(len(z), -1)
        mass = rest.logsumexp(1, keepdim=True)
        return torch.cat([logs[right].unsqueeze(1), mass], 1), rest.log_softmax(1)

    targets, rests = zip(parts(student), parts(teacher), strict=True)
    first, second = (
        F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        for log_p, log_q in (targets, rests)
    )
    return temperature**2 * (first + others * second)
