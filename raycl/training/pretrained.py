"""Weights files of `raycl pretrain`: how they are written, what they say about themselves.

A .safetensors file with the tensors of one network. Its metadata has a single key, ``raycl``, whose
value is JSON: with several keys the library writes them in an order of chance, and the same weights
would have another hash each time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import raycl
from raycl import atomic
from raycl.errors import UserError
from raycl.methods.regress_features import RegressFeatures
from raycl.networks.base import Normalisation, Weights
from raycl.training.check import find_method
from raycl.trial.weights import config_of, locate

KEY = "raycl"
ORIGIN = "pretrain"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class About:
    """The description that a file of `raycl pretrain` has of itself.

    Attributes:
        trial: Key of the trial that made it.
        recipe: The trial's finished configuration.
        source: Weights that it learnt from: name and hash; empty: random ones.
        accuracy: Average accuracy by readout, percent, on the test images of its benchmark.
        normalisation: Mean and standard deviation that images were normalised with, if all were
            alike.
        unit: Unit of the ids of images, see ``raycl.datasets.ids.unit``.
        images: Ids of the training images of its data sets, sorted.
        version: Version of raycl.
        origin: Always ``pretrain``.
    """

    trial: str
    recipe: Mapping[str, Any]
    source: str
    accuracy: Mapping[str, float]
    normalisation: Normalisation | None
    unit: str
    images: tuple[str, ...]
    version: str = field(default_factory=lambda: raycl.__version__)
    origin: str = ORIGIN

    @property
    def images_sha256(self) -> str:
        """Hash of the ids: files with the same one have seen the same images."""
        return hashlib.sha256("".join(self.images).encode()).hexdigest()

    def as_json(self) -> str:
        """The value in the metadata, the same text for the same content."""
        fields = asdict(self) | {"images": "".join(self.images), "count": len(self.images)}
        return json.dumps(fields | {"images_sha256": self.images_sha256}, sort_keys=True)

    def seen(self, ids: Iterable[str]) -> int:
        """Number of these images that the network has seen."""
        own = set(self.images)
        return sum(one in own for one in ids)


def write(path: Path, tensors: Mapping[str, Tensor], about: About) -> str:
    """Write a file, whole or not at all.

    Returns:
        Its SHA-256, the same for the same tensors and the same ``about``.
    """
    from safetensors.torch import save

    content = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        metadata={KEY: about.as_json()},
    )
    atomic.write(path, content)
    return hashlib.sha256(content).hexdigest()


def read_about(path: Path) -> About | None:
    """Read the description of a file; ``None`` if `raycl pretrain` has not made it."""
    if path.suffix != SUFFIX:
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError):  # whoever needs its tensors says what is wrong with it
        return None
    content = {} if text is None else json.loads(text)
    if content.get("origin") != ORIGIN:
        return None
    ids, digits = content["images"], len(content["images"]) // max(1, content["count"])
    statistics = content["normalisation"]
    return About(
        trial=content["trial"],
        recipe=content["recipe"],
        source=content["source"],
        accuracy=content["accuracy"],
        normalisation=None if statistics is None else (tuple(statistics[0]), tuple(statistics[1])),
        unit=content["unit"],
        images=tuple(ids[i : i + digits] for i in range(0, len(ids), max(1, digits))),
        version=content["version"],
    )


def about(weights: Weights) -> About | None:
    """Read the description of the weights of a block; ``None`` for weights made elsewhere.

    A trial of pre-training says what it is, but not which images it has seen.

    Raises:
        UserError: The file or the trial is not there.
    """
    if weights.trial is not None:
        recipe = config_of(weights)
        if not _pretrains(recipe):
            return None
        return About(weights.trial, recipe, "", {}, None, unit="", images=())
    return None if weights.file is None else read_about(Path(locate(weights).path))


def _pretrains(recipe: Mapping[str, Any]) -> bool:
    """Whether a trial's method is that of pre-training; games have other methods."""
    try:
        return "method" in recipe and issubclass(find_method(recipe["method"]), RegressFeatures)
    except UserError:
        return False
