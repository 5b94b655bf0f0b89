"""The data sets known by name: what they are, where they lie in the data root, how to get them."""

from __future__ import annotations

import string
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from raycl.datasets import digits, glyphs, idx, tiny_imagenet
from raycl.datasets.base import Arrays
from raycl.errors import UserError

WHERE = "benchmark.dataset"
DIGITS = tuple(string.digits)
EMNIST = tuple(sorted(set(string.digits + string.ascii_letters) - set("cijklmopsuvwxyz")))
"""The 47 classes of EMNIST's "balanced" split: letters whose cases look alike are one class."""


@dataclass(frozen=True)
class Standard:
    """A named data set.

    Attributes:
        classes: Number of classes.
        shape: Channels, height, width.
        files: Paths below the data root; all must exist (for IDX each may end in ``.gz``).
        torchvision: Class in ``torchvision.datasets`` that fetches it; empty: bundled, or by hand.
        names: Class names, where the files hold none.
        mean: Mean per channel, in units of 0..1; ``None``: computed from the training images.
        std: Likewise.
        by_hand: How to get it where nothing fetches it.
    """

    classes: int
    shape: tuple[int, int, int]
    files: tuple[str, ...] = ()
    torchvision: str = ""
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    by_hand: str = ""

    @property
    def is_idx(self) -> bool:
        """Whether the files are IDX files."""
        return any(name.endswith("ubyte") for name in self.files)

    def missing(self, root: Path) -> Path | None:
        """The first of the files that is not below ``root``."""
        for name in self.files:
            path = root / name
            if not (path.exists() or (self.is_idx and path.with_name(path.name + ".gz").exists())):
                return path
        return None


def _idx_files(folder: str, prefix: str = "", test: str = "t10k") -> tuple[str, ...]:
    return tuple(
        f"{folder}/raw/{prefix}{split}-{kind}-ubyte"
        for split in ("train", test)
        for kind in ("images-idx3", "labels-idx1")
    )


GREY, COLOUR = (1, 28, 28), (3, 32, 32)
TINY = "tiny-imagenet-200"
FASHION = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
STANDARD = {
    "digits": Standard(10, (1, 8, 8), names=DIGITS),
    "glyphs": Standard(64, (1, 16, 16), names=tuple(map(str, range(64)))),
    "mnist": Standard(10, GREY, _idx_files("MNIST"), "MNIST", DIGITS, (0.1307,), (0.3081,)),
    "fashion_mnist": Standard(
        10, GREY, _idx_files("FashionMNIST"), "FashionMNIST", FASHION, (0.2860,), (0.3530,)
    ),
    "kmnist": Standard(
        10, GREY, _idx_files("KMNIST"), "KMNIST",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "emnist": Standard(
        47, GREY, _idx_files("EMNIST", "emnist-balanced-", "test"), "EMNIST", EMNIST
    ),
    "svhn": Standard(
        10, COLOUR, ("train_32x32.mat", "test_32x32.mat"), "SVHN", DIGITS,
        (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970),
    ),
    "cifar10": Standard(
        10, COLOUR, ("cifar-10-batches-py",), "CIFAR10", (),
        (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784),
    ),
    "cifar100": Standard(
        100, COLOUR, ("cifar-100-python",), "CIFAR100", (),
        (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047),
    ),
    "tiny_imagenet": Standard(
        200, tiny_imagenet.SHAPE,
        tuple(f"{TINY}/{name}" for name in (
            "wnids.txt", "train", "val/val_annotations.txt", "val/images",
        )),
        mean=(0.4389, 0.4114, 0.3682), std=(0.2402, 0.2350, 0.2268),
        by_hand=f"torchvision has no downloader: unpack {TINY}.zip (Stanford, CS231n) there",
    ),
}  # fmt: skip


def load(name: str, root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training images, test images and class names.

    Raises:
        UserError: Not below ``root``, or a file is damaged.
    """
    known = STANDARD[name]
    if not known.files:
        images = glyphs.load() if name == "glyphs" else digits.load()
        return *images, known.names
    if missing := known.missing(root):
        looked = f"{missing}, or the same with .gz" if known.is_idx else str(missing)
        raise UserError(
            WHERE,
            f"{name} is not in {root} (looked for {looked})",
            known.by_hand or f"fetch it: raycl data fetch {name}",
        )
    folder = (root / known.files[0]).parent
    if name == "tiny_imagenet":
        train, test, stored = tiny_imagenet.load(folder)
    elif known.is_idx:
        files = idx.find(folder, Path(known.files[0]).name.partition("train")[0])
        try:
            train, test, stored = idx.read(files, transposed=name == "emnist")
        except UserError as error:
            again = f"remove it and fetch again: raycl data fetch {name}"
            raise UserError(error.where, error.what, again) from error
    else:
        return _torchvision(name, root)
    if len(stored) != known.classes:
        raise UserError(WHERE, f"{folder} has {len(stored)} classes; {name} has {known.classes}")
    return train, test, known.names or stored


def fetch(name: str, root: Path) -> None:
    """Download a data set with torchvision's own downloader; nothing to do if it is there.

    Files that torchvision has MD5 sums of are compared with them, and fetched again if a download
    was cut off.

    Raises:
        UserError: Bundled, no network, or ``root`` cannot be written.
    """
    known = STANDARD[name]
    if not known.files:
        raise UserError("raycl data fetch", f"{name} is bundled; there is nothing to fetch")
    if known.missing(root) is None and (known.is_idx or known.by_hand):
        return
    if known.by_hand:
        raise UserError("raycl data fetch", f"{name} is not in {root}", known.by_hand)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            _open(name, root, split, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError("raycl data fetch", f"cannot fetch {name} into {root}: {reason}") from error


def _open(name: str, root: Path, split: str, *, download: bool = False) -> Any:
    import torchvision.datasets

    options: dict[str, Any] = {"train": split == "train"}
    if name == "svhn":
        options = {"split": split}
    elif name == "emnist":
        options["split"] = "balanced"
    kind = getattr(torchvision.datasets, STANDARD[name].torchvision)
    return kind(root, download=download, **options)


def _torchvision(name: str, root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    try:
        train, test = _open(name, root, "train"), _open(name, root, "test")
    except (OSError, RuntimeError, ValueError, EOFError) as error:  # it compares MD5 sums
        raise UserError(
            WHERE,
            f"the files of {name} in {root} are incomplete or damaged",
            f"remove them and fetch again: raycl data fetch {name}",
        ) from error
    if name == "svhn":  # N, C, H, W already, with 10 turned into 0
        parts = [(one.data, one.labels) for one in (train, test)]
    else:
        parts = [(one.data.transpose(0, 3, 1, 2), one.targets) for one in (train, test)]
    first, second = (Arrays(np.ascontiguousarray(x), np.asarray(y, np.int64)) for x, y in parts)
    return first, second, STANDARD[name].names or tuple(train.classes)
