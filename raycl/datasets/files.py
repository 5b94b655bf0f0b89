"""Image files, loose or inside a zip: reading them, and streaming them while a network trains."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import IO, NamedTuple, TypeVar
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from raycl.datasets.base import Files
from raycl.datasets.crop import OriginalCrop, boxes
from raycl.datasets.examples import Augment, Batch, Normalised, Transform, in_batches
from raycl.datasets.transform import crop_batch, resize_batch
from raycl.errors import UserError, lacks_memory, printable

WHERE = "benchmark.dataset.path"
CHUNK = 64
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)
ZIP = ".zip"
FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "PPM", "TIFF", "TGA", "JPEG2000",
)  # fmt: skip
"""Image formats that are read, by Pillow's names; Pillow's other readers run programs."""
GREY = ("1", "L", "LA")
"""Pillow's modes of images without colours."""
MAX_PIXELS, LARGE = 89_478_485, 16_000_000
"""Pixels of the largest image that is decoded, Pillow's limit; beyond ``LARGE`` one at a time."""
MAX_BYTES = 8 * MAX_PIXELS
"""Length of the longest file that is read."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each orientation of EXIF; from 5 on, width and height change places."""

warnings.filterwarnings("ignore", module=r"PIL\.")
S = TypeVar("S")
T = TypeVar("T")
_alone = Lock()
_LOST = ("DataLoader worker (pid", "Pin memory thread exited")
"""How PyTorch begins to tell that a process was killed; it has no class of errors for that."""


class ReaderLost(Exception):
    """A process that reads images was killed, or cannot hand them over; a new one may do better."""


class Archive(NamedTuple):
    """An open zip.

    Attributes:
        zip: Its handle.
        members: Its members, by names whose parts are separated by ``/``.
    """

    zip: ZipFile
    members: dict[str, ZipInfo]


def split_archive(path: Path) -> tuple[Path, str]:
    """Split ``/a/b.zip!inner/dir`` into zip and inner path, which is ``""`` for other paths."""
    mark = re.search(r"\.zip!", text := str(path), re.IGNORECASE)
    return (Path(text[: mark.end() - 1]), text[mark.end() :].strip("/")) if mark else (path, "")


def open_zip(path: Path) -> Archive:
    """Open a zip, once per process (a handle must not be shared across a fork).

    Raises:
        UserError: It is not a zip.
    """
    try:
        status = path.stat()
        return _open_zip(path, os.getpid(), status.st_mtime_ns, status.st_size)
    except Exception as error:  # what zipfile raises for damaged ones is of many types
        if lacks_memory(error):
            raise
        what = f"'{printable(str(path))}' is not a zip file: {_reason(error)}"
        raise UserError(WHERE, what) from error


@lru_cache(maxsize=8)
def _open_zip(path: Path, _process: int, _changed: int, _length: int) -> Archive:
    opened = ZipFile(path)
    names = ((info.filename.replace("\\", "/"), info) for info in opened.infolist())
    return Archive(opened, {str(PurePosixPath(name)): info for name, info in names})


class Header(NamedTuple):
    """The form that an image will have when it is decoded.

    Attributes:
        size: Width and height.
        channels: 1 for a grey image, else 3.
    """

    size: tuple[int, int]
    channels: int


def measure(name: str) -> Header:
    """Read size and channels of an image from its header, without decoding it.

    Args:
        name: As in ``Files.paths``.

    Raises:
        UserError: Not an image, empty, too large, or with more than 8 bits per channel.
    """
    with _named(name), _opened(name) as file, _header(file) as image:
        size = image.size[::-1] if _orientation(image) >= 5 else image.size
        return Header(size, 1 if image.mode in GREY else 3)


def decode(
    name: str,
    size: int | None,
    *,
    colour: bool = False,
    shorter: int | None = None,
    drawn: Tensor | None = None,
) -> NDArray[np.uint8]:
    """Decode one image, turned as its EXIF data says; of an animated one the first picture.

    Args:
        name: As in ``Files.paths``.
        size: Side to resize to (bilinear, antialiased; the aspect ratio is not kept).
        colour: Three channels also for a grey image.
        shorter: Pixels that the shorter side is resized to; then the middle is cut out, ``size``
            pixels wide and high, and the aspect ratio is kept.
        drawn: float64 (ATTEMPTS + 1, 2), see ``crop.boxes``: a random part is cut out of the
            original image, in place of its middle, and made ``size`` pixels wide and high.

    Returns:
        uint8 (C, H, W) with one channel for a grey image, else three.

    Raises:
        UserError: As ``measure``; or the image is damaged.
    """
    with _named(name):
        with _opened(name) as file:
            content = file.read()
        with _header(BytesIO(content)) as image:
            large = image.width * image.height > LARGE
            with _alone if large else contextlib.nullcontext():
                pixels = _decoded(content, image)
                if drawn is not None:
                    sides = (int(side) for side in boxes(drawn[..., None], *pixels.shape[1:]))
                    top, left, height, width = sides
                    pixels = pixels[:, top : top + height, left : left + width]
                pixels = _resized(pixels, size, shorter if drawn is None else None)
    return (pixels.expand(3, -1, -1) if colour else pixels).numpy()


def _resized(pixels: Tensor, size: int | None, shorter: int | None) -> Tensor:
    if size and shorter:
        return crop_batch(pixels, shorter, size)
    if size and pixels.shape[1:] != (size, size):
        return resize_batch(pixels, size)
    return pixels


def read_bytes(name: str) -> bytes:
    """Read the bytes of a file that ``Files.paths`` names.

    Raises:
        UserError: It cannot be read.
    """
    with _named(name), _opened(name) as file:
        return file.read()


@contextlib.contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """Open a file, or a member of a zip, for reading."""
    path, inner = split_archive(Path(name))
    if not inner or not path.exists():  # a file outside may be called ``a.zip!b.png``
        with Path(name).open("rb") as file:
            _check_length(os.fstat(file.fileno()).st_size)
            yield file
        return
    archive = open_zip(path)
    if inner not in archive.members:
        raise ValueError("the zip holds no such file")
    info = archive.members[inner]
    _check_length(info.file_size)
    with archive.zip.open(info) as member:
        yield member


def _check_length(length: int) -> None:
    if not length:
        raise ValueError("the file is empty")
    if length > MAX_BYTES:
        raise ValueError(f"{length:,} bytes are more than {MAX_BYTES:,}")


def _header(file: IO[bytes]) -> Image.Image:
    """Open an image without decoding its pixels."""
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    if image.mode[0] in "IF":
        raise ValueError("it has more than 8 bits per channel")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, where 1 is upright; Pillow turns TIFF images by itself."""
    if image.format == "TIFF" or "exif" not in image.info:
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in TURNS else 1


def _decoded(content: bytes, image: Image.Image) -> Tensor:
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):  # a third of Pillow's time
        from torchvision.io import decode_jpeg

        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(data, apply_exif_orientation=True)  # type: ignore[no-any-return]
    turn = TURNS.get(_orientation(image))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    grey = image.mode in GREY
    image = image.convert("L" if grey else "RGB")
    array = np.array(image if turn is None else image.transpose(turn))
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn every error inside, but a lack of memory, into a ``UserError`` that names the image."""
    try:
        yield
    except UserError:  # about the zip
        raise
    except Exception as error:  # readers of image formats raise what they like
        if lacks_memory(error):
            raise
        what = f"cannot read the image '{printable(name)}': {_reason(error)}"
        raise UserError(WHERE, what) from error


def _reason(error: Exception) -> str:
    """The reason why a file cannot be read, in the same words in every process."""
    if isinstance(error, UnidentifiedImageError):  # its own words have an address in memory
        return "it is no image of a known format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def decode_all(
    names: Sequence[str],
    size: int | None,
    *,
    colour: bool = False,
    shorter: int | None = None,
    drawn: Tensor | None = None,
) -> list[NDArray[np.uint8]]:
    """Decode many images in parallel threads, the i-th one with ``drawn[..., i]``."""
    read = partial(decode, size=size, colour=colour, shorter=shorter)
    parts = [None] * len(names) if drawn is None else drawn.unbind(-1)
    return _each(lambda one: read(one[0], drawn=one[1]), list(zip(names, parts, strict=True)))


def measure_all(names: Sequence[str]) -> list[Header]:
    """Measure many images in parallel threads."""
    return _each(measure, names)


def _each(one: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Call ``one`` on each item in threads; of several errors, raise that of the first item."""

    def some(start: int) -> list[T]:
        return [one(item) for item in items[start : start + CHUNK]]

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = pool.map(some, range(0, len(items), CHUNK))
        return [made for part in parts for made in part]


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
        return self._transformed(self._decoded(index))

    def augmented(self, index: Tensor, augment: Augment | None) -> Tensor:
        """See ``Examples.augmented``; decoded in this process."""
        if isinstance(augment, OriginalCrop):
            parts = self._decoded(index, augment.draws(len(index)).cpu())
            return self._transformed(augment.flip(parts))
        return super().augmented(index, augment)

    def _decoded(self, index: Tensor, drawn: Tensor | None = None) -> Tensor:
        names = [self.files.paths[row] for row in self.rows[index.cpu()].tolist()]
        size, shorter = self.files.size, self.files.shorter
        images = np.stack(decode_all(names, size, colour=True, shorter=shorter, drawn=drawn))
        return torch.from_numpy(images).to(self.labels.device)

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
        crop = augment if isinstance(augment, OriginalCrop) else None
        after = None if crop is augment else augment
        stream = self.stream(order, [len(index) for index in indices], crop=crop)
        for index, raw in zip(indices, stream, strict=True):
            images = self.prepare(raw if after is None else after(raw))
            yield Batch(images, self.labels.index_select(0, index), index)

    def stream(
        self,
        index: Tensor,
        sizes: Sequence[int],
        share: int = 1,
        crop: OriginalCrop | None = None,
    ) -> Iterator[Tensor]:
        """See ``Normalised.stream``."""
        indices, device = torch.split(index, list(sizes)), self.labels.device
        drawn = [None if crop is None else crop.draws(size).cpu() for size in sizes]
        flipped: Transform = (lambda images: images) if crop is None else crop.flip
        workers = min(WORKERS // share, len(sizes))
        if not workers:  # more sets than cores: decoded in threads of this process
            for one, numbers in zip(indices, drawn, strict=True):
                yield self._transformed(flipped(self._decoded(one, numbers)))
            return
        loader: DataLoader[Tensor | Exception] = DataLoader(
            _Decoded(self.files, [self.rows[one] for one in indices], drawn),
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for loaded in _received(loader):
            if isinstance(loaded, Exception):
                raise loaded
            yield self._transformed(flipped(loaded.to(device, non_blocking=True)))


def _received(loader: DataLoader[Tensor | Exception]) -> Iterator[Tensor | Exception]:
    """Receive what the processes of a loader have read, or the errors that they met.

    Raises:
        ReaderLost: A process was killed, or none could be started.
    """
    try:
        yield from loader
    except (OSError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(_LOST):
            raise
        why = "memory, or room in /dev/shm, may be lacking"
        raise ReaderLost(f"a process that reads images was lost: {error}; {why}") from error


def _shared(images: Tensor) -> Tensor | ReaderLost:
    """Put a batch into /dev/shm; PyTorch's queue does it in a thread that nobody hears fail."""
    try:
        images.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return ReaderLost(f"images cannot be handed over: {error}")
    return images


class _Decoded(TorchDataset[Tensor | Exception]):
    """Data set for a ``DataLoader`` whose item i is the i-th batch, uint8 (B, 3, size, size)."""

    def __init__(self, files: Files, batches: list[Tensor], drawn: Sequence[Tensor | None]) -> None:
        self.files, self.batches, self.drawn = files, batches, drawn

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> Tensor | Exception:
        size, shorter, drawn = self.files.size, self.files.shorter, self.drawn[item]
        names = [self.files.paths[row] for row in self.batches[item].tolist()]
        parts: Sequence[Tensor | None] = [None] * len(names)
        if drawn is not None:
            parts = drawn.unbind(-1)
        try:
            images = [
                decode(name, size, colour=True, shorter=shorter, drawn=part)
                for name, part in zip(names, parts, strict=True)
            ]
            return _shared(torch.from_numpy(np.stack(images)))
        except Exception as error:
            if isinstance(error, UserError) or lacks_memory(error):
                return error  # raised in the parent: a DataLoader would garble it
            raise
