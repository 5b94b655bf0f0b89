"""The augmentation of HCL: every stage is torchvision's, with parameters of each image."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as tv

from raycl.datasets import augment
from raycl.datasets.augment import colour_jitter, crop_flip, gaussian_blur, greyscale

OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
ORDERS = torch.tensor(list(permutations(range(4)))).T
"""Places of the four operations, (4, 24)."""
RARE = 0.001
"""Share of values that may differ: a value just at a whole number can be cut to either side of it.
One step of the hue is worth some levels of a colour."""


def images(batch: int, channels: int = 3, height: int = 32, width: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, height, width or height)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, low: float = 0.6, high: float = 1.4, seed: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=seeded(seed))


def wrong(found: Tensor, expected: Tensor) -> float:
    """Share of values that differ."""
    return float((found != expected).float().mean())


def jittered(image: Tensor, parameters: list[float], places: list[int]) -> Tensor:
    """One image (C, H, W) through torchvision's functions for PIL images in an order."""
    picture = tv.to_pil_image(image)
    for operation in sorted(range(len(places)), key=lambda operation: places[operation]):
        picture = OPERATIONS[operation](picture, parameters[operation])
    return tv.pil_to_tensor(picture)


# ------------------------------------------------------------------ every stage


@pytest.mark.parametrize("operation", range(4))
def test_one_operation_is_torchvisions(operation: int) -> None:
    x = images(48)
    factors, hue = torch.ones(3, 48), torch.zeros(48)
    drawn = uniform(48) if operation < 3 else uniform(48, low=-0.5, high=0.5)
    (factors[operation] if operation < 3 else hue).copy_(drawn)
    y = colour_jitter(x, factors, hue, ORDERS.repeat(1, 2))
    assert y.dtype == torch.uint8
    pairs = zip((tv.to_pil_image(image) for image in x), drawn.tolist(), strict=True)
    expected = torch.stack([tv.pil_to_tensor(OPERATIONS[operation](*pair)) for pair in pairs])
    if operation < 3:
        assert torch.equal(y, expected)
    assert wrong(y, expected) < RARE
    assert wrong(y, x) > 0.5


def test_every_order_is_torchvisions() -> None:
    x = images(24 * 4)
    parameters = torch.cat([uniform(3, 96), uniform(1, 96, low=-0.1, high=0.1)])
    places = ORDERS.repeat(1, 4)
    y = colour_jitter(x, parameters[:3], parameters[3], places)
    differ = 0.0
    for i, image in enumerate(x):
        own, order = parameters[:, i].tolist(), places[:, i].tolist()
        differ += wrong(y[i], jittered(image, own, order)) / len(x)
        others = [jittered(image, own, other) for other in ORDERS.T.tolist() if other != order]
        assert sum(wrong(y[i], other) for other in others) / 23 > 0.1
    assert differ < RARE


def test_factors_of_one_and_no_shift_change_no_colour() -> None:
    levels = torch.tensor([0, 1, 2, 3, 50, 84, 85, 86, 127, 128, 170, 171, 200, 253, 254, 255])
    colours = torch.cartesian_prod(levels, levels, levels).to(torch.uint8).T.reshape(1, 3, 64, 64)
    x = torch.cat([colours.expand(24, -1, -1, -1), images(24, height=64)])
    y = colour_jitter(x, torch.ones(3, 48), torch.zeros(48), ORDERS.repeat(1, 2))
    assert torch.equal(y, x)


def test_hues_of_colours_without_one_and_of_black() -> None:
    x = torch.tensor([[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0]], dtype=torch.uint8)
    x = x.view(4, 3, 1, 1)
    y = colour_jitter(x, torch.ones(3, 4), torch.full((4,), 1 / 3), ORDERS[:, :4])
    assert y.flatten(1).tolist() == [[0, 0, 0], [255, 255, 255], [7, 7, 7], [0, 255, 0]]


def test_grey_is_torchvisions() -> None:
    x = images(16)
    chosen = torch.arange(16) % 3 == 0
    y = greyscale(x, chosen)
    assert torch.equal(y[~chosen], x[~chosen])
    grey = [tv.to_grayscale(tv.to_pil_image(image), 3) for image in x[chosen]]
    assert torch.equal(y[chosen], torch.stack([tv.pil_to_tensor(image) for image in grey]))


@pytest.mark.parametrize("height, width", [(64, 64), (40, 40), (36, 90)])
def test_blur_is_torchvisions(height: int, width: int) -> None:
    x, reach = images(16, 3, height, width), height // 20
    sigma = uniform(16, low=0.1, high=2)
    sigma[0] = 0
    y = gaussian_blur(x, sigma, reach)
    assert y.dtype == torch.uint8
    assert torch.equal(y[0], x[0])
    for image, s, found in zip(x[1:], sigma[1:].tolist(), y[1:], strict=True):
        expected = tv.gaussian_blur(image, [2 * reach + 1] * 2, [s, s])
        assert (found.int() - expected.int()).abs().max() <= 1  # summed in another order
        assert wrong(found, expected) < RARE


def test_one_channel_has_brightness_and_contrast_only() -> None:
    x = images(24, 1, 28)
    factors = uniform(3, 24)
    y = colour_jitter(x, factors, uniform(24, low=-0.1, high=0.1), ORDERS)
    for i, image in enumerate(x):
        assert torch.equal(y[i], jittered(image, factors[:2, i].tolist(), ORDERS[:2, i].tolist()))
    assert torch.equal(greyscale(x, torch.ones(24, dtype=torch.bool)), x)


# ------------------------------------------------------------------ all together


class Spy:
    """Records the arguments of the stages, which do their work all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, tuple[Any, ...]] = {}
        for stage in (crop_flip, colour_jitter, greyscale, gaussian_blur):
            monkeypatch.setitem(augment.__globals__, stage.__name__, self.watch(stage))

    def watch(self, stage: Any) -> Any:
        def watched(*arguments: Any) -> Tensor:
            self.calls[stage.__name__] = arguments
            return stage(*arguments)  # type: ignore[no-any-return]

        return watched


@pytest.mark.parametrize("channels, side", [(1, 28), (3, 32), (3, 64)])
def test_the_stages_follow_one_another(
    monkeypatch: pytest.MonkeyPatch, channels: int, side: int
) -> None:
    x = images(32, channels, side)
    spy = Spy(monkeypatch)
    y = augment("hcl", seeded())(x)
    assert y.shape == x.shape
    assert y.dtype == torch.uint8
    start, factors, hue, places = spy.calls["colour_jitter"]
    assert torch.equal(start, crop_flip(x, seeded()))
    coloured, grey = spy.calls["greyscale"]
    assert torch.equal(coloured, colour_jitter(start, factors, hue, places))
    expected = greyscale(coloured, grey)
    assert list(spy.calls)[3:] == (["gaussian_blur"] if side == 64 else [])
    if side == 64:
        sharp, sigma, reach = spy.calls["gaussian_blur"]
        assert reach == 3
        assert torch.equal(sharp, expected)
        expected = gaussian_blur(sharp, sigma, reach)
    assert torch.equal(y, expected)
    assert not torch.equal(y, start)


@pytest.mark.parametrize("side, reach", [(32, None), (33, 1), (64, 3), (96, 4)])
def test_only_larger_images_are_blurred(
    monkeypatch: pytest.MonkeyPatch, side: int, reach: int | None
) -> None:
    spy = Spy(monkeypatch)
    augment("hcl", seeded())(images(2, 3, side, 100))
    assert spy.calls.get("gaussian_blur", (None,))[-1] == reach


def test_probabilities_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    spy, count = Spy(monkeypatch), 8000
    x = torch.ones(count, 1, 33, 33, dtype=torch.uint8)
    x[..., 16:] = 2  # the brighter side tells a flip, even where a crop has cut four columns off it
    augment("hcl", seeded())(x)
    start, factors, hue, places = spy.calls["colour_jitter"]
    grey, sigma = spy.calls["greyscale"][1], spy.calls["gaussian_blur"][1]
    changed = hue != 0
    assert (factors[:, ~changed] == 1).all()
    for share, probability in (
        (changed, 0.8),
        (grey, 0.2),
        (grey[changed], 0.2),
        (sigma > 0, 0.5),
        ((sigma > 0)[grey], 0.5),
        (start[:, 0, 16, :10].sum(1) > start[:, 0, 16, -10:].sum(1), 0.5),
    ):
        error = (probability * (1 - probability) / len(share)) ** 0.5
        assert float(share.float().mean()) == pytest.approx(probability, abs=4 * error)
    for values, centre, spread in (
        *((row[changed], 1, 0.4) for row in factors),
        (hue[changed], 0, 0.1),
        (sigma[sigma > 0], 1.05, 0.95),
    ):
        inside = (values - centre) / spread
        assert inside.abs().max() <= 1 + 1e-6
        assert inside.abs().max() > 0.995
        assert abs(float(inside.mean())) < 0.03
        assert float(inside.square().mean()) == pytest.approx(1 / 3, abs=0.02)
    _, orders = torch.unique(places, dim=1, return_counts=True)
    assert len(orders) == 24
    statistic = float(((orders - count / 24) ** 2 / (count / 24)).sum())
    assert statistic < 50  # chi-squared with 23 degrees of freedom: p > 0.0005


@pytest.mark.parametrize("channels, side", [(1, 28), (3, 32), (3, 64)])
def test_the_generator_decides_and_a_batch_of_one(channels: int, side: int) -> None:
    x = images(16, channels, side)
    before, rng = x.clone(), torch.random.get_rng_state()
    first, again = augment("hcl", seeded(1)), augment("hcl", seeded(1))
    a, b = first(x), first(x)
    assert torch.equal(a, again(x))
    assert torch.equal(b, again(x))
    assert not torch.equal(a, b)
    assert torch.equal(x, before)
    assert torch.equal(rng, torch.random.get_rng_state())
    assert augment("hcl", seeded())(x[:1]).shape == (1, channels, side, side)


class Operations(TorchDispatchMode):
    """Records the names of all operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    change, x = augment("hcl", seeded()), images(4, 3, 64)
    with Operations() as operations:
        change(x)
    assert "gather" in operations.names
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "index", "is_nonzero", "equal"}
    assert not operations.names & waiting
    assert "lift_fresh" not in operations.names  # a constant that would be copied to the device
