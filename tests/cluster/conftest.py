"""Sweeps in real processes, as in tests/faults."""

from tests.faults.conftest import lab

__all__ = ["lab"]
