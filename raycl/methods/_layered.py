"""Base of methods in which each task changes the weights of the layers of one network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.func import functional_call

from raycl.benchmarks.base import TaskInfo
from raycl.errors import UserError
from raycl.methods._per_task import PerTask
from raycl.methods.base import Context
from raycl.nn.norms import freeze_batch_norm
from raycl.nn.task_tensors import TaskTensors

Layer = nn.Conv2d | nn.Linear


def weighted_layers(network: nn.Module, method: str) -> dict[str, Layer]:
    """Convolutions and linear layers by name; layers that share a weight count once.

    Args:
        network: The network.
        method: Name of the method that needs them, for the error message.

    Raises:
        UserError: There is none.
    """
    layers: dict[str, Layer] = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, Layer) or not isinstance(layer.weight, nn.Parameter):
            continue
        if all(layer.weight is not other.weight for other in layers.values()):
            layers[name] = layer
    if not layers:
        raise UserError(
            "network",
            f"{method} works on convolutions and linear layers, and this network has none",
            "take one that has, e.g. mlp, cnn or resnet18",
        )
    return layers


def input_width(layer: Layer) -> int:
    """Number of input channels of a convolution, or of inputs of a linear layer."""
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def scaled_inputs(layer: Layer, factors: Tensor) -> Tensor:
    """The weight of a layer that first multiplies its input, channel by channel, by ``factors``."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.view(groups, -1, *layer.weight.shape[1:])
    shape = (groups, 1, -1, *(1 for _ in weight.shape[3:]))
    return (weight * factors.view(shape)).flatten(0, 1)


class Own(nn.Module):
    """The tensors of one task beside its head.

    Attributes:
        values: Module with the method's tensors for the layers.
        norms: Copies of the network's normalisations, if the task has its own.
    """

    def __init__(self, values: nn.Module, norms: TaskTensors) -> None:
        super().__init__()
        self.values, self.norms = values, norms


class Layered(PerTask):
    """One network whose convolutions and linear layers have another weight in each task.

    What a task has is a child of the method, ``task_0`` and so on, so that a kept epoch is a copy
    of the current task's buffers only.

    Attributes:
        own_norms: Whether each task has batch normalisations of its own, which start as those of
            the network. Otherwise all use the network's, in eval mode.
        layers: Its convolutions and linear layers, by name.
    """

    own_norms: ClassVar[bool] = True

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.layers = weighted_layers(self.backbone, config.name)

    @abstractmethod
    def new_values(self) -> nn.Module:
        """Make the tensors that a task has for the layers, as it starts."""

    @abstractmethod
    def weights(self, task: int) -> list[Tensor]:
        """The weight of each layer in a task."""

    def add_task(self, task: TaskInfo) -> None:
        """Add the task's head, its values and its normalisations."""
        super().add_task(task)
        norms = TaskTensors(self.backbone if self.own_norms else nn.Module())
        self.add_module(f"task_{task.index}", Own(self.new_values(), norms))

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; normalisations that tasks share stay in eval mode."""
        super().train(mode)
        if not self.own_norms:
            freeze_batch_norm(self.backbone)
        return self

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``."""
        names = (f"{name}.weight" for name in self.layers)
        weights = dict(zip(names, self.weights(task_id), strict=True))
        tensors = weights | self.own(task_id).norms.named()
        return functional_call(self.backbone, tensors, (images,), tie_weights=False)  # type: ignore[no-any-return]

    def own(self, task: int) -> Own:
        """The tensors of a task beside its head."""
        own = self.get_submodule(f"task_{task}")
        assert isinstance(own, Own)
        return own

    def trainable(self) -> list[nn.Parameter]:
        """See ``PerTask.trainable``; ``trained_network`` comes before."""
        return [*self.trained_network(), *super().trainable()]

    def trained_network(self) -> list[nn.Parameter]:
        """The network's parameters that the current task trains; none, unless overridden."""
        return []

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """See ``PerTask.own_parameters``."""
        return list(self.own(task).parameters())

    def penalised(self) -> list[Tensor]:
        """See ``PerTask.penalised``; each tensor of the normalisations on its own."""
        own = self.own(self.index)
        values = *own.values.parameters(), *own.norms.part("affine").values()
        return [*self.trained_network(), *values, *self.heads[self.index].parameters()]

    def shared_parameters(self) -> list[nn.Parameter]:
        """The network's parameters without normalisations that each task has of its own."""
        replaced = self.own(self.index).norms.named()
        return [p for name, p in self.backbone.named_parameters() if name not in replaced]

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """See ``Method.task_parts``."""
        own = self.own(task)
        values = [*own.values.parameters(), *own.values.buffers()]
        return {
            "weights": values,
            "affine": list(own.norms.parameters()),
            "statistics": list(own.norms.statistics().values()),
        }
