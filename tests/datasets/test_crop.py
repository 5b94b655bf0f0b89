"""``original_crop_flip``: random parts of images as they are before they are resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_making import write_image
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from raycl import datasets
from raycl.benchmarks.split import Split
from raycl.datasets import DatasetConfig, Examples, Files, augment
from raycl.datasets.crop import OriginalCrop, boxes, draws
from raycl.datasets.files import FileSet

SHAPES = ((300, 90), (40, 250), (100, 100), (60, 80))
"""Width and height of files."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cropper(seed: int = 0) -> OriginalCrop:
    made = augment("original_crop_flip", seeded(seed))
    assert isinstance(made, OriginalCrop)
    return made


def expected(images: list[Image.Image], size: int) -> np.ndarray:
    """What torchvision makes of the images, as Pillow reads them, with the same boxes and coins."""
    again = cropper()
    drawn = again.draws(len(images))
    parts = []
    for i, image in enumerate(images):
        found = boxes(drawn[..., i : i + 1], image.height, image.width)
        box = tuple(int(side) for side in found)
        part = tv.resized_crop(image, *box, [size, size])
        parts.append(torch.from_numpy(np.array(part).transpose(2, 0, 1)))
    return again.flip(torch.stack(parts)).numpy().astype(int)


def files(root: Path, size: int = 70) -> FileSet:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i, shape in enumerate(SHAPES):
                write_image(root / f"set/{split}/{name}/{i}.png", shape, seed=i)
    resize = {"shorter": size + 10, "crop": size}
    config = DatasetConfig(name="folder", path="set", resize=resize, mean=(0,) * 3, std=(1,) * 3)  # type: ignore[arg-type]
    part = datasets.load(config, root).train
    assert isinstance(part, Files)
    labels = torch.from_numpy(part.labels.copy())
    return FileSet(part, torch.arange(len(labels)), labels, (0.0,) * 3, (1.0,) * 3)


def test_parts_of_files_are_torchvisions(tmp_path: Path) -> None:
    found = files(tmp_path)
    images = [Image.open(path) for path in found.files.paths]
    wanted = expected(images, 70)
    ours = found.augmented(torch.arange(8), cropper())
    assert ours.shape == (8, 3, 70, 70)
    assert np.abs(ours.numpy() - wanted).max() <= 1
    (batch,) = found.batches(8, augment=cropper())  # in another process
    assert torch.equal(batch.images, found.prepare(ours))


def test_workers_change_nothing(tmp_path: Path) -> None:
    found, order, sizes = files(tmp_path), torch.arange(8), [3, 3, 2]
    ahead = list(found.stream(order, sizes, crop=cropper()))
    here = list(found.stream(order, sizes, share=1000, crop=cropper()))
    assert [len(images) for images in ahead] == sizes
    assert torch.equal(torch.cat(ahead), torch.cat(here))


def enlarged(size: int | None) -> Examples:
    config = DatasetConfig(name="digits", size=size, limit=3)
    made = Split.Config(name="split", dataset=config, tasks=2, validation=0)
    data = {datasets.key(config): datasets.load(config, Path())}
    return Split(made).stream(data, 0).data[0].train


def test_parts_of_arrays_are_enlarged_from_the_original() -> None:
    """Not from what the whole image was enlarged to; on the device, for the whole batch."""
    small, large = enlarged(None), enlarged(96)
    assert large.raw(torch.arange(2)).shape == (2, 1, 96, 96)
    count = len(large)
    originals = small.raw(torch.arange(count)).expand(-1, 3, -1, -1)
    images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in originals]
    ours = large.augmented(torch.arange(count), cropper()).expand(-1, 3, -1, -1)
    assert np.abs(ours.numpy() - expected(images, 96)).max() <= 1
    other = augment("resized_crop_flip", seeded())
    assert other is not None
    twice = other(large.raw(torch.arange(count)))
    assert not np.allclose(ours[:, :1].numpy(), twice.numpy(), atol=8)


def test_a_union_cuts_originals_part_by_part(tmp_path: Path) -> None:
    first = files(tmp_path)
    second = first.renormalised((0.5,) * 3, (0.5,) * 3)
    union = datasets.concat([first, second])
    (batch,) = union.batches(16, augment=cropper())
    crop = cropper()
    streams = [one.stream(torch.arange(8), [8], 2, crop) for one in (first, second)]
    parts = [one.prepare(next(s)) for one, s in zip((first, second), streams, strict=True)]
    assert torch.equal(batch.images, torch.cat(parts))


@pytest.mark.parametrize("given", [(20, 20), (20, 9), (90, 10), (10, 90)])
def test_boxes_have_torchvisions_distribution(given: tuple[int, int]) -> None:
    """Also where no drawn part fits, and the middle is taken."""
    count = 2000
    ours = torch.stack(boxes(draws(count, seeded()), *given)).float()
    transform, image = RandomResizedCrop(8), torch.zeros(1, *given)
    torch.manual_seed(0)
    drawn = [transform.get_params(image, transform.scale, transform.ratio) for _ in range(count)]
    theirs = torch.tensor(drawn).T.float()
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a.mean() - b.mean()) <= 4 * ((a.var() + b.var()) / count).sqrt()
        assert a.std() == pytest.approx(float(b.std()), rel=0.1)
    assert (ours >= 0).all()
    assert (ours[0] + ours[2] <= given[0]).all()
    assert (ours[1] + ours[3] <= given[1]).all()


def test_images_that_a_method_keeps_are_cut_as_they_are() -> None:
    x = torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8, generator=seeded(1))
    other = augment("resized_crop_flip", seeded())
    assert other is not None
    assert torch.equal(cropper()(x), other(x))
