"""Random changes of whole batches, on the device, with parameters of its own for each image.

torchvision's functions draw one set of parameters per call, so these are a gather of our own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.datasets.examples import Augment
from raycl.errors import UserError, nearest

PADDING = 4
BRIGHTNESS, CONTRAST = 63 / 255, 0.8
"""Factors of the colour jitter lie within this of 1 (the code of arXiv 2106.09701)."""
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the image and width over height of a resized crop (torchvision's defaults)."""
ATTEMPTS = 10


def augment(name: str, generator: torch.Generator) -> Augment | None:
    """The training augmentation of a sweep file.

    Args:
        name: ``none``, ``flip`` (left-right with probability 1/2), ``crop_flip`` (4 pixels of
            zeros on each side, a random crop of the original size, then flip),
            ``jitter_crop_flip`` (brightness and contrast first) or ``resized_crop_flip`` (a random
            part of the image, enlarged to its size, then flip).
        generator: Source of all randomness, on the device of the images.

    Returns:
        uint8 (B, C, H, W) to the same; ``None`` for ``none``.
    """
    if name == "none":
        return None
    known = {
        "flip": flip,
        "crop_flip": crop_flip,
        "jitter_crop_flip": jitter_crop_flip,
        "resized_crop_flip": resized_crop_flip,
    }
    if name not in known:
        raise UserError("train.augment", f"unknown '{name}'", nearest(name, ["none", *known]))
    return lambda images: known[name](images, generator)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    chosen = _coins(images, generator)
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by -4..4 pixels in both directions, zeros coming in, then ``flip``."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    shift = torch.randint(2 * PADDING + 1, (2, batch, 1), generator=generator, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(_coins(images, generator).view(-1, 1), width - 1 - columns, columns)
    rows = shift[0] + torch.arange(height, device=images.device)
    source = rows.unsqueeze(2) * padded.shape[-1] + (shift[1] + columns).unsqueeze(1)
    source = source.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, source).view_as(images)


def jitter_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness and contrast of each image, in random order, then ``crop_flip``.

    Factors are uniform on 1 +- 63/255 and 1 +- 0.8, as in ``torchvision.transforms.ColorJitter``.
    """
    low, high = 1 - BRIGHTNESS, 1 + BRIGHTNESS
    brightness = _uniform(images, generator, low, high)
    contrast = _uniform(images, generator, 1 - CONTRAST, 1 + CONTRAST)
    return crop_flip(jitter(images, brightness, contrast, _coins(images, generator)), generator)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, bright_first: Tensor) -> Tensor:
    """``adjust_brightness`` and ``adjust_contrast`` of torchvision, with factors for each image.

    Values are cut to whole numbers after each of the two, as there. (For PIL images, which the code
    of arXiv 2106.09701 has, torchvision also rounds the mean grey value.)

    Args:
        images: uint8 (B, C, H, W).
        brightness: Factors (B,).
        contrast: Factors (B,); towards the mean grey value of the image.
        bright_first: bool (B,), which of the two comes first.
    """
    factors = torch.stack([brightness.where(bright_first, 1), brightness.where(~bright_first, 1)])
    before, after = factors.view(2, -1, 1, 1, 1)  # a factor of 1 changes nothing
    pixels = images.float().mul_(before).clamp_(0, 255).floor_()
    if images.shape[1] == 3:
        red, green, blue = pixels.unbind(1)
        grey = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
    else:
        grey = pixels
    contrast = contrast.view(-1, 1, 1, 1)
    mean = grey.flatten(1).mean(1).view(-1, 1, 1, 1)
    pixels = pixels.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 255).floor_()
    return pixels.mul_(after).clamp_(0, 255).to(torch.uint8)


def resized_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each image, enlarged to the image's size, then ``flip``.

    ``torchvision.transforms.RandomResizedCrop``, but for two things: images are cut after they were
    read at their size (so from pixels of that size, and of images made square), and where ten
    drawn parts do not fit, the whole image is taken whatever its ratio.
    """
    return flip(resized_crop(images, *_boxes(images, generator)), generator)


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """A box of each image, enlarged to the image's size (bilinear, edges of the box repeated).

    Args:
        images: uint8 (B, C, H, W).
        top: int64 (B,), first row; likewise ``left``.
        left: First column.
        height: int64 (B,), rows, at most H; likewise ``width``.
        width: Columns.
    """
    batch, channels, rows, columns = images.shape
    upper, lower, down = _between(top, height, rows)
    shape = (batch, channels, rows, columns)
    a, b = (images.gather(2, i.view(-1, 1, rows, 1).expand(shape)).float() for i in (upper, lower))
    pixels = a.lerp_(b, down.view(-1, 1, rows, 1))
    first, second, right = _between(left, width, columns)
    a, b = (pixels.gather(3, i.view(-1, 1, 1, columns).expand(shape)) for i in (first, second))
    return a.lerp_(b, right.view(-1, 1, 1, columns)).round_().to(torch.uint8)


def _between(start: Tensor, length: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where ``count`` pixels of a line lie among ``length`` of the image.

    Returns:
        The two neighbours of each, int64 (B, count), and its way from the first to the second.
    """
    centre = (torch.arange(count, device=start.device) + 0.5) / count
    place = (centre * length.view(-1, 1) - 0.5).clamp_(min=0)
    first = place.long()
    second = torch.minimum(first + 1, length.view(-1, 1) - 1)
    return first + start.view(-1, 1), second + start.view(-1, 1), place - first


def _boxes(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of a random part of each image, int64 (B,)."""
    batch, _, rows, columns = images.shape
    draws = torch.rand(
        ATTEMPTS + 1, 2, batch, generator=generator, device=images.device, dtype=torch.float64
    )
    area = rows * columns * (AREA[0] + (AREA[1] - AREA[0]) * draws[:-1, 0])
    span = math.log(RATIO[1] / RATIO[0])
    ratio = RATIO[0] * (span * draws[:-1, 1]).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)
    chosen = fits.float().argmax(0, keepdim=True)  # the first that fits
    any_fits = fits.any(0)
    height = heights.gather(0, chosen)[0].where(any_fits, rows).long()
    width = widths.gather(0, chosen)[0].where(any_fits, columns).long()
    top, left = draws[-1] * torch.stack([rows - height + 1, columns - width + 1])
    return top.long(), left.long(), height, width


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    drawn = torch.rand(len(images), generator=generator, device=images.device)
    return low + (high - low) * drawn


def _coins(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < 0.5
