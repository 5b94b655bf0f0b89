"""Weights that a network starts from: their block in a sweep file, and how tensors are matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from raycl.blocks import SOURCES
from raycl.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".npz")
WHERE = "network.weights"
COUNTER = "num_batches_tracked"
"""End of the name of a tensor that old files lack: the number of steps of a batch norm."""

ELSEWHERE = (
    "without a network take weights: {file: PATH}, {package: NAME, resource: PATH} or "
    "{trial: RUN/KEY} instead; `raycl data list` shows packages that have weights"
)
"""Hint where a hub cannot be reached."""

Tensors = Mapping[str, NDArray[Any]]
"""All tensors of a weights file by name, as arrays: Ray shares those between processes."""
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in units of 0..1."""
IMAGENET: Normalisation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Statistic = Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]


class Weights(BaseModel):
    """Weights that come from no hub: exactly one of ``file``, ``package`` and ``trial``.

    - ``file: PATH``: .safetensors, .npz, .pth or .pt (what ``torch.load`` reads with
      ``weights_only``; ``state_dict`` or ``model`` inside it is unpacked).
    - ``package: NAME`` and ``resource: PATH``: such a file inside an installed Python package.
    - ``trial: RUN/KEY``: the newest intact checkpoint of a trial; ``prefix`` says which part of it.

    Tensors go to the network by their names (``rename: strict``; a common prefix of all names of
    the network, such as ``model.``, may be missing in the file) or one after another (``order``).
    The network takes all of its tensors from the file; the file may have more where ``ignore``
    says so, and the classifier of a network of timm or torchvision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = Field(
        None, description="a .safetensors, .pth, .pt or .npz file; from the data root"
    )
    package: str | None = Field(None, description="an installed Python package that has the file")
    resource: str | None = Field(None, description="the file inside the package")
    trial: str | None = Field(
        None, description="RUN/KEY, a trial below the runs folder: its newest checkpoint"
    )
    prefix: str | None = Field(
        None,
        description="take only tensors whose names begin with this, and leave it out of the names; "
        "default for a trial: backbone.",
    )
    rename: Literal["strict", "order"] = Field(
        "strict",
        description="strict: names match; order: the n-th tensor of the file goes to the n-th of "
        "the network (not for .safetensors, which are sorted by name)",
    )
    ignore: tuple[str, ...] = Field(
        (), description="beginnings of names of tensors that the network does not have"
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="hash of the file, 64 hex digits; filled in when the sweep is read",
    )
    mean: Statistic | None = Field(
        None, description="what images are normalised with, in units of 0..1; default: see README"
    )
    std: Statistic | None = Field(None, description="standard deviation likewise; goes with mean")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Refuse a block without exactly one source, or with options of another source."""
        given = [source for source in SOURCES if getattr(self, source)]
        if len(given) != 1:
            sources = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of file, package and trial, not {sources}")
        if (self.package is None) != (self.resource is None):
            raise ValueError("package goes with resource, the file inside it")
        path = self.file or self.resource
        if path is not None and PurePosixPath(path).suffix not in SUFFIXES:
            raise ValueError(f"'{path}' ends in none of {', '.join(SUFFIXES)}")
        if self.rename == "order" and path is not None and path.endswith(".safetensors"):
            raise ValueError(
                f"'{path}' has its tensors sorted by name, which is not the order of a network: "
                "rename: order needs another kind of file"
            )
        if self.resource and (self.resource.startswith("/") or ".." in self.resource.split("/")):
            raise ValueError(f"resource '{self.resource}' leads out of the package")
        if self.trial is not None and len([p for p in self.trial.split("/") if p]) != 2:
            raise ValueError(f"trial must be RUN/KEY, not '{self.trial}'")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        if self.mean and self.std and (len(self.mean) != len(self.std) or min(self.std) <= 0):
            raise ValueError("mean and std need a value per channel each, std above 0")
        return self

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value not in (None, (), [])}

    @property
    def label(self) -> str:
        """Source of the weights, for people: the name of a file, a package, or a trial."""
        if self.file is not None:
            return PurePosixPath(self.file).name
        return self.package or f"trial {self.trial}"

    @property
    def beginning(self) -> str:
        """Beginning of the names of the tensors to be taken."""
        if self.prefix is None:
            return "" if self.trial is None else "backbone."
        return self.prefix

    @property
    def normalisation(self) -> Normalisation | None:
        """The statistics of the block, if it has any."""
        return (self.mean, self.std) if self.mean and self.std else None


def load(network: nn.Module, weights: Weights, tensors: Tensors, **about: Any) -> None:
    """Copy the tensors of a file into a network.

    Args:
        network: The network; its state is filled.
        weights: The block.
        tensors: All that the file holds.
        about: See ``match``.

    Raises:
        UserError: See ``match``.
    """
    state = network.state_dict()
    with torch.no_grad():
        for name, source in match(state, weights, tensors, **about).items():
            state[name].copy_(torch.tensor(tensors[source]))  # what Ray shares is read-only


def match(
    state: Mapping[str, Tensor],
    weights: Weights,
    tensors: Tensors,
    *,
    removed: Sequence[str] = (),
    features: int = 0,
) -> dict[str, str]:
    """Find the tensor of a file for each of a network.

    Args:
        state: The network's, also without memory.
        weights: The block.
        tensors: All that the file holds.
        removed: Beginnings of names of the classifier that the network was built without.
        features: Width of what that classifier reads.

    Returns:
        Name in ``state`` to name in ``tensors``.

    Raises:
        UserError: A name or a shape does not fit, or a tensor has values that are no numbers.
    """
    begin, skipped = weights.beginning, (*weights.ignore, *removed)
    names = {name[len(begin) :]: name for name in tensors if name.startswith(begin)}
    if not names:
        what = f"no tensor of {weights.label} begins with '{begin}'; it has {_some(tensors)}"
        raise UserError(f"{WHERE}.prefix", what)
    if weights.rename == "order":
        kept = {short: name for short, name in names.items() if not short.startswith(skipped)}
        width = features if removed else 0
        pairs = _by_order(state, weights, tensors, list(kept.values()), width)
    else:
        pairs = _by_name(state, weights, tensors, names, skipped)
    for source in pairs.values():
        _check_values(weights, source, tensors[source])
    return pairs


def _by_name(
    state: Mapping[str, Tensor],
    weights: Weights,
    tensors: Tensors,
    names: Mapping[str, str],
    skipped: tuple[str, ...],
) -> dict[str, str]:
    """Match tensors by name, where all names of the network may share a further prefix."""
    known = names.keys()
    inner = max(_prefixes([*state]), key=lambda p: sum(n[len(p) :] in known for n in state))
    wanted = {name[len(inner) :]: name for name in state}
    spare = [name for short, name in names.items() if short not in wanted]
    pairs: dict[str, str] = {}
    for short, name in wanted.items():
        if short in names:
            pairs[name] = names[short]
            _check_shape(weights, names[short], tensors[names[short]], name, state[name])
        elif not short.endswith(COUNTER):
            other = f"; it has {_shown(spare[0], tensors[spare[0]])}" if spare else ""
            what = f"{weights.label} has no tensor for {_shown(name, state[name])} of the network"
            hint = "rename: order takes tensors by their order" if spare else ""
            raise UserError(WHERE, what + other, hint)
    rest = [name for short, name in names.items() if short not in wanted]
    rest = [name for name in rest if not name[len(weights.beginning) :].startswith(skipped)]
    if rest:
        what = f"the network has no tensor for {_shown(rest[0], tensors[rest[0]])}"
        part = rest[0][len(weights.beginning) :].partition(".")[0]
        raise UserError(WHERE, f"{what} of {weights.label}", f"ignore: [{part}.] leaves it out")
    return pairs


def _prefixes(names: Sequence[str]) -> list[str]:
    """Beginnings that all names share, up to a dot: first the empty one, then longer ones."""
    found, parts = [""], [name.split(".")[:-1] for name in names]
    for same in zip(*parts, strict=False):
        if len(set(same)) != 1:
            break
        found.append(f"{found[-1]}{same[0]}.")
    return found


def _by_order(
    state: Mapping[str, Tensor],
    weights: Weights,
    tensors: Tensors,
    names: Sequence[str],
    features: int,
) -> dict[str, str]:
    """Match the n-th tensor with the n-th; a classifier of that many features may follow."""
    counted = any(tensors[name].ndim == 0 for name in names)
    wanted = [name for name in state if counted or not name.endswith(COUNTER)]
    for name, source in zip(wanted, names, strict=False):
        _check_shape(weights, source, tensors[source], name, state[name])
    rest = names[len(wanted) :]
    if len(names) < len(wanted) or (rest and not _classifies(rest, tensors, features)):
        what = f"{weights.label} has {len(names)} tensors, the network {len(wanted)}"
        if not rest:
            raise UserError(WHERE, what)
        what += f"; the first without a partner is {_shown(rest[0], tensors[rest[0]])}"
        raise UserError(WHERE, what, "ignore leaves tensors of the file out")
    return dict(zip(wanted, names, strict=False))


def _classifies(names: Sequence[str], tensors: Tensors, features: int) -> bool:
    """Whether these are weight, and perhaps bias, of a classifier of that many features."""
    weight, *bias = (tensors[name].shape for name in names)
    fits = bool(features) and len(weight) >= 2 and weight[1] == features
    return fits and len(bias) < 2 and all(shape == weight[:1] for shape in bias)


def _check_shape(weights: Weights, source: str, there: Any, name: str, here: Any) -> None:
    if tuple(there.shape) != tuple(here.shape):
        what = f"{_shown(source, there)} of {weights.label} does not fit {_shown(name, here)}"
        raise UserError(WHERE, f"{what} of the network")


def _check_values(weights: Weights, source: str, value: NDArray[Any]) -> None:
    """Refuse values that are no numbers, or too large for the single precision of networks."""
    with np.errstate(over="ignore"):
        bad = value.size - np.isfinite(value.astype(np.float32, copy=False)).sum()
    if bad:
        what = f"{bad} of the values in {_shown(source, value)} of {weights.label} are no numbers"
        raise UserError(WHERE, f"{what} (NaN or infinite)", "take a file from before it diverged")


def _shown(name: str, value: Any) -> str:
    """Describe a tensor by its name and shape."""
    return f"{name} ({'x'.join(map(str, value.shape)) or 'a number'})"


def _some(tensors: Tensors, count: int = 3) -> str:
    more = f" and {len(tensors) - count} more" if len(tensors) > count else ""
    return ", ".join(list(tensors)[:count]) + more
