"""A backbone maps images to feature vectors; heads belong to methods."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class NetworkConfig(BaseModel):
    """Options every network has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class Backbone(nn.Module, ABC):
    """Images to features.

    Args (of the constructor of every subclass):
        config: Its ``Config``.
        input_shape: Channels, height, width.

    Attributes:
        num_features: Width of the feature vector.
    """

    Config: type[NetworkConfig] = NetworkConfig
    num_features: int

    def init_head(self, head: nn.Linear) -> None:
        """Start a linear head that reads the features; as PyTorch does, unless overridden."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Float images (B, C, H, W) to features (B, num_features)."""
