"""Notes the files of weights that a library fetches from its hub, by their hash."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from raycl.errors import UserError, lacks_memory

LOADED: dict[str, str] = {}
"""Hash of the files that this process has read for weights, by the name of the weights."""
READERS = ((torch, "load"), (safetensors.torch, "load_file"), (np, "load"))
"""Functions with which libraries read the files that they have fetched."""


@contextmanager
def noted(name: str) -> Iterator[None]:
    """Note in ``LOADED`` the files of weights that are read inside this context.

    Args:
        name: Name of the weights; empty: nothing is noted.

    Raises:
        UserError: A file that was fetched is cut off or damaged.
    """
    if not name:
        yield
        return
    read: list[Path] = []
    with ExitStack() as stack:
        for module, function in READERS:
            stack.enter_context(_watched(module, function, read))
        yield
    if read:
        LOADED[name] = "sha256 " + " and ".join(sorted({_hash(path)[:16] for path in read}))


@contextmanager
def _watched(module: Any, function: str, read: list[Path]) -> Iterator[None]:
    """Let a module's function write down the files that it reads."""
    original: Callable[..., Any] = getattr(module, function)

    @functools.wraps(original)
    def watching(source: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(source, str | os.PathLike):
            return original(source, *args, **kwargs)
        try:
            found = original(source, *args, **kwargs)
        except (OSError, TypeError):  # about the path or the arguments
            raise
        except Exception as error:  # parsers raise whatever they like
            if lacks_memory(error) or "allowed global" in str(error):  # or it holds code
                raise
            raise _damaged(Path(source), error) from error
        read.append(Path(source))
        return found

    setattr(module, function, watching)
    try:
        yield
    finally:
        setattr(module, function, original)


def _damaged(path: Path, error: Exception) -> UserError:
    """The error about a file in a library's cache, which may name it by a link."""
    reason = str(error).strip().partition("\n")[0][:120] or type(error).__name__
    what = f"'{path.resolve()}', which was fetched, is cut off or damaged: {reason}"
    return UserError("network", what, "remove that file, and it is fetched again")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
