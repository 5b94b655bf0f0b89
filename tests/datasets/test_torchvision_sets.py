"""CIFAR and SVHN through torchvision's classes, from files of their formats made here."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from scipy.io import savemat

from raycl import datasets
from raycl.datasets import DatasetConfig
from raycl.errors import UserError

RNG = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def make_cifar(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[tv.CIFAR10], classes: int
) -> dict[str, np.ndarray]:
    folder = root / kind.base_folder
    folder.mkdir()
    label = "labels" if kind is tv.CIFAR10 else "fine_labels"
    made = {}
    lists = []
    for entries in (kind.train_list, kind.test_list):
        sums = []
        for name, _ in entries:
            pixels = RNG.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
            labels = [i % classes for i in range(2 * classes)]
            (folder / name).write_bytes(pickle.dumps({"data": pixels, label: labels}))
            sums.append([name, md5(folder / name)])
            made[name] = pixels
        lists.append(sums)
    meta = folder / kind.meta["filename"]
    names = [f"class{i}" for i in range(classes)]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "train_list", lists[0])
    monkeypatch.setattr(kind, "test_list", lists[1])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    return made


@pytest.mark.parametrize(
    "name, kind, classes, first, test",
    [("cifar10", tv.CIFAR10, 10, "data_batch_1", "test_batch"),
     ("cifar100", tv.CIFAR100, 100, "train", "test")],
)  # fmt: skip
def test_cifar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: type[tv.CIFAR10],
    classes: int,
    first: str,
    test: str,
) -> None:
    made = make_cifar(tmp_path, monkeypatch, kind, classes)
    data = datasets.load(DatasetConfig(name=name), tmp_path)
    assert data.shape == (3, 32, 32)
    np.testing.assert_array_equal(
        data.train.images[: 2 * classes], made[first].reshape(-1, 3, 32, 32)
    )
    np.testing.assert_array_equal(data.test.images, made[test].reshape(-1, 3, 32, 32))
    assert data.train.images.flags.c_contiguous
    assert data.train.labels[: classes + 1].tolist() == [*range(classes), 0]
    assert data.classes[-1] == f"class{classes - 1}"
    assert len(data.mean) == 3


def test_a_damaged_file_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar(tmp_path, monkeypatch, tv.CIFAR10, 10)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"incomplete or damaged; .*raycl data fetch cifar10"):
        datasets.load(DatasetConfig(name="cifar10"), tmp_path)


def test_svhn_label_ten_is_the_digit_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {}
    images = {}
    for split in ("train", "test"):
        images[split] = RNG.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images[split], "y": (np.arange(20) % 10 + 1)[:, None]})
        sums[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(tv.SVHN, "split_list", sums)
    data = datasets.load(DatasetConfig(name="svhn"), tmp_path)
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    np.testing.assert_array_equal(data.train.images[7], images["train"][..., 7].transpose(2, 0, 1))
    assert data.train.images.flags.c_contiguous
    assert data.mean == (0.4377, 0.4438, 0.4728)
