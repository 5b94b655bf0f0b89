"""Runs of methods with prompts on small transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from raycl.benchmarks.base import Task
from raycl.datasets.examples import Batch
from raycl.testing import toy_data
from raycl.training.run import Run

LEARNERS: dict[str, dict[str, Any]] = {
    "l2p": {"size": 5, "length": 4, "top": 2, "blocks": [0, 1]},
    "dual_prompt": {"size": 3, "length": 4, "general_length": 2, "blocks": [1]},
    "coda_prompt": {"size": 6, "length": 4, "blocks": [0, 1]},
    "apt": {},
}
LEARNERS["dual_prompt"]["general_blocks"] = [0]
BESIDE: dict[str, dict[str, Any]] = {"no_prompt": {}, "one_prompt": {"length": 4}}
ALONE = LEARNERS | BESIDE
"""Methods with prompts of their own, and their options for a network of two blocks."""
SCHEMES = ("none", "kd", "dkd", "fitnets", "review_kd", "kd_token", "kdp", "cdl_prompt")
PAIRS = [(name, s) for name in LEARNERS for s in SCHEMES if (name, s) != ("apt", "cdl_prompt")]
"""Every learner with every scheme that it goes with."""
ADAM = {"epochs": 2, "batch_size": 8, "lr": 0.003, "optimizer": "adam"}


def vit(width: int = 16, heads: int = 2, depth: int = 2, **arguments: Any) -> dict[str, Any]:
    """A vision transformer for images of 8x8: four patches and a class token."""
    given = {"img_size": 8, "patch_size": 4, "embed_dim": width, "depth": depth}
    model = given | {"num_heads": heads} | arguments
    return {"name": "timm", "model": "vit_tiny_patch16_224", "model_args": model}


STUDENT, TEACHER = vit(), vit(24, 3, 3)


def distilled(learner: str = "l2p", scheme: str = "kdp", **options: Any) -> dict[str, Any]:
    """The block of ``cdl``; options of the learner may be given as ``of_learner``."""
    own = LEARNERS.get(learner, {}) | options.pop("of_learner", {})
    block = {"name": "cdl", "learner": {"name": learner, **own}, "scheme": scheme}
    return {**block, "anchor": "first_task", "teacher_network": TEACHER, **options}


def alone(name: str, **options: Any) -> dict[str, Any]:
    """The block of a method with prompts of its own."""
    return {"name": name, "anchor": "first_task", **ALONE[name], **options}


def config(
    method: Mapping[str, Any],
    network: Mapping[str, Any] = STUDENT,
    benchmark: Mapping[str, Any] | None = None,
    seed: int = 0,
    evaluate: Mapping[str, Any] | None = None,
    **train: Any,
) -> dict[str, Any]:
    """A trial of two tasks of two classes."""
    stream = {"name": "split", "dataset": "digits", "tasks": 2, **(benchmark or {})}
    trial = {"benchmark": stream, "method": method, "network": network}
    return {**trial, "train": {**ADAM, **train}, "seed": seed, "evaluate": evaluate or {}}


def build(method: Mapping[str, Any], *arguments: Any, **options: Any) -> Run:
    """A run that has not begun."""
    return Run(config(method, *arguments, **options), toy_data(train=16, test=9))


def scrambled(run: Run, index: int = 1) -> tuple[Task, Batch]:
    """Give every tensor of a method values that nobody would draw, and begin task ``index``.

    Returns:
        The task, and a batch of its images.
    """
    method, generator = run.method, torch.Generator().manual_seed(3)
    for info in run.stream.info.tasks[: index + 1]:
        method.add_task(info)
    with torch.no_grad():
        for value in method.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    task = run.sets.open(index, method.memory)
    batch = next(iter(task.train.batches(5, generator=torch.Generator().manual_seed(1))))
    return task, batch


def trained_file(path: Path, network: Mapping[str, Any]) -> dict[str, Any]:
    """A network with weights from a file that a few epochs on the toy images have made."""
    method = alone("no_prompt")
    run = Run(config(method, network, {"tasks": 1}, epochs=8), toy_data())
    while run.last_row.get("phase") != "anchor" or run.phase_index == 0:
        run.advance()
    state: dict[str, Tensor] = run.method.backbone.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return {**network, "weights": {"file": str(path), "mean": [0.5], "std": [0.3]}}
