"""LwF.MC: distillation with independent outputs, the multi-class form known from iCaRL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.methods._taught import TaughtClassifier
from raycl.methods.base import Losses
from raycl.nn.distillation import binary_distillation


class LwFMC(TaughtClassifier):
    """Old outputs keep the values they had, new ones learn the labels: a sigmoid for each.

    Paper:
        "LwF.MC" in Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning",
        CVPR 2017, arXiv 1611.07725 (iCaRL without exemplars); as a baseline in Smith et al.,
        "Always Be Dreaming: A New Approach for Data-Free Class-Incremental Learning", ICCV 2021,
        arXiv 2106.09701, from whose code this form is.

    Loss:
        L = (1/B) sum_i sum_{c < n_seen} BCE(sigmoid(z_ic), u_ic)
        u_ic = sigmoid(g(x_i)_c) for c < n_old, one-hot of y_i for the others

        The sum over classes and the mean over the batch, in the stable form from logits. g is the
        network as task t - 1 left it, in eval mode. The first task has the one-hot part alone.
        Prediction is the largest logit.

    Loss with ``loss: softmax``:
        L = mean_i of -sum_{c < n_seen} v_ic log softmax(z_i[0:n_seen])_c
        v_i = [softmax(g(x_i)[0:n_old]), one-hot of y_i], of mass 2 in total

        and cross-entropy in the first task: what that code had until February 2022.

    Symbols:
        g: the module ``teacher``. c < n_seen: ``outputs: seen``. No weight, no temperature.

    Departures:
        * Which of the two losses the published figures were made with is not known: they are older
          than the present form, and no script calls the older one.
        * Old outputs are those of earlier tasks that the current task does not have; so where tasks
          share all outputs nothing is distilled. ``outputs: task`` leaves the old outputs in, since
          they are what is distilled.
        * Optimiser and schedule are the sweep file's ``train`` block. The published rate of 0.1 is
          meant for the sum over classes.
    """

    class Config(TaughtClassifier.Config):
        """Options of LwF.MC."""

        loss: Literal["bce", "softmax"] = Field(
            "bce", description="independent sigmoids, or one softmax with a target of mass 2"
        )

    any_network = True
    learns_single_classes = True

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        device = self.context.device
        distilled = sorted(set(self.old(task.info).tolist()) - set(task.info.classes))
        rest = sorted(set(self.active(task.info).tolist()) - set(distilled))
        old, new = (
            torch.tensor(ids, dtype=torch.int64, device=device) for ids in (distilled, rest)
        )
        terms = softmax_terms if self.config.loss == "softmax" else sigmoid_terms

        def loss(batch: Batch) -> Losses:
            z = self.logits(batch.images, None)
            labels = torch.searchsorted(new, batch.labels)
            if self.teacher is None:
                return terms(None, z.index_select(1, new), None, labels)["cross_entropy"]
            target = self.taught(batch.images).index_select(1, old)
            return terms(z.index_select(1, old), z.index_select(1, new), target, labels)

        return loss


def sigmoid_terms(
    old: Tensor | None, new: Tensor, teacher: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """The loss as two terms, see ``LwFMC``.

    Args:
        old: Logits of the old outputs (B, n_old).
        new: Logits of the others (B, n_new).
        teacher: The teacher's logits of the old outputs (B, n_old).
        labels: int64 (B,), positions in ``new``.
    """
    one_hot = F.one_hot(labels, new.shape[1]).to(new.dtype)
    terms = {"cross_entropy": binary_distillation(new, one_hot)}
    if old is not None and teacher is not None:
        terms["distillation"] = binary_distillation(old, teacher.sigmoid())
    return terms


def softmax_terms(
    old: Tensor | None, new: Tensor, teacher: Tensor | None, labels: Tensor
) -> dict[str, Tensor]:
    """The loss as two terms for ``loss: softmax``: one softmax over old and new outputs."""
    if old is None or teacher is None:
        return {"cross_entropy": F.cross_entropy(new, labels)}
    log_p = torch.cat([old, new], 1).log_softmax(1)
    kept = -(teacher.softmax(1) * log_p[:, : old.shape[1]]).sum(1).mean()
    return {
        "cross_entropy": F.cross_entropy(torch.cat([old, new], 1), labels + old.shape[1]),
        "distillation": kept,
    }
