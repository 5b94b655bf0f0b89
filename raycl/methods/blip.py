"""BLIP: the bits of a weight that a task has determined are frozen for the next ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task, TaskInfo
from raycl.errors import UserError
from raycl.methods.base import Classifier, Context, Outputs, Phase, from_end_of_task, from_task
from raycl.nn.norms import freeze_batch_norm
from raycl.nn.quantised import LIMIT, Drift, FrozenBits, Quantised, ZeroBits

BIAS_BOUND = 1.0
_KINDS = {"weight", "bias"}


class BLIP(Classifier):
    """Plain training; at a task's end weights are rounded to the bits its data has determined.

    Paper:
        Shi et al., "Continual Learning via Bit-Level Information Preserving", CVPR 2021, arXiv
        2105.04444.

    Loss of every task, and what happens at its end:
        L = CE(z[outputs], y), and after every step of the optimiser, element by element,
            w <- clip(w, p - B 2^-b, p + B 2^-b), then clip(w, -B (1 - 2^-K), B (1 - 2^-K))
        F: the Fisher diagonal of the task, labels sampled from the model, of the weights that
        training has ended with, in eval mode;
            b <- min(b + max(0, ceil(IG)), K),  IG = 1/2 log2((F + (t+1) Fbar) / ((t+2) Fbar))
            w <- p <- B round(2^b w / B) / 2^b, and 0 where b = 0
            Fbar <- ((t+1) Fbar + F) / (t+2)
        with t counted from 0, b = p = 0 and Fbar = F_0 at the start.

    Symbols:
        K: ``max_bits``. B: ``bound`` / sqrt(d) for weights, 1 for biases, d the fan-in of the
        layer. F_0: ``f_prior`` d, for weights and biases; a quarter of it is about one more bit for
        what the first task determines: more stability, less plasticity. b, p, Fbar:
        ``frozen.bits``, ``frozen.previous``, ``frozen.fisher``. Quantised are the weights and
        biases of all linear layers and convolutions of the backbone, never the head.

    Scenarios of the code:
        The defaults are those of its MNIST experiments; CIFAR and the mixture have another
        ``f_prior``, 5e-16 and 5e-17. miniImageNet has ``bound: 20``, ``init: network``,
        ``fisher_samples: 1000``, ``fisher_batch_size: 10`` and ``f_prior`` 5e-16 (AlexNet) or 1e-16
        (ResNet-18).

    Departures from the paper, all taken from its code, which produced the numbers:
        * The paper fixes the leading bits of one number and keeps the lower ones; the code rounds
          to the frozen bits alone and lets the weight move by a whole step to either side, so a
          frozen bit can change by a carry (``drift: full_step``). ``drift: cell`` freezes bits.
        * Weights that have no bit at a task's end are reset to 0 (``zero_bits: reset``); dead units
          mostly.
        * No quantisation in the forward pass of training.
    Departures from the code:
        * It squares per-example gradients of the mean over a batch of N, so that its F is 1/N^2
          of the Fisher information, and the published ``f_prior`` is relative to that. Here F is
          divided by ``fisher_batch_size``^2 for the same reason; with 1, and ``f_prior`` times N^2,
          it is the same method. Squares come in closed form, not from a copy for each example.
        * It fails if a task has fewer than ``fisher_samples`` images; here all of them are used.
          It draws them for miniImageNet batch by batch from a shuffled loader: the same.
        * A loss that is no number ends the task with the best epoch, as there, if ``train.select``
          keeps one; otherwise, and in the first epoch, where the code goes on with untrained
          weights, it is an error.
        * The clip is exact: the code's p + clip(w - p) may change the last bit of any weight.
        * Separate heads are rows of one linear layer; with weight decay, which the code has not,
          old ones would shrink. Rows that later tasks train, too, are not protected: a head that
          tasks share (domain-incremental streams), or ``outputs`` other than ``task``.
        * Parameters of other layers (an affine batch normalisation), which its networks do not
          have, are learnt in the first task only, like running statistics.
        * 13 bytes per weight instead of 24, the weight included; 8 more while a task is learnt.
    """

    class Config(Classifier.Config):
        """Options of BLIP."""

        outputs: Outputs = "task"
        f_prior: float = Field(
            1e-15, gt=1e-30, description="prior of the Fisher diagonal, per unit of fan-in"
        )
        max_bits: int = Field(20, ge=1, le=LIMIT, description="bits of a weight")
        bound: float = Field(6.0, gt=0, description="weights lie within this / sqrt(fan-in)")
        init: Literal["normal", "network", "keep"] = Field(
            "normal",
            description="normal: weights with std 1/sqrt(fan-in), biases 0; network: its weights, "
            "biases 0; keep: all as they are, for pre-trained networks",
        )
        fisher_samples: int = Field(
            8000,
            ge=1,
            description="images of the task for its Fisher, at most all of them",
            json_schema_extra=from_end_of_task(1),
        )
        fisher_batch_size: int = Field(
            100,
            ge=1,
            description="N: f_prior is relative to Fisher / N^2; 1: to the Fisher itself",
            json_schema_extra=from_end_of_task(1),
        )
        drift: Drift = Field(
            "full_step",
            description="how far rounded weights may move: see raycl.nn.quantised",
            json_schema_extra=from_task(2),
        )
        zero_bits: ZeroBits = Field(
            "reset",
            description="weights without bits at a task's end: set to 0, or kept",
            json_schema_extra=from_end_of_task(1),
        )

    rounding: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        modules = self.backbone.named_modules()
        layers = {name: m for name, m in modules if isinstance(m, (nn.Linear, nn.Conv2d))}
        if not layers:
            raise UserError("network", "blip quantises linear layers and convolutions; none here")
        parameters: dict[str, Quantised] = {}
        for name, layer in layers.items():
            own = dict(layer.named_parameters(recurse=False))
            taken = {id(q.parameter) for q in parameters.values()}
            if "weight" not in own or own.keys() - _KINDS or taken & {id(p) for p in own.values()}:
                what = f"blip needs layers with weights of their own, which {name} has not"
                raise UserError("network", what)
            fan_in = layer.weight[0].numel()
            if config.init == "normal":
                nn.init.normal_(own["weight"], std=1 / math.sqrt(fan_in))
            bounds = {"weight": config.bound / math.sqrt(fan_in), "bias": BIAS_BOUND}
            for kind, parameter in own.items():
                if kind == "bias" and config.init != "keep":
                    nn.init.zeros_(parameter)
                parameter.data.clamp_(-bounds[kind], bounds[kind])
                prior = config.f_prior * fan_in
                parameters[f"{name}.{kind}"] = Quantised(parameter, bounds[kind], prior)
        self.frozen = FrozenBits(parameters, config.max_bits, config.drift, config.zero_bits)
        self._later = False
        self.register_buffer("rounding", torch.zeros(2, dtype=torch.float64))

    def add_task(self, task: TaskInfo) -> None:
        """Let only weights with bits, and the head, learn from the second task on."""
        self._later = task.index > 0

    def train(self, mode: bool = True) -> BLIP:
        """See ``nn.Module``; running statistics are those of the first task."""
        super().train(mode)
        if self._later:
            freeze_batch_norm(self)
        return self

    def trainable(self) -> list[nn.Parameter]:
        """See ``Classifier.trainable``."""
        if not self._later:
            return super().trainable()
        return [q.parameter for q in self.frozen.of] + list(self.head.parameters())

    def phases(self, task: Task) -> list[Phase]:
        """See ``Classifier.phases``; every step ends inside the limits of the bits."""
        low, high = self.frozen.limits()

        def clamp() -> None:
            self.frozen.clamp_(low, high)

        return [replace(phase, after_step=clamp, diverged="stop") for phase in super().phases(task)]

    def end_task(self, task: Task) -> None:
        """Estimate the Fisher information, freeze bits, and round the weights."""
        examples = task.validation or task.train
        before = self.accuracy(examples, task.info)
        names = [f"0.{name}" for name in self.frozen.names]
        fisher = self.sampled_fisher(task, names, self.config.fisher_samples)
        self.frozen.consolidate(fisher / self.config.fisher_batch_size**2, task.info.index)
        after = self.accuracy(examples, task.info)
        self.rounding.copy_(torch.tensor([before, after], dtype=torch.float64))

    def diagnostics(self) -> dict[str, float]:
        """Bits in use; accuracy in percent on the task's validation (or training) images."""
        bits, (before, after) = self.frozen.bits, self.rounding.tolist()
        return {
            "capacity": self.frozen.capacity(),
            "share_of_zero_bits": float((bits == 0).float().mean()),
            "share_of_all_bits": float((bits == self.config.max_bits).float().mean()),
            "accuracy_before_rounding": before,
            "accuracy_after_rounding": after,
        }

    def histograms(self) -> dict[str, list[int]]:
        """Number of scalars with 0, 1, ... bits, for each parameter."""
        return {f"bits/{name}": counts for name, counts in self.frozen.counts().items()}
