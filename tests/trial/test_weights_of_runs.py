"""Weights of another run's trial, whose storage may not answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raycl.errors import UserError
from raycl.networks.base import Weights
from raycl.trial.checkpoint import CheckpointStore
from raycl.trial.weights import read, with_hashes

BLOCK = {"name": "mlp", "weights": {"trial": "earlier/abc"}}


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with one checkpoint, in a storage that is no folder."""
    monkeypatch.setenv("RAYCL_RUNS", str(tmp_path))
    (tmp_path / "earlier").mkdir()
    spec = {"resolved": {"storage": "memory://away"}}
    (tmp_path / "earlier" / "spec.json").write_text(json.dumps(spec))
    CheckpointStore("memory://away/earlier/abc").save({"method": {}}, 1)


class NoCredentialsError(Exception):
    """The error of a client of S3, which is no ``OSError``."""


@pytest.mark.parametrize(
    "error, said",
    [
        (ImportError("Install s3fs to access S3"), "ImportError: Install s3fs to access S3"),
        (NoCredentialsError("no credentials"), "NoCredentialsError: no credentials"),
        (PermissionError("Forbidden"), "Forbidden"),
    ],
)
@pytest.mark.parametrize("call", ["url_to_fs", "ls", "cat_file", "info", "open"])
def test_a_storage_that_does_not_answer_is_one_line(
    earlier: None, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception, said: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(fsspec if call == "url_to_fs" else MemoryFileSystem, call, refuse)
    with pytest.raises(UserError) as caught:
        read(Weights(trial="earlier/abc"))
    assert caught.value.where == "network.weights.trial"
    assert caught.value.what.startswith("memory://")
    assert caught.value.what.endswith(f" cannot be read: {said}")
    assert with_hashes(BLOCK) == BLOCK, "whoever reads the file says what is wrong"


def test_every_checkpoint_is_damaged(earlier: None) -> None:
    (path,) = CheckpointStore("memory://away/earlier/abc").paths()
    MemoryFileSystem().pipe_file(path, b"damaged")
    with pytest.raises(UserError, match="every checkpoint is damaged: /away/earlier/abc/step-0"):
        read(Weights(trial="earlier/abc"))
