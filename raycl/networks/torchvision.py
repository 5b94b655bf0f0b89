"""Classification networks of torchvision, by name."""

from __future__ import annotations

from typing import Any, Self

import torchvision
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError, nearest
from raycl.networks._probe import num_features
from raycl.networks.base import Backbone, NetworkConfig


class TorchvisionNetwork(Backbone):
    """``torchvision.models``: any classification model, its last linear layer removed.

    Grey images are repeated to three channels. Auxiliary heads (GoogLeNet, Inception) are removed.
    """

    class Config(NetworkConfig):
        """Options of torchvision's networks."""

        model: str = Field("resnet18", description="e.g. resnet18, mobilenet_v3_small, vit_b_16")
        weights: str | None = Field(
            None, description="e.g. DEFAULT, IMAGENET1K_V1; null: random. May need a download"
        )

        def untrained(self) -> Self:
            """See ``NetworkConfig.untrained``."""
            return self.model_copy(update={"weights": None})

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if input_shape[0] not in (1, 3):
            raise UserError(
                "network", f"torchvision's models take 1 or 3 channels, not {input_shape[0]}"
            )
        self.model = _create(config.model, config.weights)
        _remove_heads(self.model, config.model)
        self.num_features = num_features(self, config.model, input_shape)

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.model(images.expand(-1, 3, -1, -1))  # type: ignore[no-any-return]


def _create(name: str, weights: str | None) -> nn.Module:
    models = torchvision.models
    valid = models.list_models(module=models)
    if name not in valid:
        raise UserError("network.model", f"torchvision has no '{name}'", nearest(name, valid))
    if weights is not None:
        known = models.get_model_weights(name).__members__
        if weights not in known:
            what = f"torchvision has no '{weights}' for {name}"
            raise UserError("network.weights", what, nearest(weights, known))
    try:
        return models.get_model(name, weights=weights)  # type: ignore[no-any-return]
    except OSError as error:
        raise UserError("network.weights", f"cannot load {weights} of {name}: {error}") from error


def _remove_heads(model: Any, name: str) -> None:
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        for child in [n for n, _ in model.named_children() if n.lower().startswith("aux")]:
            setattr(model, child, None)
    path, head = list(model.named_modules())[-1]
    if not isinstance(head, nn.Linear):
        raise UserError("network.model", f"the last layer of {name} is not linear; take another")
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
