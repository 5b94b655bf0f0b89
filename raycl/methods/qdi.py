"""Quick deep inversion: replay of images that are made from the new ones in a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch, Examples
from raycl.errors import UserError
from raycl.methods._distilled import Distilled
from raycl.methods.base import Context, Losses, Phase, from_task
from raycl.nn.inversion import (
    FreeImages,
    Inversion,
    LayerNorms,
    Moments,
    Term,
    content,
    convolutions,
    magnitude,
    moments_of,
    normalisations,
    running_moments,
    variation,
    watched,
)
from raycl.nn.norms import keep_running_statistics
from raycl.nn.pictures import class_grid

WARM_UP = 100
"""Steps in which the rate of the inversion rises."""
STATISTICS_IMAGES = 4
"""Number of images per synthetic one for statistics, where the network stores none."""
PAIRS = 4
"""Number of images of each class in the picture, each beside its starting image."""
ROWS = 8
"""Classes in the picture, at most."""


class Synthetic(FreeImages):
    """The images of one task's inversion, class by class, and what goes with them.

    Args:
        classes: n_old, how many old classes there are.
        each: n, images of each.
        shape: Channels, height, width.
        outputs: C.
        watched_channels: Channels whose statistics have to be taken from images.

    Attributes:
        answers: float32 (M, C), the teacher's logits, once the inversion is done.
        start: uint8 (n_old, p, C, H, W), what the first p images of each class started from; 0
            when the task has ended.
        mean: float32 (P,), statistics that the images should have; likewise ``var``.
    """

    answers: Tensor
    start: Tensor
    mean: Tensor
    var: Tensor

    def __init__(
        self,
        classes: int,
        each: int,
        shape: tuple[int, int, int],
        outputs: int,
        watched_channels: int,
    ) -> None:
        super().__init__(torch.zeros(classes * each, *shape))
        shown = torch.zeros(classes, min(each, PAIRS), *shape, dtype=torch.uint8)
        self.register_buffer("start", shown)
        self.register_buffer("answers", torch.zeros(classes * each, outputs))
        self.register_buffer("mean", torch.zeros(watched_channels))
        self.register_buffer("var", torch.zeros(watched_channels))

    def first(self, images: Tensor) -> Tensor:
        """(M, ...), class by class, to those whose start is kept: (n_old, p, ...)."""
        classes, shown = self.start.shape[:2]
        return images.view(classes, -1, *images.shape[1:])[:, :shown]


class QDI(Distilled):
    """Distillation, see ``distil``, also on images that are inverted from the old network.

    Paper:
        "Quick Deep Inversion" in Madaan et al., "Heterogeneous Continual Learning", CVPR 2023,
        arXiv 2306.08593, and its code; after Yin et al., "Dreaming to Distill", CVPR 2020, arXiv
        1912.08795.

    Before task t > 1, M images x' start from augmented images of the new task and take K steps of
    Adam, betas 0.5 and 0.9, down
        J(x') = LS(g(x'), y') + w_f sum_l (|| v_l - var_l || + || m_l - mean_l ||)
                + w_tv variation(x') + w_l2 || x' ||
        y': each old class n = floor(S / n_old) times, M = n n_old. LS: see ``distil``.
        lr_k = lr (k + 1) / 100 for k < 100, then lr (1 + cos(pi (k - 100) / (K - 100))) / 2
        m_l, v_l: running mean and variance of batch normalisation l of the old network g, compared
        with what that layer gets. A network without any is watched at the outputs of its
        convolutions, and m_l, v_l are those of 4 S images of the new task. Norms are not squared,
        and not divided by M: see ``raycl.nn.inversion``.

    Loss of task t > 1, with all of x' in every step, in a forward pass of their own:
        L = LS(f(x), y) + alpha (KD(f(x), g(x)) + KD(f(x'), g(x')))

    Symbols:
        alpha: ``alpha``. S: ``synthetic_images``. K: ``inversion_steps``. lr: ``inversion_lr``.
        w_f, w_tv, w_l2: ``feature_weight``, ``variation_weight``, ``magnitude_weight``. g: the
        module ``teacher``. Defaults are those of that code for CIFAR-10; for CIFAR-100 it has alpha
        3, lr 0.03, w_tv 0.003, w_l2 0.003, w_f 0.2, for Tiny-ImageNet the same with alpha 1.

    Departures from the paper:
        * Read in its code, not in the paper. There is no coefficient of an interpolation in it:
          images lie between the tasks because of where they start and how short the way is.
    Departures from that code:
        * ``teacher_mode: eval``, the default. There the old network is in train mode while the
          student learns (not while images are inverted), so that its normalisations use and follow
          the batch, dropout is on, and its answers change from step to step: ``teacher_mode:
          train``. Nothing says that this was meant.
        * In eval mode the answers to x' are computed once per task; they are the same.
        * ``student_statistics: real``: running statistics of the student, with which it is measured
          and becomes the teacher, follow the new images only. There, and with ``both``, the
          default, also the synthetic ones, in a batch of their own.
        * ``replay: N`` takes N of the images, drawn anew, in every step; there, all of them.
        * Step K, whose rate is 0, is not made. There, it changes nothing.
        * A task with fewer than M images starts from some of them twice; there, it stops.
        * A network with neither batch normalisation nor convolution has no statistics: that term is
          left out, and ``method/watched_layers`` is 0. There, it stops.
        * See ``distil`` for the rest.

    Raises:
        UserError: Fewer images than there are old classes.
    """

    class Config(Distilled.Config):
        """Options of quick deep inversion."""

        alpha: float = Field(
            1.0, ge=0, description="weight of each distillation", json_schema_extra=from_task(2)
        )
        synthetic_images: int = Field(
            200,
            ge=1,
            description="S, images of all old classes together, at most",
            json_schema_extra=from_task(2),
        )
        inversion_steps: int = Field(
            500, ge=1, description="K, steps before each later task", json_schema_extra=from_task(2)
        )
        inversion_lr: float = Field(
            0.005,
            gt=0,
            description="highest rate of the inversion's Adam",
            json_schema_extra=from_task(2),
        )
        feature_weight: float = Field(
            0.1,
            ge=0,
            description="w_f, of the statistics of layers",
            json_schema_extra=from_task(2),
        )
        variation_weight: float = Field(
            1e-3, ge=0, description="w_tv, of neighbouring pixels", json_schema_extra=from_task(2)
        )
        magnitude_weight: float = Field(
            0.0, ge=0, description="w_l2, of the size of pixels", json_schema_extra=from_task(2)
        )
        replay: Literal["all"] | int = Field(
            "all",
            description="synthetic images in each step: all, or so many, drawn anew",
            json_schema_extra=from_task(2),
        )
        teacher_mode: Literal["eval", "train"] = Field(
            "eval",
            description="mode of the old network while the student learns; train: as published",
            json_schema_extra=from_task(2),
        )

        student_statistics: Literal["both", "real"] = Field(
            "both",
            description="images that running statistics of the student follow; both: as published",
            json_schema_extra=from_task(2),
        )

    memory = "generator"
    synthetic: Synthetic | None

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.synthetic = None
        self.index = 0
        n_old = len(context.last_old)
        if n_old > config.synthetic_images:
            raise UserError(
                "method.synthetic_images",
                f"{config.synthetic_images} images are too few for {n_old} old classes",
                f"at least {n_old}: there must be one of each",
            )
        if config.replay != "all" and config.replay < 1:
            raise UserError("method.replay", f"must be all or at least 1, not {config.replay}")

    # ------------------------------------------------------------------ structure

    def add_task(self, task: TaskInfo) -> None:
        """See ``Distilled.add_task``; make room for the synthetic images."""
        super().add_task(task)
        self.index = task.index
        if self.teacher is None:
            return
        n_old, stream = len(self.old(task)), self.context.stream
        each = self.config.synthetic_images // n_old
        layers = [] if normalisations(self.teacher) else convolutions(self.teacher)
        channels = sum(layer.out_channels for layer in layers)
        self.synthetic = Synthetic(n_old, each, stream.input_shape, stream.num_outputs, channels)

    def train(self, mode: bool = True) -> Self:
        """See ``TaughtClassifier.train``; with ``teacher_mode: train`` the teacher follows."""
        super().train(mode)
        if self.teacher is not None and self.config.teacher_mode == "train":
            self.teacher.train(mode)
        return self

    def phases(self, task: Task) -> list[Phase]:
        """The phases ``inversion``, except in the first task, and ``train``."""
        train = super().phases(task)
        if self.teacher is None or self.synthetic is None:
            return train
        return [self.inversion(task, self.teacher, self.synthetic), *train]

    # ------------------------------------------------------------------ inversion

    def inversion(self, task: Task, teacher: nn.Sequential, synthetic: Synthetic) -> Phase:
        """The phase in which images of the new task become images of old classes."""
        config = self.config
        steps = math.gcd(config.inversion_steps, 100)
        labels = self.labels(task.info)
        engines: list[Inversion] = []  # made in the first step: by then a restore is over

        def loss(step: int) -> Losses:
            if not engines:
                engines.append(self.engine(teacher, synthetic))
            teacher.eval()
            return engines[0].losses(synthetic(), labels)

        def answer() -> None:
            synthetic.answers.copy_(self.taught(synthetic()))

        return Phase(
            name="inversion",
            epochs=config.inversion_steps // steps,
            optimizer=lambda: torch.optim.Adam(
                synthetic.parameters(), lr=config.inversion_lr, betas=(0.5, 0.9), fused=True
            ),
            schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda k: rate(k, config.inversion_steps)
            ),
            step_schedule=True,
            batches=lambda: range(steps),
            loss=loss,
            before=lambda: self.start(task.train, teacher, synthetic),
            after=answer,
            validate=False,
        )

    def labels(self, task: TaskInfo) -> Tensor:
        """Class asked for of each synthetic image, int64 (M,): the old ones in order."""
        old = self.old(task)
        return old.repeat_interleave(self.config.synthetic_images // len(old))

    @torch.no_grad()
    def start(self, examples: Examples, teacher: nn.Sequential, synthetic: Synthetic) -> None:
        """Put augmented images of the new task where the synthetic ones will be.

        Each image has one augmented view, whether statistics are taken from it, or a synthetic
        image starts from it, or both.
        """
        generator, count = self.context.method_generator, len(synthetic.images)
        size = len(examples)
        layers = [] if normalisations(teacher) else convolutions(teacher)
        wanted = STATISTICS_IMAGES * self.config.synthetic_images if layers else 0
        pool = torch.randperm(size, generator=generator)[:wanted]
        again = [torch.randperm(size, generator=generator) for _ in range(-(-count // size))]
        first = torch.cat(again)[:count]
        needed, position = torch.unique(torch.cat([pool, first]), return_inverse=True)
        raw = examples.raw(needed.to(self.context.device))
        raw = raw if self.context.augment is None else self.context.augment(raw)
        position = position.to(self.context.device)
        seen, chosen = position[: len(pool)], position[len(pool) :]
        images = examples.prepare(raw)
        synthetic.images.copy_(images[chosen])
        synthetic.start.copy_(synthetic.first(raw[chosen]))
        if layers:
            with watched(layers, outputs=True) as maps:
                teacher(images[seen])
            moments = moments_of(maps)
            synthetic.mean.copy_(moments.mean)
            synthetic.var.copy_(moments.var)

    def engine(self, teacher: nn.Sequential, synthetic: Synthetic) -> Inversion:
        """The objective of the inversion, J."""
        config = self.config
        norms = normalisations(teacher)
        layers: list[Any] = list(norms) or list(convolutions(teacher))
        terms: dict[str, tuple[float, Term]] = {"content": (1.0, content(1.0, self.smoothing))}
        if layers:
            sizes = tuple(layer.out_channels for layer in layers) if not norms else ()
            target = (
                running_moments(norms) if norms else Moments(synthetic.mean, synthetic.var, sizes)
            )
            terms["statistics"] = (config.feature_weight, LayerNorms(target))
        terms["variation"] = (config.variation_weight, variation)
        if config.magnitude_weight:
            terms["magnitude"] = (config.magnitude_weight, magnitude)
        outputs = torch.arange(self.context.stream.num_outputs, device=self.context.device)
        return Inversion(teacher, outputs, terms, layers, outputs_watched=not norms)

    # ------------------------------------------------------------------ training

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``."""
        active, synthetic = self.active(task.info), self.synthetic
        if synthetic is None:
            return super().objective(task)

        def loss(batch: Batch) -> Losses:
            terms = self.terms(self.logits(batch.images, None), batch, active)
            images, answers = self.replayed(synthetic)
            with self.statistics():
                kept = self.distillation(self.logits(images, None), answers)
            return terms | {"synthetic_distillation": kept}

        return loss

    def statistics(self) -> AbstractContextManager[None]:
        """Context of the student's pass on synthetic images; ``real`` spares its statistics."""
        real = self.config.student_statistics == "real"
        return keep_running_statistics(self.backbone) if real else nullcontext()

    def replayed(self, synthetic: Synthetic) -> tuple[Tensor, Tensor]:
        """The synthetic images of one step, and the teacher's logits for them.

        In eval mode, where an epoch is scored, all of them: nothing is drawn then.
        """
        config, images, answers = self.config, synthetic().detach(), synthetic.answers
        if config.replay != "all" and self.training and config.replay < len(images):
            drawn = torch.randperm(len(images), generator=self.context.method_generator)
            drawn = drawn[: config.replay].to(self.context.device, non_blocking=True)
            images, answers = images.index_select(0, drawn), answers.index_select(0, drawn)
        return images, self.taught(images) if config.teacher_mode == "train" else answers

    # ------------------------------------------------------------------ what it says of itself

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Number of images; percent that teacher and student take for the class asked for."""
        if self.teacher is None or self.synthetic is None:
            return {}
        labels = self.labels(self.context.stream.tasks[self.index])
        student = self.logits(self.synthetic(), None).argmax(1)
        layers = normalisations(self.teacher) or convolutions(self.teacher)
        return {
            "synthetic_images": float(len(labels)),
            "synthetic_right_teacher": percent(self.synthetic.answers.argmax(1) == labels),
            "synthetic_right_student": percent(student == labels),
            "watched_layers": float(len(layers)),
        }

    def pictures(self) -> dict[str, Tensor]:
        """The picture ``inversion``: synthetic images by class, each behind its starting image."""
        stream, synthetic = self.context.stream, self.synthetic
        if synthetic is None or stream.input_shape[0] not in (1, 3):
            return {}
        info = stream.tasks[self.index]
        statistics = (stream.mean[self.index], stream.std[self.index])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics)
        made = synthetic.first(synthetic.images.detach()).cpu() * std + mean
        made = made.clamp(0, 1).mul(255).round().to(torch.uint8)
        pairs = torch.stack([synthetic.start.cpu(), made], 2).flatten(1, 2)
        old = self.old(info).cpu()
        labels, rows = old.repeat_interleave(pairs.shape[1]), min(ROWS, len(old))
        made = class_grid(pairs.flatten(0, 1), labels, old.tolist(), rows, pairs.shape[1])
        return {"inversion": made}

    def end_task(self, task: Task) -> None:
        """Forget the images of this task that the synthetic ones started from."""
        if self.synthetic is not None:
            self.synthetic.start.zero_()


def rate(step: int, steps: int) -> float:
    """The learning rate of step k of K, relative to the highest: see ``QDI``.

    With K up to 100 it only rises.
    """
    if step < WARM_UP or steps <= WARM_UP:
        return min(1.0, (step + 1) / WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def percent(right: Tensor) -> float:
    """Share of ``True`` in percent."""
    return 100 * int(right.sum()) / len(right)
