"""Inverting a network: images that it takes for images of what it has learnt.

One engine for generators and for free images. The caller makes the images, from a generator or as
``FreeImages``, and an optimiser that steps what they came from; ``Inversion`` runs the network on
them and adds up the terms. A term is a function of what was ``Seen``, so a method may bring its
own.

The statistics of batches are taken from what layers get, by hooks that last as long as one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

VARIANCE_EPS = 1e-8
"""Added to both variances of the statistics term, once."""


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of every channel of every watched layer, one behind the other.

    Attributes:
        mean: float32 (P,), P the channels of all layers.
        var: float32 (P,), divided by the number of values.
    """

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Seen:
    """What the terms of an inversion may look at.

    Attributes:
        images: float32 (B, C, H, W), normalised.
        logits: float32 (B, K), of the outputs that take part.
        labels: int64 (B,), positions in ``logits`` that were asked for; ``None``: none were.
        moments: Of the layers watched; ``None`` if there are none.
    """

    images: Tensor
    logits: Tensor
    labels: Tensor | None
    moments: Moments | None


Term = Callable[[Seen], Tensor]
"""What was seen to a scalar."""


class Inversion:
    """The objective: a weighted sum of terms, each of which is named.

    Args:
        network: Images to logits. In eval mode, without parameters that require gradient, and left
            as it is.
        outputs: int64 (K,), the logits that take part.
        terms: Name to weight and term. A term of weight 0 is computed, for the log.
        layers: Layers whose inputs are watched; see ``normalisations``.
    """

    def __init__(
        self,
        network: nn.Module,
        outputs: Tensor,
        terms: Mapping[str, tuple[float, Term]],
        layers: Sequence[nn.Module] = (),
    ) -> None:
        self.network, self.outputs, self.terms = network, outputs, dict(terms)
        self.layers = tuple(layers)

    def losses(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms; their sum is to be minimised.

        Args:
            images: (B, C, H, W), normalised.
            labels: int64 (B,), positions in ``outputs``, for terms that want them.
        """
        with watched(self.layers) as inputs:
            logits = self.network(images)
        # rounded numbers would not do for differences of variances or of neighbouring pixels
        with torch.autocast(images.device.type, enabled=False):
            chosen = logits.float().index_select(1, self.outputs)
            moments = Moments(*_moments(inputs)) if inputs else None
            seen = Seen(images.float(), chosen, labels, moments)
            return {name: weight * term(seen) for name, (weight, term) in self.terms.items()}


class FreeImages(nn.Module):
    """Images that are themselves what an inversion optimises.

    Args:
        start: float (N, C, H, W), noise or images, copied.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(start.detach().clone())

    def forward(self, index: Tensor | None = None) -> Tensor:
        """All images, or those at ``index``."""
        return self.images if index is None else self.images.index_select(0, index)


# ---------------------------------------------------------------------- terms


def content(temperature: float = 1.0) -> Term:
    """Cross-entropy of logits / temperature with the labels asked for, or the network's own choice.

    mean_i CE(o_i / temperature, y_i), y_i = argmax_c o_ic where no labels were given.
    """

    def term(seen: Seen) -> Tensor:
        labels = seen.logits.argmax(1) if seen.labels is None else seen.labels
        return F.cross_entropy(seen.logits / temperature, labels)

    return term


def diversity(seen: Seen) -> Tensor:
    """How unequally classes are met: 1 + sum_c p_c ln p_c / ln K, p = mean_i softmax(o_i).

    Between 0 (all alike) and 1 (one class only); 0 where there is but one class. A p_c that
    underflows to 0 adds 0 to the sum and to the gradient.
    """
    classes = seen.logits.shape[1]
    if classes == 1:
        return seen.logits.sum() * 0
    p = seen.logits.softmax(1).mean(0)
    # 0 ln 0 is no number, nor is its gradient; 0 times the log of the smallest normal number is 0
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    return 1 + (p * log_p).sum() / math.log(classes)


class Statistics:
    """Distance of the batch's statistics from those a network was normalised with.

    r_l = mean over channels of KL(N(m_r, v_r) || N(m_b, v_b))
        = mean[ln(sqrt v_b / sqrt v_r) - (1 - (v_r + (m_r - m_b)^2) / v_b) / 2];   (1/L) sum_l r_l

    m_b, v_b: mean and biased variance of what layer l gets; m_r, v_r: its running ones; 1e-8 is
    added to v_b and to v_r.

    Args:
        layers: Batch normalisations with running statistics, in the order they are watched.
    """

    def __init__(self, layers: Sequence[_BatchNorm]) -> None:
        means, variances, weights = [], [], []
        for layer in layers:
            mean, var = layer.running_mean, layer.running_var
            assert mean is not None
            assert var is not None
            means.append(mean.detach())
            variances.append(var.detach())
            weights.append(torch.full_like(mean, 1 / (len(layers) * len(mean))))
        self.mean, self.weight = torch.cat(means), torch.cat(weights)
        self.var = torch.cat(variances) + VARIANCE_EPS
        self.log_var = self.var.log()

    def __call__(self, seen: Seen) -> Tensor:
        """See the class."""
        assert seen.moments is not None
        var = seen.moments.var + VARIANCE_EPS
        moved = (self.mean - seen.moments.mean).square() + self.var
        # twice the divergence; the half is in the factor below
        twice = var.log() - self.log_var - 1 + moved / var
        return 0.5 * torch.dot(twice, self.weight)


class Smoothness:
    """Mean squared difference of an image and its blur: mean (x - g * x)^2.

    g: depthwise 5x5, separable, taps proportional to exp(-d^2 / 4) on each axis, normalised;
    borders are reflected. Written as two matrix products, which is the same.

    Args:
        shape: Height and width.
        device: Where the images are.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self.rows, self.columns = (blur_matrix(size).to(device) for size in shape)

    def __call__(self, seen: Seen) -> Tensor:
        """See the class."""
        x = seen.images
        return F.mse_loss(x, self.rows @ x @ self.columns.T)


def blur_taps() -> Tensor:
    """The five weights of the blur on one axis: 0.1117 0.2365 0.3036 0.2365 0.1117, float64."""
    taps = torch.exp(-torch.arange(-2.0, 3.0, dtype=torch.float64).square() / 4)
    return taps / taps.sum()


def blur_matrix(size: int) -> Tensor:
    """The blur of one axis with reflected borders, as a matrix: float32 (size, size)."""
    if size < 3:
        raise ValueError(f"a blur with reflected borders needs 3 pixels, not {size}")
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for offset, tap in zip(range(-2, 3), blur_taps(), strict=True):
            column = abs(row + offset)
            matrix[row, min(column, 2 * (size - 1) - column)] += tap
    return matrix.float()


# ---------------------------------------------------------------------- statistics of batches


def normalisations(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a network that keep running statistics."""
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what each layer gets, (B, C, ...) each, in the order of ``layers``."""
    inputs: dict[int, Tensor] = {}

    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[id(layer)] = args[0]

    found: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield found
        found += [inputs[id(layer)] for layer in layers]
    finally:
        for handle in handles:
            handle.remove()


def _moments(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    means, variances = zip(
        *(ChannelMoments.apply(x) for x in inputs),  # type: ignore[no-untyped-call]
        strict=True,
    )
    return torch.cat(means), torch.cat(variances)


class ChannelMoments(torch.autograd.Function):
    """Mean and biased variance over all axes but the second, with a one-pass backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, ...) to two of float32 (C,)."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        values = x if x.dtype.itemsize >= 4 else x.float()
        if x.device.type == "cpu":  # twenty times faster there than var_mean over several axes
            mean = values.mean(axes)
            var = (values - mean.view(_channels(x))).square_().mean(axes)
        else:
            var, mean = torch.var_mean(values, axes, correction=0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The mean's derivative is 1 / n, the variance's 2 (x - mean) / n."""
        x, mean = ctx.saved_tensors
        count, shape = x.numel() // x.shape[1], _channels(x)
        shift = torch.addcmul(grads[0], grads[1], mean, value=-2) / count
        grad = torch.addcmul(shift.view(shape), x, grads[1].view(shape), value=2 / count)
        return grad.to(x.dtype)


def _channels(x: Tensor) -> tuple[int, ...]:
    """The shape in which a value per channel is added to x."""
    return (1, -1, *(1,) * (x.dim() - 2))
