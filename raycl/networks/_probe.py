"""Trying a library's network once, to learn its feature width and whether an image size fits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycl.errors import UserError

REFUSED = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that libraries raise for arguments or images that they have not checked."""


def num_features(network: nn.Module, name: str, shape: tuple[int, int, int]) -> int:
    """Width of the features of one image.

    Args:
        network: Images to features; left in train mode.
        name: For the error message.
        shape: Channels, height, width.

    Raises:
        UserError: It does not take such images, or gives no feature vector.
    """
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, *shape))
    except (*REFUSED, RuntimeError) as error:
        raise UserError(
            "network.model",
            f"{name} does not take images of {shape[1]}x{shape[2]}: {error}",
            "set benchmark.dataset.size to a size it takes",
        ) from error
    network.train()
    if not isinstance(features, Tensor):
        raise UserError("network.model", f"{name} gives no feature vector but several outputs")
    if features.ndim != 2:
        raise UserError("network.model", f"{name} gives no feature vector but a map; take another")
    return int(features.shape[1])
