"""A store of old images whose size the configuration fixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Order = Callable[[Tensor, int], Tensor]
"""Features (n, d) of one class's images and a number k <= n to the positions of k images, int64
(k,), the one to keep longest first. The first j of k are what would be chosen for j."""


def quotas(candidates: Sequence[int], size: int) -> list[int]:
    """How many images each class keeps, of ``size`` in total.

    With n classes, q = size div n and r = size mod n: walking from the newest class to the oldest,
    the first r that have more than q candidates keep q + 1, all others min(q, candidates). There
    are no ties to break, since the order of classes is total. What a class with too few images
    leaves free beyond that stays free. (The code of arXiv 2106.09701.)

    Args:
        candidates: Images there are of each class, the oldest class first.
        size: Room in total.
    """
    if not candidates:
        return []
    q, r = divmod(size, len(candidates))
    kept = []
    for count in reversed(candidates):
        extra = r > 0 and count > q
        r -= extra
        kept.append(q + 1 if extra else min(q, count))
    return kept[::-1]


def nearest(features: Tensor, count: int) -> Tensor:
    """An ``Order``: the images closest to the mean of their class.

    Castro et al., "End-to-End Incremental Learning", ECCV 2018, arXiv 1807.09536, section 4.1.
    """
    features = features.double()  # the order must not hang on the rounding of a sum
    return (features - features.mean(0)).square().sum(1).argsort(stable=True)[:count]


def herding(features: Tensor, count: int) -> Tensor:
    """An ``Order``: the next image is the one that brings the mean of those chosen closest to the
    mean of the class.

    Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, arXiv
    1611.07725, algorithm 4; here without normalising the features.
    """
    centred = features.double()
    centred = centred - centred.mean(0)  # then the mean to come close to is 0
    chosen = torch.zeros(count, dtype=torch.int64, device=features.device)
    taken = centred.new_zeros(len(centred))
    total = centred.new_zeros(centred.shape[1])
    for k in range(count):  # nothing is read from the device
        best = ((centred + total).square().sum(1) + taken).argmin()
        chosen[k] = best
        taken.index_fill_(0, best, torch.inf)
        total = total + centred.index_select(0, best)[0]
    return chosen


class ExemplarMemory(nn.Module):
    """Raw images of all tasks so far, balanced over classes: chosen at random, or in an order.

    A "class" here is a class of one task: where tasks share output ids, each task's images of a
    class have their own quota, so that a new task does not push out the old ones.

    Args:
        size: Slots.
        shape: Channels, height and width of an image.

    Attributes:
        images: uint8 (size, C, H, W), neither augmented nor normalised.
        labels: int64 (size,), output ids; -1 in an empty slot. The filled slots come first, class
            by class, the oldest class first.
        tasks: int64 (size,), the task each image came from; -1 in an empty slot.
    """

    images: Tensor
    labels: Tensor
    tasks: Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape, dtype=torch.uint8))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("tasks", torch.full((size,), -1))

    def __len__(self) -> int:
        return int((self.labels >= 0).sum())

    @torch.no_grad()
    def update(
        self,
        classes: Sequence[tuple[int, int]],
        labels: Tensor,
        raw: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        stored: Tensor | None = None,
    ) -> None:
        """Take in a task at random: shrink what is stored to its new quota, add new images.

        Args:
            classes: (task, output id) of every class so far, the oldest first; the new task's last.
            labels: int64 (N,), output ids of the new task's images.
            raw: int64 positions (n,) in the new task's set to uint8 images (n, C, H, W).
            generator: CPU generator that chooses.
            stored: int64 (m,), the slots to choose old images from, with repetition if a slot is
                in it more than once; ``None``: every filled slot once.
        """

        def shuffled(positions: Tensor, quota: int, _: bool) -> Tensor:
            order = torch.randperm(len(positions), generator=generator)[:quota]
            return positions[order.to(positions.device)]

        self._update(classes, labels, raw, shuffled, stored)

    @torch.no_grad()
    def update_in_order(
        self,
        classes: Sequence[tuple[int, int]],
        labels: Tensor,
        raw: Callable[[Tensor], Tensor],
        features: Tensor,
        order: Order,
    ) -> None:
        """Take in a task whose images are ranked, once and for all, when they are first seen.

        A class's images are stored in that order, and room is made from the end, so that a later
        memory of a class is a prefix of an earlier one.

        Args:
            classes: See ``update``.
            labels: See ``update``.
            raw: See ``update``.
            features: float (N, d), of the new task's images.
            order: How they are ranked.
        """

        def first(positions: Tensor, quota: int, new: bool) -> Tensor:
            return positions[order(features[positions], quota) if new else slice(quota)]

        self._update(classes, labels, raw, first, None)

    def _update(
        self,
        classes: Sequence[tuple[int, int]],
        labels: Tensor,
        raw: Callable[[Tensor], Tensor],
        pick: Callable[[Tensor, int, bool], Tensor],
        stored: Tensor | None,
    ) -> None:
        newest = classes[-1][0]
        stored = (self.labels >= 0).nonzero()[:, 0] if stored is None else stored
        of, since = self.labels[stored], self.tasks[stored]
        candidates = [
            (labels == c).nonzero()[:, 0] if t == newest else stored[(of == c) & (since == t)]
            for t, c in classes
        ]
        kept = quotas([len(positions) for positions in candidates], len(self.labels))
        picked = [
            pick(positions, quota, t == newest)
            for positions, quota, (t, _) in zip(candidates, kept, classes, strict=True)
        ]
        first_new = sum(t != newest for t, _ in classes)
        old = torch.cat([labels.new_empty(0), *picked[:first_new]])
        new = torch.cat(picked[first_new:])
        count = len(old) + len(new)
        for buffer, added, empty in (
            (self.images, raw(new), 0),
            (self.labels, labels[new], -1),
            (self.tasks, torch.full_like(new, newest), -1),
        ):
            buffer[:count] = torch.cat([buffer[old], added])
            buffer[count:] = empty
