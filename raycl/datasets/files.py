"""Image files, loose or inside a zip: reading them, and streaming them while a network trains."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from raycl.datasets.base import Files
from raycl.datasets.examples import Augment, Batch, Normalised, Transform, in_batches
from raycl.datasets.transform import crop_batch, resize_batch
from raycl.errors import UserError

WHERE = "benchmark.dataset.path"
CHUNK = 64
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)


def split_archive(path: Path) -> tuple[Path, str]:
    """``/a/b.zip!inner/dir`` to the zip and what is inside; anything else to itself and ``""``."""
    archive, mark, inner = str(path).partition(".zip!")
    return (Path(archive + ".zip"), inner.strip("/")) if mark else (path, "")


def open_zip(path: Path) -> ZipFile:
    """The zip, opened once per process (a handle must not be shared across a fork).

    Raises:
        UserError: It is not a zip.
    """
    return _open_zip(path, os.getpid())


@lru_cache(maxsize=8)
def _open_zip(path: Path, _process: int) -> ZipFile:
    try:
        return ZipFile(path)
    except (OSError, BadZipFile) as error:
        raise UserError(WHERE, f"'{path}' is not a zip file: {error}") from error


def open_image(name: str) -> Image.Image:
    """An image whose pixels are not decoded yet.

    Args:
        name: As in ``Files.paths``.

    Raises:
        UserError: Not an image, or damaged.
    """
    try:
        return Image.open(BytesIO(read_bytes(name)))
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(name, error) from error


def decode(
    name: str, size: int | None, *, colour: bool = False, shorter: int | None = None
) -> NDArray[np.uint8]:
    """One image.

    Args:
        name: As in ``Files.paths``.
        size: Side to resize to (bilinear, antialiased; the aspect ratio is not kept).
        colour: Three channels also for a grey image.
        shorter: Pixels that the shorter side is resized to; then the middle is cut out, ``size``
            pixels wide and high, and the aspect ratio is kept.

    Returns:
        uint8 (C, H, W) with one channel for a grey image, else three.

    Raises:
        UserError: Not an image, damaged, or with more than 8 bits per channel.
    """
    content = read_bytes(name)
    try:
        pixels = _decode_jpeg(content) if content.startswith(b"\xff\xd8") else None
        pixels = _decode_any(content, name) if pixels is None else pixels
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        raise _damaged(name, error) from error
    if size and shorter:
        pixels = crop_batch(pixels, shorter, size)
    elif size and pixels.shape[1:] != (size, size):
        pixels = resize_batch(pixels, size)
    if colour:
        pixels = pixels.expand(3, -1, -1)
    return pixels.numpy()


def read_bytes(name: str) -> bytes:
    """The bytes of a file; see ``Files.paths``."""
    path, inner = split_archive(Path(name))
    try:
        return open_zip(path).read(inner) if inner else path.read_bytes()
    except (OSError, BadZipFile, KeyError, RuntimeError, zlib.error) as error:  # or encrypted
        raise _damaged(name, error) from error


def _decode_jpeg(content: bytes) -> Tensor | None:
    """A grey or RGB JPEG, in a third of Pillow's time; ``None`` for CMYK."""
    from torchvision.io import decode_jpeg

    pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return pixels if len(pixels) in (1, 3) else None


def _decode_any(content: bytes, name: str) -> Tensor:
    with Image.open(BytesIO(content)) as image:
        if image.mode[0] in "IF":
            raise UserError(WHERE, f"'{name}' has more than 8 bits per channel")
        grey = image.mode in ("1", "L", "LA")
        array = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


def _damaged(name: str, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0]
    return UserError(WHERE, f"cannot read the image '{name}': {reason}")


def decode_all(
    names: Sequence[str],
    size: int | None,
    *,
    colour: bool = False,
    shorter: int | None = None,
) -> list[NDArray[np.uint8]]:
    """``decode`` for many images, in parallel threads."""

    def some(start: int) -> list[NDArray[np.uint8]]:
        chunk = names[start : start + CHUNK]
        return [decode(name, size, colour=colour, shorter=shorter) for name in chunk]

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = pool.map(some, range(0, len(names), CHUNK))
        return [image for part in parts for image in part]


class FileSet(Normalised):
    """Images read from files batch by batch; worker processes decode ahead of the training.

    Workers only decode and resize. Order and augmentation come from the generators of the caller,
    so the number of workers changes nothing.

    Args:
        files: The files that many sets share.
        rows: int64 (N,), on the CPU; see ``Normalised``, also for the rest.
    """

    reads_ahead = True

    def __init__(
        self,
        files: Files,
        rows: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        transform: Transform | None = None,
    ) -> None:
        super().__init__(files, rows, labels, mean, std, transform)
        self.files = files

    def raw(self, index: Tensor) -> Tensor:
        """See ``Examples.raw``; decoded in this process."""
        names = [self.files.paths[row] for row in self.rows[index.cpu()].tolist()]
        size, shorter = self.files.size, self.files.shorter
        images = np.stack(decode_all(names, size, colour=True, shorter=shorter))
        return self._transformed(torch.from_numpy(images).to(self.labels.device))

    def _transformed(self, raw: Tensor) -> Tensor:
        return raw if self.transform is None else self.transform(raw)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """See ``Examples.batches``."""
        order = self.order(batch_size, generator, drop_last)
        indices = in_batches(order.to(self.labels.device), batch_size)
        stream = self.stream(order, [len(index) for index in indices])
        for index, raw in zip(indices, stream, strict=True):
            images = self.prepare(raw if augment is None else augment(raw))
            yield Batch(images, self.labels.index_select(0, index), index)

    def stream(self, index: Tensor, sizes: Sequence[int], share: int = 1) -> Iterator[Tensor]:
        """See ``Normalised.stream``."""
        indices, device = torch.split(index, list(sizes)), self.labels.device
        workers = min(WORKERS // share, len(sizes))
        if not workers:  # more sets than cores: decoded in threads of this process
            yield from (self.raw(one) for one in indices)
            return
        loader: DataLoader[Tensor | UserError] = DataLoader(
            _Decoded(self.files, [self.rows[one] for one in indices]),
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for loaded in loader:
            if isinstance(loaded, UserError):
                raise loaded
            yield self._transformed(loaded.to(device, non_blocking=True))


class _Decoded(TorchDataset[Tensor | UserError]):
    """Item i is the i-th batch, uint8 (B, 3, size, size)."""

    def __init__(self, files: Files, batches: list[Tensor]) -> None:
        self.files, self.batches = files, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> Tensor | UserError:
        size, shorter = self.files.size, self.files.shorter
        names = [self.files.paths[row] for row in self.batches[item].tolist()]
        try:
            images = [decode(name, size, colour=True, shorter=shorter) for name in names]
            return torch.from_numpy(np.stack(images))
        except UserError as error:  # raised in the parent: a DataLoader would garble it
            return error
