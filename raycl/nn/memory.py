"""A store of old images whose size the configuration fixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


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


class ExemplarMemory(nn.Module):
    """Raw images of all tasks so far, balanced over classes, chosen uniformly at random.

    A "class" here is a class of one task: where tasks share output ids, each task's images of a
    class have their own quota, so that a new task does not push out the old ones.

    Args:
        size: Slots.
        shape: Channels, height and width of an image.

    Attributes:
        images: uint8 (size, C, H, W), neither augmented nor normalised.
        labels: int64 (size,), output ids; -1 in an empty slot. The filled slots come first.
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
    ) -> None:
        """Take in a task: shrink what is stored to its new quota and add images of the new task.

        Args:
            classes: (task, output id) of every class so far, the oldest first; the new task's last.
            labels: int64 (N,), output ids of the new task's images.
            raw: int64 positions (n,) in the new task's set to uint8 images (n, C, H, W).
            generator: CPU generator that chooses.
        """
        newest = classes[-1][0]
        candidates = [
            (labels == c if t == newest else (self.labels == c) & (self.tasks == t)).nonzero()[:, 0]
            for t, c in classes
        ]
        kept = quotas([len(positions) for positions in candidates], len(self.labels))
        picked = [
            positions[torch.randperm(len(positions), generator=generator)[:quota].to(labels.device)]
            for positions, quota in zip(candidates, kept, strict=True)
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
