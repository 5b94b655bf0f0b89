"""Random changes of whole batches, on the device, with parameters of its own for each image.

torchvision's functions draw one set of parameters per call, so these are a gather of our own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.datasets.examples import Augment
from raycl.errors import UserError, nearest

PADDING = 4


def augment(name: str, generator: torch.Generator) -> Augment | None:
    """The training augmentation of a sweep file.

    Args:
        name: ``none``, ``flip`` (left-right with probability 1/2) or ``crop_flip`` (4 pixels of
            zeros on each side, a random crop of the original size, then flip).
        generator: Source of all randomness, on the device of the images.

    Returns:
        uint8 (B, C, H, W) to the same; ``None`` for ``none``.
    """
    if name == "none":
        return None
    known = {"flip": flip, "crop_flip": crop_flip}
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


def _coins(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < 0.5
