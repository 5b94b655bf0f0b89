"""Stores of old images, whose size the configuration fixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Order = Callable[[Tensor, int], Tensor]
"""Ranking: features (n, d) of one class's images and k <= n to the positions of k images, int64
(k,), the one to keep longest first. The first j of k are what would be chosen for j."""


def quotas(candidates: Sequence[int], size: int) -> list[int]:
    """Number of images that each class keeps, of ``size`` in total.

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
    """An ``Order`` that takes the images closest to the mean of their class.

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


class Reservoir(nn.Module):
    """Raw images of a stream: a uniform sample of all that were ever offered.

    Algorithm R of Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical
    Software 11, 1985. Item number n, counted from 0 over everything ever offered, goes to slot n if
    n < size. A later one draws r from 0..n and replaces what is in slot r if r < size, so that it
    is taken with probability size / (n + 1). An image that is offered again counts as another item.

    Args:
        size: Slots.
        shape: Channels, height and width of an image.
        outputs: Logits stored with each image; 0: none.

    Attributes:
        images: uint8 (size, C, H, W), neither augmented nor normalised.
        labels: int64 (size,), output ids; -1 in an empty slot. The filled slots come first.
        tasks: int64 (size,), the task each image came from; -1 in an empty slot.
        logits: float32 (size, outputs), only where there are ``outputs``.
        offered: Items offered so far, on the host: nothing has to be read from the device.
    """

    images: Tensor
    labels: Tensor
    tasks: Tensor
    logits: Tensor

    def __init__(self, size: int, shape: tuple[int, int, int], outputs: int = 0) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape, dtype=torch.uint8))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("tasks", torch.full((size,), -1))
        if outputs:
            self.register_buffer("logits", torch.zeros(size, outputs))
        self.outputs, self.offered = outputs, 0

    def __len__(self) -> int:
        return min(self.offered, len(self.labels))

    def get_extra_state(self) -> dict[str, Any]:
        """The number of items offered."""
        return {"offered": self.offered}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` gave."""
        self.offered = state["offered"]

    @torch.no_grad()
    def offer(
        self,
        images: Tensor | Callable[[Tensor], Tensor],
        labels: Tensor,
        task: int,
        generator: torch.Generator,
        logits: Tensor | None = None,
    ) -> None:
        """Take in some of the items, as the generator decides; the device is not waited for.

        Args:
            images: uint8 (B, C, H, W); or a function of int64 positions (n,) in the batch, on the
                device, to uint8 (n, C, H, W), which is asked for nothing but what is taken.
            labels: int64 (B,), output ids.
            task: The task they come from.
            generator: CPU generator; one number is drawn for each item.
            logits: float (B, outputs), given if and only if there are ``outputs``.
        """
        if (logits is None) == (self.outputs > 0):
            raise ValueError(f"logits have to come with the images: {self.outputs} for each")
        size, count, device = len(self.labels), len(labels), self.labels.device
        number = torch.arange(self.offered, self.offered + count)
        drawn = torch.rand(count, generator=generator, dtype=torch.float64) * (number + 1)
        slots = number.where(number < size, drawn.long()).clamp_(max=size)  # size: not taken
        # Where several items want one slot, the last one stays and the others are never written.
        last = torch.full((size + 1,), -1).scatter_reduce_(0, slots, torch.arange(count), "amax")
        filled = (last[:size] >= 0).nonzero()[:, 0]
        self.offered += count
        if not len(filled):
            return
        taken = last[filled].to(device, non_blocking=True)
        filled = filled.to(device, non_blocking=True)
        raw = images.index_select(0, taken) if isinstance(images, Tensor) else images(taken)
        self.images.index_copy_(0, filled, raw)
        self.labels.index_copy_(0, filled, labels.index_select(0, taken))
        self.tasks.index_fill_(0, filled, task)
        if logits is not None:
            self.logits.index_copy_(0, filled, logits.index_select(0, taken))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Distinct filled slots, uniformly: int64 (min(count, len),), on the buffers' device.

        Args:
            count: Slots wanted.
            generator: CPU generator.
        """
        slots = torch.randperm(len(self), generator=generator)[:count]
        return slots.to(self.labels.device, non_blocking=True)
