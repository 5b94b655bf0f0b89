"""Networks of timm, by name."""

from __future__ import annotations

from typing import Self

import timm
from pydantic import Field
from torch import Tensor

from raycl.errors import UserError, nearest
from raycl.networks._probe import num_features
from raycl.networks.base import Backbone, NetworkConfig


class TimmNetwork(Backbone):
    """Any model of timm without its classifier (``num_classes=0``), its own pooling kept.

    The stem is built for the images' channels; with ``pretrained`` timm converts its weights.
    Images are normalised with the benchmark's statistics, not with those of the pretrained weights,
    unless ``benchmark.dataset.mean`` and ``std`` say so.
    """

    class Config(NetworkConfig):
        """Options of timm's networks."""

        model: str = Field("resnet18", description="name, or name.tag of pretrained weights")
        pretrained: bool = Field(
            False, description="start from the weights of the tag. May need a download"
        )

        def untrained(self) -> Self:
            """See ``NetworkConfig.untrained``."""
            return self.model_copy(update={"pretrained": False})

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if not timm.is_model(config.model):
            hint = nearest(config.model.partition(".")[0], timm.list_models())
            raise UserError("network.model", f"timm has no '{config.model}'", hint)
        try:
            self.model = timm.create_model(
                config.model, pretrained=config.pretrained, num_classes=0, in_chans=input_shape[0]
            )
        except (OSError, RuntimeError) as error:
            raise UserError("network", f"cannot create {config.model}: {error}") from error
        self.num_features = num_features(self, config.model, input_shape)

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.model(images)  # type: ignore[no-any-return]
