"""A backbone maps images to feature vectors; heads belong to methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raycl import registry
from raycl.errors import UserError


class NetworkConfig(BaseModel):
    """Options every network has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    def untrained(self) -> Self:
        """The same network with random weights, which can be built anywhere."""
        return self


class Backbone(nn.Module, ABC):
    """Images to features.

    Args (of the constructor of every subclass):
        config: Its ``Config``.
        input_shape: Channels, height, width.

    Attributes:
        num_features: Width of the feature vector.
        games: Whether it can be the network of a sequence of games.
    """

    Config: type[NetworkConfig] = NetworkConfig
    num_features: int
    games: ClassVar[bool] = True

    @classmethod
    def per_task(cls, config: Any) -> tuple[Mapping[str, Any], ...] | None:
        """Blocks of the networks of each task; ``None``: this one is the network of all tasks."""
        return None

    def init_head(self, head: nn.Linear) -> None:
        """Start a linear head that reads the features; as PyTorch does, unless overridden."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Float images (B, C, H, W) to features (B, num_features)."""


def find_network(block: Mapping[str, Any]) -> tuple[type[Backbone], Any]:
    """The class and the validated options of a ``network`` block.

    Raises:
        UserError: There is no network of that name.
    """
    cls = registry.find("raycl.networks", Backbone, block["name"], where="network")  # type: ignore[type-abstract]
    return cls, cls.Config.model_validate(block)


def networks_of(block: Mapping[str, Any], tasks: int) -> tuple[Mapping[str, Any], ...]:
    """The block of the network of each of the first ``tasks`` tasks.

    Raises:
        UserError: A sequence has fewer networks than there are tasks.
    """
    cls, config = find_network(block)
    found = cls.per_task(config)
    if found is None:
        return (block,) * tasks
    if len(found) < tasks:
        raise UserError(
            "network.of",
            f"{len(found)} networks for {tasks} tasks",
            "give every task one, or repeat one with repeat: N",
        )
    return found[:tasks]
