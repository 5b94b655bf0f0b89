"""A small convolutional network for small images."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.networks.base import Backbone, NetworkConfig


class CNN(Backbone):
    """3x3 convolution, ReLU and 2x2 max pooling for each stage; then a linear layer and ReLU.

    Without ``batch_norm`` there are no running statistics that drift from task to task. Initial
    weights are PyTorch's.
    """

    class Config(NetworkConfig):
        """Options of the small network."""

        channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
            (32, 64), min_length=1, description="channels of each stage, which halves the image"
        )
        features: int = Field(128, ge=1, description="width of the feature vector")
        batch_norm: bool = Field(False, description="batch normalisation behind each convolution")

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        stages = len(config.channels)
        height, width = (side >> stages for side in input_shape[1:])
        if not height * width:
            raise UserError(
                "network.channels",
                f"{stages} stages halve an image of {input_shape[1]}x{input_shape[2]} to nothing",
                f"use at most {min(input_shape[1:]).bit_length() - 1} stages",
            )
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise((input_shape[0], *config.channels)):
            norm = [nn.BatchNorm2d(fan_out)] if config.batch_norm else []
            convolution = nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=not config.batch_norm)
            layers += [convolution, *norm, nn.ReLU(), nn.MaxPool2d(2)]
        flat = config.channels[-1] * height * width
        layers += [nn.Flatten(), nn.Linear(flat, config.features), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.num_features = config.features

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.layers(images)  # type: ignore[no-any-return]
