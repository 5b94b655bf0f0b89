"""Convolutional generators that make images from noise, in a network's normalised space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.errors import UserError

HIDDEN_EPS = 0.8
"""eps of the hidden batch normalisations: an old quirk (the number sits where eps goes)."""


class Generator(nn.Module):
    """Turns noise into images: a linear layer, then nearest upsampling and 3x3 convolutions.

    linear, BN, up; [conv w-w, BN, LReLU, up] as often as the size needs; conv w-64, BN, LReLU; conv
    64-C; tanh; BN without affine parameters. The last makes each channel zero-mean and
    unit-variance over a batch: images are as a network sees them, normalised, and nothing is
    clipped. Hidden batch normalisations have eps 0.8, the first and the last 1e-5; LeakyReLU 0.2.

    ============ ============ ================ ======= ===========================
    images       upsamplings  linear gives     width w parameters (latent 1000)
    ============ ============ ================ ======= ===========================
    up to 32     2            128 x (size/4)^2 128     8,423,939 at 32x32x3
    33 to 127    3            128 x (size/8)^2 128     8,571,779 at 64x64x3
    from 128     5            64 x (size/32)^2 64      3,326,275 at 224x224x3
    ============ ============ ================ ======= ===========================

    The three layouts are those of the code of arXiv 2106.09701 for 32, 64 and 224 pixels; that
    other sizes take the layout of their range is ours. Weights start as PyTorch's layers do.

    Args:
        shape: Channels, height, width of the images.
        latent: Length of the noise vector.

    Raises:
        UserError: Height or width cannot be halved as often as the layout has upsamplings.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int = 1000) -> None:
        super().__init__()
        channels, height, width = shape
        ups, features = layout(max(height, width))
        factor = 2**ups
        if height % factor or width % factor:
            raise UserError(
                "benchmark",
                f"a generator of images of {height}x{width} pixels needs sides divisible by "
                f"{factor}, for its {ups} upsamplings",
                "choose data of another size, or a method without generator",
            )
        self.latent = latent
        self.start = (features, height // factor, width // factor)
        self.linear = nn.Linear(latent, features * self.start[1] * self.start[2])
        body: list[nn.Module] = [nn.BatchNorm2d(features)]
        for fan_out in [features] * (ups - 1) + [64]:
            body += [
                UpsampledConv(features, fan_out, 3, padding=1),
                nn.BatchNorm2d(fan_out, eps=HIDDEN_EPS),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        body += [nn.Conv2d(64, channels, 3, padding=1), nn.Tanh()]
        self.body = nn.Sequential(*body, nn.BatchNorm2d(channels, affine=False))

    def forward(self, noise: Tensor) -> Tensor:
        """Turn noise (B, latent) from N(0, I) into images (B, C, H, W)."""
        return self.body(self.linear(noise).view(-1, *self.start))  # type: ignore[no-any-return]

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew, with numbers from the global generators."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
                layer.reset_parameters()


class UpsampledConv(nn.Conv2d):
    """Twice the size by nearest neighbour, then a 3x3 convolution with one pixel of zero padding.

    Both in one: a transposed convolution with stride 2, whose 4x4 kernel is the flipped 3x3 kernel
    convolved with 2x2 ones. The same up to rounding, with 16 products for every pixel of the input
    where there were 36 and no enlarged copy of it: 2.7 times faster on a CPU. Parameters are those
    of the 3x3 convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', 2 H, 2 W)."""
        flipped = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        rows = flipped[:, :, :-1] + flipped[:, :, 1:]
        kernel = (rows[..., :-1] + rows[..., 1:]).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


def layout(size: int) -> tuple[int, int]:
    """Number of upsamplings, and width of the hidden layers, for images of this size."""
    if size <= 32:
        return 2, 128
    return (3, 128) if size < 128 else (5, 64)
