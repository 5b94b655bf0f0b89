"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, bundled, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
scikit-learn ships one unsplit set; the split here is ``hold_out``: of each class every fifth image,
in the set's own order, is a test image (1,442 for training, 355 for testing).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from raycl.datasets.base import Arrays
from raycl.datasets.transform import hold_out
from raycl.errors import UserError


def load() -> tuple[Arrays, Arrays]:
    """Training and test images, (N, 1, 8, 8); the values 0..16 are scaled to 0..255.

    Reads the file that ``sklearn.datasets.load_digits`` reads: importing scikit-learn for it would
    take longer than the training of the quick start.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError(
            "benchmark.dataset", "digits come with scikit-learn", "install scikit-learn"
        )
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    test = hold_out(labels)
    return Arrays(images[~test], labels[~test]), Arrays(images[test], labels[test])
