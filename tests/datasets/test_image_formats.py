"""Images as people have them: formats, channels, orientation, damage."""

from __future__ import annotations

import contextlib
import errno
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from dataset_making import write_image, write_tree
from PIL import ExifTags, Image

from raycl import datasets
from raycl.datasets import DatasetConfig, files
from raycl.datasets.files import decode, measure, open_zip
from raycl.errors import UserError

COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8))
GREY = COLOUR.convert("L")


@pytest.mark.parametrize(
    "suffix",
    ["gif", "jfif", "jpe", "webp", "bmp", "dib", "tif", "tga", "png", "apng", "ppm", "jp2", "avif"],
)
def test_formats(tmp_path: Path, suffix: str) -> None:
    written = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG"}.get(suffix)
    for i in range(5):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            COLOUR.resize((16, 16)).save(tmp_path / name / f"{i}.{suffix.upper()}", written)
    data = datasets.load(DatasetConfig(name="folder", path="."), tmp_path)
    assert data.classes == ("a", "b")
    assert data.train.images.shape == (8, 3, 16, 16)
    assert not data.left_out


@pytest.mark.parametrize(
    "image, suffix, channels",
    [
        (COLOUR, "png", 3),
        (COLOUR.convert("RGBA"), "webp", 3),
        (COLOUR.convert("CMYK"), "tif", 3),
        (COLOUR.convert("CMYK"), "jpg", 3),
        (COLOUR.quantize(40), "png", 3),
        (COLOUR.convert("RGBA").quantize(40), "png", 3),
        (COLOUR.quantize(40), "gif", 3),
        (COLOUR.convert("YCbCr"), "tif", 3),
        (GREY, "png", 1),
        (GREY, "jpg", 1),
        (GREY.convert("LA"), "png", 1),
        (GREY.convert("1"), "tif", 1),
        (GREY, "pgm", 1),
        (GREY.convert("1"), "pbm", 1),
    ],
)
def test_modes(tmp_path: Path, image: Image.Image, suffix: str, channels: int) -> None:
    path = tmp_path / f"x.{suffix}"
    image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(str(path), None)
    assert pixels.shape == (channels, 9, 14)
    reference = np.asarray(Image.open(path).convert("RGBA").convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels.astype(int), reference[:channels], atol=2)
    assert measure(str(path)).size == (14, 9)


def test_of_an_animated_image_the_first_picture_counts(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 200, 0))
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"x.{suffix}"
        first.save(path, save_all=True, append_images=[second], lossless=True)
        assert decode(str(path), None)[:, 4, 4].tolist() == [200, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image", [COLOUR, GREY], ids=["colour", "grey"])
def test_orientation_is_applied(
    tmp_path: Path, suffix: str, orientation: int, image: Image.Image
) -> None:
    path = tmp_path / f"x.{suffix}"
    image.save(path, lossless=True, quality=95)
    upright = decode(str(path), None, colour=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, lossless=True, quality=95)
    turned = decode(str(path), None, colour=True)
    expected = upright[
        :, :: -1 if orientation in (3, 4) else 1, :: -1 if orientation in (2, 3) else 1
    ]
    if orientation >= 5:
        down, right = {5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
        expected = upright.transpose(0, 2, 1)[:, ::down, ::right]
    np.testing.assert_allclose(turned.astype(int), expected, atol=2)
    assert measure(str(path)).size == turned.shape[:0:-1]


def test_an_orientation_that_does_not_exist_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    for suffix in ("jpg", "png"):
        path = tmp_path / f"x.{suffix}"
        COLOUR.save(path, exif=exif)
        assert decode(str(path), None).shape == (3, 9, 14)
        assert measure(str(path)).size == (14, 9)


def _bytes(image: Image.Image, kind: str) -> bytes:
    image.save(stream := BytesIO(), kind)
    return stream.getvalue()


def _bomb(side: int) -> bytes:
    """A PNG that says it has ``side`` x ``side`` pixels, and has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    chunks = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


DAMAGED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("png", bytes, "the file is empty"),
    "page": ("jpg", lambda: b"<html>404</html>", "it is no image of a known format"),
    "postscript": ("jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    "16 bits": (
        "png",
        lambda: _bytes(Image.fromarray(np.full((12, 12), 40000, np.uint16)), "PNG"),
        "more than 8 bits per channel",
    ),
    "floats": (
        "tif",
        lambda: _bytes(Image.fromarray(np.zeros((12, 12), np.float32)), "TIFF"),
        "more than 8 bits per channel",
    ),
    "large": ("png", lambda: _bomb(10_000), "10000 x 10000 pixels are more than 89,478,485"),
    "bomb": ("png", lambda: _bomb(20_000), "more than 89,478,485 pixels"),
}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("size", [12, 80], ids=["memory", "files"])
def test_what_a_header_tells_is_one_line_that_names_the_file(
    tmp_path: Path, how: str, size: int
) -> None:
    suffix, content, text = DAMAGED[how]
    write_tree(tmp_path)
    (tmp_path / "dog" / f"03.{suffix}").write_bytes(content())
    said = set()
    for _ in range(2):
        with pytest.raises(UserError, match=f"cannot read the image .*/dog/03.*{text}") as caught:
            datasets.load(DatasetConfig(name="folder", path=".", size=size), tmp_path)
        said.add(str(caught.value))
    assert len(said) == 1
    assert "\n" not in said.pop()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "ppm", "jp2", "avif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_cut_files_are_read_or_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"x.{suffix}"
    COLOUR.resize((64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    said = []
    for _ in range(2):
        try:
            decode(str(path), None)
        except UserError as error:
            said.append(str(error))
    assert len(set(said)) == 1 or suffix in ("gif", "avif")
    assert all(f"cannot read the image '{path}': " in text for text in said)


def test_random_bytes_after_a_header_never_escape_as_something_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tif", "tga", "jp2"):
        path = tmp_path / f"x.{suffix}"
        COLOUR.save(path)
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(12):
            broken = content.copy()
            broken[rng.integers(0, len(content), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(broken.tobytes())
            with contextlib.suppress(UserError):
                decode(str(path), None)


def test_sizes_are_compared_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path)
    write_image(tmp_path / "dog" / "03.png", (90, 80))
    monkeypatch.setattr(files, "_decoded", lambda content, image: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"12 x 12 .* and 90 x 80 \(.*dog/03.png.*; set size"):
        datasets.load(DatasetConfig(name="folder", path="."), tmp_path)


def test_only_the_header_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    COLOUR.resize((600, 600)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:2000])
    assert measure(str(path)).size == (600, 600)


def _zip(path: Path, names: dict[str, bytes]) -> Path:
    with ZipFile(path, "w", ZIP_DEFLATED) as file:
        for name, content in names.items():
            file.writestr(name, content)
    return path


def test_a_member_that_says_it_is_huge_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10_000)
    path = _zip(tmp_path / "x.zip", {"a/0.bmp": bytes(20_000)})
    with pytest.raises(UserError, match=r"x.zip!a/0.bmp': 20,000 bytes are more than 10,000"):
        measure(f"{path}!a/0.bmp")


def test_a_zip_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    path = _zip(tmp_path / "x.zip", {"0.png": _bytes(COLOUR, "PNG")})
    assert measure(f"{path}!0.png").size == (14, 9)
    path.unlink()
    _zip(path, {"0.png": _bytes(COLOUR.resize((20, 30)), "PNG")})
    assert measure(f"{path}!0.png").size == (20, 30)


def test_damaged_zips_are_one_line(tmp_path: Path) -> None:
    path = _zip(tmp_path / "x.zip", {"a/0.png": _bytes(COLOUR, "PNG")})
    content = path.read_bytes()
    at = content.rindex(b"a/0.png")
    for broken in (
        b"",
        content[:40],
        content[:-10],
        content[:at] + b"\xff\xfe" + content[at + 2 :],
    ):
        marked = re.sub(rb"(?s)(PK\x01\x02.{4})..", lambda m: m[1] + b"\x00\x08", broken)  # UTF-8
        path.write_bytes(marked)
        with pytest.raises(UserError, match=r"x\.zip") as caught:
            measure(f"{path}!a/0.png")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["_decoded", "_open_zip"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["Python", "system", "PyTorch"],
)
def test_no_image_is_to_blame_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    write_image(tmp_path / "0.png", 8)
    path = _zip(tmp_path / "x.zip", {"0.png": (tmp_path / "0.png").read_bytes()})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(files, where, fail)
    with pytest.raises(type(error)):
        decode(f"{path}!0.png", None)


def test_members_of_a_zip_have_plain_names(tmp_path: Path) -> None:
    path = _zip(tmp_path / "x.zip", {"./a//0.png": b"x", "b\\1.png": b"y"})
    assert list(open_zip(path).members) == ["a/0.png", "b/1.png"]
