"""Labelled images on a device, in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
"""uint8 (B, C, H, W) to uint8 (B, C', H', W'), the same for every epoch (a pixel permutation)."""
Augment = Callable[[Tensor], Tensor]
"""uint8 (B, C, H, W) to uint8 (B, C, H, W), random, drawing from a generator it holds."""


@dataclass(slots=True)
class Batch:
    """One mini-batch.

    Attributes:
        images: float32 (B, C, H, W), augmented and normalised.
        labels: int64 (B,), output ids (see ``TaskInfo.classes``).
        index: int64 (B,), positions in the set it came from.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]


class Examples(ABC):
    """A set of labelled images that yields batches.

    Attributes:
        labels: int64 (N,), output ids, on the device.
    """

    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    @abstractmethod
    def raw(self, index: Tensor) -> Tensor:
        """Images as uint8 (n, C, H, W): transformed by the benchmark, not augmented."""

    @abstractmethod
    def prepare(self, raw: Tensor) -> Tensor:
        """Normalise uint8 (B, C, H, W) to float32 of the same shape."""

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """One pass over the set.

        Args:
            batch_size: Images per batch; the last batch may be shorter.
            generator: CPU generator that shuffles; ``None`` keeps the order.
            augment: Applied to the uint8 batch before normalisation.
            drop_last: Leave out a last short batch.
        """
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        order = order.to(self.labels.device)
        stop = n - n % batch_size if drop_last else n
        for start in range(0, stop, batch_size):
            index = order[start : start + batch_size]
            raw = self.raw(index)
            images = self.prepare(raw if augment is None else augment(raw))
            yield Batch(images, self.labels[index], index)


class ImageSet(Examples):
    """Rows of one uint8 tensor that many sets share.

    Args:
        images: uint8 (M, C, H, W) on the device. Shared and never written to.
        rows: int64 (N,), which rows of ``images`` belong to this set.
        labels: int64 (N,), output ids.
        mean: Per channel, in units of 0..1, after ``transform``.
        std: Likewise.
        transform: The benchmark's fixed change of the images, applied batch by batch.
    """

    def __init__(
        self,
        images: Tensor,
        rows: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        transform: Transform | None = None,
    ) -> None:
        self.images, self.rows, self.labels, self.transform = images, rows, labels, transform
        device = images.device
        # (x / 255 - mean) / std as one multiplication and one addition
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=device))
        shift = -torch.tensor(mean, dtype=torch.float32, device=device) * 255 * scale
        self._scale, self._shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)

    def raw(self, index: Tensor) -> Tensor:
        """See ``Examples.raw``."""
        raw = self.images[self.rows[index]]
        return raw if self.transform is None else self.transform(raw)

    def prepare(self, raw: Tensor) -> Tensor:
        """See ``Examples.prepare``."""
        return torch.addcmul(self._shift, raw, self._scale)
