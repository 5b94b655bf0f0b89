"""Inversion of a network: makes images that it takes for images of what it has learnt.

One engine for generators and for free images. The caller makes the images, from a generator or as
``FreeImages``, and an optimiser that steps what they came from; ``Inversion`` runs the network on
them and adds up the terms. A term is a function of what was ``Seen``, so a method may bring its
own.

The statistics of batches are taken from what layers get, or give, by hooks that last as long as one
call.
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

from raycl.nn.precision import exactly

VARIANCE_EPS = 1e-8
"""Number added to both variances of the statistics term, once."""


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of every channel of every watched layer, one behind the other.

    Attributes:
        mean: float32 (P,), P the channels of all layers.
        var: float32 (P,), divided by the number of values.
        sizes: Channels of each layer; their sum is P.
    """

    mean: Tensor
    var: Tensor
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seen:
    """The values that the terms of an inversion may look at.

    Attributes:
        images: float32 (B, C, H, W), normalised.
        logits: float32 (B, K), of the outputs that take part.
        labels: int64 (B,), positions in ``logits`` that were asked for; ``None``: none were.
        moments: Moments of the watched layers; ``None`` if there are none.
    """

    images: Tensor
    logits: Tensor
    labels: Tensor | None
    moments: Moments | None


Term = Callable[[Seen], Tensor]
"""A term of the objective: from the values seen to a scalar."""


class Inversion:
    """The objective of an inversion: a weighted sum of terms, each of which is named.

    Args:
        network: Images to logits. In eval mode, without parameters that require gradient, and left
            as it is.
        outputs: int64 (K,), the logits that take part.
        terms: Name to weight and term. A term of weight 0 is computed, for the log.
        layers: Layers that are watched; see ``normalisations`` and ``convolutions``.
        outputs_watched: Whether moments are those of what layers give, instead of what they get.
    """

    def __init__(
        self,
        network: nn.Module,
        outputs: Tensor,
        terms: Mapping[str, tuple[float, Term]],
        layers: Sequence[nn.Module] = (),
        outputs_watched: bool = False,
    ) -> None:
        self.network, self.outputs, self.terms = network, outputs, dict(terms)
        self.layers, self.outputs_watched = tuple(layers), outputs_watched

    def losses(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms; their sum is to be minimised.

        Args:
            images: (B, C, H, W), normalised.
            labels: int64 (B,), positions in ``outputs``, for terms that want them.
        """
        with watched(self.layers, outputs=self.outputs_watched) as maps:
            logits = self.network(images)
        # rounded numbers would not do for differences of variances or of neighbouring pixels
        with exactly(images.device):
            chosen = logits.float().index_select(1, self.outputs)
            moments = moments_of(maps) if maps else None
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


def content(temperature: float = 1.0, smoothing: float = 0.0) -> Term:
    """Cross-entropy of logits / temperature with the labels asked for, or the network's own choice.

    mean_i CE(o_i / temperature, y_i), y_i = argmax_c o_ic where no labels were given; with
    ``smoothing`` eps the target is (1 - eps) one-hot + eps / K.
    """

    def term(seen: Seen) -> Tensor:
        labels = seen.logits.argmax(1) if seen.labels is None else seen.labels
        return F.cross_entropy(seen.logits / temperature, labels, label_smoothing=smoothing)

    return term


def diversity(seen: Seen) -> Tensor:
    """Inequality of the classes met: 1 + sum_c p_c ln p_c / ln K, p = mean_i softmax(o_i).

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
        target = running_moments(layers)
        self.mean, self.var = target.mean, target.var + VARIANCE_EPS
        self.weight = torch.cat(
            [target.mean.new_full((n,), 1 / (len(layers) * n)) for n in target.sizes]
        )
        self.log_var = self.var.log()

    def __call__(self, seen: Seen) -> Tensor:
        """See the class."""
        assert seen.moments is not None
        var = seen.moments.var + VARIANCE_EPS
        moved = (self.mean - seen.moments.mean).square() + self.var
        # twice the divergence; the half is in the factor below
        twice = var.log() - self.log_var - 1 + moved / var
        return 0.5 * torch.dot(twice, self.weight)


class LayerNorms:
    """Distance of the batch's statistics from targets, as one norm for each layer.

    sum_l || v_l - var_l ||_2 + || m_l - mean_l ||_2

    mean_l, var_l: mean and biased variance of layer l over the batch; m_l, v_l: the targets. The
    sum is over layers, so that deeper networks weigh more. (The code of arXiv 2306.08593.)

    Args:
        target: Moments that the watched layers should have, in their order.
    """

    def __init__(self, target: Moments) -> None:
        self.target = target

    def __call__(self, seen: Seen) -> Tensor:
        """See the class. At a distance of exactly 0 the gradient is 0."""
        assert seen.moments is not None
        norms = [
            torch.linalg.vector_norm(layer)
            for part in (seen.moments.var - self.target.var, seen.moments.mean - self.target.mean)
            for layer in torch.split(part, list(self.target.sizes))
        ]
        return torch.stack(norms).sum()


def variation(seen: Seen) -> Tensor:
    """Total variation with diagonals: four norms, each over the whole batch.

    || x[.., j] - x[.., j+1] || + || x[i] - x[i+1] || + || x[i+1, j] - x[i, j+1] ||
    + || x[i, j] - x[i+1, j+1] ||, neither squared nor averaged, so that the pull on one image falls
    with the square root of how many there are. (The code of arXiv 2306.08593.)
    """
    norms: Tensor = DiagonalVariation.apply(seen.images)  # type: ignore[no-untyped-call]
    return norms


class DiagonalVariation(torch.autograd.Function):
    """Function behind ``variation``; makes the gradient on the way, in a third of the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a scalar."""
        grad, norms = torch.zeros_like(x), []
        left, right = (..., slice(None, -1)), (..., slice(1, None))
        upper, lower = (..., slice(None, -1), slice(None)), (..., slice(1, None), slice(None))
        for first, second in (
            (left, right),
            (upper, lower),
            ((..., slice(1, None), slice(None, -1)), (..., slice(None, -1), slice(1, None))),
            ((..., slice(None, -1), slice(None, -1)), (..., slice(1, None), slice(1, None))),
        ):
            difference = x[first] - x[second]
            norm = torch.linalg.vector_norm(difference)
            # a difference that is 0 everywhere has the gradient 0
            unit = difference.mul_(torch.where(norm > 0, 1 / norm, 0))
            grad[first].add_(unit)
            grad[second].sub_(unit)
            norms.append(norm)
        ctx.save_for_backward(grad)
        return torch.stack(norms).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Each norm's derivative is the difference over the norm."""
        grad: Tensor = ctx.saved_tensors[0]
        return grad * grads[0]


def magnitude(seen: Seen) -> Tensor:
    """Euclidean norm of the whole batch of images, neither squared nor averaged."""
    return torch.linalg.vector_norm(seen.images)  # type: ignore[no-any-return]


class Smoothness:
    """Mean squared difference of an image and its blur: mean (x - g * x)^2.

    g: depthwise 5x5, separable, taps proportional to exp(-d^2 / 4) on each axis, normalised;
    borders are reflected. Written as two matrix products, which is the same.

    Args:
        shape: Height and width.
        device: Device of the images.
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


def running_moments(layers: Sequence[_BatchNorm]) -> Moments:
    """The running statistics of normalisations, copied."""
    means = [layer.running_mean for layer in layers if layer.running_mean is not None]
    variances = [layer.running_var for layer in layers if layer.running_var is not None]
    sizes = tuple(len(mean) for mean in means)
    return Moments(torch.cat(means).detach(), torch.cat(variances).detach(), sizes)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """The two-dimensional convolutions of a network."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


@contextmanager
def watched(layers: Sequence[nn.Module], *, outputs: bool = False) -> Iterator[list[Tensor]]:
    """Collect what each layer gets, or gives, (B, C, ...) each, in the order of ``layers``."""
    seen: dict[int, Tensor] = {}

    def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
        seen[id(layer)] = args[0]

    def after(layer: nn.Module, args: tuple[Any, ...], given: Tensor) -> None:
        seen[id(layer)] = given.clone()  # the next layer may write into it

    collected: list[Tensor] = []
    handles = [
        layer.register_forward_hook(after) if outputs else layer.register_forward_pre_hook(before)
        for layer in layers
    ]
    try:
        yield collected
        collected += [seen[id(layer)] for layer in layers]
    finally:
        for handle in handles:
            handle.remove()


def moments_of(maps: Sequence[Tensor]) -> Moments:
    """Moments of the channels of maps (B, C, ...), one behind the other."""
    means, variances = zip(
        *(ChannelMoments.apply(x) for x in maps),  # type: ignore[no-untyped-call]
        strict=True,
    )
    return Moments(torch.cat(means), torch.cat(variances), tuple(x.shape[1] for x in maps))


class ChannelMoments(torch.autograd.Function):
    """Mean and biased variance over all axes but the second, with a one-pass backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, ...) to two of float32 (C,)."""
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
