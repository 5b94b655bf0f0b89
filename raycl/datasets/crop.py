"""Random parts of images, resized and mirrored; each image has parameters of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the image and width over height of a resized crop (torchvision's defaults)."""
ATTEMPTS = 10


class OriginalCrop:
    """``original_crop_flip``: a random part of each original image, resized, then ``flip``.

    ``torchvision.transforms.RandomResizedCrop``, with parameters of its own for each image. Where
    sets of examples have original images (files of any shape, and small images that are enlarged
    batch by batch), they cut the part out of those; a call cuts it out of the images that it is
    given, which is what happens to images that a method keeps.

    Args:
        generator: Source of all randomness, on the device of the images.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def draws(self, count: int) -> Tensor:
        """Uniform numbers for parts; see the function ``draws``."""
        return draws(count, self.generator)

    def flip(self, images: Tensor) -> Tensor:
        """Mirror images at random; see the function ``flip``."""
        return flip(images, self.generator)

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """Cut and mirror images of one shape.

        Args:
            images: uint8 (B, C, H, W).
            size: See ``resized_crop``.
        """
        parts = boxes(self.draws(len(images)), *images.shape[-2:])
        return self.flip(resized_crop(images, *parts, size))


def draws(count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers for parts of ``count`` images: float64 (ATTEMPTS + 1, 2, count)."""
    shape, device = (ATTEMPTS + 1, 2, count), generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)


def boxes(drawn: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of a random part of each image, int64 (B,).

    Where ten drawn parts do not fit, the middle is taken, as large as RATIO lets it be.

    Args:
        drawn: See ``draws``.
        rows: Height of the images.
        columns: Their width.
    """
    area = rows * columns * (AREA[0] + (AREA[1] - AREA[0]) * drawn[:-1, 0])
    span = math.log(RATIO[1] / RATIO[0])
    ratio = RATIO[0] * (span * drawn[:-1, 1]).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)
    chosen = fits.float().argmax(0, keepdim=True)  # the first that fits
    any_fits = fits.any(0)
    tallest = min(rows, round(columns / RATIO[0]))
    widest = min(columns, round(rows * RATIO[1]))
    height = heights.gather(0, chosen)[0].where(any_fits, tallest).long()
    width = widths.gather(0, chosen)[0].where(any_fits, widest).long()
    top, left = (drawn[-1] * torch.stack([rows - height + 1, columns - width + 1])).long()
    top = top.where(any_fits, (rows - tallest) // 2)
    return top, left.where(any_fits, (columns - widest) // 2), height, width


def resized_crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    size: int | None = None,
) -> Tensor:
    """Cut a box out of each image and enlarge it (bilinear, edges of the box repeated).

    Args:
        images: uint8 (B, C, H, W).
        top: int64 (B,), first row; likewise ``left``.
        left: First column.
        height: int64 (B,), rows, at most H; likewise ``width``.
        width: Columns.
        size: Side of what comes out, at least H and W; ``None``: H and W.
    """
    channels = images.shape[1]
    rows, columns = (size or side for side in images.shape[-2:])
    upper, lower, down = _between(top, height, rows)
    place = (-1, channels, -1, images.shape[-1])
    a, b = (images.gather(2, i.view(-1, 1, rows, 1).expand(place)).float() for i in (upper, lower))
    pixels = a.lerp_(b, down.view(-1, 1, rows, 1))
    first, second, right = _between(left, width, columns)
    place = (-1, channels, rows, -1)
    a, b = (pixels.gather(3, i.view(-1, 1, 1, columns).expand(place)) for i in (first, second))
    return a.lerp_(b, right.view(-1, 1, 1, columns)).round_().to(torch.uint8)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    chosen = coins(images, generator)
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def coins(images: Tensor, generator: torch.Generator) -> Tensor:
    """Toss a coin for each image: True with probability 1/2."""
    return torch.rand(len(images), generator=generator, device=images.device) < 0.5


def _between(start: Tensor, length: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places of ``count`` pixels of a line among ``length`` pixels of the image.

    Returns:
        The two neighbours of each, int64 (B, count), and its way from the first to the second.
    """
    centre = (torch.arange(count, device=start.device) + 0.5) / count
    place = (centre * length.view(-1, 1) - 0.5).clamp_(min=0)
    first = place.long()
    second = torch.minimum(first + 1, length.view(-1, 1) - 1)
    return first + start.view(-1, 1), second + start.view(-1, 1), place - first
