"""Costs of a run, counted by the harness and not by the method."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from raycl.networks.base import Backbone

TASK_PARTS = {
    "weights": "task_percent",
    "affine": "task_percent_affine",
    "statistics": "task_percent_statistics",
}
"""Parts of a task's own tensors, each with the cost that counts all parts up to it."""


class Costs:
    """Training seconds, examples, memory.

    Attributes:
        seconds: Wall time of training and task boundaries, without evaluation.
        examples: Training examples processed, every epoch counted.
        peak_memory_mb: On CUDA the allocator's peak; on the CPU the largest resident set seen at
            the end of an epoch, libraries and shared pages included. In units of 10^6 bytes.
        part_peak_mb: The same since ``begin_part``; not part of the state.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = self.peak_memory_mb = self.part_peak_mb = 0.0
        self.examples = 0
        self.measured: dict[str, float] = {}
        self._started = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock and look at the memory."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            used = torch.cuda.max_memory_allocated(self.device)
        else:
            used = psutil.Process().memory_info().rss
        self.seconds += time.perf_counter() - self._started
        self.peak_memory_mb = max(self.peak_memory_mb, used / 1e6)
        self.part_peak_mb = max(self.part_peak_mb, used / 1e6)

    def begin_part(self) -> None:
        """Begin a part with a peak of its own."""
        self.part_peak_mb = 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def measure(self, method: nn.Module, plain_size: int, data_bytes: int) -> dict[str, float]:
        """Take the totals at a task's end.

        Args:
            method: The method, whose whole state has to be kept.
            plain_size: Scalars of the plain network, which every method needs.
            data_bytes: Data it goes back to and that its state does not hold.
        """
        found = _tensors(method.state_dict())  # under two names counts once
        tensors = list({(t.data_ptr(), t.numel()): t for t in found}.values())
        floats = sum(t.numel() for t in tensors if t.is_floating_point())
        self.measured = {
            "stored_bytes": float(data_bytes + sum(t.numel() * t.element_size() for t in tensors)),
            "extra_parameters": float(max(0, floats - plain_size)),
        }
        return self.totals()

    def measure_task(
        self, parts: Mapping[str, Sequence[Tensor]], backbone: int
    ) -> dict[str, float]:
        """Measure what the last task added beside its head, in percent of the backbone.

        Three sums: of weights; of those and the affine parameters of normalisations; of all and
        their running statistics. Bytes are counted, and four make a parameter, so that a mask of
        bits costs a 32nd of a weight.

        Args:
            parts: See ``raycl.methods.base.Method.task_parts``.
            backbone: Parameters of the backbone.
        """
        sums, found = 0.0, {}
        for part, name in TASK_PARTS.items() if parts else ():
            sums += sum(t.numel() * t.element_size() for t in parts.get(part, ())) / 4
            found[name] = 100 * sums / backbone
        self.measured |= found
        return found

    def totals(self) -> dict[str, float]:
        """All costs so far."""
        return {
            "seconds": self.seconds,
            "examples": float(self.examples),
            "peak_memory_mb": self.peak_memory_mb,
            **self.measured,
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seconds": self.seconds,
            "examples": self.examples,
            "peak_memory_mb": self.peak_memory_mb,
            "measured": self.measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name, value in state.items():
            setattr(self, name, value)


class PlainSizes:
    """Sizes of plain networks; each is built once, and leaves no trace in random numbers.

    Args:
        build: Builds the network of a block.
        outputs: Outputs of the head.
    """

    def __init__(self, build: Callable[[Mapping[str, Any]], Backbone], outputs: int) -> None:
        self.build, self.outputs = build, outputs
        self._known: list[tuple[Mapping[str, Any], tuple[int, int]]] = []

    def of(self, block: Mapping[str, Any]) -> tuple[int, int]:
        """Number of scalars of a plain network: one backbone, one linear head over all outputs.

        Then parameters of the backbone.
        """
        found = next((size for known, size in self._known if known == block), None)
        if found is None:
            with torch.random.fork_rng(devices=[]):
                backbone = self.build(block)
            state = backbone.state_dict().values()
            head = (backbone.num_features + 1) * self.outputs
            size = int(head + sum(v.numel() for v in state if v.is_floating_point()))
            found = size, sum(p.numel() for p in backbone.parameters())
            self._known.append((block, found))
        return found


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []
