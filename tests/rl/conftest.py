from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import ray
from sequence_making import Make

from raycl.rl.config import SequenceConfig


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of our own; two of its CPUs are for env runners."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def make() -> Iterator[Make]:
    """Runs that are closed at the end."""
    from raycl.rl.sequence import SequenceRun  # RLlib: seconds

    with ExitStack() as stack:

        def _make(config: SequenceConfig, env_runners: int = 0) -> Any:
            return stack.enter_context(closing(SequenceRun(config, "cpu", env_runners)))

        yield _make
