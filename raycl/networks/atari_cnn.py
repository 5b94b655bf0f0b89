"""The convolutional network of Atari agents: BLIP's wide one; the Nature one by options."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.networks.base import Backbone, NetworkConfig

Positive = Annotated[int, Field(ge=1)]


class AtariCNN(Backbone):
    """Convolutions without padding, then one linear layer; ReLU after each.

    No pooling, normalisation or dropout. Initial weights are orthogonal with gain sqrt(2), biases
    0. Images are expected in 0..1.

    Source: the network of arXiv 2105.04444 (BLIP) on Atari, 4x84x84 frames to 1,024 features,
    6,538,464 parameters. That of Mnih et al., "Human-level control through deep reinforcement
    learning", Nature 2015, has ``channels: [32, 64, 64]`` and ``features: 512``: 1,684,128.
    """

    class Config(NetworkConfig):
        """Options of the Atari network."""

        channels: tuple[Positive, ...] = Field(
            (32, 64, 128), min_length=1, description="channels of each convolution"
        )
        kernels: tuple[Positive, ...] = Field((8, 4, 3), description="sides in pixels")
        strides: tuple[Positive, ...] = Field((4, 2, 1), description="strides, pixels")
        features: int = Field(1024, ge=1, description="width of the feature vector")

        @model_validator(mode="after")
        def _equally_long(self) -> AtariCNN.Config:
            lengths = [len(self.channels), len(self.kernels), len(self.strides)]
            if len(set(lengths)) > 1:
                raise ValueError(
                    "channels, kernels and strides must be equally long, not of "
                    f"{', '.join(map(str, lengths))} entries"
                )
            return self

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        fan_in, *sides = input_shape
        layers: list[nn.Module] = []
        for channels, kernel, stride in zip(
            config.channels, config.kernels, config.strides, strict=True
        ):
            if min(sides) < kernel:
                raise UserError(
                    "network.kernels",
                    f"{len(layers) // 2} convolutions leave {sides[0]}x{sides[1]} of an image of "
                    f"{input_shape[1]}x{input_shape[2]}, too little for a kernel of {kernel}",
                    "use smaller kernels or strides",
                )
            layers += [nn.Conv2d(fan_in, channels, kernel, stride), nn.ReLU()]
            fan_in, sides = channels, [(side - kernel) // stride + 1 for side in sides]
        flat = fan_in * sides[0] * sides[1]
        layers += [nn.Flatten(), nn.Linear(flat, config.features), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.num_features = config.features
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                orthogonal(layer, math.sqrt(2))

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.layers(images)  # type: ignore[no-any-return]


def orthogonal(layer: nn.Conv2d | nn.Linear, gain: float) -> None:
    """Give a layer an orthogonal weight times ``gain``, and a bias of 0."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
