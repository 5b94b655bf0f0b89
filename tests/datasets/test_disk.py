"""Names, keys, options, the bundled digits, and what is said when data is missing."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from dataset_making import write_idx_set, write_tree

from raycl import datasets
from raycl.datasets import Arrays, DatasetConfig
from raycl.errors import UserError

DIGITS = DatasetConfig(name="digits")


def test_digits() -> None:
    data = datasets.load(DIGITS, Path("nowhere"))
    assert data.shape == (1, 8, 8)
    assert (len(data.train.labels), len(data.test.labels)) == (1442, 355)
    assert data.train.images.max() == 255
    np.testing.assert_allclose(data.mean, data.train.images.mean() / 255, rtol=1e-6)
    np.testing.assert_allclose(data.std, data.train.images.std() / 255, rtol=1e-6)
    share = np.bincount(data.test.labels) / (
        np.bincount(data.test.labels) + np.bincount(data.train.labels)
    )
    assert np.abs(share - 0.2).max() < 0.01


def test_digits_are_scikit_learns_and_every_fifth_of_a_class_is_a_test_image() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = datasets.load(DIGITS, Path("nowhere"))
    for k in range(10):
        own = np.round(pixels[labels == k] * 255 / 16).reshape(-1, 1, 8, 8)
        np.testing.assert_array_equal(data.test.images[data.test.labels == k], own[4::5])
        rest = np.delete(own, np.s_[4::5], axis=0)
        np.testing.assert_array_equal(data.train.images[data.train.labels == k], rest)


def test_arrays_are_read_only() -> None:
    data = datasets.load(DIGITS, Path("nowhere"))
    for part in (data.train, data.test):
        with pytest.raises(ValueError, match="read-only"):
            part.images[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            part.labels[0] = 0


def test_limit_takes_the_first_training_images_of_each_class() -> None:
    full = datasets.load(DIGITS, Path("nowhere"))
    data = datasets.load(DatasetConfig(name="digits", limit=3), Path("nowhere"))
    assert np.bincount(data.train.labels).tolist() == [3] * 10
    for k in range(10):
        first = full.train.images[full.train.labels == k][:3]
        np.testing.assert_array_equal(data.train.images[data.train.labels == k], first)
    assert len(data.test.labels) == len(full.test.labels)


def test_size_resizes_small_images_at_once_and_large_ones_batch_by_batch() -> None:
    small = datasets.load(DatasetConfig(name="digits", size=16), Path("nowhere"))
    assert small.shape == (1, 16, 16)
    assert small.train.images.shape[1:] == small.test.images.shape[1:] == (1, 16, 16)
    full = datasets.load(DIGITS, Path("nowhere"))
    assert abs(small.train.images.mean() - full.train.images.mean()) < 1
    large = datasets.load(DatasetConfig(name="digits", size=96), Path("nowhere"))
    assert large.shape == (1, 96, 96)
    assert isinstance(large.train, Arrays)
    assert large.train.images.shape[1:] == (1, 8, 8)


def test_given_statistics_are_used() -> None:
    config = DatasetConfig(name="digits", mean=(0.5,), std=(0.25,))
    data = datasets.load(config, Path("nowhere"))
    assert (data.mean, data.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    "options, where, text",
    [
        ({"name": "mnits"}, "benchmark.dataset.name", "did you mean 'mnist'?"),
        ({"name": "folder"}, "benchmark.dataset.path", "folder needs a path"),
        ({"name": "mnist", "path": "x"}, "benchmark.dataset.path", "mnist takes no path"),
        ({"name": "digits", "hold_out": 2}, "benchmark.dataset.hold_out", "is for folder; digits"),
        ({"name": "idx", "path": "x", "hold_out": 2}, "benchmark.dataset.hold_out", "is for fold"),
        ({"name": "digits", "mean": (0.1,) * 3}, "benchmark.dataset.mean", r"3 value\(s\) for 1"),
        ({"name": "digits", "std": (0.0,)}, "benchmark.dataset.std", "must be positive"),
    ],
)
def test_wrong_options(options: dict[str, object], where: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        datasets.load(DatasetConfig.model_validate(options), Path("nowhere"))
    assert caught.value.where == where


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", "kmnist", "emnist", "svhn", "cifar10", "cifar100"]
)
def test_missing_data_says_what_where_and_how(tmp_path: Path, name: str) -> None:
    config = DatasetConfig(name=name)
    with pytest.raises(UserError) as caught:
        datasets.load(config, tmp_path)
    assert caught.value.where == "benchmark.dataset"
    assert f"{name} is not in {tmp_path} (looked for {tmp_path}/" in caught.value.what
    assert caught.value.hint == f"fetch it: raycl data fetch {name}"
    assert name in (datasets.present(config, tmp_path) or "")


def test_missing_data_that_nothing_fetches(tmp_path: Path) -> None:
    said = r"unpack tiny-imagenet-200\.zip .* there"
    with pytest.raises(UserError, match=f"looked for {tmp_path}/tiny-imagenet-200/.*{said}"):
        datasets.load(DatasetConfig(name="tiny_imagenet"), tmp_path)
    with pytest.raises(UserError, match=f"tiny_imagenet is not in {tmp_path}; .*{said}"):
        datasets.fetch("tiny_imagenet", tmp_path)


def test_present(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw")
    assert datasets.present(DIGITS, tmp_path) is None
    assert datasets.present(DatasetConfig(name="mnist"), tmp_path) is None
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels" in (datasets.present(DatasetConfig(name="mnist"), tmp_path) or "")
    folder = DatasetConfig(name="folder", path="pets")
    assert datasets.present(folder, tmp_path) == f"there is no '{tmp_path}/pets'"
    write_tree(tmp_path / "pets")
    assert datasets.present(folder, tmp_path) is None


def test_catalogue_lists_every_name(tmp_path: Path) -> None:
    write_idx_set(tmp_path / "KMNIST" / "raw")
    entries = {entry.name: entry for entry in datasets.catalogue(tmp_path)}
    assert sorted(entries) == datasets.names()
    assert entries["digits"].present
    assert entries["kmnist"].location == str(tmp_path / "KMNIST" / "raw")
    assert not entries["cifar100"].present
    assert str(tmp_path) in entries["cifar100"].location
    assert entries["cifar100"].classes == 100
    assert entries["cifar100"].shape == (3, 32, 32)


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    assert datasets.data_root() == tmp_path
    monkeypatch.delenv("RAYCL_DATA")
    monkeypatch.chdir(tmp_path)
    assert datasets.data_root() == tmp_path / "data"


def test_keys_tell_different_data_apart() -> None:
    configs = [
        DatasetConfig(name="mnist"),
        DatasetConfig(name="mnist", size=32),
        DatasetConfig(name="mnist", limit=32),
        DatasetConfig(name="mnist", mean=(0.5,)),
        DatasetConfig(name="folder", path="a"),
        DatasetConfig(name="folder", path="b"),
        DatasetConfig(name="folder", path="a", hold_out=1),
    ]
    keys = [datasets.key(config) for config in configs]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "mnist"
    again = DatasetConfig.model_validate_json(configs[1].model_dump_json())
    assert datasets.key(again) == keys[1] == "mnist-" + keys[1][6:]


def test_a_bare_name_stands_for_a_config() -> None:
    assert DatasetConfig.model_validate("mnist") == DatasetConfig(name="mnist")
    assert DatasetConfig(name="folder", path="a/my pets.zip").label == "my-pets"
    assert DatasetConfig(name="folder", path="a.zip!pets/").label == "pets"


@pytest.mark.parametrize("name", ["digits", "folder", "idx"])
def test_fetch_refuses_what_cannot_be_fetched(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="nothing to fetch"):
        datasets.fetch(name, tmp_path)


def test_fetch_of_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'cifar10'\?") as caught:
        datasets.fetch("cifar", tmp_path)
    assert caught.value.where == "raycl data fetch"


def test_fetch_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("name resolution failed")

    for module in ("mnist", "cifar"):
        name = f"torchvision.datasets.{module}.download_and_extract_archive"
        monkeypatch.setattr(name, offline)
    for name in ("mnist", "cifar10"):  # the first tries mirrors and raises RuntimeError
        with pytest.raises(UserError, match="name resolution failed") as caught:
            datasets.fetch(name, tmp_path)
        assert str(caught.value).startswith(
            f"raycl data fetch: cannot fetch {name} into {tmp_path}"
        )
        assert "\n" not in str(caught.value)


def test_fetch_into_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot fetch mnist"):
        datasets.fetch("mnist", tmp_path / "file" / "below")


def test_fetch_does_nothing_for_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_idx_set(tmp_path / "MNIST" / "raw")
    monkeypatch.delattr(torchvision.datasets, "MNIST")
    datasets.fetch("mnist", tmp_path)


def test_fetch_looks_into_files_that_a_download_may_have_left_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("name resolution failed")

    monkeypatch.setattr("torchvision.datasets.svhn.download_url", offline)
    for split in ("train", "test"):
        (tmp_path / f"{split}_32x32.mat").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot fetch svhn"):
        datasets.fetch("svhn", tmp_path)


def test_a_damaged_named_set_says_how_to_get_it_again(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_idx_set(raw)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"cut off")
    with pytest.raises(UserError, match="remove it and fetch again: raycl data fetch mnist"):
        datasets.load(DatasetConfig(name="mnist"), tmp_path)


def test_the_home_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'~nobody-here/pets' begins with the home directory of"):
        datasets.load(DatasetConfig(name="folder", path="~nobody-here/pets"), tmp_path)
