"""Prompts against the bare transformer, and what is gained by computing frozen parts once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from perf_helpers import least_cpu, random_data
from safetensors.torch import save_file
from torch import nn

from raycl.methods._prompted import transformer
from raycl.nn.optim import make_optimizer
from raycl.nn.prompted_vit import encode
from raycl.training.phase import PhaseState, train_one_epoch
from raycl.training.run import Run
from raycl.trial.weights import build_network

pytestmark = pytest.mark.perf

BATCH, STEPS, SIDE = 32, 4, 32
SHAPE = (3, SIDE, SIDE)
WIDTH = 128


def vit(folder: Path, width: int = WIDTH, depth: int = 6) -> dict[str, Any]:
    """A transformer on patches of 4x4, with weights from a file."""
    arguments = {"img_size": SIDE, "patch_size": 4, "embed_dim": width, "depth": depth}
    model = {**arguments, "num_heads": width // 32}
    block = {"name": "timm", "model": "vit_tiny_patch16_224", "model_args": model}
    path = folder / f"{width}.safetensors"
    torch.manual_seed(0)
    save_file(build_network(block, SHAPE).state_dict(), path)
    return {**block, "weights": {"file": str(path)}}


def started(folder: Path, method: dict[str, Any], images: int = STEPS * BATCH, **more: Any) -> Run:
    """A run whose first task has begun; its teacher costs four times as much as its student."""
    teacher = {"teacher_network": vit(folder, 2 * WIDTH)} if method["name"] == "cdl" else {}
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 1, "validation": 0.0},
        "method": {**method, **teacher},
        "network": more.pop("network", None) or vit(folder),
        "train": {"batch_size": BATCH, "lr": 0.001, "optimizer": "adam"} | more.pop("train", {}),
    }
    run = Run(config | more, random_data(SHAPE, images)[0])
    run._enter_task()
    return run


def epoch_of(run: Run, number: int = 0, **changes: Any) -> Any:
    """An epoch of a phase that has begun."""
    phase = replace(run._phases[number], **changes)
    run.method.eval()
    phase.before()
    state = PhaseState(phase, run.method)
    return lambda: train_one_epoch(phase, state.optimizer, run.method)


def bare_epoch(run: Run) -> Any:
    """A query, then forward and backward of the bare network, in which only positions learn."""
    network = run.method.context.build_network().eval().requires_grad_(False)
    head = nn.Linear(network.num_features, 10)
    network.model.pos_embed.requires_grad_(True)
    trained = [network.model.pos_embed, *head.parameters()]
    optimizer = make_optimizer(trained, run.config.train)
    batches = list(run.stream.data[0].train.batches(BATCH))

    def epoch() -> None:
        for batch in batches:
            with torch.no_grad():
                network(batch.images)
            loss = F.cross_entropy(head(network(batch.images)), batch.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


@torch.inference_mode()
def test_prefixes_cost_hardly_anything(tmp_path: Path) -> None:
    """Speed in a network of twelve blocks, for which the defaults are made."""
    run = started(tmp_path, {"name": "coda_prompt"}, network=vit(tmp_path, 192, 12))
    network, learner = transformer(run.method.backbone).eval(), run.method.student.learner
    run._phases[0].before()
    images, query = torch.randn(BATCH, *SHAPE), torch.randn(BATCH, 192)

    def ours() -> None:
        encode(network, images, learner.prompts(query, 0)[0])

    def theirs() -> None:
        network.forward_head(network.forward_features(images), pre_logits=True)

    cost, bare = least_cpu(ours, theirs, rounds=9)
    print(f"timm's forward / forward with CODA's prefixes: {bare / cost:.2f}")
    assert bare / cost >= 0.95


@pytest.mark.parametrize("name", ["l2p", "coda_prompt"])
def test_a_step_is_hardly_more_than_its_passes(tmp_path: Path, name: str) -> None:
    run = started(tmp_path, {"name": name}, train={"augment": "flip"})
    ours, bare = least_cpu(epoch_of(run), bare_epoch(run))
    print(f"query, bare forward and backward / step of {name}: {bare / ours:.2f}")
    assert bare / ours >= 0.9


@pytest.mark.parametrize("name,least", [("l2p", 1.7), ("cdl", 1.15)])
def test_evaluation_with_kept_queries(tmp_path: Path, name: str, least: float) -> None:
    run = started(tmp_path, {"name": name}, images=2 * BATCH)
    run.method.eval()

    def evaluate(examples: Any) -> Any:
        return lambda: run.evaluator.accuracy(run.method, examples, 0, 1)

    kept, computed = run.sets.data[0].test, run.stream.data[0].test
    evaluate(kept)()
    cost, plain = least_cpu(evaluate(kept), evaluate(computed))
    print(f"evaluation of {name} without kept queries / with them: {plain / cost:.2f}")
    assert plain / cost >= least


@pytest.mark.parametrize("name,least", [("l2p", 1.4), ("cdl", 1.4)])
def test_an_epoch_without_augmentation(tmp_path: Path, name: str, least: float) -> None:
    """Speed of the student's epochs; the teacher's answers are kept, too."""
    method = {"name": name} | ({"scheme": "kd"} if name == "cdl" else {})
    run = started(tmp_path, method)
    plain = started(tmp_path, method, evaluate={"cache_mb": 0})
    which = len(run._phases) - 1
    kept = epoch_of(run, which)
    kept()
    again = epoch_of(plain, which, loss=plain.method.objective(plain._task))
    cost, computed = least_cpu(kept, again)
    print(f"epoch of {name} that computes all / one that has kept: {computed / cost:.2f}")
    assert computed / cost >= least
