"""Networks for small images without residual blocks: LeNet, AlexNet, VGG-16 and Inception."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of each convolution of VGG-16; a max pooling follows each group."""

INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Widths of each ``InceptionModule``; a max pooling separates the groups."""


class GlobalMean(nn.Module):
    """The mean of every channel of a map.

    Not AdaptiveAvgPool2d, whose backward pass on CUDA is not deterministic.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Average a map (B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


class InceptionModule(nn.Module):
    """Four branches side by side, their channels concatenated.

    The branches are a 1x1 convolution; 1x1 then 3x3; 1x1 then 3x3 twice, which sees 5x5 pixels; and
    3x3 max pooling then 1x1. None changes the size of the map.
    """

    def __init__(self, fan_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        self.branches = nn.ModuleList(
            [
                conv_bn(fan_in, one, 1),
                nn.Sequential(conv_bn(fan_in, before_three, 1), conv_bn(before_three, three, 3)),
                nn.Sequential(
                    conv_bn(fan_in, before_five, 1),
                    conv_bn(before_five, five, 3),
                    conv_bn(five, five, 3),
                ),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_bn(fan_in, pooled, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in, H, W) to (B, sum of the four widths, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def conv_bn(fan_in: int, fan_out: int, kernel: int) -> nn.Sequential:
    """Convolution with a bias, BN and ReLU; the size of the map stays."""
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2),
        nn.BatchNorm2d(fan_out),
        nn.ReLU(),
    )


def lenet(shape: Shape) -> nn.Module:
    """LeNet with ReLU and max pooling: 84 features."""
    channels, *sides = shape
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(16 * height * width, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
    )


def alexnet(shape: Shape) -> nn.Module:
    """AlexNet whose last map is 2x2: 4096 features."""
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 64, 3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Dropout(0.5), nn.Linear(1024, 4096), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU()),
    )


def vgg16(shape: Shape) -> nn.Module:
    """VGG-16 (configuration D) with BN, whose last map is 1x1: 512 features."""
    layers: list[nn.Module] = []
    fan_in = shape[0]
    for group in VGG16:
        for fan_out in group:
            layers.append(conv_bn(fan_in, fan_out, 3))
            fan_in = fan_out
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(
        *layers,
        nn.Flatten(),
        *(nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU()),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(2 / (9 * module.out_channels)) ** 0.5)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # which they all have
    return network


def inception(shape: Shape) -> nn.Module:
    """GoogLeNet with a 3x3 stem, and BN after each convolution: 1024 features."""
    layers: list[nn.Module] = [conv_bn(shape[0], 192, 3)]
    fan_in = 192
    for position, group in enumerate(INCEPTION):
        if position:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        for widths in group:
            layers.append(InceptionModule(fan_in, widths))
            fan_in = widths[0] + widths[2] + widths[4] + widths[5]
    return nn.Sequential(*layers, GlobalMean())
