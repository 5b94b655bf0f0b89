"""Images together with the values that a method computes from each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raycl.datasets.examples import Augment, Batch, Examples
from raycl.nn.precision import exactly

BATCH = 256
"""Number of images at a time while the values are computed, unless they are large."""
TRAINING, SAMPLE, WHOLE = range(3)
"""Ranks of the sets of a run."""


class Budget:
    """Bytes that the values of all sets of a run may take together.

    Which sets get a share depends on the sets alone, not on which of them is read first: a run that
    goes on from a checkpoint keeps the same ones. Sets for training come first, because what they
    say must not depend on how much is evaluated; then samples, and then whole sets.

    Args:
        megabytes: In units of 10^6 bytes.
    """

    def __init__(self, megabytes: float) -> None:
        self.bytes = int(1_000_000 * megabytes)
        self._asking: list[tuple[int, FrozenSet]] = []
        self._given: set[int] | None = None

    def ask(self, one: FrozenSet, rank: int) -> None:
        """Ask for a share, before the first value is known."""
        self._asking.append((rank, one))

    def given(self, one: FrozenSet, row: int) -> bool:
        """Whether a set has a share, with ``row`` bytes for each image."""
        if self._given is None:
            left, self._given = self.bytes, set()
            for _, asking in sorted(self._asking, key=lambda pair: pair[0]):
                if (size := len(asking) * row) <= left:
                    self._given.add(id(asking))
                    left -= size
        return id(one) in self._given


class FrozenSet(Examples):
    """A set around another one, whose batches bring ``Batch.frozen`` along.

    The values are computed for the whole set when the first batch is asked for, if the budget
    allows; else, and for augmented images, batch by batch. They are no state.

    Args:
        examples: The images.
        function: Normalised images (B, C, H, W) to values (B, ...); in eval mode, no gradients,
            never under autocast.
        budget: Shared by the sets of a run.
        alone: Whether the values are all that the method looks at: where they are kept no image is
            read any more, and ``Batch.images`` is empty, (B, 0).
        at_once: Images at a time while the values are computed.
        rank: Place among those that ask for a share of the budget; ``None``: it asks for none.
    """

    def __init__(
        self,
        examples: Examples,
        function: Callable[[Tensor], Tensor],
        budget: Budget,
        alone: bool = False,
        at_once: int = BATCH,
        rank: int | None = WHOLE,
    ) -> None:
        self.examples, self.function, self.budget = examples, function, budget
        self.labels, self.alone, self.at_once = examples.labels, alone, at_once
        self._values: Tensor | None = None
        self._refused = rank is None
        if rank is not None:
            budget.ask(self, rank)

    def raw(self, index: Tensor) -> Tensor:
        """See ``Examples.raw``."""
        return self.examples.raw(index)

    def subset(self, index: Tensor) -> Examples:
        """See ``Examples.subset``; the images alone."""
        return self.examples.subset(index)

    def sample(self, index: Tensor) -> FrozenSet:
        """The same as ``subset``, with values that are kept apart from those of this set."""
        chosen = self.examples.subset(index)
        return FrozenSet(chosen, self.function, self.budget, self.alone, self.at_once, SAMPLE)

    def prepare(self, raw: Tensor) -> Tensor:
        """See ``Examples.prepare``."""
        return self.examples.prepare(raw)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """See ``Examples.batches``; the same batches in the same order."""
        values = self._all() if augment is None else None
        read = self.examples.batches if values is None or not self.alone else super().batches
        batches = read(batch_size, generator=generator, augment=augment, drop_last=drop_last)
        for batch in batches:
            known = None if values is None else values.index_select(0, batch.index)
            batch.frozen = self._of(batch.images) if known is None else known
            yield batch

    def images_at(self, index: Tensor, augment: Augment | None) -> Tensor:
        """The images of a batch, or (B, 0) where the values are ``alone``."""
        if self.alone and self._values is not None and augment is None:
            return self._values.new_empty(len(index), 0)
        return super().images_at(index, augment)

    def _all(self) -> Tensor | None:
        """The values of all images, if there is room for them."""
        if self._values is None and not self._refused:
            for batch in self.examples.batches(self.at_once):
                part = self._of(batch.images)
                if self._values is None:
                    if not self.budget.given(self, part[0].numel() * part.element_size()):
                        self._refused = True
                        break
                    with torch.inference_mode(False):
                        self._values = part.new_empty(len(self), *part.shape[1:])
                with torch.inference_mode(False), torch.no_grad():
                    self._values[batch.index.clone()] = part
        return self._values

    def _of(self, images: Tensor) -> Tensor:
        # training reads what evaluation kept, and evaluation what a rounded score did
        with torch.inference_mode(False), torch.no_grad(), exactly(images.device):
            return self.function(images)
