"""The diagonal of the Fisher information, from per-example gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

CHUNK_ELEMENTS = 2**26  # floats that per-example gradients may take at once: 256 MiB


def squared_gradients(
    network: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor, outputs: Tensor
) -> Tensor:
    """sum_n (d log p(y_n | x_n) / d theta)^2, elementwise.

    Args:
        network: Images to logits (B, num_outputs), in eval mode.
        names: Which of its parameters are theta.
        images: (B, C, H, W).
        labels: int64 (B,), positions in ``outputs``.
        outputs: int64 (K,), the outputs of the softmax.

    Returns:
        (P,): the parameters in the order of ``names``, flattened and concatenated.
    """
    fixed = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    fixed = {name: value.detach() for name, value in fixed.items()}
    theta = {name: fixed.pop(name) for name in names}

    def loss(theta: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        z = functional_call(network, {**fixed, **theta}, (image.unsqueeze(0),))
        return F.cross_entropy(z[:, outputs], label.unsqueeze(0))

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))
    size = sum(value.numel() for value in theta.values())
    chunk = max(1, CHUNK_ELEMENTS // size)
    total = images.new_zeros(size)
    for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True):
        gradients = per_example(theta, x, y)
        total += torch.cat([gradients[name].square().sum(0).flatten() for name in names])
    return total


def fisher_diagonal(
    network: nn.Module,
    names: Sequence[str],
    batches: Iterable[Tensor],
    outputs: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Diagonal of the Fisher information of one example, labels sampled from the model.

    F = mean_n (d log p(y_n | x_n) / d theta)^2 with one y_n drawn from softmax(z(x_n)[outputs]);
    true labels are not used. One draw for each image is an unbiased estimate of the expectation
    over y, which would be the exact diagonal for these images.

    Args:
        network: Images to logits (B, num_outputs), in eval mode.
        names: Which of its parameters are theta.
        batches: Images (B, C, H, W), all of them counted alike.
        outputs: int64 (K,), the outputs of the softmax.
        generator: CPU generator that draws the labels.

    Returns:
        (P,), as ``squared_gradients``.
    """
    total, count = torch.zeros(()), 0
    for images in batches:
        with torch.no_grad():
            p = F.softmax(network(images)[:, outputs], dim=1)
        labels = torch.multinomial(p.cpu(), 1, generator=generator).squeeze(1)
        squares = squared_gradients(network, names, images, labels.to(images.device), outputs)
        total = squares if count == 0 else total + squares
        count += len(images)
    if count == 0:
        raise ValueError("no images to take the Fisher information from")
    return total / count
