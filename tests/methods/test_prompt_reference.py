"""Every learner and every scheme against a slow second version, in training and inference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import prompt_reference as slow
import pytest
import torch
from prompt_making import ALONE, PAIRS, alone, build, distilled, scrambled
from torch import Tensor, nn

from raycl.datasets.examples import Batch
from raycl.training.run import Run

INDEX = 1
CLASSES = slice(2, 4)
"""The outputs of the task with that number."""


class Said(NamedTuple):
    """What a model says of one image."""

    logits: Tensor
    keys: Tensor
    tokens: Tensor
    outputs: list[Tensor]
    prompts: dict[int, slow.Given]


class Model:
    """A network, a learner and a head, as plain tensors."""

    def __init__(self, name: str, options: dict[str, Any], backbone: nn.Module, model: nn.Module):
        self.name, self.options = name, options
        self.backbone, blocks = slow.state_of(backbone), backbone.model.blocks
        self.shape = blocks[0].attn.num_heads, len(blocks)
        self.learner, self.head = slow.state_of(model.learner), slow.state_of(model.head)

    def query(self, image: Tensor) -> Tensor:
        return slow.transformer(self.backbone, *self.shape, image, {})[0][0]

    def prompts(self, query: Tensor, task: int | None) -> tuple[dict[int, slow.Given], Tensor]:
        return slow.prompts(self.name, self.options, self.learner, query, task, INDEX)

    def said(self, image: Tensor, query: Tensor, task: int | None, added: Any = None) -> Said:
        own, keys = self.prompts(query, task)
        given = slow.added(added or {}, own)
        tokens, outputs = slow.transformer(self.backbone, *self.shape, image, given)
        logits = slow.head(self.name, self.head, tokens[0])
        return Said(logits, keys, tokens, outputs, own)


def started(method: dict[str, Any]) -> tuple[Run, Any, Batch]:
    run = build(method)
    task, batch = scrambled(run, INDEX)
    run.method.double()
    return run, task, replace(batch, images=batch.images.double(), frozen=None)


def close(found: Any, wanted: Any) -> None:
    wanted = torch.stack(list(wanted)) if isinstance(wanted, list) else wanted
    torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=2e-6)


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


# --------------------------------------------------------------------------------- learners alone


@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_a_learner_alone(name: str) -> None:
    options = {"mu": 0.7} if name == "coda_prompt" else {}
    run, task, batch = started(alone(name, **options))
    method = run.method
    model = Model(name, ALONE[name] | options, method.backbone, method.student)
    queries = [model.query(image) for image in batch.images]
    pairs = list(zip(batch.images, queries, strict=True))
    method.eval()
    close(method.logits(batch.images, None), [model.said(*pair, None).logits for pair in pairs])
    if name not in ("apt", "one_prompt"):
        close(method.frozen_values(batch.images), queries)
    learning = [model.said(*pair, INDEX) for pair in pairs]
    method.train()
    terms = method.objective(task)(batch)
    labels = (batch.labels - CLASSES.start).tolist()
    losses = [
        slow.cross_entropy(said.logits[CLASSES], label)
        for said, label in zip(learning, labels, strict=True)
    ]
    close(terms.pop("cross_entropy"), mean(losses))
    if name in ("l2p", "dual_prompt", "coda_prompt"):
        close(terms.pop("keys"), 2 * mean([said.keys for said in learning]))
    assert not terms


# ------------------------------------------------------------------------------------------- cdl


class Pair:
    """Teacher and student with what lies between them."""

    def __init__(self, run: Run, learner: str, scheme: str) -> None:
        method, self.scheme, self.options = run.method, scheme, run.method.config
        options = self.options.learner
        self.name = learner
        self.student = Model(learner, options, method.backbone, method.student)
        self.teacher = Model(learner, options, method.teacher_backbone, method.teacher)
        self.parts = slow.state_of(method.parts)
        self.second = slow.state_of(method.kd_head) if method.kd_head else {}

    def added(self, teacher: dict[int, slow.Given]) -> dict[int, slow.Given]:
        if self.scheme == "kd_token":
            return {0: slow.Given(token=self.parts["token"][0])}
        if self.scheme == "kdp":
            behind = {1: slow.Given(behind=slow.cut(self.parts["prefixes.0"]))}
            return {0: slow.Given(token=self.parts["token"][0])} | behind
        if self.scheme == "cdl_prompt":
            given = self.options.learner
            blocks = [*given.get("general_blocks", ()), *given["blocks"]]
            how = self.options.mapper, given["length"]
            return {
                block: slow.mapped(self.parts, number, teacher[block], *how)
                for number, block in enumerate(blocks)
            }
        return {}

    def said(self, image: Tensor, task: int | None) -> tuple[Said, Said, Tensor]:
        """Student, teacher, and logits of the student's second head, or its only one."""
        query, joint = self.student.query(image), self.scheme == "cdl_prompt"
        own = self.options.query_backbone == "own"
        other = self.teacher.query(image) if own else query
        teacher = self.teacher.said(image, other, task if joint else None)
        student = self.student.said(image, query, task, self.added(teacher.prompts))
        if not self.second:
            return student, teacher, student.logits
        read = student.tokens[0 if joint else -1]
        return student, teacher, slow.head(self.name, self.second, read)

    def terms(self, image: Tensor, label: int) -> dict[str, Tensor]:
        """Losses of the student's phase for one image; ``label`` counts in the task."""
        student, teacher, follows = self.said(image, INDEX)
        z, u, x = (logits[CLASSES] for logits in (student.logits, teacher.logits, follows))
        alpha, scale = self.options.alpha, self.options.aux_loss_scale
        found = {"cross_entropy": slow.cross_entropy(z, label), "keys": scale * student.keys}
        if self.scheme == "none":
            return found
        found["cross_entropy"] = (1 - alpha) * found["cross_entropy"]
        if self.scheme == "dkd":
            found["distillation"] = alpha * slow.decoupled(x, u, label)
        else:
            found["distillation"] = alpha * slow.soft(x, u, self.options.temperature)
        if self.scheme == "fitnets":
            hint = slow.linear(student.outputs[-1], self.parts, "map")
            found["features"] = scale * 0.1 * slow.squared(hint, teacher.outputs[-1])
        if self.scheme == "review_kd":
            hint = slow.review(self.parts, student.outputs, teacher.outputs[-2:])
            found["features"] = scale * 0.2 * hint
        if self.scheme == "cdl_prompt":
            found["teacher_cross_entropy"] = slow.cross_entropy(u, label)
            found["teacher_keys"] = scale * teacher.keys
        return found


def compare(learner: str, scheme: str, **options: Any) -> None:
    run, task, batch = started(distilled(learner, scheme, **options))
    method, pair = run.method, Pair(run, learner, scheme)
    method.eval()
    said = [pair.said(image, None) for image in batch.images]
    alpha = 0.5 if scheme == "cdl_prompt" else method.config.alpha
    close(method.logits(batch.images, None, predictor="teacher"), [t.logits for _, t, _ in said])
    if not pair.second:
        close(method.logits(batch.images, None), [s.logits for s, _, _ in said])
    else:
        both = [(1 - alpha) * s.logits + alpha * second for s, _, second in said]
        close(method.logits(batch.images, None), both)
        close(method.logits(batch.images, None, predictor="head"), [s.logits for s, _, _ in said])
        close(method.logits(batch.images, None, predictor="kd_head"), [x for _, _, x in said])
    method.train()
    labels = (batch.labels - CLASSES.start).tolist()
    each = [pair.terms(image, label) for image, label in zip(batch.images, labels, strict=True)]
    terms = method.objective(task)(batch)
    for name, value in terms.items():
        close(value, mean([one[name] for one in each]))
    without = {"keys", "teacher_keys"} if learner in ("apt", "coda_prompt") else set()
    assert terms.keys() == each[0].keys() - without
    if scheme == "cdl_prompt":
        return
    own = pair.teacher if method.config.query_backbone == "own" else pair.student
    answers = [pair.teacher.said(i, own.query(i), INDEX) for i in batch.images]
    terms = method.teaching(task)(batch)
    losses = [
        slow.cross_entropy(one.logits[CLASSES], label)
        for one, label in zip(answers, labels, strict=True)
    ]
    close(terms["cross_entropy"], mean(losses))
    if "keys" in terms:
        close(terms["keys"], 2 * mean([one.keys for one in answers]))


@pytest.mark.parametrize("learner,scheme", PAIRS)
@torch.no_grad()
def test_losses_and_answers(learner: str, scheme: str) -> None:
    compare(learner, scheme)


@pytest.mark.parametrize(
    "learner,scheme,options",
    [
        ("l2p", "kdp", {"query_backbone": "own", "alpha": 0.3}),
        ("coda_prompt", "cdl_prompt", {"mapper": "attention", "query_backbone": "own"}),
        ("dual_prompt", "cdl_prompt", {"mapper": "attention", "alpha": 0.2}),
        ("l2p", "kd", {"temperature": 3.5, "alpha": 0.9}),
    ],
)
@torch.no_grad()
def test_options(learner: str, scheme: str, options: dict[str, Any]) -> None:
    compare(learner, scheme, **options)
