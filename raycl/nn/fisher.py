"""The diagonal of the Fisher information, from per-example gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

CHUNK_ELEMENTS = 2**24  # floats that a temporary of several examples may take: 64 MiB

Calls = dict[nn.Module, list[tuple[Tensor, Tensor]]]
"""Record of a layer: input and output of each call."""


def squared_gradients(
    network: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor, outputs: Tensor
) -> Tensor:
    """sum_n (d log p(y_n | x_n) / d theta)^2, elementwise.

    With x_n the input and g_n the gradient at the output of a linear layer, the sum is
    (G^2)^T (X^2) for its weight: one matrix product, and no gradient of a single example is ever
    formed. In a convolution, as in a linear layer over tokens, positions of one example add up
    before they are squared: sum_n (G_n U_n^T)^2 with U_n the unfolded input, a few examples at a
    time. Other parameters, and layers that are called more than once, go through ``torch.func``.

    Args:
        network: Images to logits (B, num_outputs), in eval mode: examples must not mix.
        names: Names of those of its parameters that are theta.
        images: (B, C, H, W).
        labels: int64 (B,), positions in ``outputs``.
        outputs: int64 (K,), the outputs of the softmax.

    Returns:
        (P,): the parameters in the order of ``names``, flattened and concatenated.
    """
    return _squared_gradients(network, names, images, lambda _: labels, outputs)


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
        names: Names of those of its parameters that are theta.
        batches: Images (B, C, H, W), all of them counted alike.
        outputs: int64 (K,), the outputs of the softmax.
        generator: CPU generator that draws the labels.

    Returns:
        (P,), as ``squared_gradients``.

    Raises:
        ValueError: No images, or logits that are not finite.
    """

    def sample(logits: Tensor) -> Tensor:
        p = F.softmax(logits, dim=1).cpu()
        if not p.isfinite().all():
            raise ValueError("logits are not finite: the network has diverged")
        return torch.multinomial(p, 1, generator=generator).squeeze(1).to(logits.device)

    total, count = torch.zeros(()), 0
    for images in batches:
        squares = _squared_gradients(network, names, images, sample, outputs)
        total = squares if count == 0 else total.add_(squares)
        count += len(images)
    if count == 0:
        raise ValueError("no images to take the Fisher information from")
    return total.div_(count)


def _squared_gradients(
    network: nn.Module,
    names: Sequence[str],
    images: Tensor,
    draw: Callable[[Tensor], Tensor],
    outputs: Tensor,
) -> Tensor:
    """See ``squared_gradients``; here labels depend on the logits (B, K)."""
    with torch.enable_grad(), _recorded(network) as calls:
        z = network(images)[:, outputs]
        labels = draw(z.detach())
        loss = F.cross_entropy(z, labels, reduction="sum")
    parts = _closed_forms(network, names, calls, loss, len(images))
    rest = [name for name in names if name not in parts]
    if rest:
        parts |= _per_example(network, rest, images, labels, outputs)
    return torch.cat([parts[name].flatten() for name in names])


@contextmanager
def _recorded(network: nn.Module) -> Iterator[Calls]:
    """Record input and output of the layers that have a closed form."""
    calls: Calls = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:  # nothing before it is trained, nor is the layer
            output.requires_grad_()
        calls.setdefault(layer, []).append((inputs[0].detach(), output))
        return output.clone()  # so that an activation in place leaves the noted one as it is

    layers = [m for m in network.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _closed_forms(
    network: nn.Module, names: Sequence[str], calls: Calls, loss: Tensor, count: int
) -> dict[str, Tensor]:
    """The sums of the parameters that have a closed form, by name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, attribute))
    found: dict[str, tuple[nn.Module, str]] = {}
    parameters = dict(network.named_parameters())
    for name in names:
        (layer, attribute), *more = owners[id(parameters[name])]
        if not more and len(calls.get(layer, ())) == 1:
            seen, _ = calls[layer][0]
            if _has_closed_form(layer, seen, count):
                found[name] = (layer, attribute)
    layers = list(dict.fromkeys(layer for layer, _ in found.values()))
    if not layers:
        return {}
    watched = [calls[layer][0][1] for layer in layers]
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, watched, allow_unused=True)
    by_layer = dict(zip(layers, gradients, strict=True))
    sums: dict[str, Tensor] = {}
    for name, (layer, attribute) in found.items():
        g = by_layer[layer]
        if g is None:
            sums[name] = torch.zeros_like(parameters[name])
        elif attribute == "bias":
            axes = {2: (), 3: (1,), 4: (2, 3)}[g.ndim]
            sums[name] = (g.sum(axes) if axes else g).square().sum(0)
        else:
            sums[name] = _of_weight(layer, calls[layer][0][0], g)
    return sums


def _has_closed_form(layer: nn.Module, seen: Tensor, count: int) -> bool:
    """Whether the input of a layer has one entry per example, in its first dimension."""
    if len(seen) != count:
        return False
    if isinstance(layer, nn.Conv2d):
        return seen.ndim == 4 and layer.padding_mode == "zeros" and layer.padding != "same"
    return seen.ndim == 2 or (seen.ndim == 3 and seen.shape[1] != count)  # else which is it?


def _of_weight(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """The sum for a weight, from the layer's input and the gradient at its output."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if g.ndim == 2:
        return g.square().t() @ x.square()
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    total = weight.new_zeros(groups, len(weight) // groups, weight[0].numel())
    positions = g[0].numel() // len(weight)
    chunk = max(1, CHUNK_ELEMENTS // max(weight.numel(), total.shape[2] * groups * positions))
    for x_n, g_n in zip(torch.split(x, chunk), torch.split(g, chunk), strict=True):
        if isinstance(layer, nn.Conv2d):
            padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
            u = F.unfold(x_n, layer.kernel_size, layer.dilation, padding, layer.stride)
            g_n = g_n.flatten(2)
        else:
            u, g_n = x_n.mT.contiguous(), g_n.mT.contiguous()
        u, g_n = (part.view(len(x_n), groups, -1, part.shape[2]) for part in (u, g_n))
        total += torch.matmul(g_n, u.transpose(2, 3)).square_().sum(0)
    return total.view_as(weight)


def _per_example(
    network: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor, outputs: Tensor
) -> dict[str, Tensor]:
    """The sums of any parameters, from gradients of single examples."""
    network = copy.deepcopy(network)  # functional_call does not put back a module with two names
    fixed = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    fixed = {name: value.detach() for name, value in fixed.items()}
    theta = {name: fixed.pop(name) for name in names}

    def loss(theta: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        z = functional_call(network, {**fixed, **theta}, (image.unsqueeze(0),))
        return F.cross_entropy(z[:, outputs], label.unsqueeze(0))

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))
    chunk = max(1, CHUNK_ELEMENTS // sum(value.numel() for value in theta.values()))
    total = {name: torch.zeros_like(value) for name, value in theta.items()}
    for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True):
        for name, gradients in per_example(theta, x, y).items():
            total[name] += gradients.square().sum(0)
    return total
