"""Augmentation: what it does to a batch, how often, and that the generator decides."""

from __future__ import annotations

import pytest
import torch

from raycl.datasets import augment
from raycl.errors import UserError


def images(batch: int, channels: int = 2, side: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        1, 256, (batch, channels, side, side), dtype=torch.uint8, generator=generator
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_none_is_nothing() -> None:
    assert augment("none", seeded()) is None


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean 'crop_flip'"):
        augment("cropflip", seeded())


def test_flip_mirrors_half_of_the_images() -> None:
    x = images(2000)
    y = augment("flip", seeded())(x)
    same = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 900 < int(mirrored.sum()) < 1100


def test_crop_flip_shifts_every_image_on_its_own() -> None:
    x = images(4000)
    y = augment("crop_flip", seeded())(x)
    assert y.shape == x.shape
    assert y.dtype == torch.uint8
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    counts = torch.zeros(9, 9, 2)
    found = torch.zeros(len(x))
    for dy in range(9):
        for dx in range(9):
            crop = padded[:, :, dy : dy + 10, dx : dx + 10]
            for flipped, version in enumerate((crop, crop.flip(-1))):
                match = (version == y).flatten(1).all(1)
                counts[dy, dx, flipped] = match.sum()
                found += match
    assert (found == 1).all()  # each image is one of the 162 possible ones
    expected = len(x) / 162
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 225  # chi-squared with 161 degrees of freedom: p > 0.0005


@pytest.mark.parametrize("name", ["flip", "crop_flip"])
def test_the_generator_decides(name: str) -> None:
    x = images(64)
    before, rng = x.clone(), torch.random.get_rng_state()
    first = augment(name, seeded(1))
    a, b = first(x), first(x)
    again = augment(name, seeded(1))
    assert torch.equal(a, again(x))
    assert torch.equal(b, again(x))
    assert not torch.equal(a, b)
    assert not torch.equal(a, augment(name, seeded(2))(x))
    assert torch.equal(x, before)
    assert torch.equal(rng, torch.random.get_rng_state())


def test_oblong_images_and_a_batch_of_one() -> None:
    x = torch.randint(0, 256, (1, 3, 6, 11), dtype=torch.uint8)
    for name in ("flip", "crop_flip"):
        assert augment(name, seeded())(x).shape == x.shape
