"""Networks for small images whose layers have shortcuts, from ResNet-18 to RegNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.networks._cifar_plain import GlobalMean, Shape

LARGE = 32
"""Side in pixels above which ``resnext`` and ``senet`` halve images once more."""

GROWTH = 32
"""Number of channels that each layer of ``densenet`` adds."""


class Residual(nn.Module):
    """A path of layers plus a shortcut, then ReLU."""

    def __init__(self, path: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.path, self.shortcut = path, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in, H, W) to (B, fan_out, ceil(H / stride), ceil(W / stride))."""
        return F.relu(self.path(x) + self.shortcut(x))


class DenseLayer(nn.Module):
    """BN-ReLU-conv1-BN-ReLU-conv3, whose output goes in front of the input's channels."""

    def __init__(self, fan_in: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *(nn.BatchNorm2d(fan_in), nn.ReLU(), conv(fan_in, 4 * GROWTH, 1)),
            *(nn.BatchNorm2d(4 * GROWTH), nn.ReLU(), conv(4 * GROWTH, GROWTH, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in, H, W) to (B, fan_in + GROWTH, H, W)."""
        return torch.cat([self.path(x), x], 1)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a number in (0, 1) that depends on the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 16, 1)
        self.excite = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        hidden = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        scaled: Tensor = x * self.excite(hidden).sigmoid()
        return scaled


class PreActivation(nn.Module):
    """BN-ReLU-conv3-BN-ReLU-conv3, then ``SqueezeExcitation``; plus a shortcut.

    The shortcut is the input, or, where the shape changes, a 1x1 convolution of what the first
    BN-ReLU gives. Nothing follows the sum.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(fan_in), nn.ReLU())
        self.path = nn.Sequential(
            conv(fan_in, fan_out, 3, stride),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            conv(fan_out, fan_out, 3),
            SqueezeExcitation(fan_out),
        )
        changes = stride != 1 or fan_in != fan_out
        self.shortcut = conv(fan_in, fan_out, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in, H, W) to (B, fan_out, ceil(H / stride), ceil(W / stride))."""
        activated = self.activation(x)
        kept = x if self.shortcut is None else self.shortcut(activated)
        return self.path(activated) + kept  # type: ignore[no-any-return]


def conv(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without a bias; only the stride changes the size of the map."""
    return nn.Conv2d(
        fan_in, fan_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def conv_bn(
    fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without a bias, then BN."""
    return nn.Sequential(conv(fan_in, fan_out, kernel, stride, groups), nn.BatchNorm2d(fan_out))


def projection(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    """Bring the input into the shape of a block's output: 1x1 convolution and BN if it changes."""
    if stride == 1 and fan_in == fan_out:
        return nn.Identity()
    return conv_bn(fan_in, fan_out, 1, stride)


def basic(fan_in: int, fan_out: int, stride: int) -> Residual:
    """conv3-BN-ReLU-conv3-BN, plus the input, ReLU."""
    path = nn.Sequential(
        conv_bn(fan_in, fan_out, 3, stride), nn.ReLU(), conv_bn(fan_out, fan_out, 3)
    )
    return Residual(path, projection(fan_in, fan_out, stride))


def bottleneck(fan_in: int, width: int, fan_out: int, stride: int, groups: int) -> Residual:
    """conv1-BN-ReLU-conv3-BN-ReLU-conv1-BN with a grouped conv3, plus the input, ReLU."""
    path = nn.Sequential(
        *(conv_bn(fan_in, width, 1), nn.ReLU()),
        *(conv_bn(width, width, 3, stride, groups), nn.ReLU()),
        conv_bn(width, fan_out, 1),
    )
    return Residual(path, projection(fan_in, fan_out, stride))


def first_stride(shape: Shape) -> int:
    """Stride of the first stage of ``resnext`` and ``senet``."""
    return 2 if max(shape[1:]) > LARGE else 1


def resnet18(shape: Shape) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no first max pooling: 512 features."""
    blocks: list[nn.Module] = []
    fan_in = 64
    for fan_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [basic(fan_in, fan_out, stride), basic(fan_out, fan_out, 1)]
        fan_in = fan_out
    network = nn.Sequential(conv_bn(shape[0], 64, 3), nn.ReLU(), *blocks, GlobalMean())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnext(shape: Shape) -> nn.Module:
    """ResNeXt-29 (2x64d) with a 1x1 stem: 1024 features."""
    blocks: list[nn.Module] = []
    fan_in = 64
    for width, stride in ((128, first_stride(shape)), (256, 2), (512, 2)):
        for step in (stride, 1, 1):
            blocks.append(bottleneck(fan_in, width, 2 * width, step, groups=2))
            fan_in = 2 * width
    return nn.Sequential(conv_bn(shape[0], 64, 1), nn.ReLU(), *blocks, GlobalMean())


def densenet(shape: Shape) -> nn.Module:
    """DenseNet-121 with a 3x3 stem: 1024 features."""
    width = 2 * GROWTH
    layers: list[nn.Module] = [conv(shape[0], width, 3)]
    for position, depth in enumerate((6, 12, 24, 16)):
        if position:  # the transition between two blocks
            layers += [nn.BatchNorm2d(width), nn.ReLU(), conv(width, width // 2, 1)]
            layers.append(nn.AvgPool2d(2))
            width //= 2
        for _ in range(depth):
            layers.append(DenseLayer(width))
            width += GROWTH
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), GlobalMean())


def senet(shape: Shape) -> nn.Module:
    """SE-ResNet-18 with pre-activation blocks and a 3x3 stem: 512 features."""
    blocks: list[nn.Module] = []
    fan_in = 64
    for fan_out, stride in ((64, first_stride(shape)), (128, 2), (256, 2), (512, 2)):
        blocks += [PreActivation(fan_in, fan_out, stride), PreActivation(fan_out, fan_out, 1)]
        fan_in = fan_out
    return nn.Sequential(conv_bn(shape[0], 64, 3), nn.ReLU(), *blocks, GlobalMean())


def regnet(shape: Shape) -> nn.Module:
    """RegNetX-200MF with a 3x3 stem of stride 1: 368 features."""
    blocks: list[nn.Module] = []
    fan_in = 64
    for fan_out, depth, stride in ((24, 1, 1), (56, 1, 1), (152, 4, 2), (368, 7, 2)):
        for step in (stride, *[1] * (depth - 1)):
            blocks.append(bottleneck(fan_in, fan_out, fan_out, step, groups=fan_out // 8))
            fan_in = fan_out
    return nn.Sequential(conv_bn(shape[0], 64, 3), nn.ReLU(), *blocks, GlobalMean())
