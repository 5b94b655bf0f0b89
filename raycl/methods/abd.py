"""Always be dreaming: local learning, a head that separates, features anchored by importance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods._dreaming import Dreaming
from raycl.methods.base import Context, Losses, from_task, masked_cross_entropy
from raycl.nn.inversion import normalisations


class ABD(Dreaming):
    """New classes are learnt from real images only; synthetic ones anchor features, train the head.

    Paper:
        Smith et al., "Always Be Dreaming: A New Approach for Data-Free Class-Incremental Learning",
        ICCV 2021, arXiv 2106.09701, and its code (GT-RIPL/AlwaysBeDreaming-DFCIL).

    Loss of task t > 1, on B real images and B synthetic ones in one forward pass; f features of
    the network, f_old and W_old features and head of its frozen copy, sg the stopped gradient:
        L = L_loc + ft_weight L_ft + mu L_kd
        L_loc = (1/B) sum over real images of w(y) CE((W f + b)[new], y)
        L_ft = (1/2B) sum over all images of w(y) CE((W sg(f) + b)[head_scope], y)
        L_kd = (1/(2B n_old)) sum over all images of || W_old[old] (f - f_old) ||^2
        w(c) = n_old / n_seen for an old class c, n_new / n_seen for a new one

        The label of a synthetic image is the old class that the frozen copy sees in it. The first
        task has cross-entropy over ``head_scope``. The generator's loss is that of
        ``deep_inversion``.

    Symbols:
        Eq. 11: L_loc. Eq. 13: L_kd. Eq. 14: L_ft. Eq. 7: the generator. mu of that code: ``mu``.
        Frozen copy: the module ``teacher``. S and the other options of the inversion: see
        ``deep_inversion``.

    Departures from the paper:
        * Read in its code, not in the paper: every weight, S and w. Whether they are the paper's
          own is not verified.
        * L_loc is weighted with w, as in that code; the caption of Fig. 3 says nothing of it. Set
          ``local_ce_weighted: false`` for a plain mean.
        * The head's losses span all outputs, also of classes that are still to come, as in that
          code; ``head_scope: seen`` takes those seen.
        * Generator and Adam go on from task to task, as in that code, see ``generator_reset``.
    Departures from that code:
        * It gets sg(f) by a second forward pass in train mode. Here is one pass, and with
          ``bn_double_update`` it moves running statistics as far as two would: momentum
          1 - (1 - m)^2, counted twice. With dropout the second pass would differ. Layers with
          ``momentum: null`` are moved once.
        * Its ``beta`` is read nowhere; here is ``ft_weight``.
        * Its class weights are indexed by label in a vector of 2B entries, which fails where a
          label is larger.
        * The inversion: see ``deep_inversion``.
        * Where the network of the task is another one than that of the task before (``sequence``),
          features of the two cannot be compared. L_kd is then of the outputs themselves, (1/(2B
          n_old)) sum over all images of || z[old] - z_old[old] ||^2 with the new network's own
          head, which equals it where the head is the old one.

    Raises:
        UserError: Tasks share classes, so that there is no old against new.
    """

    class Config(Dreaming.Config):
        """Options of ABD."""

        mu: float = Field(
            0.1,
            ge=0,
            description="weight of the distillation of features",
            json_schema_extra=from_task(2),
        )
        ft_weight: float = Field(
            1.0,
            ge=0,
            description="weight of the separation by the head",
            json_schema_extra=from_task(2),
        )
        head_scope: Literal["all", "seen"] = Field(
            "all", description="outputs in the first task's cross-entropy and in the separation"
        )
        local_ce_weighted: bool = Field(
            True,
            description="weigh the local loss with n_new / n_seen",
            json_schema_extra=from_task(2),
        )
        bn_double_update: bool = Field(
            True,
            description="move running statistics as two forward passes would, t > 1",
            json_schema_extra=from_task(2),
        )

    memory = "generator"
    any_network = True

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        classes = [c for task in context.stream.tasks for c in task.classes]
        if len(classes) > len(set(classes)):
            raise UserError(
                "method",
                "abd separates new classes from old ones, but tasks of this stream share classes",
                "use deep_inversion or lwf_synthetic, or separate outputs",
            )

    def active(self, task: TaskInfo) -> Tensor:
        """See ``Classifier.active``: the outputs of ``head_scope``."""
        if self.config.head_scope == "seen":
            return self.seen(task)
        return torch.arange(self.context.stream.num_outputs, device=self.context.device)

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        if self.teacher is None:
            return super().objective(task)
        config, old, active = self.config, self.old(task.info), self.active(task.info)
        new = torch.tensor(sorted(task.info.classes), device=self.context.device)
        weight_old, weight_new = balance(len(old), len(new))
        weights = torch.full((self.context.stream.num_outputs,), weight_new, device=old.device)
        weights[old] = weight_old
        head: nn.Linear = self.teacher[1]  # type: ignore[assignment]
        w_old = head.weight.detach().index_select(0, old)
        changed = self.context.network_changes(task.info.index)
        layers = normalisations(self.backbone) if config.bn_double_update else []

        def loss(batch: Batch) -> Losses:
            size = len(batch)
            replay = self.replay(batch.images, old)
            with moved_twice(layers if self.training else []):
                features = self.backbone(replay.images)
            local = masked_cross_entropy(self.head(features[:size]), batch.labels, new)
            labels = torch.cat([batch.labels, replay.chosen])
            separated = separation(self.head(features.detach()), labels, active, weights)
            if changed:
                z, q = (
                    x.index_select(1, old).float() for x in (self.head(features), replay.logits)
                )
                drifted = (z - q).square().mean()
            else:
                drifted = drift(features, replay.features, w_old)
            return {
                "local": weight_new * local if config.local_ce_weighted else local,
                "separation": config.ft_weight * separated,
                "distillation": config.mu * drifted,
            }

        return loss


def balance(n_old: int, n_new: int) -> tuple[float, float]:
    """Weights w of an old and of a new class, for which all classes count alike."""
    return n_old / (n_old + n_new), n_new / (n_old + n_new)


def separation(logits: Tensor, labels: Tensor, outputs: Tensor, weights: Tensor) -> Tensor:
    """L_ft: the mean over images of w(y) CE(z[outputs], y).

    Args:
        logits: (N, num_outputs).
        labels: int64 (N,), output ids.
        outputs: int64 (K,), sorted.
        weights: w of every output, (num_outputs,).
    """
    chosen, targets = logits.index_select(1, outputs), torch.searchsorted(outputs, labels)
    return (weights[labels] * F.cross_entropy(chosen, targets, reduction="none")).mean()


def drift(features: Tensor, old_features: Tensor, head: Tensor) -> Tensor:
    """L_kd: the mean square, over images and old classes, of how far a logit of the old head moved.

    Args:
        features: Features of the network that is trained, (N, F).
        old_features: Features of the teacher, (N, F).
        head: W_old[old], (n_old, F).
    """
    moved = F.linear(features.float() - old_features.float(), head)
    return moved.float().square().mean()  # squares of rounded numbers, but not rounded again


@contextmanager
def moved_twice(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """One forward pass in train mode moves running statistics as two of the same batch would.

    r + (1 - (1 - m)^2) (s - r) is r moved to s by m twice.
    """
    chosen = [(layer, layer.momentum) for layer in layers if layer.momentum is not None]
    try:
        for layer, momentum in chosen:
            layer.momentum = 1 - (1 - momentum) ** 2
        yield
    finally:
        for layer, momentum in chosen:
            layer.momentum = momentum
    counts = [n for layer, _ in chosen if (n := layer.num_batches_tracked) is not None]
    if counts:
        torch._foreach_add_(counts, 1)
