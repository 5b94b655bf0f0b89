"""Channel-wise lightweight reprogramming: a frozen network, and small kernels for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import TaskInfo
from raycl.errors import UserError
from raycl.methods._per_task import OnAnchor
from raycl.methods.base import Context
from raycl.nn.norms import freeze_batch_norm
from raycl.nn.reprogramming import Kernels, ScaledKernels, Variant, add_kernels, random_kernels
from raycl.nn.task_tensors import TaskTensors


class CLR(OnAnchor):
    """Each task has depth-wise 3 x 3 kernels behind the convolutions of a frozen network.

    Paper:
        Ge, Li, Ni, Zhao, Yang & Itti, "CLR: Channel-wise Lightweight Reprogramming for Continual
        Learning", ICCV 2023, arXiv 2307.11386, and its code.

    A convolution's maps h become K_c * h_c, map by map, K = identity at first, before the
    normalisation that follows. A task owns its kernels, its normalisations (affine parameters and
    running statistics) and its head; each starts from the network's, and nothing else is trained.
    Its loss, over its own classes, is
        L = cross-entropy + lambda sum_w || w ||,  over all tensors w that are trained

    Symbols:
        lambda: ``penalty``; norms are not squared, and a tensor of zeros has no gradient.

    Variants, by their names in that code:
        * ``reduced_v1`` (Ghost_reduced_v1, "CLR"): kernels behind all convolutions but 1 x 1 ones.
        * ``full`` (Ghost, "CLR-Full"): behind all.
        * ``reduced_v2`` (Ghost_reduced_v2): behind all, of 1 x 1 behind 1 x 1 ones.
        * ``scaled`` (Ghost_a): behind all, h_c + A_c (K_c * h_c); K random, A = 0 at first and
          outside the penalty.

    Its recipe is that of ``sweeps/clr/skill53.yaml``: Adam at 0.001, a tenth from epochs 21 and 41
    on, batches of 32, at most 60 epochs and no more than 22 after the best, which is kept by the
    accuracy on validation images.

    Departures from that code:
        * Its penalty also sums the norms of frozen convolutions, a constant.
        * It has a ResNet-18 with supervised weights here and a ResNet-50 (SwAV) for the methods it
          compares with; here the network is that of the sweep.
        * It reports the best accuracy on the images that chose the epoch; here that is
          ``selection_accuracy``, beside the accuracy on test images.
        * A normalisation that would see one value per channel (a last batch of one image, maps of
          1 x 1) uses its running statistics and keeps them; there, training stops with an error.
        * ``statistics: frozen`` and ``anchor: first_task`` are not in it. The first tells what the
          statistics of small batches cost; the second: see below.

    ``anchor: first_task``, for machines without pre-trained weights, is after the code of HALRP
    (lijiaqi/HALRP): the whole network is trained on the first task, then frozen; all tasks have
    kernels, also the first. There, tasks share their normalisations, so that old ones change; here
    each has its own. The phase ``anchor`` has the same options and loss, with the penalty on head
    and normalisations; the first task goes on from that head.

    Raises:
        UserError: No convolution of the network is to have kernels.
    """

    class Config(OnAnchor.Config):
        """Options of reprogramming."""

        variant: Variant = Field("reduced_v1", description="which convolutions have kernels")
        statistics: Literal["batch", "frozen"] = Field(
            "batch",
            description="statistics of normalisations in training: those of the batch, which its "
            "running ones follow; or those that came with the network, which stay",
        )
        penalty: float = Field(
            1e-5, ge=0, description="lambda, weight of the sum of norms of all trained tensors"
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        try:
            add_kernels(self.backbone, config.variant)
        except ValueError as error:
            raise UserError(
                "method.variant",
                f"{config.variant}: {error}",
                "take a network with convolutions larger than 1 x 1",
            ) from error

    def add_task(self, task: TaskInfo) -> None:
        """Add the task's head, kernels and normalisations."""
        super().add_task(task)
        own = TaskTensors(self.backbone, Kernels, ScaledKernels)
        if self.config.variant == "scaled":
            for name, value in own.part("weights").items():
                if name.endswith(".kernel"):
                    random_kernels(value.detach())
        self.add_module(f"task_{task.index}", own)

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; in the anchor phase statistics are always the batch's."""
        super().train(mode)
        if self.config.statistics == "frozen" and not self.anchoring:
            freeze_batch_norm(self.backbone)
        return self

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``."""
        return self.own(task_id)(self.backbone, images)  # type: ignore[no-any-return]

    def anchor_parameters(self) -> list[nn.Parameter]:
        """See ``OnAnchor``; the task's own normalisations in place of the network's, no kernels."""
        own, kernels = self.own(0), self.own(0).weights
        replaced = own.named().keys()
        others = [p for name, p in self.backbone.named_parameters() if name not in replaced]
        return [*others, *(p for p in own.parameters() if p is not kernels)]

    def freeze(self) -> None:
        """Give the network the normalisations that the first task has found for it."""
        self.own(0).hand_over(self.backbone)

    def own(self, task: int) -> TaskTensors:
        """Kernels and normalisations of a task.

        Each is a child of the method, so that a kept epoch is a copy of the current one only.
        """
        own = self.get_submodule(f"task_{task}")
        assert isinstance(own, TaskTensors)
        return own

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """See ``PerTask.own_parameters``."""
        return list(self.own(task).parameters())

    def penalised(self) -> list[Tensor]:
        """See ``PerTask.penalised``; each kernel tensor on its own, without the A of ``scaled``.

        In the anchor phase the kernels are not trained, and so left out.
        """
        own = self.own(self.index)
        kernels = {} if self.anchoring else own.part("weights")
        named = kernels | own.part("affine")
        kept = [value for name, value in named.items() if not name.endswith(".scale")]
        return [*kept, *self.heads[self.index].parameters()]

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """See ``Method.task_parts``."""
        own = self.own(task)
        parts = {name: list(own.part(name).values()) for name in ("weights", "affine")}
        return parts | {"statistics": list(own.statistics().values())}

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Distance of the last task's kernels from the identity they start as: root mean square.

        Those of ``scaled`` are the identity and A_c K_c beside it.
        """
        own, state = self.own(self.index).part("weights"), self.backbone.state_dict()
        moved = []
        for name in (name for name in own if name.endswith(".kernel")):
            scale = own.get(f"{name.removesuffix('kernel')}scale")
            change = own[name] - state[name] if scale is None else scale.unsqueeze(1) * own[name]
            moved.append(change.flatten())
        distances = torch.cat(moved)
        return {"kernel_change": float(distances.square().mean().sqrt())}
