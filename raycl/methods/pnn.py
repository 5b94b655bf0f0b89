"""Progressive networks: a new column for each task, which reads the frozen ones before it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raycl.benchmarks.base import TaskInfo
from raycl.methods._layered import Layer, input_width, weighted_layers
from raycl.methods._per_task import PerTask
from raycl.methods.base import Context, Method
from raycl.networks.base import Backbone

Inputs = Mapping[str, Tensor]
"""Inputs of the layers of one column, by their names."""
HEAD = "head"
SCALE = 0.1
"""Scales start at random between 0 and this."""


class PNN(PerTask):
    """A network for each task, whose layers also read the inputs of earlier tasks' layers.

    Paper:
        Rusu, Rabinowitz, Desjardins, Soyer, Kirkpatrick, Kavukcuoglu, Pascanu & Hadsell,
        "Progressive Neural Networks", arXiv 1606.04671.

    Column k is a network of its own. Its convolution or linear layer i, whose input is h_i^k, gives
        W_i h_i^k + b_i + U_i relu(V_i [a_1 h_i^1, ..., a_(k-1) h_i^(k-1)])
    with the inputs of the same layer in all earlier columns, one after another along the channels.
    V_i leads to as many channels as h_i^k has (a 1 x 1 convolution, or a linear layer), U_i has the
    form of the layer itself (kernel, stride, padding, groups); neither has a bias. The first layer,
    which reads the image in every column, has no such connections; the head has them. Column,
    adapters and head are trained with cross-entropy over the task's classes, earlier columns are in
    eval mode and stay as they are.

    Symbols:
        W, b: ``columns.K.network``. a, V, U: ``columns.K.adapters``; a_j starts at random in 0 to
        0.1, V and U as PyTorch's layers do.

    Which networks:
        Layers are found by type, and connected where each is called once in a forward pass, in any
        network. A layer whose weight is used without calling it (the output of PyTorch's attention)
        has no connections, and a network without convolutions and linear layers is refused. Task k
        costs k forward passes.

    Settings elsewhere:
        aimagelab/mammoth has 50 epochs at a rate of 0.03 on Seq-CIFAR-10, which its authors have
        marked "not verified against the original".

    Departures:
        * A column starts as the network does: at random, or pre-trained.
        * The paper connects layers of a plain network. Here shortcuts stay within a column.
    """

    fixed = ()

    def __init__(self, config: Any, context: Context) -> None:
        Method.__init__(self, config, context)
        network = self.new_network()
        layers = weighted_layers(network, config.name)
        self.connected = called_once(network, list(layers), context.stream.input_shape)[1:]
        self.columns = nn.ModuleList([Column(network, self.connected, earlier=0)])
        self.heads, self.index = nn.ModuleList(), 0

    def add_task(self, task: TaskInfo) -> None:
        """Add the task's column, but for the first one's, and its head with connections."""
        if task.index:
            network = self.new_network()
            self.columns.append(Column(network, self.connected, earlier=task.index))
        column = self.column(task.index)
        self.add_head(column.network, task)
        head = self.heads[task.index]
        assert isinstance(head, nn.Linear)
        column.connect([head])

    def column(self, task: int) -> Column:
        """The column of a task."""
        column = self.columns[task]
        assert isinstance(column, Column)
        return column

    def train(self, mode: bool = True) -> Self:
        """See ``torch.nn.Module.train``; columns of earlier tasks stay in eval mode."""
        super().train(mode)
        for column in list(self.columns)[:-1]:
            column.eval()
        return self

    def run(self, images: Tensor, task: int) -> tuple[Tensor, list[Inputs]]:
        """Features of a task's column, and the inputs of layers and heads of earlier columns."""
        earlier: list[Inputs] = []
        with torch.no_grad():
            for index in range(task):
                features, inputs = self.column(index)(images, earlier)
                earlier.append({**inputs, HEAD: features})
        features, _ = self.column(task)(images, earlier)
        return features, earlier

    def embed(self, images: Tensor, task_id: int) -> Tensor:
        """See ``PerTask.embed``; what the head reads of its own column."""
        return self.run(images, task_id)[0]

    def logits(self, images: Tensor, task_id: int | None, frozen: Tensor | None = None) -> Tensor:
        """See ``PerTask.logits``."""
        if task_id is None:
            raise ValueError("the task must be known")
        features, earlier = self.run(images, task_id)
        own: Tensor = self.heads[task_id](features)
        if earlier:
            own = own + self.column(task_id).adapters[-1]([inputs[HEAD] for inputs in earlier])
        return self.spread(own, task_id)

    def own_parameters(self, task: int) -> list[nn.Parameter]:
        """See ``PerTask.own_parameters``."""
        return list(self.columns[task].parameters())

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """See ``Method.task_parts``; adapters of the head count, the head itself does not."""
        column = self.columns[task]
        norms = [module for module in column.modules() if isinstance(module, _BatchNorm)]
        affine = [p for norm in norms for p in norm.parameters()]
        known = {id(p) for p in affine}
        return {
            "weights": [p for p in column.parameters() if id(p) not in known],
            "affine": affine,
            "statistics": [b for norm in norms for b in norm.buffers() if b.is_floating_point()],
        }


class Column(nn.Module):
    """The network of a task, and the adapters through which it reads earlier columns.

    Called with images (B, C, H, W) and the inputs of the layers of all earlier columns it gives
    features (B, F), and the inputs of its own layers.

    Args:
        network: Images to features.
        connected: Names of layers that have connections.
        earlier: Number of columns before this one.

    Attributes:
        adapters: For each connected layer, and then for the head; none in the first column.
    """

    def __init__(self, network: Backbone, connected: Sequence[str], earlier: int) -> None:
        super().__init__()
        self.network, self.connected, self.earlier = network, list(connected), earlier
        self.adapters = nn.ModuleList()
        self.connect([network.get_submodule(name) for name in connected])

    def connect(self, layers: Sequence[nn.Module]) -> None:
        """Add an adapter for each layer, if there are earlier columns."""
        for layer in layers if self.earlier else ():
            assert isinstance(layer, Layer)
            self.adapters.append(Adapter(layer, self.earlier))

    def forward(self, images: Tensor, earlier: Sequence[Inputs]) -> tuple[Tensor, Inputs]:
        """See the class."""
        inputs: dict[str, Tensor] = {}

        def connect(name: str, adapter: nn.Module | None) -> Any:
            def hook(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
                inputs[name] = args[0]
                if adapter is None:
                    return output
                return output + adapter([others[name] for others in earlier])  # type: ignore[no-any-return]

            return hook

        with ExitStack() as hooks:  # for this pass only
            for position, name in enumerate(self.connected):
                adapter = self.adapters[position] if self.earlier else None
                layer = self.network.get_submodule(name)
                hooks.enter_context(layer.register_forward_hook(connect(name, adapter)))
            return self.network(images), inputs


class Adapter(nn.Module):
    """U relu(V [a_1 h^1, ..., a_k h^k]), in the shape of what a layer gives.

    Args:
        layer: For which; its form is taken over, its weights are not.
        columns: k, how many inputs are read.
    """

    def __init__(self, layer: Layer, columns: int) -> None:
        super().__init__()
        width = input_width(layer)
        self.scales = nn.Parameter(torch.rand(columns) * SCALE)
        self.reduce: Layer
        if isinstance(layer, nn.Conv2d):
            self.dim, self.reduce = 1, nn.Conv2d(columns * width, width, 1, bias=False)
        else:
            self.dim, self.reduce = -1, nn.Linear(columns * width, width, bias=False)
        self.expand = copy.deepcopy(layer)
        self.expand.bias = None
        self.expand.reset_parameters()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Inputs of the layer in each earlier column to what is added to its output in this one."""
        scaled = [scale * h for scale, h in zip(self.scales, inputs, strict=True)]
        added: Tensor = self.expand(self.reduce(torch.cat(scaled, self.dim)).relu())
        return added


def called_once(network: Backbone, names: Sequence[str], shape: tuple[int, int, int]) -> list[str]:
    """The layers that one forward pass calls exactly once, in the order of their calls.

    Args:
        network: In train mode afterwards.
        names: Names of its layers.
        shape: Channels, height and width of an image.
    """
    calls: list[str] = []

    def listen(name: str) -> Any:
        return lambda layer, args, output: calls.append(name)

    network.eval()
    device = next(network.parameters()).device
    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            hooks.enter_context(network.get_submodule(name).register_forward_hook(listen(name)))
        network(torch.zeros(1, *shape, device=device))
    network.train()
    return [name for name in calls if calls.count(name) == 1]
