"""Grids that show many small images as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_grid(
    images: Tensor, labels: Tensor, classes: Sequence[int], rows: int = 8, columns: int = 8
) -> Tensor:
    """A grid with images of one class in each row, a black line of a pixel between them.

    Few classes have several rows each, one below the other; of more classes than rows those at
    even distances are shown, the first and the last among them. Of each class the first images are
    taken; where there are too few, the place stays black.

    Args:
        images: uint8 (N, 3 or 1, H, W).
        labels: int64 (N,), the class of each.
        classes: Classes in the order of the rows; at least one.
        rows: Rows of the grid.
        columns: Columns of the grid.

    Returns:
        uint8 (3, rows (H + 1) - 1, columns (W + 1) - 1), on the CPU.
    """
    images, labels = images.cpu(), labels.cpu()
    height, width = images.shape[2] + 1, images.shape[3] + 1
    grid = torch.zeros(3, rows * height - 1, columns * width - 1, dtype=torch.uint8)
    used: dict[int, int] = {}
    for row, position in enumerate(_positions(len(classes), rows)):
        own = images[labels == classes[position]]
        start = used.get(position, 0)
        used[position] = start + columns
        for column, image in enumerate(own[start : start + columns]):
            top, left = row * height, column * width
            grid[:, top : top + height - 1, left : left + width - 1] = image
    return grid


def _positions(count: int, rows: int) -> list[int]:
    """Indices, among ``count`` classes, of the class that each row shows."""
    if count <= rows:
        return [row * count // rows for row in range(rows)]
    return torch.linspace(0, count - 1, rows).round().int().tolist()
