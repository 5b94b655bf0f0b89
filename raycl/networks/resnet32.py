"""The 32-layer residual network for small images."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.networks.base import Backbone, NetworkConfig


class Block(nn.Module):
    """conv3-BN-ReLU-conv3-BN, plus the input, ReLU.

    Where the shape changes, the input is subsampled to every second pixel and its channels are
    padded with zeros, half of them on each side ("option A": no parameters).
    """

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride = 1 if fan_in == fan_out else 2
        self.padding = (fan_out - fan_in) // 2
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, fan_in, H, W) to (B, fan_out, ceil(H / stride), ceil(W / stride))."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Bring the input into the shape of the output."""
        if self.stride == 1:
            return x
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class ResNet32(Backbone):
    """ResNet-32 in its CIFAR form.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, section
    4.2: 3x3 stem of 16 channels, three stages of 5 blocks with 16, 32 and 64 channels, mean over
    the map. 470,004 parameters with a head of 100 outputs on colour images. Any channel count and
    image size works: the map shrinks twice by two, rounded up.

    Convolution and head weights start He-normal (fan-in, gain sqrt 2); the head's bias as PyTorch
    does. (The code of arXiv 2106.09701.)

    With ``blocks: 2`` it is a ResNet-14 (236,856 parameters with 1000 outputs), which is what the
    ImageNet script of that code trains under the name of a ResNet-18; a true one is ``resnet18``
    of ``torchvision``.
    """

    class Config(NetworkConfig):
        """Options of the network ``resnet32``."""

        blocks: int = Field(5, ge=1, description="residual blocks per stage; layers = 6 blocks + 2")

    num_features = 64

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        n = config.blocks
        widths = [16] * (n + 1) + [32] * n + [64] * n
        self.blocks = nn.Sequential(
            *(Block(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def init_head(self, head: nn.Linear) -> None:
        """See ``Backbone.init_head``: He-normal weights."""
        nn.init.kaiming_normal_(head.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        # the mean, not AdaptiveAvgPool2d, whose backward pass on CUDA is not deterministic
        return self.blocks(self.stem(images)).mean((2, 3))  # type: ignore[no-any-return]
