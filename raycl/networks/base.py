"""Backbones map images to feature vectors; heads belong to methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import CoreSchema
from torch import Tensor, nn

from raycl import registry
from raycl.errors import UserError, nearest
from raycl.networks._hub import LOADED as LOADED
from raycl.networks._hub import noted as noted
from raycl.networks._weights import Normalisation as Normalisation
from raycl.networks._weights import Tensors as Tensors
from raycl.networks._weights import Weights as Weights
from raycl.networks._weights import load, match


class NetworkConfig(BaseModel):
    """Options every network has.

    Attributes:
        unless_given: Options that came later and are left out of what is dumped where nobody uses
            them: keys of trials are hashes of what is dumped, and must stay as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    unless_given: ClassVar[tuple[str, ...]] = ("weights",)

    name: str
    weights: Weights | None = Field(
        None, description="start from a file, a package's or a trial's weights; default: random"
    )

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        if "weights" in dumped:  # behind the network's own options
            dumped["weights"] = dumped.pop("weights")
        return {k: v for k, v in dumped.items() if v or k not in self.unless_given}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Put the options of ``weights``, which are many, after the network's own."""
        resolved = handler.resolve_ref_schema(handler(schema))
        properties = resolved.get("properties", {})
        if "weights" in properties:
            properties["weights"] = properties.pop("weights")
        return resolved

    @property
    def from_hub(self) -> str:
        """Name of the weights that a library fetches for the network from its hub; empty: none."""
        given = isinstance(self.weights, Weights) or self.untrained() == self
        return "" if given else f"weights of {self.name}"

    def untrained(self) -> Self:
        """The same network with random weights, which can be built anywhere."""
        return self if self.weights is None else self.model_copy(update={"weights": None})


class Backbone(nn.Module, ABC):
    """A network that maps images to features.

    Args (of the constructor of every subclass):
        config: Its ``Config``.
        input_shape: Channels, height, width.

    Attributes:
        num_features: Width of the feature vector.
        games: Whether it can be the network of a sequence of games.
        removed: Beginnings of names of the classifier that it was built without, and that a file
            of weights may have.
    """

    Config: type[NetworkConfig] = NetworkConfig
    num_features: int
    games: ClassVar[bool] = True
    removed: tuple[str, ...] = ()

    @classmethod
    def normalisation(cls, config: Any) -> Normalisation | None:
        """Statistics that images need for the weights it starts from.

        ``None``: the benchmark's, or it starts from random weights.
        """
        weights = config.weights
        return weights.normalisation if isinstance(weights, Weights) else None

    @classmethod
    def per_task(cls, config: Any) -> tuple[Mapping[str, Any], ...] | None:
        """Blocks of the tasks' networks; ``None``: this network serves all tasks."""
        return None

    def init_head(self, head: nn.Linear) -> None:
        """Initialise a linear head that reads the features; by default, PyTorch's start stays."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, num_features) of float images (B, C, H, W)."""


def find_network(block: Mapping[str, Any]) -> tuple[type[Backbone], Any]:
    """Find the class and the validated options of a ``network`` block.

    Raises:
        UserError: There is no network of that name.
    """
    cls = registry.find("raycl.networks", Backbone, block["name"], where="network")  # type: ignore[type-abstract]
    return cls, cls.Config.model_validate(block)


def named_block(value: Any) -> Any:
    """Write out a network's block; a bare name stands for ``{name: NAME}``."""
    return {"name": value} if isinstance(value, str) else value


def complete_block(block: Mapping[str, Any], whose: str = "a network") -> dict[str, Any]:
    """Fill every default into the block of one network.

    Args:
        block: ``name`` and options.
        whose: The thing that needs a name, for the error where there is none.

    Raises:
        ValueError: What is wrong with it, in one line.
    """
    if not isinstance(block.get("name"), str):
        raise ValueError(f"{whose} needs a name")
    try:
        cls, config = find_network(block)
    except UserError as error:
        raise ValueError(f"{error.what}; {error.hint}") from error
    except ValidationError as error:
        raise ValueError(_line(block["name"], error)) from error
    if cls.per_task(config) is not None:
        raise ValueError(f"{block['name']} stands for several networks, and one is needed")
    done: dict[str, Any] = config.model_dump(mode="json")
    return done


def _line(name: str, error: ValidationError) -> str:
    """One line with the first error of a network's options."""
    first = error.errors(include_url=False)[0]
    option = ".".join(str(part) for part in first["loc"] if part != Weights.__name__)
    if first["type"] == "extra_forbidden":
        own = find_network({"name": name})[0].Config.model_fields
        options = Weights.model_fields if option.startswith("weights.") else own
        hint = nearest(str(first["loc"][-1]), options)
        return f"network {name} has no option '{option}'; {hint}"
    what = first["msg"].removeprefix("Value error, ")
    return f"option {option} of network {name}: {what}"


def weights_of(block: Mapping[str, Any]) -> Weights | None:
    """The weights that a network's block names, if any; those of a hub are not meant."""
    given = find_network(block)[1].weights
    return given if isinstance(given, Weights) else None


def load_tensors(network: Backbone, weights: Weights, tensors: Tensors) -> None:
    """Copy all that a weights file holds into a network.

    Raises:
        UserError: The first name or shape that differs.
    """
    load(network, weights, tensors, removed=network.removed, features=network.num_features)


def check_tensors(network: Backbone, weights: Weights, tensors: Tensors) -> None:
    """Refuse weights that do not fit a network; it may be one without memory.

    Raises:
        UserError: The first name or shape that differs.
    """
    about: dict[str, Any] = {"removed": network.removed, "features": network.num_features}
    match(network.state_dict(), weights, tensors, **about)


def from_hubs(block: Mapping[str, Any]) -> Iterator[str]:
    """Names of the hub's weights that a block's network, or each of a sequence, starts from."""
    cls, config = find_network(block)
    members = cls.per_task(config)
    if members is not None:
        for member in members:
            yield from from_hubs(member)
    elif config.from_hub:
        yield config.from_hub


def networks_of(block: Mapping[str, Any], tasks: int) -> tuple[Mapping[str, Any], ...]:
    """The block of the network of each of the first ``tasks`` tasks.

    Raises:
        UserError: A sequence has fewer networks than there are tasks.
    """
    cls, config = find_network(block)
    blocks = cls.per_task(config)
    if blocks is None:
        return (block,) * tasks
    if len(blocks) < tasks:
        raise UserError(
            "network.of",
            f"{len(blocks)} networks for {tasks} tasks",
            "give every task one, or repeat one with repeat: N",
        )
    return blocks[:tasks]
