"""Multi-layer perceptron on flattened pixels."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from raycl.networks.base import Backbone, NetworkConfig


class MLP(Backbone):
    """Flatten, then linear, ReLU and dropout for each hidden width.

    The features are the last hidden layer. Initial weights are PyTorch's.
    """

    class Config(NetworkConfig):
        """Options of the MLP."""

        hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
            (400, 400), min_length=1, description="width of each hidden layer"
        )
        dropout: float = Field(0.0, ge=0, lt=1, description="dropout after every hidden layer")

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise((channels * height * width, *config.hidden)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
        self.layers = nn.Sequential(*layers)
        self.num_features = config.hidden[-1]

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.layers(images)  # type: ignore[no-any-return]
