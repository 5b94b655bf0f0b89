"""MNIST-like sets, read straight from IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from dataset_making import idx_bytes, write_idx_set

from raycl import datasets
from raycl.datasets import DatasetConfig, idx
from raycl.errors import UserError

IMAGES = "train-images-idx3-ubyte.gz"


def test_mnist_from_a_read_only_folder_of_gz_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    made = write_idx_set(raw)
    before = sorted(tmp_path.rglob("*"))
    for path in (*raw.iterdir(), raw):
        path.chmod(0o555 if path.is_dir() else 0o444)
    data = datasets.load(DatasetConfig(name="mnist"), tmp_path)
    raw.chmod(0o755)
    np.testing.assert_array_equal(data.train.images[:, 0], made["train-images"])
    np.testing.assert_array_equal(data.train.labels, made["train-labels"])
    np.testing.assert_array_equal(data.test.images[:, 0], made["t10k-images"])
    assert data.train.labels.dtype == np.int64
    assert data.train.images.dtype == np.uint8
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))
    assert data.classes == tuple("0123456789")
    assert sorted(tmp_path.rglob("*")) == before


def test_unpacked_file_wins_over_gz(tmp_path: Path) -> None:
    made = write_idx_set(tmp_path)
    other = made["train-images"][::-1]
    (tmp_path / IMAGES.removesuffix(".gz")).write_bytes(idx_bytes(other))
    train, _, _ = idx.load(tmp_path)
    np.testing.assert_array_equal(train.images[:, 0], other)


def test_idx_by_path_computes_its_statistics(tmp_path: Path) -> None:
    made = write_idx_set(tmp_path / "mine", prefix="letters-", test="test", first=1)
    data = datasets.load(DatasetConfig(name="idx", path="mine"), tmp_path)
    assert data.classes == tuple(str(i) for i in range(1, 11))
    np.testing.assert_array_equal(data.train.labels, made["train-labels"] - 1)
    np.testing.assert_allclose(data.mean, made["train-images"].mean() / 255, rtol=1e-9)
    np.testing.assert_allclose(data.std, made["train-images"].std() / 255, rtol=1e-9)


def test_emnist_is_the_balanced_split_turned_upright(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    made = write_idx_set(raw, prefix="emnist-balanced-", test="test", classes=47)
    write_idx_set(raw, prefix="emnist-letters-", test="test", classes=26, first=1)
    data = datasets.load(DatasetConfig(name="emnist"), tmp_path)
    np.testing.assert_array_equal(data.train.images[:, 0], made["train-images"].swapaxes(1, 2))
    assert len(data.classes) == 47
    assert "".join(data.classes) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"


def _break(folder: Path, how: str) -> None:
    path = folder / IMAGES
    content = gzip.decompress(path.read_bytes())
    labels = folder / "train-labels-idx1-ubyte.gz"
    if how == "truncated gz":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "no gz":
        path.write_bytes(b"hello")
    elif how == "truncated":
        path.write_bytes(gzip.compress(content[:-1]))
    elif how == "truncated header":
        path.write_bytes(gzip.compress(content[:10]))
    elif how == "magic":
        path.write_bytes(labels.read_bytes())
    elif how == "missing":
        path.unlink()
    elif how == "counts":
        labels.write_bytes(gzip.compress(idx_bytes(np.zeros(3))))
    elif how == "several":
        write_idx_set(folder, prefix="other-")
    elif how == "new test label":
        labels.write_bytes(gzip.compress(idx_bytes(np.arange(60) % 9)))
    elif how == "one class":
        for split, n in (("train", 60), ("t10k", 20)):
            zeros = gzip.compress(idx_bytes(np.zeros(n)))
            (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(zeros)
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    "how, text",
    [
        ("truncated gz", "cannot read .*train-images"),
        ("no gz", "cannot read .*train-images"),
        ("truncated", "train-images.* is truncated"),
        ("truncated header", "train-images.* is truncated"),
        ("magic", "0x00000801, not 0x00000803"),
        ("missing", r"has no file train-images-idx3-ubyte\[.gz\]"),
        ("counts", "60 images.* 3 labels"),
        ("several", "several sets .'', 'other-'"),
        ("new test label", r"test labels \[9\] never occur"),
        ("one class", "one class only"),
    ],
)
def test_damage_is_one_clear_line(tmp_path: Path, how: str, text: str) -> None:
    write_idx_set(tmp_path)
    _break(tmp_path, how)
    with pytest.raises(UserError, match=text) as caught:
        datasets.load(DatasetConfig(name="idx", path="."), tmp_path)
    assert caught.value.where == "benchmark.dataset"
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no such directory '{tmp_path}/nowhere'"):
        datasets.load(DatasetConfig(name="idx", path="nowhere"), tmp_path)


def test_a_named_set_with_another_number_of_classes(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw", classes=4)
    with pytest.raises(UserError, match="has 4 classes; mnist has 10"):
        datasets.load(DatasetConfig(name="mnist"), tmp_path)
