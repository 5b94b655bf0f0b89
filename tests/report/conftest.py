"""One tracking store for all tests of the report: making its tables takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_helpers import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder: Path = tmp_path_factory.mktemp("tracking")
    return Store(f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri())
