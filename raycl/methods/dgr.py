"""Deep generative replay: a second network learns to draw the images of the past."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods._mixed import rivals
from raycl.methods.base import Classifier, Context, Losses, from_task
from raycl.nn.distillation import soft_cross_entropy
from raycl.nn.pictures import class_grid
from raycl.nn.vae import LATENT, VAE, divergence, reconstruction

SAMPLES = 256
"""Number of images drawn for the picture; 64 of them are shown."""


class DGR(Classifier):
    """Classifier and variational auto-encoder are trained together, also on what the old pair says.

    Paper:
        Shin et al., "Continual Learning with Deep Generative Replay", NeurIPS 2017, arXiv
        1705.08690; as the baseline "DGR" in Smith et al., "Always Be Dreaming: A New Approach for
        Data-Free Class-Incremental Learning", ICCV 2021, arXiv 2106.09701, whose form this is.

    Loss of task t > 1, on B images x of the task and B drawn ones x' = decode(N(0, I)):
        L_classifier = (1/2B) sum_{x, x'} w(y) CE(z[0:n_seen], y) + mu H_tau(z(x')[0:n_old], q')
        L_vae = (1/2B) sum_{x, x'} w(y) mean_pixels BCE(x_hat, x) + (1/P) mean_i KL_i
        KL_i = -1/2 sum (1 + log v_i - m_i^2 - v_i)
        w(c) = n_old / n_seen for old classes, n_new / n_seen for new ones

        q' are the logits of the old classifier for x', y' = argmax q'[0:n_old] its labels, P the
        number of values of an image (3,072). H_tau as in ``lwf_seen``. In the first task w is 1 and
        there are real images only. The two losses have no parameter in common, so one optimiser
        that holds both networks takes the steps of two.

    Symbols:
        mu: ``mu``. tau: ``temperature``. N(0, I): of ``latent`` dimensions. The frozen scholar of
        task t - 1: the module ``scholar``. [0:n_seen]: ``outputs: seen``.

    Departures from the paper:
        * A variational auto-encoder instead of a generative adversarial network (WGAN-GP).
        * Real and replayed losses are weighed by classes as above, not by a ratio of its own.
        * Drawn images have hard labels and soft ones (mu).
    Departures from the code of arXiv 2106.09701:
        * Its vector of class weights has 2B entries, indexed by label, so it fails where a label is
          not below 2B (B in the first task). Here it has one entry per class.
        * Images have other sizes than 32 x 32, if divisible by 8, and the auto-encoder a ``width``.
        * ``clip_norm``, if set, bounds the gradient of both networks together.
        * Where tasks share outputs, a class that was seen before counts as old.
        * The binary cross-entropy is computed from logits, so its logarithm need not be bounded.

    Classifier and auto-encoder see images in [0, 1]: the benchmark's normalisation is undone here.
    The published recipe sets weight decay to 0 for both: ``train: {weight_decay: 0}``.

    Raises:
        UserError: Tasks are normalised differently; image sides are not divisible by 8;
            ``outputs: task`` where tasks share only some of their classes.
    """

    class Config(Classifier.Config):
        """Options of deep generative replay."""

        mu: float = Field(
            1.0,
            ge=0,
            description="weight of the distillation on drawn images",
            json_schema_extra=from_task(2),
        )
        temperature: float = Field(
            2.0, gt=0, description="tau, divides the logits in it", json_schema_extra=from_task(2)
        )
        latent: int = Field(LATENT, ge=1, description="dimensions of the auto-encoder's latent")
        width: float = Field(1.0, gt=0, description="multiplier of the auto-encoder's channels")

    memory = "generator"
    any_network = True
    mean: Tensor
    std: Tensor
    scholar: nn.ModuleDict | None

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        stream = context.stream
        if len({*zip(stream.mean, stream.std, strict=True)}) > 1:
            raise UserError(
                "method.name",
                "dgr needs images in [0, 1], but tasks are normalised differently",
                "give all data sets the same mean and std",
            )
        if config.outputs == "task":
            rivals(stream.tasks, stream.num_outputs)  # refuse before training
        shape = stream.input_shape
        if shape[1] % 8 or shape[2] % 8:
            raise UserError(
                "benchmark.dataset.size",
                f"dgr needs image sides divisible by 8, not {shape[1]} x {shape[2]}",
            )
        for name, values in (("mean", stream.mean[0]), ("std", stream.std[0])):
            value = torch.tensor(values, device=context.device).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.vae = VAE(shape, config.latent, config.width)
        self.scholar = None
        self.seen: tuple[int, ...] = ()

    def add_task(self, task: TaskInfo) -> None:
        """Make the networks as they are the scholar, from the second task on."""
        self.seen = self.context.stream.seen(task.index)
        if task.index:
            changes = self.context.network_changes(task.index)
            network = self.network if changes else copy.deepcopy(self.network)
            self.scholar = nn.ModuleDict({"network": network, "vae": copy.deepcopy(self.vae)})
        super().add_task(task)

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; the scholar stays in eval mode."""
        super().train(mode)
        if self.scholar is not None:
            self.scholar.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """See ``Classifier.trainable``: both networks, without the scholar."""
        return [*self.network.parameters(), *self.vae.parameters()]

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.logits``. float32 under autocast too."""
        return self.network(self.plain(images)).float()  # type: ignore[no-any-return]

    def plain(self, images: Tensor) -> Tensor:
        """Turn normalised images into images in [0, 1]."""
        return images * self.std + self.mean

    def objective(self, task: Task) -> Callable[[Batch], Losses]:
        """See ``Classifier.objective``: the losses of both networks."""
        cross_entropies, weights = self._hard(task.info), self.class_weights(task.info)
        scholar, config = self.scholar, self.config
        old = self._ids(self.context.stream.seen(task.info.index - 1) if task.info.index else ())
        pixels = math.prod(self.context.stream.input_shape)

        def loss(batch: Batch) -> Losses:
            x, y, n = self.plain(batch.images), batch.labels, len(batch)
            if scholar is not None:
                drawn, answers = self.replay(scholar, n, old)
                x, y = torch.cat([x, drawn]), torch.cat([y, old[answers.argmax(1)]])
            z = self.network(x).float()
            w = weights.index_select(0, y)
            logits, mean, log_variance = self.vae(x, self._noise(len(x)))
            terms = {
                "cross_entropy": (w * cross_entropies(z, y)).mean(),
                "reconstruction": (w * reconstruction(logits, x)).mean(),
                "divergence": divergence(mean, log_variance).mean() / pixels,
            }
            if scholar is not None:
                kept = soft_cross_entropy(z[n:].index_select(1, old), answers, config.temperature)
                terms["distillation"] = config.mu * kept
            return terms

        return loss

    @torch.no_grad()
    def replay(self, scholar: nn.ModuleDict, count: int, old: Tensor) -> tuple[Tensor, Tensor]:
        """Draw images of the scholar (count, C, H, W), with its logits of the old outputs."""
        drawn = scholar["vae"].sample(self._noise(count))  # type: ignore[operator]
        return drawn, scholar["network"](drawn).float().index_select(1, old)

    def class_weights(self, task: TaskInfo) -> Tensor:
        """Class weights w, float (num_outputs,); see ``DGR``."""
        stream = self.context.stream
        weights = torch.ones(stream.num_outputs)
        if task.index:
            seen, old = stream.seen(task.index), stream.seen(task.index - 1)
            weights[:] = 1 - len(old) / len(seen)
            weights[list(old)] = len(old) / len(seen)
        return weights.to(self.context.device)

    @torch.inference_mode()
    def pictures(self) -> dict[str, Tensor]:
        """``samples``: images that the auto-encoder draws, in rows by the classifier's answer."""
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(SAMPLES, self.config.latent, generator=generator)
        drawn = self.vae.sample(latents.to(self.context.device))
        seen = self._ids(self.seen)
        labels = seen[self.network(drawn).index_select(1, seen).argmax(1)]
        images = (255 * drawn).round().to(torch.uint8)
        return {"samples": class_grid(images, labels, self.seen)}

    def _hard(self, task: TaskInfo) -> Callable[[Tensor, Tensor], Tensor]:
        """Make the cross-entropy of each image (n,), over ``outputs``, from logits and labels."""
        stream, active = self.context.stream, self.active(task)
        if self.config.outputs == "task":
            allowed = rivals(stream.tasks, stream.num_outputs).to(self.context.device)
            return lambda z, y: F.cross_entropy(
                z.where(allowed.index_select(0, y), -torch.inf), y, reduction="none"
            )
        return lambda z, y: F.cross_entropy(
            z.index_select(1, active), torch.searchsorted(active, y), reduction="none"
        )

    def _ids(self, outputs: tuple[int, ...]) -> Tensor:
        return torch.tensor(sorted(outputs), dtype=torch.int64, device=self.context.device)

    def _noise(self, count: int) -> Tensor:
        generator = self.context.method_generator
        noise = torch.randn(count, self.config.latent, generator=generator)
        return noise.to(self.context.device, non_blocking=True)
