"""Random changes of whole batches on the device, where each image has parameters of its own.

torchvision's functions draw one set of parameters per call, so these are a gather of our own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.datasets.crop import OriginalCrop, boxes, coins, draws, flip, resized_crop
from raycl.datasets.examples import Augment
from raycl.errors import UserError, nearest

PADDING = 4
BRIGHTNESS, CONTRAST = 63 / 255, 0.8
"""Largest distances from 1 of the factors of the colour jitter (code of arXiv 2106.09701)."""
HCL_FACTOR, HCL_HUE = 0.4, 0.1
"""Colour jitter of ``hcl``: largest distance of a factor from 1, and of a hue shift from 0."""
HCL_JITTERED, HCL_GREY, HCL_BLURRED = 0.8, 0.2, 0.5
"""Shares of images that ``hcl`` jitters, makes grey, and blurs."""
HCL_SIGMA = (0.1, 2.0)
"""Range of the standard deviation, in pixels, of the blur of ``hcl``."""
HCL_SHARP = 32
"""Images of at most this many pixels a side are not blurred by ``hcl``."""
TINY = 1e-9
"""Divisor in place of 0, for black and grey pixels; far below 1/255, the smallest other value."""


def augment(name: str, generator: torch.Generator) -> Augment | None:
    """Make the training augmentation that a sweep file names.

    Args:
        name: ``none``, ``flip`` (left-right with probability 1/2), ``crop_flip`` (4 pixels of
            zeros on each side, a random crop of the original size, then flip),
            ``jitter_crop_flip`` (brightness and contrast first), ``resized_crop_flip`` (a random
            part of the image, enlarged to its size, then flip), ``original_crop_flip`` (the same
            of the image as it is before the data set resizes it) or ``hcl`` (``crop_flip``, then
            colour jitter, grey and, for images over 32 pixels, blur).
        generator: Source of all randomness, on the device of the images.

    Returns:
        A function of uint8 (B, C, H, W) to the same; ``None`` for ``none``.
    """
    if name == "none":
        return None
    if name == "original_crop_flip":
        return OriginalCrop(generator)
    known = {
        "flip": flip,
        "crop_flip": crop_flip,
        "jitter_crop_flip": jitter_crop_flip,
        "resized_crop_flip": resized_crop_flip,
        "hcl": hcl,
    }
    if name not in known:
        raise UserError(
            "train.augment",
            f"unknown '{name}'",
            nearest(name, ["none", "original_crop_flip", *known]),
        )
    return lambda images: known[name](images, generator)


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by -4..4 pixels in both directions, zeros coming in, then ``flip``."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    shift = torch.randint(2 * PADDING + 1, (2, batch, 1), generator=generator, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(coins(images, generator).view(-1, 1), width - 1 - columns, columns)
    rows = shift[0] + torch.arange(height, device=images.device)
    source = rows.unsqueeze(2) * padded.shape[-1] + (shift[1] + columns).unsqueeze(1)
    source = source.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, source).view_as(images)


def jitter_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness and contrast of each image, in random order, then ``crop_flip``.

    Factors are uniform on 1 +- 63/255 and 1 +- 0.8, as in ``torchvision.transforms.ColorJitter``.
    """
    low, high = 1 - BRIGHTNESS, 1 + BRIGHTNESS
    brightness = _uniform(images, generator, low, high)
    contrast = _uniform(images, generator, 1 - CONTRAST, 1 + CONTRAST)
    return crop_flip(jitter(images, brightness, contrast, coins(images, generator)), generator)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, bright_first: Tensor) -> Tensor:
    """Change brightness and contrast as torchvision does for PIL images, each image by its factors.

    Grey values and their mean are rounded to whole numbers, blended values are cut to them, to the
    last bit of Pillow's. (torchvision's functions for tensors cut all three; the code of arXiv
    2106.09701 has PIL images.)

    Args:
        images: uint8 (B, C, H, W).
        brightness: Factors (B,).
        contrast: Factors (B,); towards the mean grey value of the image.
        bright_first: bool (B,), which of the two comes first.
    """
    factors = torch.stack([brightness.where(bright_first, 1), brightness.where(~bright_first, 1)])
    before, after = factors.view(2, -1, 1, 1, 1)  # a factor of 1 changes nothing
    pixels = images.float().mul_(before).clamp_(0, 255).floor_()
    mean = _mean(_grey(pixels) if images.shape[1] == 3 else pixels)
    pixels = pixels.sub_(mean).mul_(_per_image(contrast)).add_(mean).clamp_(0, 255).floor_()
    return pixels.mul_(after).clamp_(0, 255).to(torch.uint8)


def resized_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each image, enlarged to the image's size, then ``flip``.

    ``torchvision.transforms.RandomResizedCrop``, but for one thing: images are cut after they were
    read at their size (so from pixels of that size, and of images made square).
    """
    rows, columns = images.shape[-2:]
    parts = boxes(draws(len(images), generator), rows, columns)
    return flip(resized_crop(images, *parts), generator)


def hcl(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply the augmentation of HCL (CVPR 2023): crop and flip, colour jitter, grey, blur.

    After ``crop_flip`` an image is jittered with probability 0.8 (brightness, contrast and
    saturation factors uniform on 1 +- 0.4, a hue shift uniform on +- 0.1, in random order), made
    grey with probability 0.2 and, if its shorter side has more than 32 pixels, blurred with
    probability 0.5 (a standard deviation uniform on 0.1..2 pixels). Nothing is done to the hue, the
    saturation and the grey of images that do not have three channels.
    """
    images = crop_flip(images, generator)
    draws = torch.rand(12, len(images), generator=generator, device=images.device)
    jittered = draws[8] < HCL_JITTERED
    factors = 1 + HCL_FACTOR * (2 * draws[:3] - 1) * jittered
    hue = HCL_HUE * (2 * draws[3] - 1) * jittered
    images = colour_jitter(images, factors, hue, draws[4:8].argsort(0))
    images = greyscale(images, draws[9] < HCL_GREY)
    side = min(images.shape[-2:])
    if side <= HCL_SHARP:
        return images
    sigma = HCL_SIGMA[0] + (HCL_SIGMA[1] - HCL_SIGMA[0]) * draws[10]
    return gaussian_blur(images, sigma * (draws[11] < HCL_BLURRED), side // 20)


def colour_jitter(images: Tensor, factors: Tensor, hue: Tensor, places: Tensor) -> Tensor:
    """Jitter colours as torchvision's ``adjust_*`` do, with factors and order for each image.

    Brightness, contrast and saturation blend an image with black, with its mean grey value, and
    with the grey of each pixel. So any order is at most three blends, one change of hue, and at
    most three blends. All images go through all seven: a factor of 1 and a shift of 0 change
    nothing. Values are those of PIL images, which the code of HCL has; see ``jitter``.

    Args:
        images: uint8 (B, C, H, W).
        factors: Factors of brightness, contrast and saturation, (3, B).
        hue: Shift (B,), in turns of the colour circle.
        places: int64 (4, B), a permutation of 0..3 for each image: the places in the order of
            brightness, contrast, saturation and hue.
    """
    if images.shape[1] != 3:
        return jitter(images, factors[0], factors[1], places[0] < places[1])
    steps = torch.arange(6, device=images.device).view(-1, 1)
    before = steps < 3
    own = places[:3].unsqueeze(1) == steps - 2 * ~before
    own &= (places[:3] < places[3]).unsqueeze(1) == before
    blends = factors.unsqueeze(1).where(own, 1)  # three factors for each step, two of them 1
    pixels = images.float()
    for step in range(3):
        pixels = _blend(pixels, blends[:, step])
    pixels = _shift_hue(pixels, hue)
    for step in range(3, 6):
        pixels = _blend(pixels, blends[:, step])
    return pixels.to(torch.uint8)


def greyscale(images: Tensor, chosen: Tensor) -> Tensor:
    """Make some images grey in three equal channels, as torchvision does with PIL images.

    Args:
        images: uint8 (B, C, H, W); without three channels nothing is changed.
        chosen: bool (B,), which of them become grey.
    """
    if images.shape[1] != 3:
        return images
    pixels = images.float()
    return pixels.lerp_(_grey(pixels), _per_image(chosen.float())).to(torch.uint8)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur images as torchvision's ``gaussian_blur`` does, each with its own deviation.

    Args:
        images: uint8 (B, C, H, W).
        sigma: Standard deviations (B,), in pixels; an image with 0 stays as it is.
        reach: Pixels on each side that count; borders are reflected.
    """
    rows, columns = (_blur_matrices(sigma, reach, side) for side in images.shape[-2:])
    return (rows @ images.float() @ columns.mT).round_().to(torch.uint8)


def _blur_matrices(sigma: Tensor, reach: int, side: int) -> Tensor:
    """Matrices (B, 1, side, side) that blur the lines of an image."""
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    distances = offsets / sigma.clamp(min=TINY).view(-1, 1)
    weights = distances.square_().div_(-2).softmax(1)
    line = torch.arange(side, device=sigma.device)
    source = (line.view(-1, 1) + offsets).abs_()
    source = side - 1 - (side - 1 - source).abs_()  # reflected at both ends
    taps = (source.T.unsqueeze(2) == line).float()
    return (weights @ taps.flatten(1)).view(-1, 1, side, side)


def _grey(pixels: Tensor) -> Tensor:
    """Grey values (B, 1, H, W) of colours, rounded to whole numbers as Pillow does."""
    red, green, blue = pixels.unbind(1)
    grey = (19595 * red).add_(green, alpha=38470).add_(blue, alpha=7471)  # below 2^24: exact
    return grey.add_(2**15).mul_(2**-16).floor_().unsqueeze(1)


def _mean(grey: Tensor) -> Tensor:
    """Mean grey value of each image (B, 1, 1, 1), rounded half up to a whole number."""
    return grey.mean((1, 2, 3), keepdim=True).add_(0.5).floor_()


def _blend(pixels: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast or saturation of each image, in place.

    Args:
        pixels: Whole numbers (B, 3, H, W).
        factors: Factors of the three, (3, B); at most one of them is not 1.
    """
    grey = _grey(pixels)
    darkens, _, saturates = (_per_image(chosen) for chosen in (factors != 1).float())
    reference = _mean(grey).lerp(grey, saturates).mul_(1 - darkens)  # with black: nothing
    pixels = pixels.sub_(reference).mul_(_per_image(factors.prod(0))).add_(reference)
    return pixels.clamp_(0, 255).floor_()


def _shift_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue as torchvision's ``adjust_hue`` does for PIL images, in their 256 steps.

    Args:
        pixels: Whole numbers (B, 3, H, W).
        shift: Turns of the colour circle (B,); with 0 an image keeps its colours.
    """
    hue, saturation, value = _to_hsv(pixels)
    steps = (shift * 255).trunc_().view(-1, 1, 1)
    shifted = _to_rgb((hue + steps).remainder_(256).div_(255), saturation.div_(255), value)
    return pixels.lerp_(shifted.round_(), _per_image((shift != 0).float()))


def _to_hsv(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value (B, H, W) of colours (B, 3, H, W), whole numbers of 0..255.

    Quotients that are cut are multiplied as float64, as Pillow does. Choices are interpolations
    with a weight of 0 or 1, which are exact: several times as fast as ``torch.where`` on a CPU.
    """
    red, green, blue = colours.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    saturation = spread / value.clamp(min=TINY)
    lack = (value.unsqueeze(1) - colours).div_(spread.clamp_(min=TINY).unsqueeze(1))
    red, green, blue = lack.unbind(1)  # 0 where that channel is the highest, else up to 1
    hue = (red + 2).sub_(blue).lerp_((green + 4).sub_(red), green.ceil())
    hue = (blue - green).lerp_(hue, red.ceil()).double().div_(6).add_(1)
    hue = hue.sub_(hue.floor()).float()
    return _cut(hue), _cut(saturation), value


def _cut(shares: Tensor) -> Tensor:
    return shares.double().mul_(255).floor_().float()


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours (B, 3, H, W) of hue, saturation and value; undoes ``_to_hsv``."""
    angle = 6 * hue
    sixth = angle.floor()
    part = (angle - sixth).mul_(saturation)
    rest = 1 - saturation
    falling, rising, low = (1 - part) * value, (part + rest).mul_(value), rest * value
    half = sixth.mul_(0.5)
    middle = rising.lerp_(falling, half.sub_(half.floor()).mul_(2))  # falling in odd sixths
    channels = []
    for centre, near, far in ((3, low, value), (2, value, low), (4, value, low)):
        distance = (angle - centre).abs_().floor_()  # near below 1, far from 2 on
        inner = near.lerp(middle, distance.clamp(max=1))
        channels.append(inner.lerp_(far, distance.sub_(1).clamp_(0, 1)))
    return torch.stack(channels, 1)


def _per_image(values: Tensor) -> Tensor:
    """Reshape values (B,) to (B, 1, 1, 1), so that they spread over images."""
    return values.view(-1, 1, 1, 1)


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    drawn = torch.rand(len(images), generator=generator, device=images.device)
    return low + (high - low) * drawn
