"""Tiny-ImageNet in the folders of its official zip, with one image of each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycl import datasets
from raycl.datasets import DatasetConfig
from raycl.errors import UserError

CONFIG = DatasetConfig(name="tiny_imagenet")
WNIDS = [f"n{37 * i % 200:08}" for i in range(200)]
"""Classes in another order than sorted, as in the official file."""


def write(path: Path, value: int, mode: str = "RGB", side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), (value,) * 3 if mode == "RGB" else value).save(path, "JPEG")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class i in sorted order has images of the value i."""
    monkeypatch.setattr("raycl.datasets.tiny_imagenet.TRAIN", 1)
    monkeypatch.setattr("raycl.datasets.tiny_imagenet.VAL", 1)
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for i, wnid in enumerate(WNIDS):
        value = sorted(WNIDS).index(wnid)
        write(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", value)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        write(root / "val" / "images" / f"val_{i}.JPEG", value, "L" if i % 2 else "RGB")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return root


def test_official_layout(tiny: Path) -> None:
    assert datasets.present(CONFIG, tiny.parent) is None
    data = datasets.load(CONFIG, tiny.parent)
    assert data.shape == (3, 64, 64)
    assert data.classes == tuple(sorted(WNIDS))
    assert data.train.labels.tolist() == list(range(200))
    assert data.train.images.shape == (200, 3, 64, 64)
    for part in (data.train, data.test):  # the value of an image tells its class
        values = part.images.astype(int).reshape(200, -1)
        assert np.abs(values - part.labels[:, None]).max() <= 2
    assert data.test.labels.tolist() == [sorted(WNIDS).index(wnid) for wnid in WNIDS]
    assert data.mean == (0.4389, 0.4114, 0.3682)
    assert data.std == (0.2402, 0.2350, 0.2268)
    entry = {e.name: e for e in datasets.catalogue(tiny.parent)}["tiny_imagenet"]
    assert (entry.classes, entry.present, entry.location) == (200, True, str(tiny))
    datasets.fetch("tiny_imagenet", tiny.parent)  # there: nothing to do


def test_files_are_read_in_portions(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = datasets.load(CONFIG, tiny.parent)
    monkeypatch.setattr("raycl.datasets.tiny_imagenet.CHUNK", 60)
    portions = datasets.load(CONFIG, tiny.parent)
    assert np.array_equal(portions.train.images, whole.train.images)
    assert np.array_equal(portions.test.images, whole.test.images)


def test_what_is_incomplete_is_named(tiny: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(UserError, match=text):
            datasets.load(CONFIG, tiny.parent)

    wnids, marks = tiny / "wnids.txt", tiny / "val" / "val_annotations.txt"
    listed, lines = wnids.read_text(), marks.read_text()
    wnids.write_text("\n".join(WNIDS[1:]))
    refused("has the class n00000000, not in wnids.txt")
    marks.write_text("\n".join(lines.splitlines()[1:]))
    refused("has 199 classes; tiny_imagenet has 200")
    wnids.write_text(listed)
    refused("class n00000000 has 0 images in '.*/val', not 1; unpack the zip again")
    marks.write_text(lines[: lines.index("\t")])
    refused("val_annotations.txt' has no class for val_0.JPEG; is it cut off")
    marks.write_text(lines)
    write(tiny / "val" / "images" / "val_3.JPEG", 1, side=32)
    refused("val_3.JPEG' has 32x32 pixels, not 64x64")
    (tiny / "train" / WNIDS[5] / "images" / f"{WNIDS[5]}_0.JPEG").unlink()
    refused(f"class {WNIDS[5]} has 0 images in '.*/train'")
