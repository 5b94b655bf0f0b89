"""Classification networks of torchvision, by name."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any, ClassVar, Self

import torchvision
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.errors import UserError, lacks_memory, nearest
from raycl.networks._probe import num_features
from raycl.networks._weights import ELSEWHERE, IMAGENET, WHERE
from raycl.networks.base import Backbone, NetworkConfig, Normalisation, Weights


class TorchvisionNetwork(Backbone):
    """Any classification model of ``torchvision.models`` without its last linear layer.

    Grey images are repeated to three channels. Auxiliary heads (GoogLeNet, Inception) are removed.

    A network that starts from weights decides how images are normalised, whatever the data set's
    statistics are: as torchvision's weights say, by ImageNet's statistics if it starts from a file
    or a package that says no ``mean`` and ``std``, as the benchmark says if from a trial.
    """

    class Config(NetworkConfig):
        """Options of torchvision's networks."""

        unless_given: ClassVar[tuple[str, ...]] = ()

        model: str = Field("resnet18", description="name, e.g. resnet18, vit_b_16")
        weights: str | Weights | None = Field(  # type: ignore[assignment]
            None,
            description="e.g. DEFAULT, IMAGENET1K_V1, which may need a download; a file, a "
            "package's or a trial's weights; null: random",
        )

        @property
        def from_hub(self) -> str:
            """See ``NetworkConfig.from_hub``."""
            named = isinstance(self.weights, str)
            return f"weights {self.weights} of torchvision's {self.model}" if named else ""

        def untrained(self) -> Self:
            """See ``NetworkConfig.untrained``."""
            return self.model_copy(update={"weights": None})

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if input_shape[0] not in (1, 3):
            raise UserError(
                "network", f"torchvision's models take 1 or 3 channels, not {input_shape[0]}"
            )
        hub = config.weights if isinstance(config.weights, str) else None
        self.model = _create(config.model, hub)
        self.removed = (_remove_heads(self.model, config.model), "aux", "AuxLogits.")
        self.num_features = num_features(self, config.model, input_shape)

    @classmethod
    def normalisation(cls, config: Config) -> Normalisation | None:
        """See ``Backbone.normalisation``."""
        if isinstance(config.weights, str):
            preset = _named(config.model, config.weights).transforms()
            return tuple(preset.mean), tuple(preset.std)
        given = super().normalisation(config)
        block = config.weights
        return given or (IMAGENET if block is not None and block.trial is None else None)

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.model(images.expand(-1, 3, -1, -1))  # type: ignore[no-any-return]


class Pool(nn.AdaptiveAvgPool2d):
    """``AdaptiveAvgPool2d`` whose backward pass on CUDA is deterministic.

    For sides that the output's divide, or that divide the output's; torch's own for others.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Pool (B, C, H, W) to the output size (h, w)."""
        wide, (height, width) = self.output_size, images.shape[2:]
        h, w = wide if isinstance(wide, tuple) else (wide, wide)
        if h and w and height % h == width % w == 0:
            kernel = height // h, width // w
            return images if kernel == (1, 1) else F.avg_pool2d(images, kernel)
        if h and w and h % height == w % width == 0:
            above, beside = h // height, w // width
            wider = images[:, :, :, None, :, None].expand(-1, -1, -1, above, -1, beside)
            return wider.reshape(*images.shape[:2], h, w)
        return super().forward(images)


def _create(name: str, weights: str | None) -> nn.Module:
    chosen = None if weights is None else _named(name, weights)
    _check_model(name)
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=chosen)
    except UserError as error:  # about the file that was fetched
        what = f"cannot load {weights} of {name}: {error.what}"
        raise UserError(WHERE, what, error.hint) from error
    except (OSError, RuntimeError, UnpicklingError) as error:  # RuntimeError: another hash
        if weights is None or lacks_memory(error):
            raise
        what = f"cannot load {weights} of {name}: {error}"
        raise UserError(WHERE, what, ELSEWHERE) from error
    for parent in model.modules():
        for child, module in parent.named_children():
            if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
                setattr(parent, child, Pool(module.output_size))
    return model


def _check_model(name: str) -> None:
    valid = torchvision.models.list_models(module=torchvision.models)
    if name not in valid:
        raise UserError("network.model", f"torchvision has no '{name}'", nearest(name, valid))


def _named(name: str, weights: str) -> Any:
    """Weights that torchvision has for a model."""
    _check_model(name)
    known = torchvision.models.get_model_weights(name).__members__
    if weights not in known:
        what = f"torchvision has no '{weights}' for {name}"
        raise UserError(WHERE, what, nearest(weights, known))
    return known[weights]


def _remove_heads(model: Any, name: str) -> str:
    """Remove the classifiers; returns the beginning of the names of the last one's tensors."""
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        for child in [n for n, _ in model.named_children() if n.lower().startswith("aux")]:
            setattr(model, child, None)
    path, head = list(model.named_modules())[-1]
    if not isinstance(head, nn.Linear):
        raise UserError("network.model", f"the last layer of {name} is not linear; take another")
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return f"{path}."
