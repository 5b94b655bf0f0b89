"""Pictures that a method makes of itself: checks, names and files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from raycl.methods.base import Method

FOLDER = "pictures"
"""Folder of the files below that of the trial; ``raycl.tracking.records`` knows it, too."""
MOST = 16
"""Largest number of pictures of one task."""
LONGEST = 1024
"""Largest side in pixels; a larger picture is shrunk in its file."""
READABLE = 512
"""Side in pixels up to which a small picture is enlarged, each pixel to a square."""
NEAREST = Image.Resampling.NEAREST
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def of(method: Method, task: int, tasks: int) -> dict[str, Tensor]:
    """Pictures of a method after a task, by the names of their files; see ``named``."""
    with torch.no_grad():
        return named(method.pictures(), task, tasks)


def named(found: Mapping[str, Tensor], task: int, tasks: int) -> dict[str, Tensor]:
    """``Method.pictures`` by the names that their files will have, without ``.png``.

    Args:
        found: The pictures that the method gave.
        task: Number of the task that has ended, from 1.
        tasks: Number of all tasks; names are padded with zeros so that they sort.

    Raises:
        ValueError: Not uint8 of shape (3, H, W), a name that is no file's, or too many.
    """
    if len(found) > MOST:
        raise ValueError(f"a method has at most {MOST} pictures of a task, not {len(found)}")
    for stem, image in found.items():
        if not _STEM.fullmatch(stem):
            raise ValueError(f"picture {stem!r}: up to 64 letters, digits and . _ - make a name")
        if image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3 or not image.numel():
            what = f"{image.dtype} {tuple(image.shape)}"
            raise ValueError(f"picture {stem} must be torch.uint8 (3, H, W), not {what}")
    width = len(str(tasks))
    return {f"{stem}-task-{task:0{width}d}": image.cpu() for stem, image in found.items()}


def png(image: Tensor) -> bytes:
    """A PNG file of uint8 (3, H, W), of a size that MLflow's page and a table can show."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    times = max(1, READABLE // max(picture.size))
    picture = picture.resize((times * picture.width, times * picture.height), NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
