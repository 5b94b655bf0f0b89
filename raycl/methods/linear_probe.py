"""A linear layer for each task on the features of a frozen network."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from raycl.methods._per_task import OnAnchor


class LinearProbe(OnAnchor):
    """Only heads are trained: a frozen network in eval mode, and a linear layer for each task.

    Paper:
        ``Linear`` in the code of Ge et al., "CLR", ICCV 2023, arXiv 2307.11386, the baseline that
        every method with more weights for a task has to beat.

    Loss: cross-entropy over the classes of the task; with ``penalty``, its weight times the sum of
    the Euclidean norms of the head's weight and bias (that code: 1e-5).

    Without augmentation the features of each image are computed once per run, if the network comes
    with its weights, and as far as ``evaluate.cache_mb`` goes.

    Departures: ``anchor: first_task`` is not in that code; see ``clr``.
    """

    frozen_alone = True

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; the network stays in eval mode, unless it is trained."""
        super().train(mode)
        self.backbone.train(mode and self.anchoring)
        return self

    def frozen_values(self, images: Tensor) -> Tensor:
        """The network's features, (B, num_features)."""
        return self.backbone(images)  # type: ignore[no-any-return]

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``."""
        return self.frozen_values(images)
