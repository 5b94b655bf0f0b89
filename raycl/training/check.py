"""Checks before a trial trains: do benchmark, method, networks and options go together?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch

from raycl import registry
from raycl.benchmarks.base import StreamInfo
from raycl.errors import UserError
from raycl.methods.base import Classifier, Context, Method
from raycl.networks.base import (
    Backbone,
    Weights,
    check_tensors,
    find_network,
    networks_of,
    weights_of,
)
from raycl.networks.sequence import REPEAT
from raycl.training.config import TrialConfig
from raycl.trial.weights import build_network, check_model, normalised, read


def find_method(block: Mapping[str, Any]) -> type[Method]:
    """Find the class that a ``method`` block names.

    Raises:
        UserError: There is none.
    """
    return registry.find("raycl.methods", Method, block["name"], where="method")  # type: ignore[type-abstract]


def check_networks(method: type[Method], name: str, networks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a stream of networks for a method that cannot leave its network.

    Args:
        method: Its class.
        name: Its name in the sweep file.
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


def check_batches(config: Mapping[str, Any], images: Sequence[int]) -> None:
    """Refuse ``drop_last`` where a task would be left without a batch.

    A method whose memory lengthens the list of images has no task but the first alone in it; one
    that puts stored images behind each batch still takes its steps from the task's own.

    Args:
        config: A finished configuration.
        images: Training images of each task, the least number over the class orders.

    Raises:
        UserError: A task has fewer images than a batch.
    """
    trial = TrialConfig.model_validate(config)
    train = trial.train
    if not train.drop_last:
        return
    method = find_method(trial.method)
    own = getattr(method, "train_batches", None) is Classifier.train_batches
    beside = getattr(method.Config.model_validate(trial.method), "replay", None) == "batch"
    alone = images[: trial.tasks] if method.memory is None or own or beside else images[:1]
    for task, count in enumerate(alone, 1):
        if count < train.batch_size:
            what = f"leaves nothing of task {task}: {count} images, and batches of"
            hint = "set a smaller batch_size, or drop_last: false"
            raise UserError("train.drop_last", f"{what} {train.batch_size}", hint)


def try_out(config: Mapping[str, Any], info: StreamInfo) -> None:
    """Build a trial's networks and its method once, so that what does not fit is found early.

    First without memory (PyTorch's device ``meta``); what cannot be built so is built on the CPU,
    and an error counts only if it comes there, too. Weights that networks start from are read, but
    for those of a hub.

    Args:
        config: A finished configuration.
        info: The facts about the benchmark's stream.

    Raises:
        UserError: A network does not take the images, there are fewer networks than tasks, weights
            are missing or do not fit, or the method refuses its options, the network or the stream.
    """
    trial = TrialConfig.model_validate(config)
    tasks = min(len(info.tasks), trial.tasks or len(info.tasks))
    networks = networks_of(trial.network, tasks)
    for place, block in _each_network(trial, networks):
        with place:
            if weights := weights_of(block):
                read(weights)
                check_model(block)
    method = find_method(trial.method).Config.model_validate(trial.method)
    for name, weights in method.weights_options().items():
        with _option(name, whole="network.weights"):
            read(weights)
    info = normalised(info, networks)
    try:
        _build_parts(trial, info, torch.device("meta"))
    except (UserError, NotImplementedError, RuntimeError, TypeError, ValueError):
        _build_parts(trial, info, torch.device("cpu"))


def load_from_hub(config: Mapping[str, Any], info: StreamInfo) -> None:
    """Load weights of a hub once, so that a machine without network fails before any work.

    Args:
        config: A finished configuration that ``try_out`` found nothing wrong with.
        info: The facts about the benchmark's stream.

    Raises:
        UserError: The hub cannot be reached, and its local cache has no such weights.
    """
    trial = TrialConfig.model_validate(config)
    networks = networks_of(trial.network, min(len(info.tasks), trial.tasks or len(info.tasks)))
    for place, block in _each_network(trial, networks):
        if find_network(block)[1].from_hub:
            shape = normalised(info, networks).input_shape
            with place:
                _load_from_hub(json.dumps(block), shape)


def _build_parts(trial: TrialConfig, info: StreamInfo, device: torch.device) -> None:
    def build(
        block: Mapping[str, Any] | None = None,
        *,
        task: int = 0,
        shape: tuple[int, int, int] | None = None,
    ) -> Backbone:
        option = next((name for name, one in options.items() if one == block), None)
        with nullcontext() if option is None else _option(option):
            cls, config = find_network(block or networks[task])
            network = cls(config.untrained(), shape or info.input_shape)
            if isinstance(config.weights, Weights):
                check_tensors(network, config.weights, read(config.weights))
        return network

    tasks = min(len(info.tasks), trial.tasks or len(info.tasks))
    networks = networks_of(trial.network, tasks)
    method = find_method(trial.method)
    method_config = method.Config.model_validate(trial.method)
    options = method_config.network_options()
    check_networks(method, trial.method["name"], networks)
    context = Context(
        stream=info,
        train=trial.train,
        build_network=build,
        device=device,
        data_generator=torch.Generator(),
        method_generator=torch.Generator(),
        read_tensors=read,
        networks=networks,
        stop=trial.tasks,
    )
    with torch.random.fork_rng(devices=[]), device:
        for task in range(tasks):
            if not task or context.network_changes(task):
                with _member(trial.network, task):
                    build(task=task)
        method(method_config, context)


@lru_cache(64)
def _load_from_hub(block: str, input_shape: tuple[int, int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        build_network(json.loads(block), input_shape)


def _each_network(
    trial: TrialConfig, networks: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[AbstractContextManager[None], Mapping[str, Any]]]:
    """The blocks of all networks of a trial, each with a context that gives an error its place.

    Args:
        trial: The trial.
        networks: The block of each task.
    """
    for task, block in enumerate(networks):
        yield _member(trial.network, task), block
    options = find_method(trial.method).Config.model_validate(trial.method).network_options()
    for name, block in options.items():
        yield _option(name), block


@contextmanager
def _option(name: str, whole: str = "network") -> Iterator[None]:
    """Name a method's option in an error about the network, or weights, that the option gives.

    Args:
        name: The option.
        whole: The place that such an error names.
    """
    try:
        yield
    except UserError as error:
        if error.where != whole and not error.where.startswith(f"{whole}."):
            raise
        rest = error.where.removeprefix(whole)
        raise UserError(f"method.{name}{rest}", error.what, error.hint) from error


@contextmanager
def _member(network: Mapping[str, Any], task: int) -> Iterator[None]:
    """Name the member of a sequence of networks in an error about its weights."""
    try:
        yield
    except UserError as error:
        members = network.get("of")
        block, _, rest = error.where.partition(".")
        if members is None or (block, rest.partition(".")[0]) not in _ABOUT_WEIGHTS:
            raise
        counts = [member.get(REPEAT, 1) for member in members]
        index = next(i for i in range(len(counts)) if task < sum(counts[: i + 1]))
        raise UserError(f"network.of[{index}].{rest}", error.what, error.hint) from error


_ABOUT_WEIGHTS = (("network", "weights"), ("network", "pretrained"))
