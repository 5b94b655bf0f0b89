"""Labelled images on a device, in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raycl.datasets.crop import OriginalCrop
from raycl.datasets.transform import resize_batch

Transform = Callable[[Tensor], Tensor]
"""Fixed change of images, uint8 to uint8, the same in every epoch (a pixel permutation)."""
Augment = Callable[[Tensor], Tensor]
"""Random change of images, uint8 (B, C, H, W) to the same, with a generator of its own.

An ``OriginalCrop`` is applied before images are resized and transformed, wherever a set has those.
"""


@dataclass(slots=True)
class Batch:
    """One mini-batch.

    Attributes:
        images: float32 (B, C, H, W), augmented and normalised.
        labels: int64 (B,), output ids (see ``TaskInfo.classes``).
        index: int64 (B,), positions in the set it came from.
        frozen: (B, ...), values that the method computes once per image (``Method.frozen_values``).
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    frozen: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class Repeated:
    """A transform that gives grey images more channels, all equal.

    Attributes:
        channels: Number of channels.
        first: The transform that is applied before, if any.
    """

    channels: int
    first: Transform | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """See ``Transform``."""
        images = images if self.first is None else self.first(images)
        return images.expand(-1, self.channels, -1, -1)


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
        """Images at the positions ``index``, uint8 (n, C, H, W): transformed, not augmented."""

    @abstractmethod
    def subset(self, index: Tensor) -> Examples:
        """Some of the images, in the order of ``index``; of a union, part by part.

        Args:
            index: int64 (n,), positions, on the device.
        """

    @abstractmethod
    def prepare(self, raw: Tensor) -> Tensor:
        """Normalise uint8 (B, C, H, W) to float32 of the same shape."""

    def renormalised(self, mean: Sequence[float], std: Sequence[float]) -> Examples:
        """The same images, normalised with other statistics.

        Args:
            mean: Mean per channel, in units of 0..1; grey images get as many equal channels.
            std: Likewise.
        """
        raise TypeError(f"a {type(self).__name__} cannot be normalised otherwise")

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
        order = self.order(batch_size, generator, drop_last).to(self.labels.device)
        for index in in_batches(order, batch_size):
            images = self.images_at(index, augment)
            yield Batch(images, self.labels.index_select(0, index), index)

    def images_at(self, index: Tensor, augment: Augment | None) -> Tensor:
        """The images of one batch: augmented and normalised, float32 (B, C, H, W)."""
        return self.prepare(self.augmented(index, augment))

    def augmented(self, index: Tensor, augment: Augment | None) -> Tensor:
        """Images as ``raw`` gives them, augmented."""
        raw = self.raw(index)
        return raw if augment is None else augment(raw)

    def order(self, batch_size: int, generator: torch.Generator | None, drop_last: bool) -> Tensor:
        """The positions of one pass, int64 on the CPU; see ``batches``."""
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        return order[: n - n % batch_size] if drop_last else order


def in_batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Positions cut into batches; no batch for no positions, where ``torch.split`` gives one."""
    return torch.split(order, batch_size) if len(order) else ()


class Normalised(Examples):
    """Rows of a store of images, all with the same transform and normalisation.

    Args:
        store: The images that ``rows`` points into; sets with the same store can be merged.
        rows: int64 (N,), which images of the store belong to this set.
        labels: int64 (N,), output ids, on the device.
        mean: Mean per channel, in units of 0..1, after ``transform``.
        std: Likewise.
        transform: The benchmark's fixed change of the images, applied batch by batch.

    Attributes:
        reads_ahead: Whether ``stream`` starts processes of its own.
    """

    reads_ahead: ClassVar[bool] = False

    def __init__(
        self,
        store: object,
        rows: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        transform: Transform | None = None,
    ) -> None:
        self.store, self.rows, self.labels, self.transform = store, rows, labels, transform
        self._normalise(mean, std)

    def _normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)
        # (x / 255 - mean) / std as one multiplication and one addition
        scale = 1 / (255 * torch.tensor(self.std, dtype=torch.float32))
        shift = -torch.tensor(self.mean, dtype=torch.float32) * 255 * scale
        self.scale = scale.view(-1, 1, 1).to(self.labels.device)
        self.shift = shift.view(-1, 1, 1).to(self.labels.device)

    def subset(self, index: Tensor) -> Normalised:
        """See ``Examples.subset``; points into the same store."""
        chosen = copy(self)
        chosen.rows = self.rows.index_select(0, index.to(self.rows.device))
        chosen.labels = self.labels.index_select(0, index)
        return chosen

    def renormalised(self, mean: Sequence[float], std: Sequence[float]) -> Normalised:
        """See ``Examples.renormalised``; points into the same store."""
        changed = copy(self)
        changed._normalise(mean, std)
        if len(mean) != len(self.mean):
            changed.transform = Repeated(len(mean), self.transform)
        return changed

    def stream(
        self,
        index: Tensor,
        sizes: Sequence[int],
        share: int = 1,
        crop: OriginalCrop | None = None,
    ) -> Iterator[Tensor]:
        """Yield the raw images of one batch after another.

        Args:
            index: int64 (n,), the positions of all batches, on the CPU.
            sizes: Images of each batch.
            share: Sets that read ahead at the same time as this one.
            crop: Augments the images.
        """
        for one in torch.split(index.to(self.labels.device), list(sizes)):  # one transfer for all
            yield self.augmented(one, crop)

    def _transformed(self, raw: Tensor) -> Tensor:
        return raw if self.transform is None else self.transform(raw)

    def prepare(self, raw: Tensor) -> Tensor:
        """See ``Examples.prepare``."""
        # in place on the float copy: three times faster on a CPU than one addcmul of mixed types
        return raw.float().mul_(self.scale).add_(self.shift)


class ImageSet(Normalised):
    """Rows of one uint8 tensor that many sets share.

    Args:
        images: uint8 (M, C, H, W) on the device. Shared and never written to.
        rows: int64 (N,), on the device; see ``Normalised``, also for the rest.
        size: Side that images are enlarged to before ``transform``; ``None``: they are not.
    """

    def __init__(
        self,
        images: Tensor,
        rows: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        transform: Transform | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(images, rows, labels, mean, std, transform)
        self.images, self.size = images, size

    def raw(self, index: Tensor) -> Tensor:
        """See ``Examples.raw``."""
        raw = self._stored(index)
        return self._transformed(raw if self.size is None else resize_batch(raw, self.size))

    def augmented(self, index: Tensor, augment: Augment | None) -> Tensor:
        """See ``Examples.augmented``."""
        if isinstance(augment, OriginalCrop):
            return self._transformed(augment(self._stored(index), self.size))
        return super().augmented(index, augment)

    def _stored(self, index: Tensor) -> Tensor:
        # index_select is ten times faster here than indexing
        return self.images.index_select(0, self.rows.index_select(0, index))


class UnionSet(Examples):
    """Several sets, one behind the other; each batch is gathered part by part.

    Args:
        parts: Sets with images of one shape; labels are taken as they are.
    """

    def __init__(self, parts: Sequence[Normalised]) -> None:
        self.parts = tuple(parts)
        self.labels = torch.cat([part.labels for part in parts])
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self._scale = torch.stack([part.scale for part in parts])
        self._shift = torch.stack([part.shift for part in parts])

    def subset(self, index: Tensor) -> Examples:
        """See ``Examples.subset``."""
        part = self._part(index.cpu()).to(index.device)
        starts = [int(end) - len(one) for end, one in zip(self._ends, self.parts, strict=True)]
        chosen = [
            one.subset(index[part == p] - start)
            for p, (one, start) in enumerate(zip(self.parts, starts, strict=True))
        ]
        return UnionSet(chosen)

    def renormalised(self, mean: Sequence[float], std: Sequence[float]) -> UnionSet:
        """See ``Examples.renormalised``."""
        return UnionSet([part.renormalised(mean, std) for part in self.parts])

    def raw(self, index: Tensor) -> Tensor:
        """See ``Examples.raw``."""
        index = index.cpu()
        return self._gather(index, self._part(index))

    def prepare(self, raw: Tensor) -> Tensor:
        """See ``Examples.prepare``; only where all parts are normalised alike."""
        if len({(part.mean, part.std) for part in self.parts}) > 1:
            raise ValueError("the parts are normalised differently: take images from batches()")
        return self.parts[0].prepare(raw)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """See ``Examples.batches``; the order is a permutation of the whole union."""
        order = self.order(batch_size, generator, drop_last)
        part = self._part(order)
        # All positions are worked out and moved to the device once: a transfer in every step
        # would make the host wait for the step before.
        batch = torch.arange(len(order)) // batch_size
        place = (batch * len(self.parts) + part).argsort(stable=True).argsort() % batch_size
        moved = (x.to(self.labels.device) for x in (order, part, place))
        plan = zip(*(in_batches(x, batch_size) for x in moved), strict=True)
        crop = augment if isinstance(augment, OriginalCrop) else None
        after = None if crop is augment else augment
        stream = self._stream(order, part, batch, crop)
        for (index, of, where), raw in zip(plan, stream, strict=True):
            raw = raw.index_select(0, where)
            raw = raw if after is None else after(raw)
            images = raw.float().mul_(self._scale[of]).add_(self._shift[of])
            yield Batch(images, self.labels.index_select(0, index), index)

    def _stream(
        self, order: Tensor, part: Tensor, batch: Tensor, crop: OriginalCrop | None
    ) -> Iterator[Tensor]:
        """Yield the raw images of each batch: those of the first part first, in their order."""
        share = sum(one.reads_ahead for one in self.parts)
        batches = int(batch[-1]) + 1 if len(batch) else 0
        counts, streams = [], []
        for p, one in enumerate(self.parts):
            own = part == p
            counts.append(batch[own].bincount(minlength=batches).tolist())
            index = order[own] - (self._ends[p] - len(one))
            streams.append(one.stream(index, [n for n in counts[p] if n], share, crop))
        for sizes in zip(*counts, strict=True):
            yield torch.cat([next(s) for s, n in zip(streams, sizes, strict=True) if n])

    def _part(self, index: Tensor) -> Tensor:
        """The part that each position lies in; everything is on the CPU."""
        return torch.searchsorted(self._ends, index, right=True)

    def _gather(self, index: Tensor, part: Tensor) -> Tensor:
        by_part = part.argsort(stable=True)
        pieces, start = [], 0
        for p, count in enumerate(part.bincount(minlength=len(self.parts)).tolist()):
            if count:
                chosen = index[by_part[start : start + count]] - (
                    self._ends[p] - len(self.parts[p])
                )
                pieces.append(self.parts[p].raw(chosen.to(self.labels.device)))
                start += count
        return torch.cat(pieces).index_select(0, by_part.argsort().to(self.labels.device))


def concat(sets: Sequence[Examples]) -> Examples:
    """The union of sets with images of one shape, as one set.

    Sets that point into the same store, with the same transform and normalisation, become one set
    of that store; others are gathered part by part in each batch.
    """
    parts: list[Normalised] = []
    for one in sets:
        if isinstance(one, UnionSet):
            parts += one.parts
        elif isinstance(one, Normalised):
            parts.append(one)
        else:
            raise TypeError(f"cannot join a {type(one).__name__}")
    if not all(_alike(parts[0], part) for part in parts):
        return UnionSet(parts)
    merged = copy(parts[0])
    merged.rows = torch.cat([part.rows for part in parts])
    merged.labels = torch.cat([part.labels for part in parts])
    return merged


def _alike(a: Normalised, b: Normalised) -> bool:
    same = a.store is b.store and a.transform == b.transform
    return same and (a.mean, a.std) == (b.mean, b.std)
