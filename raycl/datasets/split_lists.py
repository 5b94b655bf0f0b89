"""Lists of the images for training and for testing, as authors publish them with a data set.

A list is a YAML file with the keys ``data`` and ``targets``: paths of images and their class ids.
Only the last two parts of a path count, ``class/file``, so it does not matter in which folder the
authors had their images. The lists of ImageNet-R in the code of CODA-Prompt have this form.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from raycl.datasets.files import split_archive
from raycl.errors import UserError

WHERE = "benchmark.dataset.split_file"
PARTS = ("train", "test")

Tree = dict[str, list[str]]
"""File names by class name, in the order of the list."""


def trees(lists: tuple[Path, Path], names: Sequence[str], path: Path) -> tuple[Tree, Tree]:
    """Training and test images, classes in the order of their ids.

    Args:
        lists: Files that name the training and the test images.
        names: All images of the folder, as in ``Files.paths``.
        path: The folder, for messages.

    Raises:
        UserError: A file that is no such list; ids that are not 0..K-1 or not those of one folder
            each; an image that is listed twice, or not in the folder; a class of one list only.
    """
    known = _by_end(names, path)
    found: list[Tree] = []
    folders: dict[int, str] = {}
    seen: dict[str, str] = {}
    for part, file in zip(PARTS, lists, strict=True):
        tree: Tree = {}
        for image, target in _read(part, file):
            end = _end(image)
            name = end.partition("/")[0]
            if folders.setdefault(target, name) != name:
                what = f"class {target} of '{file}' is '{folders[target]}' and '{name}'"
                raise _error(part, what)
            if end in seen:
                both = "twice" if seen[end] == part else "for training and for testing"
                raise _error(part, f"'{file}': image '{end}' is listed {both}")
            if end not in known:
                what = f"'{file}' lists '{end}', which is not in '{path}'"
                raise _error(part, what, "paths count from the folder of the class on")
            seen[end] = part
            tree.setdefault(name, []).append(known[end])
        found.append(tree)
    order = _order(folders)
    for part, file, tree in zip(PARTS, lists, found, strict=True):
        if lacking := [name for name in order if name not in tree]:
            raise _error(part, f"'{file}' has no image of class '{lacking[0]}'")
    train, test = ({name: tree[name] for name in order} for tree in found)
    return train, test


def _order(folders: dict[int, str]) -> list[str]:
    """Names of the classes by their ids, which are 0..K-1 and one for each folder."""
    if sorted(folders) != list(range(len(folders))):
        missing = min(set(range(len(folders))) - set(folders))
        what = f"{len(folders)} class ids have to be 0..{len(folders) - 1}, and none is {missing}"
        raise UserError(WHERE, what)
    order = [folders[i] for i in range(len(folders))]
    if twice := [name for name in order if order.count(name) > 1]:
        raise UserError(WHERE, f"images of the folder '{twice[0]}' have several class ids")
    return order


def _by_end(names: Sequence[str], path: Path) -> dict[str, str]:
    """File names by their last two parts."""
    by_end: dict[str, str] = {}
    for name in names:
        end = _end(split_archive(Path(name))[1] or name)
        if end in by_end:
            raise UserError(WHERE, f"'{path}' has several images '{end}'", "name a folder inside")
        by_end[end] = name
    return by_end


def _end(name: str) -> str:
    """The folder of a class and a file in it, composed (NFC)."""
    return unicodedata.normalize("NFC", "/".join(name.replace("\\", "/").split("/")[-2:]))


def _read(part: str, file: Path) -> list[tuple[str, int]]:
    """The images of a list and their class ids."""
    try:
        content = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        what = f"cannot read '{file}': {error.strerror}"
        raise _error(part, what, "relative paths start at the data root") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _error(part, f"'{file}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not {"data", "targets"} <= content.keys():
        raise _error(part, f"'{file}' has no keys 'data' and 'targets'")
    images, targets = content["data"], content["targets"]
    if not (isinstance(images, list) and isinstance(targets, list) and images):
        raise _error(part, f"data and targets of '{file}' have to be lists that are not empty")
    if len(images) != len(targets):
        raise _error(part, f"'{file}' has {len(images)} images and {len(targets)} targets")
    for image, target in zip(images, targets, strict=True):
        if not _is_image(image):
            raise _error(part, f"'{file}' lists {image!r}, which does not end in class/file")
        if not _is_id(target):
            raise _error(part, f"'{file}' has the target {target!r}, which is no class id")
    return list(zip(images, targets, strict=True))


def _is_image(image: Any) -> bool:
    return isinstance(image, str) and "/" in image.replace("\\", "/").strip("/")


def _is_id(target: Any) -> bool:
    return isinstance(target, int) and not isinstance(target, bool) and target >= 0


def _error(part: str, what: str, hint: str = "") -> UserError:
    return UserError(f"{WHERE}.{part}", what, hint)
