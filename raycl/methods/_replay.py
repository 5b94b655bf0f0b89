"""Classifiers that replay stored images: drawn at random, or kept in an order of importance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import StreamInfo, Task
from raycl.datasets.examples import Batch, Examples, ImageSet, concat
from raycl.errors import UserError
from raycl.methods._mixed import MixedClassifier
from raycl.methods.base import Context, Losses, Phase, from_task
from raycl.nn.memory import ExemplarMemory
from raycl.nn.norms import freeze_batch_norm
from raycl.nn.optim import make_optimizer, make_schedule

FEATURE_BATCH = 512
"""Images at a time; see ``StreamInfo.at_once``."""
Replay = Literal["batch", "list", "list_with_duplicates"]


def classes_so_far(stream: StreamInfo, index: int) -> list[tuple[int, int]]:
    """All classes of tasks 0..index as (task, output id), the oldest first."""
    return [(task.index, c) for task in stream.tasks[: index + 1] for c in task.classes]


def stored_images(memory: ExemplarMemory, stream: StreamInfo, slots: Tensor) -> list[ImageSet]:
    """Stored images as sets, to be joined to a task's own data; nothing is copied.

    Args:
        memory: The memory with the images; the sets are valid until it changes.
        stream: The stream; images are normalised with the statistics of the task they came from.
        slots: int64 (n,), filled slots, also several times the same.

    Returns:
        One set for each normalisation.
    """
    groups: dict[tuple[tuple[float, ...], tuple[float, ...]], list[int]] = {}
    for task, statistics in enumerate(zip(stream.mean, stream.std, strict=True)):
        groups.setdefault(statistics, []).append(task)
    of = memory.tasks.index_select(0, slots)
    sets = []
    for (mean, std), tasks in groups.items():
        own = slots if len(groups) == 1 else slots[torch.isin(of, of.new_tensor(tasks))]
        labels = memory.labels.index_select(0, own)
        sets.append(ImageSet(memory.images, own, labels, mean, std))
    return [one for one in sets if len(one)]


def normaliser(stream: StreamInfo, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Normalisation of stored images with the statistics of the tasks that they came from.

    Args:
        stream: The stream with the statistics.
        device: Device of the images.

    Returns:
        A function of raw images, uint8 (B, C, H, W), and their tasks, int64 (B,), to float32
        (B, C, H, W).
    """
    mean, std = (
        torch.tensor(values, device=device)[:, :, None, None]
        for values in (stream.mean, stream.std)
    )
    scale, shift = 1 / (255 * std), -mean / std
    return lambda raw, task: raw.float().mul_(scale[task]).add_(shift[task])


class Replaying(MixedClassifier):
    """``MixedClassifier`` with a memory of raw images.

    Attributes:
        exemplars: The memory.
    """

    class Config(MixedClassifier.Config):
        """Options of a method with a memory."""

        memory_size: int = Field(2000, ge=1, description="images stored, over all tasks together")

    memory = "exemplars"

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.exemplars = ExemplarMemory(config.memory_size, context.stream.input_shape)

    def stored(self, slots: Tensor) -> list[ImageSet]:
        """See ``stored_images``."""
        return stored_images(self.exemplars, self.context.stream, slots)

    def one_pass(self, examples: Examples, *, drop_last: bool) -> Iterator[Batch]:
        """Yield shuffled and augmented batches of one pass over a set."""
        return examples.batches(
            self.context.train.batch_size,
            generator=self.context.data_generator,
            augment=self.context.augment,
            drop_last=drop_last,
        )

    def diagnostics(self) -> dict[str, float]:
        """Number of images stored."""
        return {"exemplars": float(len(self.exemplars))}


class RandomReplay(Replaying):
    """A memory that is chosen at random, mixed into the data of every task but the first.

    ``replay`` says how:
        batch: Every batch of B current images gets B draws from the memory, with replacement and
            fresh at every step: batches of 2B, as many steps as without memory.
        list: The list of images is lengthened once per task by as many draws from the memory, with
            replacement, as there are new images; batches of B are cut from the shuffled list: about
            B/2 old images in each, twice the steps. Exemplars that were not drawn are not seen in
            that task (about 1/e of them where task and memory are of one size).
        list_with_duplicates: The same, and the next memory is chosen from the lengthened list, as
            the code of arXiv 2106.09701 does: what was drawn twice may be stored twice, what was
            not drawn is lost.

    In the first two no image is stored twice: at a task's end old images are thinned to their new
    quota (``raycl.nn.memory.quotas``), new ones are drawn from the task's own training set without
    replacement. Both are uniform within a class. Where tasks share classes, the quota is per class
    and task.

    Attributes:
        draws: int64 (), seed of this task's draws; not with ``replay: batch``.
    """

    class Config(Replaying.Config):
        """Options of such a method."""

        replay: Replay = Field(
            "batch",
            description="batch: as many stored images behind every batch; list: stored images "
            "drawn once per task, batches from the joint list; list_with_duplicates: as published",
            json_schema_extra=from_task(1),
        )

    draws: Tensor

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        if config.replay != "batch":
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def begin_task(self, task: Task) -> None:
        """Decide which stored images this task sees."""
        super().begin_task(task)
        if self.config.replay != "batch":
            # The draws are as many as the images, which the state's structure must not depend on.
            self.draws.copy_(torch.randint(2**62, (), generator=self.context.method_generator))

    def drawn(self, count: int) -> Tensor:
        """The slots drawn for the current task, int64 (count,), the same whenever asked."""
        generator = torch.Generator().manual_seed(int(self.draws))
        slots = torch.randint(len(self.exemplars), (count,), generator=generator)
        return slots.to(self.context.device)

    def train_batches(self, task: Task) -> Iterable[Batch]:
        """One epoch of the task's own data and stored images."""
        train = self.context.train
        if not task.info.index:
            return super().train_batches(task)
        if self.config.replay == "batch":
            return self.mixed(super().train_batches(task), len(self.exemplars))
        old = self.stored(self.drawn(len(task.train)))
        return self.one_pass(concat([task.train, *old]), drop_last=train.drop_last)

    def mixed(self, batches: Iterable[Batch], stored: int) -> Iterator[Batch]:
        """Yield each batch with as many stored images behind it; their ``index`` is -1.

        Args:
            batches: Batches of the current task.
            stored: Filled slots of the memory.
        """
        memory, context = self.exemplars, self.context
        normalise = normaliser(context.stream, context.device)
        for batch in batches:
            drawn = torch.randint(stored, (len(batch),), generator=context.method_generator)
            drawn = drawn.to(context.device, non_blocking=True)
            raw, task = memory.images.index_select(0, drawn), memory.tasks.index_select(0, drawn)
            raw = raw if context.augment is None else context.augment(raw)
            yield Batch(
                torch.cat([batch.images, normalise(raw, task)]),
                torch.cat([batch.labels, memory.labels.index_select(0, drawn)]),
                torch.cat([batch.index, torch.full_like(drawn, -1)]),
            )

    def end_task(self, task: Task) -> None:
        """Thin the memory to the new quota and store images of this task."""
        index, train = task.info.index, task.train
        repeated = self.config.replay == "list_with_duplicates" and index > 0
        self.exemplars.update(
            classes_so_far(self.context.stream, index),
            train.labels,
            train.raw,
            self.context.method_generator,
            self.drawn(len(train)) if repeated else None,
        )

    def diagnostics(self) -> dict[str, float]:
        """Number of images stored, and of different ones where an image may be stored twice."""
        numbers = super().diagnostics()
        if self.config.replay == "list_with_duplicates":
            rows = self.exemplars.images[: int(numbers["exemplars"])].flatten(1)
            numbers["unique_exemplars"] = float(len(torch.unique(rows, dim=0)))
        return numbers


class OrderedReplay(Replaying):
    """A memory in an order that is fixed when a class is first seen, and a short second phase.

    The memory is joined to the task's data once, so that each stored image comes by once per epoch.
    Images are ranked by features of the network before its head: in eval mode, without
    augmentation, not normalised in length.

    ``train.select`` chooses an epoch of the first phase alone. The validation set holds images of
    the newest task only, while the second phase is there to take away the bias towards that task:
    the epoch that scores best would be the one that has taken away least. The second phase ends
    with its last epoch.

    Raises:
        UserError: Less room than classes; a plateau schedule, which the second phase has no score
            for.
    """

    class Config(Replaying.Config):
        """Options of such a method."""

        temperature: float = Field(
            2.0,
            gt=0,
            description="divides the logits in the distillation",
            json_schema_extra=from_task(2),
        )
        stage2_lr_factor: float = Field(
            0.01,
            gt=0,
            description="learning rate of the second phase, relative to train.lr",
            json_schema_extra=from_task(2),
        )
        freeze_bn: bool = Field(
            True,
            description="batch normalisation keeps its running statistics in the second phase",
            json_schema_extra=from_task(2),
        )

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        classes = len(classes_so_far(context.stream, len(context.tasks) - 1))
        if config.memory_size < classes:
            raise UserError(
                "method.memory_size",
                f"{config.memory_size} images are too few for {classes} classes",
                "there must be one of each at least",
            )
        if context.train.schedule.name == "plateau":
            raise UserError(
                "train.schedule",
                f"plateau is not for {config.name}: its second phase has no score to follow",
                "use constant, step or cosine",
            )

    @abstractmethod
    def order(self, features: Tensor, count: int) -> Tensor:
        """Rank the images of a class; see ``raycl.nn.memory.Order``."""

    @torch.no_grad()
    def features_of(self, examples: Examples) -> Tensor:
        """Compute features, float (N, num_features), in the order of the set, in eval mode."""
        batches = examples.batches(self.context.stream.at_once(FEATURE_BATCH))
        return torch.cat([self.backbone(batch.images) for batch in batches])

    def choose_exemplars(self, task: Task) -> None:
        """Shorten the lists of old classes and rank the images of the new ones; in eval mode."""
        self.exemplars.update_in_order(
            classes_so_far(self.context.stream, task.info.index),
            task.train.labels,
            task.train.raw,
            self.features_of(task.train),
            self.order,
        )

    def memory_sets(self) -> list[ImageSet]:
        """All stored images, as sets."""
        return self.stored(torch.arange(len(self.exemplars), device=self.context.device))

    def train_batches(self, task: Task) -> Iterable[Batch]:
        """One epoch of the task's own data and of the memory."""
        examples = concat([task.train, *self.memory_sets()])
        return self.one_pass(examples, drop_last=self.context.train.drop_last)

    def second_phase(
        self,
        name: str,
        parameters: Sequence[nn.Parameter],
        examples: Callable[[], Examples],
        loss: Callable[[Batch], Losses],
        validate: bool = True,
    ) -> Phase:
        """Make a phase of few parameters at a lower rate, with epochs and schedule of ``train``.

        With ``train.drop_last`` and fewer images than a batch, they are one short batch: to leave
        it out would leave nothing.

        Args:
            name: Name of the phase.
            parameters: Parameters that are trained.
            examples: Called when an epoch starts.
            loss: See ``Phase``.
            validate: See ``Phase``.
        """
        train, config = self.context.train, self.config
        slower = train.model_copy(update={"lr": train.lr * config.stage2_lr_factor})

        def batches() -> Iterator[Batch]:
            if config.freeze_bn:
                freeze_batch_norm(self.backbone)  # the loop has just put it into train mode
            chosen = examples()
            return self.one_pass(
                chosen, drop_last=train.drop_last and len(chosen) >= train.batch_size
            )

        return Phase(
            name=name,
            epochs=train.epochs,
            optimizer=lambda: make_optimizer(parameters, slower),
            schedule=lambda optimizer: make_schedule(optimizer, train),
            batches=batches,
            loss=loss,
            clip_norm=train.clip_norm,
            validate=validate,
        )
