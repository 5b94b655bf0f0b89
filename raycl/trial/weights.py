"""Weights files: where they are, their hashes, their tensors; networks that are built with them.

Whoever reads a sweep file fills the hash of each file into its block (``with_hashes``), so that the
hash is part of every trial's key. Whoever builds a network takes the tensors that it was given, by
hash, or else reads the file (``build_network``).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from raycl.atomic import read_json
from raycl.benchmarks.base import StreamInfo
from raycl.datasets import disk, packages
from raycl.errors import UserError, lacks_memory, nearest
from raycl.networks.base import (
    Backbone,
    Normalisation,
    Tensors,
    Weights,
    find_network,
    load_tensors,
    noted,
)
from raycl.trial.checkpoint import TRIALS, CheckpointStore, filesystem, runs_root

WHERE = "network.weights"
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
"""Keys below which a file may have its tensors, beside other things."""
KEPT = 4
"""Number of files whose tensors stay in memory."""


class Place(NamedTuple):
    """The place of a weights file.

    Attributes:
        path: Path on its file system.
        option: The option of the block that leads there.
        stamp: A text that changes when the file changes.
    """

    path: str
    option: str
    stamp: tuple[float, int]


def tensors_of(weights: Weights, given: Mapping[str, Tensors] | None = None) -> Tensors:
    """All tensors of a weights block: those given for the hash of the file, or else the file's.

    Raises:
        UserError: See ``read``.
    """
    return (given or {}).get(weights.sha256 or "") or read(weights)


def build_network(
    block: Mapping[str, Any],
    input_shape: tuple[int, int, int],
    given: Mapping[str, Tensors] | None = None,
) -> Backbone:
    """Build the network of a block, with the weights it starts from.

    Args:
        block: ``name`` and options.
        input_shape: Channels, height, width.
        given: Hash of a weights file to its tensors, as whoever started the trial has read them;
            other files are read.

    Raises:
        UserError: An unknown name, images the network does not take, weights that are not there or
            do not fit.
    """
    cls, config = find_network(block)
    with noted(config.from_hub):
        network = cls(config, input_shape)
    if isinstance(config.weights, Weights):
        check_model(block)
        load_tensors(network, config.weights, tensors_of(config.weights, given))
    return network


def check_model(block: Mapping[str, Any]) -> None:
    """Refuse a known file for a model that takes its tensors and computes something else.

    Raises:
        UserError: The file is for another model.
    """
    digest, model = block["weights"].get("sha256"), str(block.get("model", ""))
    for package in packages.PACKAGES.values():
        if package.sha256 == digest and model.partition(".")[0] != package.model:
            what = f"the weights of {package.distribution} are for {package.model}"
            raise UserError("network.model", f"{what}, not {model or block['name']}")


def read(weights: Weights) -> Tensors:
    """Read all tensors of a file.

    Raises:
        UserError: It is not there, cannot be read, or has another hash than the block says.
    """
    place = locate(weights)
    found, tensors = _read(place)
    if weights.sha256 not in (None, found):
        what = f"{place.path} has sha256 {found}, not {weights.sha256}"
        hint = "it is another file than the one meant, or it has changed"
        raise UserError(f"{WHERE}.sha256", what, hint)
    return tensors


def sha256(weights: Weights) -> str:
    """SHA-256 of a file, computed once for each of its versions.

    Raises:
        UserError: It is not there.
    """
    return _hash(locate(weights))


def locate(weights: Weights) -> Place:
    """Find the file of a weights block.

    Raises:
        UserError: It is not there.
    """
    if weights.trial is not None:
        return _in_runs(weights.trial)
    if weights.package is not None:
        assert weights.resource is not None
        option, path = "resource", packages.locate(weights.package, weights.resource)
        if path is None and packages.is_installed(weights.package):
            what = f"the package {weights.package} has no file '{weights.resource}'"
            raise UserError(f"{WHERE}.resource", what)
        if path is None:
            what = f"the package {weights.package} is not installed"
            hint = f"install it: {packages.how_to_install(weights.package)}"
            raise UserError(f"{WHERE}.package", what, hint)
    else:
        option, path = "file", disk.resolve(weights.file or "", disk.data_root())
        if not path.is_file():
            raise UserError(f"{WHERE}.file", f"there is no file '{path}'")
    stat = path.stat()
    return Place(str(path), option, (stat.st_mtime_ns, stat.st_size))


def config_of(weights: Weights) -> dict[str, Any]:
    """The finished configuration of the trial that a block names; empty if it is not known.

    Raises:
        UserError: It has no intact checkpoint.
    """
    state = CheckpointStore.parse(_content(locate(weights)))
    found: dict[str, Any] = state.get("config", {})
    return found


def with_hashes(tree: Any) -> Any:
    """Fill the hash of each weights file into a network's block, also one with search spaces.

    What has a hash keeps it; where a file is missing, its block stays without one.
    """
    if isinstance(tree, list | tuple):
        return [with_hashes(value) for value in tree]
    if not isinstance(tree, Mapping):
        return tree
    done = {key: with_hashes(value) for key, value in tree.items()}
    return done | ({"weights": _hashed(done["weights"])} if "weights" in done else {})


def with_option_hashes(
    block: Mapping[str, Any], networks: Collection[str], weights: Collection[str]
) -> dict[str, Any]:
    """Fill in the hashes of all files of a block whose options may be networks or weights.

    Args:
        block: A method's, say; options may be search spaces.
        networks: Names of options that are networks' blocks.
        weights: Names of options that are weights.
    """
    done = {k: with_hashes(v) if k in networks else v for k, v in block.items()}
    return {k: _hashed(v) if k in weights else v for k, v in done.items()}


def _hashed(tree: Any) -> Any:
    """Fill hashes into the value of ``weights``: a block, or a search space of blocks."""
    if isinstance(tree, list | tuple):
        return [_hashed(value) for value in tree]
    if not isinstance(tree, Mapping) or "sha256" in tree:
        return tree
    try:
        return {**tree, "sha256": sha256(Weights.model_validate(tree))}
    except UserError:
        return tree
    except ValidationError:
        return {key: _hashed(value) for key, value in tree.items()}


def named_in(tree: Any) -> list[Weights]:
    """All complete ``weights`` blocks of a tree of networks' blocks, each once, in order.

    Args:
        tree: Plain data; options may be search spaces.
    """
    return list(dict.fromkeys(_named_in(tree, inside=False)))


def _named_in(tree: Any, inside: bool) -> Iterator[Weights]:
    """See ``named_in``; ``inside``: below a key ``weights``, whose value is a block or a space."""
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from _named_in(value, inside)
    elif isinstance(tree, Mapping):
        try:
            whole = [Weights.model_validate(tree)] if inside else []
        except ValidationError:
            whole = []
        yield from whole
        for key, value in () if whole else tree.items():
            yield from _named_in(value, inside or key == "weights")


def normalisation(networks: Iterable[Mapping[str, Any]]) -> Normalisation | None:
    """The statistics that images need for the weights that the networks of a stream start from.

    Args:
        networks: The block of each task.

    Returns:
        ``None``: the benchmark's.

    Raises:
        UserError: Networks need different ones.
    """
    needs: dict[Normalisation | None, str] = {}
    for block in networks:
        cls, config = find_network(block)
        if config.untrained() != config:  # a network with random weights takes any
            needs.setdefault(cls.normalisation(config), _name(block))
    if len(needs) > 1:
        (first, one), (second, other), *_ = needs.items()
        what = f"{one} needs images normalised by {_text(first)}, {other} by {_text(second)}"
        hint = (
            "networks of one stream see the same images: give their weights the same mean and std"
        )
        raise UserError("network", what, hint)
    return next(iter(needs), None)


def normalised(info: StreamInfo, networks: Iterable[Mapping[str, Any]]) -> StreamInfo:
    """The facts about a stream once its images are normalised as its networks need.

    Raises:
        UserError: Networks need different statistics, or of another number of channels.
    """
    statistics = normalisation(networks)
    return info if statistics is None else info.renormalised(*statistics)


def told(tree: Any) -> str:
    """One line that tells where weights in networks' blocks come from: name and hash of each."""
    return ", ".join(
        f"{weights.label} sha256:{(weights.sha256 or '?')[:12]}" for weights in named_in(tree)
    )


def _name(block: Mapping[str, Any]) -> str:
    return f"{block['name']} {block['model']}" if "model" in block else str(block["name"])


def _text(statistics: Normalisation | None) -> str:
    if statistics is None:
        return "the benchmark's statistics"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in statistics)
    return f"mean {mean} std {std}"


# ---------------------------------------------------------------------- reading


def _in_runs(trial: str) -> Place:
    """The newest intact checkpoint of ``RUN/KEY``.

    Raises:
        UserError: There is none, or its storage cannot be used.
    """
    run, key = (part for part in trial.split("/") if part)
    folder = runs_root() / run
    if not folder.is_dir():
        hint = nearest(run, [p.name for p in runs_root().glob("*") if p.is_dir()])
        raise UserError(f"{WHERE}.trial", f"there is no run '{run}' in {runs_root()}", hint)
    url = str(folder / TRIALS)
    if (folder / "spec.json").is_file():
        storage = read_json(folder / "spec.json", dict).get("resolved", {}).get("storage")
        url = f"{storage}/{run}" if storage else url
    try:
        return _newest(run, key, url)
    except UserError:
        raise
    except Exception as error:  # file systems raise whatever they like
        raise UserError(f"{WHERE}.trial", f"{url} cannot be read: {_reason(error)}") from error


def _newest(run: str, key: str, url: str) -> Place:
    """The newest intact checkpoint of a trial in a run's folder of checkpoints."""
    store = CheckpointStore(f"{url}/{key}")
    path = store.newest()
    if path is None:
        beside = CheckpointStore(url).named("*")
        known = [one.rpartition("/")[2] for one in beside]
        what = f"run '{run}' has no checkpoint of a trial '{key}'"
        raise UserError(f"{WHERE}.trial", what, nearest(key, known[:20]))
    about = store.fs.info(path)
    changed = about.get("mtime") or about.get("LastModified") or 0.0
    stamp = changed if isinstance(changed, float) else changed.timestamp()
    url = store.fs.unstrip_protocol(path).removeprefix("file://")
    return Place(url, "trial", (stamp, int(about["size"])))


@lru_cache(256)
def _hash(place: Place) -> str:
    return hashlib.sha256(_content(place)).hexdigest()


@lru_cache(KEPT)
def _read(place: Place) -> tuple[str, dict[str, NDArray[Any]]]:
    """Read a file: its hash and its tensors."""
    content = _content(place)
    suffix = PurePosixPath(place.path).suffix
    try:
        tensors = _of_trial(content) if place.option == "trial" else _PARSERS[suffix](content)
    except Exception as error:  # parsers raise whatever they like
        if lacks_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0][:120] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors, or is damaged"
        what = f"{place.path} cannot be read as {suffix}: {reason}"
        raise UserError(f"{WHERE}.{place.option}", what) from error
    return hashlib.sha256(content).hexdigest(), tensors


def _content(place: Place) -> bytes:
    try:
        fs, path = filesystem(place.path)
        with fs.open(path, "rb") as file:
            content: bytes = file.read()
    except Exception as error:  # file systems raise whatever they like
        what = f"{place.path} cannot be read: {_reason(error)}"
        raise UserError(f"{WHERE}.{place.option}", what) from error
    return content


def _reason(error: Exception) -> str:
    """Why a file system did not do what was asked, without the path where it is known."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _of_trial(content: bytes) -> dict[str, NDArray[Any]]:
    state = CheckpointStore.parse(content)
    if "method" not in state:
        raise ValueError("it is no checkpoint of a trial on images")
    return _arrays(state["method"])


def _of_torch(content: bytes) -> dict[str, NDArray[Any]]:
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    while isinstance(found, Mapping):
        inner = (found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping))
        if (unpacked := next(inner, None)) is None:
            break
        found = unpacked
    return _arrays(found)


def _of_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    from safetensors.torch import load

    return _arrays(load(content))


def _of_numpy(content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (AttributeError, zipfile.BadZipFile) as error:
        raise ValueError("not an archive of arrays") from error
    if odd := [name for name, value in found.items() if value.dtype.kind not in "fiub"]:
        raise ValueError(f"{odd[0]} is no array of numbers")
    if not found:
        raise ValueError("it holds no tensors by name")
    return found


_PARSERS = {
    ".safetensors": _of_safetensors,
    ".pth": _of_torch,
    ".pt": _of_torch,
    ".npz": _of_numpy,
}


def _arrays(state: Any) -> dict[str, NDArray[Any]]:
    """The tensors of a state as arrays; other values are left out, as no network takes them."""
    if not isinstance(state, Mapping):
        raise ValueError("it holds no tensors by name")
    found = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            plain = value.detach()
            short = plain.dtype in (torch.bfloat16, torch.float16)
            found[str(name)] = (plain.float() if short else plain).contiguous().numpy()
    if not found:
        raise ValueError("it holds no tensors by name")
    return found
