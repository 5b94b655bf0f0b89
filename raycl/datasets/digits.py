"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, bundled, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
scikit-learn ships one unsplit set; the split here is ``hold_out``: of each class every fifth image,
in the set's own order, is a test image (1,442 for training, 355 for testing).
"""

from __future__ import annotations

import numpy as np

from raycl.datasets.base import Arrays
from raycl.datasets.transform import hold_out


def load() -> tuple[Arrays, Arrays]:
    """Training and test images, (N, 1, 8, 8); the values 0..16 are scaled to 0..255."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    test = hold_out(labels)
    return Arrays(images[~test], labels[~test]), Arrays(images[test], labels[test])
