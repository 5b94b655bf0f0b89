"""Accuracy of a method on one task's images, under every readout at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from raycl.benchmarks.base import ClassOutputs, StreamInfo
from raycl.datasets.examples import Batch, Examples
from raycl.methods.base import Method

BATCH = 512
"""Images at a time; see ``StreamInfo.at_once``."""


class Predictor(Protocol):
    """The interface of what can be evaluated: a method, or something in its place."""

    @property
    def uses_task_id(self) -> bool:
        """Whether ``logits`` depends on its ``task_id``."""

    @property
    def logits(self) -> Callable[..., Tensor]:
        """See ``raycl.methods.base.Method.logits``."""


class Evaluator:
    """Measures accuracies, under all readouts at once.

    * ``task``: the task is known; the best of its own outputs.
    * ``class``: the task is unknown; the best of all outputs of tasks seen so far.
    * ``domain``: the task is unknown and does not matter; the position inside its task of the best
      of all outputs of tasks seen so far.

    With ``class_outputs = "all"``, the outputs of tasks still to come compete as well in ``class``
    and ``domain``.

    With ``precision = "bfloat16"``, answers are computed under ``torch.autocast``: logits have 8
    bits of significand, so that two outputs are equal more often, and the first of them counts.

    With ``top_k``, one of the k best outputs has to be right instead of the best; where fewer than
    k compete, all of them count.

    A readout may begin with the name of one of the method's ``predictors``: ``teacher/class``. Then
    that is asked, the same way.

    (van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", Nature Machine
    Intelligence 2022.)
    """

    def __init__(
        self,
        stream: StreamInfo,
        readouts: Sequence[str],
        device: torch.device,
        top_k: int = 1,
        class_outputs: ClassOutputs = "seen",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.stream, self.readouts, self.device = stream, tuple(readouts), device
        self.precision = precision
        self.top_k, self.class_outputs = top_k, class_outputs
        self.asked: dict[str, list[str]] = {}
        for readout in self.readouts:
            predictor, _, way = readout.rpartition("/")
            self.asked.setdefault(predictor, []).append(way)
        local = torch.zeros(stream.num_outputs, dtype=torch.int64)
        for task in stream.tasks:
            local[list(task.classes)] = torch.arange(len(task.classes))
        self.local = local.to(device)

    @torch.inference_mode()
    def accuracy(
        self, method: Predictor, examples: Examples, index: int, seen_tasks: int
    ) -> dict[str, float]:
        """Measure the percentage of right answers, per readout.

        Args:
            method: In eval mode already, or put there by the caller.
            examples: Images of task ``index``.
            index: Their task.
            seen_tasks: Tasks learnt so far; outputs of later tasks do not compete, unless all do.
        """
        own = torch.tensor(self.stream.tasks[index].classes, device=self.device)
        last = len(self.stream.tasks) if self.class_outputs == "all" else seen_tasks
        competing = torch.tensor(sorted(self.stream.seen(last - 1)), device=self.device)
        right = {r: torch.zeros((), dtype=torch.int64, device=self.device) for r in self.readouts}
        for batch in examples.batches(self.stream.at_once(BATCH)):
            with self._arithmetic():
                known, unknown = self._logits(method, batch, index)
            for predictor, ways in self.asked.items():
                logits = known.get(predictor), unknown.get(predictor)
                counts = self._right(*logits, batch.labels, own, competing, ways)
                for way, count in counts.items():
                    right[f"{predictor}/{way}" if predictor else way] += count
        return {readout: 100 * int(n) / len(examples) for readout, n in right.items()}

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """The context of the method's answers; float32 leaves it to the caller."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _right(
        self,
        known: Tensor | None,
        unknown: Tensor | None,
        labels: Tensor,
        own: Tensor,
        competing: Tensor,
        ways: Sequence[str],
    ) -> dict[str, Tensor]:
        """Number of images of a batch that one predictor gets right, per readout.

        Args:
            known: The predictor's logits with the task known; ``None``: no readout needs them.
            unknown: The predictor's logits with the task unknown, or ``None``.
            labels: Output ids, (B,).
            own: Outputs of the task.
            competing: Outputs that compete where the task is unknown.
            ways: The readouts, without the predictor's name.
        """
        labels, right = labels.unsqueeze(1), {}
        if known is not None and "task" in ways:
            right["task"] = (self._best(known, own) == labels).any(1).sum()
        if unknown is not None:
            predicted = self._best(unknown, competing)
            if "class" in ways:
                right["class"] = (predicted == labels).any(1).sum()
            if "domain" in ways:
                right["domain"] = (self.local[predicted] == self.local[labels]).any(1).sum()
        return right

    def _best(self, logits: Tensor, outputs: Tensor) -> Tensor:
        """The k outputs with the highest logits among ``outputs``: int64 (B, k)."""
        among = logits[:, outputs]
        if self.top_k == 1:
            return outputs[among.argmax(1, keepdim=True)]
        return outputs[among.topk(min(self.top_k, len(outputs)), dim=1).indices]

    def _logits(
        self, method: Predictor, batch: Batch, index: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits of each predictor with the task known, and unknown; once where they are equal."""
        ways = {way for asked in self.asked.values() for way in asked}
        kept: dict[str, Any] = {} if batch.frozen is None else {"frozen": batch.frozen}

        def ask(task: int | None) -> dict[str, Tensor]:
            if self.asked.keys() == {""}:
                return {"": method.logits(batch.images, task, **kept)}
            assert isinstance(method, Method), "nothing else has predictors"
            return method.answers(batch.images, task, **kept)

        if not method.uses_task_id:
            return (both := ask(None)), both
        return ask(index) if "task" in ways else {}, ask(None) if ways - {"task"} else {}
