"""The parts that a method is made of, and the classifier that most methods start from.

The contract is in ``raycl.methods._contract``; all its classes are to be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch, Examples
from raycl.errors import UserError
from raycl.methods._contract import Context as Context
from raycl.methods._contract import Losses as Losses
from raycl.methods._contract import Memory as Memory
from raycl.methods._contract import Method as Method
from raycl.methods._contract import MethodConfig as MethodConfig
from raycl.methods._contract import Phase as Phase
from raycl.nn.fisher import fisher_diagonal
from raycl.nn.optim import make_optimizer, make_schedule
from raycl.trial.sharing import from_end_of_task as from_end_of_task
from raycl.trial.sharing import from_task as from_task
from raycl.trial.sharing import not_in_phase as not_in_phase

FISHER_BATCH = 128
"""Images at a time; more only take more memory."""
SCORE_BATCH = 1024
"""Images at a time; see ``StreamInfo.at_once``."""
Outputs = Annotated[
    Literal["seen", "task", "all"],
    Field(description="outputs in the cross-entropy: all seen classes, the task's own, or all"),
]


def total(losses: Losses) -> Tensor:
    """Total loss: a scalar itself, or the sum of its terms."""
    if isinstance(losses, Tensor):
        return losses
    return torch.stack([term.float() for term in losses.values()]).sum()


def masked_cross_entropy(
    logits: Tensor, labels: Tensor, outputs: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy over a subset of the outputs.

    Args:
        logits: (B, num_outputs).
        labels: int64 (B,), output ids, all of them in ``outputs``.
        outputs: int64 (K,), sorted distinct output ids that take part.
        smoothing: Share of the target that is spread evenly over all K outputs.
    """
    if len(outputs) < logits.shape[1]:
        logits, labels = logits.index_select(1, outputs), torch.searchsorted(outputs, labels)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def check_classes(tasks: Iterable[TaskInfo]) -> None:
    """Refuse a task of one class, from which a loss over the task's own classes learns nothing.

    Raises:
        UserError: Names the first such task.
    """
    if small := [task for task in tasks if len(task.classes) < 2]:
        what = f"task {small[0].name} has one class: a loss over a task's own classes would be 0"
        raise UserError("benchmark", what, "give every task two classes or more")


class Classifier(Method):
    """One backbone, one linear head over all outputs, one phase of cross-entropy per task.

    Attributes:
        smoothing: Label smoothing of the cross-entropy.
        learns_single_classes: Whether a task of one class teaches it something with ``outputs:
            task``. A softmax over one output does not.
    """

    class Config(MethodConfig):
        """Options of every classifier."""

        outputs: Outputs = "seen"

    zero_shot = True
    uses_task_id = False
    smoothing: float = 0.0
    learns_single_classes: ClassVar[bool] = False

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        own = getattr(config, "outputs", None) == "task"  # not every method has the option
        if own and not self.learns_single_classes:
            check_classes(context.tasks)
        self.renew_network(0)

    def add_task(self, task: TaskInfo) -> None:
        """Start the task's network with random weights, where it is not that of the task before."""
        if self.context.network_changes(task.index):
            self.renew_network(task.index)

    def renew_network(self, index: int) -> None:
        """Make backbone and head of task ``index`` anew."""
        backbone = self.context.build_network(task=index) if index else self.context.build_network()
        head = nn.Linear(backbone.num_features, self.context.stream.num_outputs)
        backbone.init_head(head)
        self.backbone, self.head = backbone, head.to(self.context.device)

    @property
    def network(self) -> nn.Sequential:
        """The network from images to logits: ``0.*`` is the backbone, ``1.*`` the head."""
        return nn.Sequential(self.backbone, self.head)

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.logits``; the task id is not used. float32 under autocast too."""
        logits: Tensor = self.head(self.backbone(images))
        return logits.float()

    def features(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.features``: what the head reads; the task id is not used."""
        features: Tensor = self.backbone(self.plain(images))
        return features.float()

    def plain(self, images: Tensor) -> Tensor:
        """Prepare images for the backbone: they stay normalised, unless a method undoes that."""
        return images

    def active(self, task: TaskInfo) -> Tensor:
        """Sorted output ids that enter the cross-entropy while ``task`` is learnt."""
        stream = self.context.stream
        chosen: Iterable[int] = {
            "seen": stream.seen(task.index),
            "task": task.classes,
            "all": range(stream.num_outputs),
        }[self.config.outputs]
        return torch.tensor(sorted(chosen), device=self.context.device)

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """Make the loss of the training phase, and of ``select: validation_loss``.

        What most methods change. It may be called in eval mode and without gradients.
        """
        active, smoothing = self.active(task.info), self.smoothing

        def loss(batch: Batch) -> Tensor:
            z = self.logits(batch.images, task.info.index)
            return masked_cross_entropy(z, batch.labels, active, smoothing)

        return loss

    def train_batches(self, task: Task) -> Iterable[Batch]:
        """One epoch of the task's own data."""
        train = self.context.train
        return task.train.batches(
            train.batch_size,
            generator=self.context.data_generator,
            augment=self.context.augment,
            drop_last=train.drop_last,
        )

    def phases(self, task: Task) -> list[Phase]:
        """One phase, ``train``.

        A plateau schedule that lowers the rate keeps the momentum; the code of arXiv 2105.04444
        makes a new optimiser then (which is the same without momentum, as published).

        Raises:
            UserError: An epoch is to be selected, but there is no validation set.
        """
        train = self.context.train
        if train.select != "last" and task.validation is None:
            raise UserError(
                "train.select",
                f"{train.select} needs a validation set",
                "set benchmark.validation above 0, or to the word train",
            )
        objective, tolerance = self.objective(task), train.select_tolerance

        def keep(score: float, kept: float | None) -> bool:
            if kept is None:
                return True
            return score > kept if tolerance is None else score >= kept - tolerance

        return [
            Phase(
                name="train",
                epochs=train.epochs,
                optimizer=lambda: make_optimizer(self.trainable(), train),
                schedule=lambda optimizer: make_schedule(optimizer, train),
                batches=lambda: self.train_batches(task),
                loss=objective,
                clip_norm=train.clip_norm,
                score=None if train.select == "last" else lambda: self.score(task, objective),
                keep=keep,
                patience=train.patience,
                stop=(lambda _, lr: lr < train.schedule.min_lr)
                if train.schedule.name == "plateau"
                else None,
            )
        ]

    def trainable(self) -> list[nn.Parameter]:
        """The parameters of the training phase."""
        return list(self.parameters())

    @torch.inference_mode()
    def score(self, task: Task, objective: Callable[[Batch], Losses]) -> float:
        """Score an epoch on the current task's validation set: minus the loss, or the accuracy.

        With ``select: seen_accuracy`` on those of all tasks so far, as the loop measures it.

        Args:
            task: The current task.
            objective: The loss of the phase, penalties and the like included.

        Returns:
            Minus the mean loss over the examples, or percent right: higher is better.
        """
        examples = task.validation
        if examples is None:
            raise ValueError("no validation set to score on")
        if self.context.train.select == "seen_accuracy":
            return self.context.seen_accuracy()
        if self.context.train.select == "validation_accuracy":
            return self.accuracy(examples, task.info)
        loss = torch.zeros((), device=self.context.device)
        for batch in examples.batches(self.context.stream.at_once(SCORE_BATCH)):
            loss += total(objective(batch)) * len(batch)
        return -float(loss) / len(examples)

    @torch.inference_mode()
    def accuracy(self, examples: Examples, task: TaskInfo) -> float:
        """Percent of a task's images that are right among its ``active`` outputs, in eval mode."""
        outputs = self.active(task)
        right = torch.zeros((), dtype=torch.int64, device=self.context.device)
        for batch in examples.batches(self.context.stream.at_once(SCORE_BATCH)):
            kept = {} if batch.frozen is None else {"frozen": batch.frozen}
            z = self.logits(batch.images, task.index, **kept).index_select(1, outputs)
            right += (outputs[z.argmax(1)] == batch.labels).sum()
        return 100 * int(right) / len(examples)

    def sampled_fisher(self, task: Task, names: Sequence[str], samples: int) -> Tensor:
        """Diagonal of the Fisher information on images of a task, in eval mode.

        The softmax is over the outputs of the cross-entropy; labels are drawn from the model. See
        ``raycl.nn.fisher.fisher_diagonal``.

        Args:
            task: The current task.
            names: Parameters of ``network``.
            samples: Training images to use, drawn without replacement; at most all of them.

        Returns:
            (P,), the parameters flattened and concatenated.
        """
        generator, train = self.context.method_generator, task.train
        chosen = torch.randperm(len(train), generator=generator)[:samples]
        chosen = chosen.to(self.context.device)
        batches = (train.prepare(train.raw(i)) for i in torch.split(chosen, FISHER_BATCH))
        return fisher_diagonal(self.network, names, batches, self.active(task.info), generator)
