"""Steps that every data set goes through after reading: split, cut, resize, statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 4096


def rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of earlier images with the same label, for each image: shape (N,)."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(labels)) - first
    return rank


def hold_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark every fifth image of each class as a test image, for data without a test split."""
    return np.equal(rank_in_class(labels) % 5, 4)


def first_per_class(labels: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
    """The first ``limit`` images of each class."""
    return rank_in_class(labels) < limit


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """``resize_batch`` for a whole data set, (N, C, H, W) to (N, C, size, size)."""
    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for start in range(0, len(images), CHUNK):
        chunk = torch.tensor(images[start : start + CHUNK])
        resized[start : start + CHUNK] = resize_batch(chunk, size).numpy()
    return resized


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize images to ``size`` x ``size`` (bilinear, antialiased; proportions are not kept)."""
    from torchvision.transforms.v2 import functional as tv

    return tv.resize(images, [size, size], antialias=True)  # type: ignore[no-any-return]


def crop_batch(images: Tensor, shorter: int, crop: int) -> Tensor:
    """Resize the shorter side and cut out the middle, as torchvision's Resize and CenterCrop.

    Args:
        images: uint8 (..., H, W).
        shorter: Pixels that the shorter side gets (bilinear, antialiased).
        crop: Side of the square that is cut out, at most ``shorter``.
    """
    from torchvision.transforms.v2 import functional as tv

    if min(images.shape[-2:]) != shorter:
        images = tv.resize(images, [shorter], antialias=True)
    return tv.center_crop(images, [crop, crop])  # type: ignore[no-any-return]


def statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of all pixels per channel, in units of 0..1.

    Args:
        images: uint8 (N, C, H, W).
    """
    channels = images.shape[1]
    total, square = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK].astype(np.float32)
        chunk = chunk.reshape(*chunk.shape[:2], -1)
        total += chunk.sum((0, 2), dtype=np.float64)
        square += np.square(chunk, out=chunk).sum((0, 2), dtype=np.float64)
    pixels = images.size / channels
    mean = total / pixels
    std = np.sqrt(np.maximum(square / pixels - mean**2, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
