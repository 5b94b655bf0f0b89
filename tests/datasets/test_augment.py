"""Augmentation: what it does to a batch, how often, and that the generator decides."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from raycl.datasets import augment
from raycl.datasets.augment import jitter, resized_crop
from raycl.errors import UserError

ALL = ["flip", "crop_flip", "jitter_crop_flip", "resized_crop_flip", "original_crop_flip", "hcl"]


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


@pytest.mark.parametrize("name", ALL)
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
    for name in ALL:
        assert augment(name, seeded())(x).shape == x.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions_with_factors_of_each_image(channels: int) -> None:
    x = images(40, channels, 16)
    brightness = 0.75 + 0.5 * torch.rand(40, generator=seeded(1))
    contrast = 0.2 + 1.6 * torch.rand(40, generator=seeded(2))
    bright_first = torch.arange(40) % 2 == 0
    y = jitter(x, brightness, contrast, bright_first)
    assert y.dtype == torch.uint8
    swapped = 0
    for i, image in enumerate(map(tv.to_pil_image, x)):
        b, c = float(brightness[i]), float(contrast[i])
        bright = tv.adjust_contrast(tv.adjust_brightness(image, b), c)
        contrasted = tv.adjust_brightness(tv.adjust_contrast(image, c), b)
        expected, other = (bright, contrasted) if bright_first[i] else (contrasted, bright)
        assert torch.equal(y[i], tv.pil_to_tensor(expected))
        swapped += int((tv.pil_to_tensor(other) != y[i]).sum())
    assert swapped > 0.1 * x.numel()


def test_jitter_by_hand() -> None:
    x = torch.tensor([100, 200, 0, 60], dtype=torch.uint8).view(1, 1, 2, 2)
    one, first = torch.ones(1), torch.ones(1, dtype=torch.bool)
    assert jitter(x, 1.5 * one, one, first).flatten().tolist() == [150, 255, 0, 90]
    assert jitter(x, one, 0.5 * one, first).flatten().tolist() == [95, 145, 45, 75]  # mean 90
    assert torch.equal(jitter(x, one, one, first), x)


def test_factors_are_uniform_and_the_order_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[torch.Tensor, ...]] = []

    def record(x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        drawn.append(factors)
        return x

    monkeypatch.setitem(augment.__globals__, "jitter", record)
    x = images(4000)
    y = augment("jitter_crop_flip", seeded())(x)
    brightness, contrast, first = drawn[0]
    for factor, spread in ((brightness, 63 / 255), (contrast, 0.8)):
        inside = ((factor - 1) / spread).abs()
        assert inside.max() <= 1
        assert inside.max() > 0.99
        assert abs(float(inside.mean()) - 0.5) < 0.02
        assert abs(float(factor.mean()) - 1) < 0.02
    assert 1800 < int(first.sum()) < 2200
    assert (y == 0).any()  # the border of the crop comes after
    assert not (x == 0).any()


def test_resized_crop_is_torchvisions() -> None:
    x = images(30, 3, 32)
    transform = RandomResizedCrop(32)
    torch.manual_seed(0)
    boxes = [transform.get_params(image, transform.scale, transform.ratio) for image in x]
    top, left, height, width = torch.tensor(boxes).T
    y = resized_crop(x, top, left, height, width)
    assert y.dtype == torch.uint8
    for image, box, found in zip(x, boxes, y, strict=True):
        expected = tv.resized_crop(image, *box, [32, 32], antialias=True)
        assert (found.int() - expected.int()).abs().max() <= 1
    whole = torch.full((30,), 32)
    assert torch.equal(resized_crop(x, 0 * whole, 0 * whole, whole, whole), x)


def test_boxes_of_resized_crops_have_torchvisions_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[torch.Tensor, ...]] = []

    def record(x: torch.Tensor, *box: torch.Tensor) -> torch.Tensor:
        drawn.append(box)
        return x

    monkeypatch.setitem(augment.__globals__, "resized_crop", record)
    augment("resized_crop_flip", seeded())(images(4000, 1, 32))
    ours = torch.stack(drawn[0]).float()
    transform = RandomResizedCrop(32)
    torch.manual_seed(0)
    one = torch.zeros(1, 32, 32)
    theirs = torch.tensor(
        [transform.get_params(one, transform.scale, transform.ratio) for _ in range(4000)]
    ).T.float()
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        error = (ours_one.var() / 4000 + theirs_one.var() / 4000).sqrt()
        assert abs(ours_one.mean() - theirs_one.mean()) < 4 * error
        assert ours_one.std() == pytest.approx(float(theirs_one.std()), rel=0.05)
    top, left, height, width = drawn[0]
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    share = height * width / 32**2
    assert 0.06 < share.min() < 0.09
    assert share.max() > 0.95
