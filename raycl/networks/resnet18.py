"""The 18-layer residual network in the form BLIP uses on miniImageNet."""

from __future__ import annotations

import itertools
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.networks.base import Backbone, NetworkConfig

WINDOW = 4
"""Side of the pooling window, pixels of the last map."""


class Block(nn.Module):
    """conv3-BN-ReLU-conv3-BN, plus the input, ReLU.

    Where the shape changes, the input goes through a 1x1 convolution and BN.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out, affine=False)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out, affine=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            self.shortcut.append(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(fan_out, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in, H, W) to (B, fan_out, ceil(H / stride), ceil(W / stride))."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet18(Backbone):
    """ResNet-18 with a 3x3 stem of stride 2, no first max pooling, and BN without parameters.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, as
    arXiv 2105.04444 (BLIP) uses it on miniImageNet: four stages of two blocks, the last three of
    which halve the map, with int(64 width), int(128 width), int(256 width) and int(512 width)
    channels, rounded down; no biases. With ``width: 1.5`` it has 25,106,976 parameters, and
    25,183,876 with twenty heads of 5; with ``width: 1`` 11,159,232 and 11,210,532. Initial weights
    are PyTorch's.

    ``pool: window`` averages over windows of 4x4. On the 6x6 map of 84x84 images there is one, in
    the upper left corner; two rows and two columns are ignored, as in the published code.
    """

    class Config(NetworkConfig):
        """Options of the network ``resnet18``."""

        width: float = Field(1.0, ge=1 / 64, description="multiplies the channels 64 to 512")
        pool: Literal["window", "mean"] = Field(
            "window", description="pooling of the last map: windows of 4x4, or the mean over all"
        )

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = input_shape
        height, width = (-(-side // 16) for side in sides)  # halved four times, rounded up
        windows = (height // WINDOW) * (width // WINDOW)
        if config.pool == "window" and not windows:
            raise UserError(
                "network",
                f"images of {sides[0]}x{sides[1]} end in a map of {height}x{width}, smaller than "
                f"the pooling window of {WINDOW}x{WINDOW}",
                "set pool: mean",
            )
        self.pool = config.pool
        first, *stages = (int(base * config.width) for base in (64, 128, 256, 512))
        self.stem = nn.Sequential(
            nn.Conv2d(channels, first, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(first, affine=False),
            nn.ReLU(),
        )
        blocks = [Block(first, first, 1), Block(first, first, 1)]
        for fan_in, fan_out in itertools.pairwise((first, *stages)):
            blocks += [Block(fan_in, fan_out, 2), Block(fan_out, fan_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.num_features = stages[-1] * (windows if config.pool == "window" else 1)

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        out = self.blocks(self.stem(images))
        if self.pool == "window":
            return F.avg_pool2d(out, WINDOW).flatten(1)
        # not AdaptiveAvgPool2d, whose backward pass on CUDA is not deterministic
        return out.mean((2, 3))  # type: ignore[no-any-return]
