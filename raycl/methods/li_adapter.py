"""Adapters beside the convolutions of a frozen network: for each task 1 x 1 convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from raycl.benchmarks.base import TaskInfo
from raycl.errors import UserError
from raycl.methods._per_task import OnAnchor
from raycl.methods.base import Context


class LiAdapter(OnAnchor):
    """Each task has a 1 x 1 convolution of its own beside every convolution of a frozen network.

    Paper:
        ``li18`` and ``li50`` in the code of Ge et al., "CLR: Channel-wise Lightweight
        Reprogramming for Continual Learning", ICCV 2023, arXiv 2307.11386. Which paper of Li et al.
        that follows is not said here, because it was not checked.

    A convolution becomes conv(x) + R(x). R is a full 1 x 1 convolution of the same stride, with a
    bias, and starts at random as PyTorch's convolutions do, so that the network is another one from
    the start. R and the head are trained with cross-entropy over the task's classes; with
    ``penalty`` (that code: 1e-5), plus its weight times the sum of their Euclidean norms. The whole
    network is in eval mode, also in training: batch normalisations stay as they are.

    Symbols:
        R: ``adapters.TASK.LAYER``, the layers in the order of the network.

    The network of ``li18`` is a ResNet-18 and of ``li50`` a ResNet-50, both supervised.

    Departures:
        * Whether R has a bias in that code is not known.
        * Where a convolution gives a smaller or a larger map than R would, because it is padded
          otherwise, R reads the middle of its input, or of its input within zeros.
        * ``anchor: first_task`` is not in that code; see ``clr``. While the first task trains the
          network its R is 0, and random from then on.
    """

    class Config(OnAnchor.Config):
        """Options of adapters."""

        unless_given: ClassVar[tuple[str, ...]] = ("anchor",)

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        modules = self.backbone.named_modules()
        self.convolutions = {n: layer for n, layer in modules if isinstance(layer, nn.Conv2d)}
        if not self.convolutions:
            raise UserError(
                "network",
                f"{config.name} adds to convolutions, and this network has none",
                "take one that has, e.g. cnn or resnet18",
            )
        self.adapters = nn.ModuleList()

    def add_task(self, task: TaskInfo) -> None:
        """Add the task's head and adapters."""
        super().add_task(task)
        layers = self.convolutions.values()
        self.adapters.append(
            nn.ModuleList(nn.Conv2d(c.in_channels, c.out_channels, 1, c.stride) for c in layers)  # type: ignore[arg-type]
        )
        if task.index == 0 and self.config.anchor == "first_task":
            for parameter in self.own_parameters(0):
                nn.init.zeros_(parameter)

    def freeze(self) -> None:
        """Let the first task's adapters start, too."""
        for adapter in self.adapters[0].children():
            assert isinstance(adapter, nn.Conv2d)
            adapter.reset_parameters()

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; the network stays in eval mode, unless it is trained."""
        super().train(mode)
        self.backbone.train(mode and self.anchoring)
        return self

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``."""
        adapters = self.adapters[task_id].children()
        with ExitStack() as hooks:  # for this pass only
            for layer, adapter in zip(self.convolutions.values(), adapters, strict=True):
                hooks.enter_context(layer.register_forward_hook(_beside(adapter)))
            return self.backbone(images)  # type: ignore[no-any-return]

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """See ``PerTask.own_parameters``."""
        return list(self.adapters[task].parameters())


def _beside(adapter: nn.Module) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    """A hook that adds to a convolution what an adapter makes of its input."""

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(adapter, nn.Conv2d)
        beside: Tensor = adapter(fitted(inputs[0], output.shape[2:], adapter.stride))
        return output + beside

    return hook


def fitted(maps: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Cut or pad maps (B, C, H, W) so that a 1 x 1 convolution of a stride gives maps of a size.

    Maps that fit are left alone. From others the middle is taken, if there is an odd pixel the one
    further up and left; zeros stand where they are too small.
    """
    pads: list[int] = []
    for side, want, step in zip(maps.shape[:1:-1], size[::-1], stride[::-1], strict=True):
        if -(-side // step) == want:
            pads += [0, 0]
        else:
            spare = side - 1 - (want - 1) * step
            pads += [-(spare // 2), spare // 2 - spare]
    return F.pad(maps, pads) if any(pads) else maps
