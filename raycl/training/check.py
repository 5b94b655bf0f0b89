"""What can be found out about a trial before it trains: do its parts go together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raycl import registry
from raycl.benchmarks.base import StreamInfo
from raycl.errors import UserError
from raycl.methods.base import Context, Method
from raycl.networks.base import Backbone, find_network, networks_of
from raycl.training.config import TrialConfig


def check_networks(method: type[Method], name: str, networks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a stream of networks for a method that cannot leave its network.

    Args:
        method: Its class.
        name: What the file calls it.
        networks: The block of each task.

    Raises:
        UserError: Networks differ, and the method keeps what belongs to one of them.
    """
    if not method.any_network and any(block != networks[0] for block in networks):
        raise UserError(
            "method.name",
            f"{name} cannot change networks: what it keeps belongs to the weights of one",
            "take one network for all tasks, or a method that `raycl list methods` shows with "
            "networks: any",
        )


def try_out(config: Mapping[str, Any], info: StreamInfo) -> None:
    """Build a trial's networks and its method, to find out before any work what does not fit.

    First without memory (PyTorch's device ``meta``); what cannot be built so is built on the CPU,
    and an error counts only if it comes there, too.

    Args:
        config: A finished configuration.
        info: What the benchmark's stream is.

    Raises:
        UserError: A network does not take the images, there are fewer networks than tasks, or the
            method refuses its options, the network or the stream.
    """
    trial = TrialConfig.model_validate(config)
    try:
        _build_parts(trial, info, torch.device("meta"))
    except (UserError, NotImplementedError, RuntimeError, TypeError, ValueError):
        _build_parts(trial, info, torch.device("cpu"))


def _build_parts(trial: TrialConfig, info: StreamInfo, device: torch.device) -> None:
    def build(block: Mapping[str, Any] | None = None, *, task: int = 0) -> Backbone:
        cls, config = find_network(block or networks[task])
        return cls(config.untrained(), info.input_shape)

    tasks = min(len(info.tasks), trial.tasks or len(info.tasks))
    networks = networks_of(trial.network, tasks)
    name = trial.method["name"]
    method = registry.find("raycl.methods", Method, name, where="method")  # type: ignore[type-abstract]
    check_networks(method, name, networks)
    context = Context(
        stream=info,
        train=trial.train,
        build_network=build,
        device=device,
        data_generator=torch.Generator(),
        method_generator=torch.Generator(),
        networks=networks,
    )
    with torch.random.fork_rng(devices=[]), device:
        for task in range(tasks):
            if not task or context.network_changes(task):
                build(task=task)
        method(method.Config.model_validate(trial.method), context)
