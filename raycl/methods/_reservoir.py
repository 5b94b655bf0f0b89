"""The classifier of methods that replay a reservoir, a uniform sample of all images trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Augment, Batch
from raycl.methods._mixed import MixedClassifier
from raycl.methods._replay import normaliser
from raycl.methods.base import Context, Outputs, Phase
from raycl.nn.memory import Reservoir


@dataclass(slots=True)
class Replayed:
    """Stored images, drawn for one step.

    Attributes:
        images: float32 (B, C, H, W), augmented and normalised.
        labels: int64 (B,), output ids.
        logits: float32 (B, num_outputs), as they were stored; (B, 0) where none are.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor


class ReservoirClassifier(MixedClassifier):
    """``MixedClassifier`` with a memory that takes in images step by step, within tasks too.

    After every step of the optimiser the images of its batch are offered to the memory, raw; so
    every epoch offers them again, and their number counts presentations. Each step but the very
    first may replay: ``train.batch_size`` stored images, or as many as there are, distinct and
    drawn anew.

    A loss calls ``remember`` on its batch, and ``replayer`` where ``replays`` says so. Outside of
    training it does neither: a score for ``train.select`` is of the task's validation images alone.
    The memory goes on where an earlier epoch's weights are put back.

    Attributes:
        reservoir: The memory.
        stores_logits: Whether logits are stored with the images.
    """

    class Config(MixedClassifier.Config):
        """Options of such a method."""

        outputs: Outputs = "all"
        memory_size: int = Field(200, ge=1, description="images stored, over all tasks together")

    memory = "exemplars"
    any_network = True
    stores_logits: ClassVar[bool] = False

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        stream = context.stream
        outputs = stream.num_outputs if self.stores_logits else 0
        self.reservoir = Reservoir(config.memory_size, stream.input_shape, outputs)
        self._learnt: tuple[Batch, Tensor | None] | None = None

    @property
    def replays(self) -> bool:
        """Whether a loss has something to replay: in training, once an image is stored."""
        return self.training and len(self.reservoir) > 0

    def replayer(self, augment: Augment | None) -> Callable[[], Replayed]:
        """Make a function that draws stored images for one step.

        Args:
            augment: Augmentation, applied before images are normalised.
        """
        memory, context = self.reservoir, self.context
        normalise = normaliser(context.stream, context.device)

        def draw() -> Replayed:
            slots = memory.draw(context.train.batch_size, context.method_generator)
            raw, task = memory.images.index_select(0, slots), memory.tasks.index_select(0, slots)
            images = normalise(raw if augment is None else augment(raw), task)
            labels, none = memory.labels.index_select(0, slots), images.new_empty(len(slots), 0)
            stored = memory.logits.index_select(0, slots) if self.stores_logits else none
            return Replayed(images, labels, stored)

        return draw

    def remember(self, batch: Batch, logits: Tensor) -> None:
        """Note a batch to be offered to the memory after this step; only in training.

        Args:
            batch: Images of the current task.
            logits: Logits of the network for them, (B, num_outputs).
        """
        if self.training:
            self._learnt = batch, logits.detach() if self.stores_logits else None

    def phases(self, task: Task) -> list[Phase]:
        """See ``Classifier.phases``; every step ends with an offer to the memory."""

        def offer() -> None:
            if self._learnt is None:
                raise RuntimeError("the loss of this step did not remember its batch")
            (batch, logits), self._learnt = self._learnt, None
            self.reservoir.offer(
                lambda taken: task.train.raw(batch.index.index_select(0, taken)),
                batch.labels,
                task.info.index,
                self.context.method_generator,
                logits,
            )

        return [replace(phase, after_step=offer) for phase in super().phases(task)]

    def diagnostics(self) -> dict[str, float]:
        """Number of images stored."""
        return {"exemplars": float(len(self.reservoir))}
