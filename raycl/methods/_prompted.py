"""Base of methods that keep a vision transformer frozen and learn prompts for it.

Two things are trained: prompts, which a ``Learner`` keeps and chooses, and a linear head over all
outputs of the stream. Images are classified without the task (class-incremental learning), nothing
of old tasks is replayed, and only the classes of the current task enter the cross-entropy.

Shapes are written with B images, and C channels of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods.base import (
    Classifier,
    Context,
    Losses,
    Method,
    MethodConfig,
    Phase,
    check_classes,
    masked_cross_entropy,
)
from raycl.networks.base import Backbone, find_network
from raycl.nn.optim import keep, make_optimizer
from raycl.nn.precision import exactly
from raycl.nn.prompted_vit import (
    BlockPrompts,
    Encoding,
    check_blocks,
    check_model,
    encode,
    together,
)

Prompts = Mapping[int, BlockPrompts]


class Sizes(NamedTuple):
    """The sizes of network and stream that a learner has to know.

    Attributes:
        width: Channels of a token of the network that gets the prompts, C.
        query_width: Numbers in a query.
        depth: Blocks of the network.
        tasks: Tasks of the whole stream.
    """

    width: int
    query_width: int
    depth: int
    tasks: int


class Learner(nn.Module, ABC):
    """Prompts for a frozen transformer, which change from task to task.

    Args:
        config: Options of the method that the learner belongs to.
        sizes: Sizes of network and stream.

    Attributes:
        queried: Whether prompts depend on the image, through a query.
        prefixed: Whether each of ``blocks`` gets a prefix in front, from ``size`` prompts of
            ``length`` rows.
        index: The task that was added last; -1 for none.
        blocks: Numbers of the blocks that get prompts.
    """

    queried: ClassVar[bool] = True
    prefixed: ClassVar[bool] = False
    blocks: tuple[int, ...] = ()

    def __init__(self, config: Any, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.index = config, sizes, -1

    def begin(self, generator: torch.Generator) -> None:
        """Draw the prompts that the current task starts with; does nothing, unless overridden."""

    @abstractmethod
    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, Tensor | None]:
        """Compute the prompts for a batch of images.

        Args:
            query: (B, query_width), without gradient.
            task: The task that is being learnt: prompts and loss of training. ``None``: the prompts
                of inference, where nobody knows the task.

        Returns:
            Prompts by block, and the loss of the keys, a scalar; ``None`` where there is none.
        """

    def constants(self) -> list[Tensor]:
        """Rows of parameters that the current task must not change, though it trains others."""
        return []

    def end(self) -> None:
        """Hook after the current task has been learnt; does nothing, unless overridden."""

    def make_head(self, outputs: int) -> nn.Module:
        """Make a classifier of features (B, C) that is not trained yet."""
        return nn.Linear(self.sizes.width, outputs)


class Answer(NamedTuple):
    """The answer of a model for a batch.

    Attributes:
        logits: float32 (B, num_outputs).
        key_loss: See ``Learner.prompts``.
        encoding: Tokens of the network.
        prompts: Prompts of the learner, without what was added to them.
    """

    logits: Tensor
    key_loss: Tensor | None
    encoding: Encoding
    prompts: Prompts


class PromptedModel(nn.Module):
    """The trained parts beside a frozen transformer: a learner of prompts and a head."""

    def __init__(self, learner: Learner, outputs: int) -> None:
        super().__init__()
        self.learner, self.head = learner, learner.make_head(outputs)

    def forward(
        self,
        network: VisionTransformer,
        images: Tensor,
        query: Tensor,
        task: int | None = None,
        added: Prompts | None = None,
        keep: Collection[int] = (),
    ) -> Answer:
        """Classify a batch of images.

        Args:
            network: The frozen transformer.
            images: (B, channels, height, width), normalised.
            query: See ``Learner.prompts``.
            task: See ``Learner.prompts``.
            added: Further prompts; their rows stand before those of the learner.
            keep: Blocks whose outputs are wanted.
        """
        prompts, key_loss = self.learner.prompts(query, task)
        encoding = encode(network, images, together(added or {}, prompts), keep)
        return Answer(self.head(encoding.features).float(), key_loss, encoding, prompts)


def check_frozen(backbone: Backbone, block: Mapping[str, Any] | None, where: str) -> None:
    """Refuse a network that cannot be frozen and get prompts.

    Args:
        backbone: The network.
        block: Its block; ``None`` where the first task trains it.
        where: Name of the option that the block is.

    Raises:
        UserError: It is no plain vision transformer of timm, or it has random weights.
    """
    try:
        transformer(backbone)
    except UserError as error:
        raise UserError(where, error.what, error.hint) from error
    if block is None:
        return
    config = find_network(block)[1]
    if config.untrained() == config:
        raise UserError(
            where,
            "prompts need a network that has learnt something, and this one has random weights",
            "give it weights: {...} or pretrained: true, make weights with `raycl pretrain`, or "
            "let the first task train it with anchor: first_task",
        )


def transformer(backbone: nn.Module) -> VisionTransformer:
    """The transformer in a backbone.

    Raises:
        UserError: There is none, or one that prompts cannot be given to.
    """
    return check_model(getattr(backbone, "model", backbone))


class PromptMethod(Classifier):
    """One frozen transformer with the prompts of one learner, and a linear head over all outputs.

    The query of an image is the feature vector that the network has of it without prompts; it is
    computed once per image where images are not augmented and the network comes with its weights,
    as far as ``evaluate.cache_mb`` goes.

    With ``anchor: first_task``, for machines without weights, the first task has a phase ``anchor``
    before ``train``: the whole network and the head learn it without prompts.

    Attributes:
        student: The trained parts.
        learner: Class of the learner.
    """

    class Config(MethodConfig):
        """Options of every method with prompts."""

        aux_loss_scale: float = Field(
            2.0,
            ge=0,
            description="factor of the losses of keys and features: 1 as written, 2 as on the two "
            "GPUs of the authors, where they are summed over GPUs (0.5 for l2p with all_pairs)",
        )
        anchor: Literal["weights", "first_task"] = Field(
            "weights", description="the frozen network: as it starts, or trained on the first task"
        )

    learner: ClassVar[type[Learner]]
    fixed: tuple[str, ...] = ("backbone.",)

    def __init__(self, config: Any, context: Context) -> None:
        Method.__init__(self, config, context)
        check_classes(context.tasks)
        self.check(context)
        self.backbone = self.frozen_network()
        if config.anchor == "first_task":
            self.fixed = ()
            if context.train.schedule.name == "plateau":
                what = "the plateau schedule follows a score, and the phase anchor has none"
                raise UserError("train.schedule", what)
        width = self.backbone.num_features
        self.student = self.make_model(type(self).learner, config, self.backbone, width)

    @classmethod
    def check(cls, context: Context) -> None:
        """Refuse options of ``train`` that the learner cannot be trained with; there are none.

        Raises:
            UserError: Says which.
        """

    def frozen_network(self, block: Mapping[str, Any] | None = None, where: str = "network") -> Any:
        """Build a network that gets prompts; without a block, the one of the sweep.

        Raises:
            UserError: See ``check_frozen``.
        """
        context = self.context
        backbone = context.build_network() if block is None else context.build_network(block)
        own = context.networks[0] if block is None and context.networks else block
        check_frozen(backbone, own if self.config.anchor == "weights" else None, where)
        return backbone

    def make_model(
        self, learner: type[Learner], config: Any, backbone: Backbone, query_width: int
    ) -> PromptedModel:
        """Build a learner and a head for a network.

        Raises:
            UserError: Options of the learner do not fit network or stream.
        """
        network, stream = transformer(backbone), self.context.stream
        sizes = Sizes(network.embed_dim, query_width, len(network.blocks), len(stream.tasks))
        made = learner(config, sizes)
        check_blocks(network, made.blocks)
        return PromptedModel(made, stream.num_outputs)

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; networks stay in eval mode, unless they are trained."""
        super().train(mode)
        for network in self.networks():
            network.train(mode and any(p.requires_grad for p in network.parameters()))
        return self

    def networks(self) -> Sequence[Backbone]:
        """The frozen networks."""
        return [self.backbone]

    def models(self) -> Sequence[PromptedModel]:
        """The trained parts beside the networks."""
        return [self.student]

    def add_task(self, task: TaskInfo) -> None:
        """Tell the learners which task it is."""
        for model in self.models():
            model.learner.index = task.index

    def frozen_values(self, images: Tensor) -> Tensor:
        """Compute the query of each image: (B, num_features)."""
        if not self.student.learner.queried:
            return images.new_empty(len(images), 0)
        return self.backbone(images)  # type: ignore[no-any-return]

    def query(self, images: Tensor, frozen: Tensor | None) -> Tensor:
        """Query of each image, without gradient: ``frozen`` if given, else computed now.

        Either is computed without rounding, so that training takes the prompts of evaluation.
        """
        if frozen is not None:
            return frozen
        with torch.no_grad(), exactly(images.device):
            return self.frozen_values(images)

    def answer(
        self,
        images: Tensor,
        frozen: Tensor | None,
        task: int | None = None,
        keep: Collection[int] = (),
    ) -> Answer:
        """The answer of the trained model; ``task`` as of ``Learner.prompts``."""
        query = self.query(images, frozen)
        return self.student(transformer(self.backbone), images, query, task, keep=keep)  # type: ignore[no-any-return]

    def logits(self, images: Tensor, task_id: int | None, frozen: Tensor | None = None) -> Tensor:
        """See ``Method.logits``; the task id is not used."""
        return self.answer(images, frozen).logits

    def features(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.features``: what the head reads, with the prompts of inference."""
        return self.answer(images, None).encoding.features.float()

    def active(self, task: TaskInfo) -> Tensor:
        """See ``Classifier.active``: the outputs of the task itself."""
        return torch.tensor(sorted(task.classes), device=self.context.device)

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """Cross-entropy over the task's own classes, and the loss of the keys."""
        active, index = self.active(task.info), task.info.index

        def loss(batch: Batch) -> Losses:
            return self.terms(self.answer(batch.images, batch.frozen, index), batch.labels, active)

        return loss

    def terms(self, answer: Answer, labels: Tensor, active: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over ``active`` outputs, and the loss of the keys, if there is one."""
        losses = {"cross_entropy": masked_cross_entropy(answer.logits, labels, active)}
        if answer.key_loss is not None:
            losses["keys"] = self.config.aux_loss_scale * answer.key_loss
        return losses

    def trainable(self) -> list[nn.Parameter]:
        """Prompts, keys and head."""
        return list(self.student.parameters())

    def phases(self, task: Task) -> list[Phase]:
        """The phase ``train``; in the first task, ``anchor`` comes before it if asked for."""
        (train,) = super().phases(task)
        train = replace(
            train,
            optimizer=lambda: self.make_optimizer(self.trainable()),
            before=self.begin_student,
            after=self.end_student,
            draws="student",
        )
        if task.info.index or self.config.anchor == "weights":
            return [train]
        return [*self.anchors(task, train), train]

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of prompts and head; rows that must not change have no decay."""
        optimizer = make_optimizer(parameters, self.context.train)
        if self.context.train.weight_decay:
            keep(optimizer, lambda: [r for one in self.models() for r in one.learner.constants()])
        return optimizer

    def begin_student(self) -> None:
        """Start the current task, before its first step."""
        self.student.learner.begin(self.context.method_generator)

    def end_student(self) -> None:
        """Finish the current task, after its last step."""
        self.student.learner.end()

    def anchors(self, task: Task, train: Phase) -> list[Phase]:
        """The phase in which the network learns the first task."""
        return [self.anchor_phase(task, train, "anchor", self.backbone, self.student.head)]

    def anchor_phase(
        self, task: Task, train: Phase, name: str, backbone: Backbone, head: nn.Module
    ) -> Phase:
        """One phase in which a whole network learns the first task, without prompts.

        Then the head starts anew, so that no class has an advance over those of later tasks.
        """
        active = self.active(task.info)

        def loss(batch: Batch) -> Losses:
            z = head(backbone(batch.images)).float()
            return masked_cross_entropy(z, batch.labels, active)

        return replace(
            train,
            name=name,
            optimizer=lambda: make_optimizer(
                [*backbone.parameters(), *head.parameters()], self.context.train
            ),
            loss=loss,
            before=None,
            after=lambda: self.restart(head),
            score=None,
            patience=None,
            stop=None,
            validate=False,
            draws=name,
        )

    def restart(self, head: nn.Module) -> None:
        """Give a head random weights again, which depend on the phase and not on what was made."""
        device = self.context.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed = torch.randint(2**31, (), generator=self.context.method_generator)
            torch.manual_seed(int(seed))
            for module in head.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
