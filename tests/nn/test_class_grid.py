"""Grids of images by class."""

from __future__ import annotations

import torch

from raycl.nn.pictures import class_grid


def cells(grid, rows, columns, size):
    """Value of each cell's first pixel (every image here is of one value), (rows, columns)."""
    assert grid.shape == (3, rows * (size + 1) - 1, columns * (size + 1) - 1)
    assert grid.dtype == torch.uint8
    return grid[0, :: size + 1, :: size + 1]


def images(values, channels=3, size=2):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, channels, size, size)


def test_few_classes_have_several_rows_each_in_the_given_order():
    labels = torch.tensor([7, 3, 7, 3, 7, 7, 7])
    grid = class_grid(images([71, 31, 72, 32, 73, 74, 75]), labels, [7, 3], rows=4, columns=2)
    expected = [[71, 72], [73, 74], [31, 32], [0, 0]]
    assert cells(grid, 4, 2, 2).tolist() == expected
    assert not grid[:, 2].any()
    assert not grid[:, :, 2].any()


def test_of_many_classes_some_are_shown_the_first_and_last_among_them():
    labels = torch.arange(20)
    grid = class_grid(images(list(range(100, 120)), channels=1), labels, range(20), 3, 2)
    assert cells(grid, 3, 2, 2).tolist() == [[100, 0], [110, 0], [119, 0]]


def test_classes_that_do_not_divide_the_rows():
    labels = torch.tensor([0, 1, 2])
    grid = class_grid(images([10, 11, 12]), labels, [0, 1, 2], rows=8, columns=1)
    assert cells(grid, 8, 1, 2).flatten().tolist() == [10, 0, 0, 11, 0, 0, 12, 0]


def test_colours_stay():
    image = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 3, 1, 1)
    assert class_grid(image, torch.tensor([0]), [0], 1, 1).flatten().tolist() == [1, 2, 3]
