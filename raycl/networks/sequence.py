"""A sequence of networks: which tasks of a stream are learnt with which network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Never

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from torch import Tensor

from raycl.networks.base import (
    Backbone,
    NetworkConfig,
    Weights,
    complete_block,
    named_block,
)

REPEAT = "repeat"
"""Key of a member that says for how many tasks in a row it is the network."""


def _member(value: dict[str, Any]) -> dict[str, Any]:
    """The block of one member with every default filled in.

    Raises:
        ValueError: What is wrong with it, in one line.
    """
    block = {key: v for key, v in value.items() if key != REPEAT}
    repeat = value.get(REPEAT, 1)
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise ValueError(f"repeat must be a number of tasks, at least 1, not {repeat!r}")
    if block.get("name") == "sequence":
        raise ValueError("a sequence cannot be a network of another sequence")
    done = complete_block(block, "every network of a sequence")
    return done | ({REPEAT: repeat} if REPEAT in value else {})


Member = Annotated[dict[str, Any], AfterValidator(_member), BeforeValidator(named_block)]


class NetworkSequence(Backbone):
    """A network for each task, in order, so that a stream can meet new architectures.

    ``of`` lists blocks like ``network`` itself: a name, or a mapping with ``name`` and options.
    ``repeat: N`` in a member makes it the network of N tasks in a row. Where two neighbouring tasks
    have equal blocks the network is carried over; where they differ a new one starts from random
    weights, and what the old one knew can only be taken from its outputs. Networks behind those of
    the last task are not used; too few are an error.

    The setting of Madaan et al., "Heterogeneous Continual Learning", CVPR 2023, arXiv 2306.08593.

    A sequence itself is never built: the run builds its members, one by one.
    """

    class Config(NetworkConfig):
        """Options of a sequence."""

        of: tuple[Member, ...] = Field(
            min_length=1, description="networks in the order of tasks; repeat: N for N tasks"
        )

        @field_validator("weights")
        @classmethod
        def _of_members(cls, value: Weights | None) -> None:
            if value is not None:
                raise ValueError("belongs to one network: give it to members of the sequence")

    games: ClassVar[bool] = False

    def __init__(self, config: Config, input_shape: tuple[int, int, int]) -> Never:
        raise TypeError("a sequence of networks is no network: build one of its members")

    @classmethod
    def per_task(cls, config: Config) -> tuple[Mapping[str, Any], ...]:
        """See ``Backbone.per_task``."""
        blocks: list[Mapping[str, Any]] = []
        for member in config.of:
            block = {key: value for key, value in member.items() if key != REPEAT}
            blocks += [block] * member.get(REPEAT, 1)
        return tuple(blocks)

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``; never called."""
        raise NotImplementedError
