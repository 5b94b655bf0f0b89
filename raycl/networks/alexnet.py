"""The AlexNet-like network that BLIP uses on colour images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.networks.base import Backbone, NetworkConfig

Width = Annotated[int, Field(ge=1)]


class AlexNet(Backbone):
    """Three convolutions with max pooling, then two linear layers; ReLU and dropout after each.

    Kernels of size // 8, size // 10 and 2 pixels, where size is the images' side, without padding;
    channels round(64 width), round(128 width) and round(256 width), half to even; max pooling 2x2;
    dropout of single elements. The features are the second linear layer. Initial weights are
    PyTorch's.

    Source: arXiv 2105.04444 (BLIP). Its scenarios, with the parameters without and with one head
    per task:

        =======================  =====  ============  ============  ==========  ==========
        scenario                 width  hidden        dropout_late  backbone    with heads
        =======================  =====  ============  ============  ==========  ==========
        cifar                    2      [2048, 2048]  0.2           9,218,944   9,444,334
        mixture5                 0.8    [1638, 1638]  0.2           4,162,744   4,244,694
        miniImageNet, BLIP       1      [2048, 512]   0.5           27,416,256  27,467,556
        miniImageNet, baselines  1      [2048, 512]   0.2           27,416,256  27,467,556
        =======================  =====  ============  ============  ==========  ==========
    """

    class Config(NetworkConfig):
        """Options. ``width`` does not change ``hidden``."""

        width: float = Field(1.0, ge=1 / 64, description="multiplies the channels 64, 128, 256")
        hidden: tuple[Width, Width] = Field(
            (2048, 2048), description="widths of the two linear layers"
        )
        dropout_early: float = Field(
            0.2, ge=0, lt=1, description="dropout after the first and the second convolution"
        )
        dropout_late: float = Field(
            0.2, ge=0, lt=1, description="dropout after the third convolution and linear layers"
        )

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        fan_in, size, width = input_shape
        kernels = (size // 8, size // 10, 2)
        side = size
        for kernel in kernels:
            side = (side - kernel + 1) // 2
        if size != width or not kernels[1] or side < 1:
            raise UserError(
                "network",
                f"alexnet takes square images of at least 12x12 pixels, not {size}x{width}",
                "set benchmark.dataset.size",
            )
        layers: list[nn.Module] = []
        for base, kernel in zip((64, 128, 256), kernels, strict=True):
            channels = round(base * config.width)
            dropout = config.dropout_late if base == 256 else config.dropout_early
            layers += [nn.Conv2d(fan_in, channels, kernel), nn.ReLU()]
            layers += [nn.Dropout(dropout), nn.MaxPool2d(2)]
            fan_in = channels
        layers.append(nn.Flatten())
        fan_in *= side**2
        for features in config.hidden:
            layers += [nn.Linear(fan_in, features), nn.ReLU(), nn.Dropout(config.dropout_late)]
            fan_in = features
        self.layers = nn.Sequential(*layers)
        self.num_features = fan_in

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.layers(images)  # type: ignore[no-any-return]
