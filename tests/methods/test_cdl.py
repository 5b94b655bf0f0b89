"""Teacher and student: who learns what and when, what they share, and what keeps its bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from prompt_making import (
    LEARNERS,
    SCHEMES,
    STUDENT,
    TEACHER,
    alone,
    build,
    distilled,
    scrambled,
    trained_file,
)
from stepping import until
from torch import Tensor

from raycl.methods.base import total
from raycl.testing import finish
from raycl.training.run import Run


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Student and teacher with weights."""
    folder = tmp_path_factory.mktemp("weights")
    blocks = {"s": STUDENT, "t": TEACHER}
    student, teacher = (
        trained_file(folder / f"{name}.safetensors", block) for name, block in blocks.items()
    )
    return student, teacher


def state(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.method.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def parts(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


# ----------------------------------------------------------------------------- the student alone


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("anchor", ["weights", "first_task"])
def test_without_a_scheme_the_student_is_the_learners_own_method(
    learner: str, anchor: str, networks: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    student, teacher = networks if anchor == "weights" else (STUDENT, TEACHER)
    one = build(alone(learner, anchor=anchor), student)
    both = build(distilled(learner, "none", anchor=anchor, teacher_network=teacher), student)
    wanted, found = finish(one), finish(both)
    for readout, matrix in wanted["matrices"].items():
        assert found["matrices"][readout] == matrix
    twin = both.method.state_dict()
    for name, value in one.method.state_dict().items():
        assert torch.equal(twin[name], value), name


def test_alpha_of_zero_is_no_scheme() -> None:
    """To the bit for the student; with two heads the first answers alone."""
    plain, kd = build(distilled("l2p", "none")), build(distilled("l2p", "kd", alpha=0))
    assert finish(plain)["matrices"] == finish(kd)["matrices"]
    assert not changed(state(plain), state(kd))


# ------------------------------------------------------------------------------------- two phases


@pytest.mark.parametrize("learner,scheme", [("coda_prompt", "kdp"), ("dual_prompt", "fitnets")])
def test_who_changes_when(learner: str, scheme: str) -> None:
    """The teacher in its phase, the student with all of its parts in the other one."""
    run = build(distilled(learner, scheme), epochs=1)
    until(run, 1)
    before = state(run)
    row = run.advance()
    assert row["phase"] == "teacher"
    assert "validation/accuracy_current" not in row
    middle = state(run)
    assert parts(changed(before, middle)) == {"teacher"}
    row = run.advance()
    assert row["phase"] == "student"
    after = state(run)
    own = {"kdp": {"student", "parts", "kd_head"}, "fitnets": {"student", "parts"}}[scheme]
    assert parts(changed(middle, after)) == own
    rows = {"kdp": ("student.head", "kd_head", "teacher.head"), "fitnets": ("student.head",)}
    for head in rows[scheme]:
        for name in (f"{head}.weight", f"{head}.bias"):
            pairs = list(zip(before[name], after[name], strict=True))
            assert [i for i, pair in enumerate(pairs) if not torch.equal(*pair)] == [2, 3], name
    for name in (n for n in before if n.startswith("parts.")):
        assert not torch.equal(before[name], after[name]), f"{name} is learnt by all tasks"
    if learner == "coda_prompt":
        for who in ("student", "teacher"):
            for kind in ("keys", "attention", "components"):
                name = f"{who}.learner.{kind}.0"
                assert torch.equal(before[name][:3], after[name][:3])
                assert not torch.equal(before[name][3:], after[name][3:])


def test_parts_are_learnt_from_the_first_task_on() -> None:
    """Invariant 9: prefixes and token of kdp change in every task, and never start anew."""
    run = build(distilled("l2p", "kdp"), epochs=1)
    until(run, 0, phase=2)
    seen = [state(run)]
    while not run.done:
        if run.advance()["at_task_end"]:
            seen.append(state(run))
    assert len(seen) == 3
    names = [name for name in seen[0] if name.startswith("parts.")]
    assert len(names) == 2
    for first, second in pairwise(seen):
        assert {*names} <= changed(first, second)
        assert all((first[n] - second[n]).abs().max() < 0.2 for n in names)


@pytest.mark.parametrize("merge", ["after_student", "after_teacher"])
def test_when_the_teacher_averages(merge: str) -> None:
    """Invariant 11: after the student, as coded, it distils with the average of earlier tasks."""
    run = build(distilled("apt", "kd", apt_merge=merge), epochs=1)
    until(run, 0, phase=3)
    teacher = run.method.teacher.learner
    assert teacher.average.any() == (merge == "after_teacher")
    first = teacher.vectors.detach().clone()
    run.advance()
    assert torch.equal(teacher.average, first)
    until(run, 1, phase=1)
    mixed = 0.7 * first + 0.3 * teacher.vectors
    during = first if merge == "after_student" else mixed
    torch.testing.assert_close(teacher.average, during)
    run.advance()
    torch.testing.assert_close(teacher.average, mixed)
    student = run.method.student.learner
    assert not torch.equal(student.average, student.vectors)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_gradient_to_the_teacher_nor_to_a_network(scheme: str) -> None:
    """Also where both learn together; queries and frozen networks carry none."""
    run = build(distilled("l2p", scheme), epochs=1)
    until(run, 1, phase=0 if scheme == "cdl_prompt" else 1)
    run.advance() if scheme == "cdl_prompt" else None
    task, batch = scrambled(run)
    method = run.method
    method.requires_grad_(True)
    method.double().train()
    batch.images, batch.frozen = batch.images.double(), None
    terms = method.objective(task)(batch)
    own = {n: v for n, v in terms.items() if not n.startswith("teacher_")}
    names, values = zip(*method.named_parameters(), strict=True)
    found = torch.autograd.grad(total(own), values, retain_graph=True, allow_unused=True)
    reached = {n for n, g in zip(names, found, strict=True) if g is not None and g.any()}
    wanted = {"none": set(), "kd": set(), "dkd": set()}.get(scheme, {"parts"})
    wanted |= {"kd_head"} if method.kd_head is not None else set()
    assert parts(reached) == wanted | {"student", "backbone"}
    heads = (n for n in names if n.startswith(("student.head", "kd_head")))
    assert all(n in reached for n in heads)
    found = torch.autograd.grad(
        terms["cross_entropy"], values, retain_graph=True, allow_unused=True
    )
    ce = {n for n, g in zip(names, found, strict=True) if g is not None}
    assert not [n for n in ce if ".keys." in n and n.startswith(("student", "teacher"))]
    if scheme == "cdl_prompt":
        beside = total({n: v for n, v in terms.items() if n.startswith("teacher_")})
        found = torch.autograd.grad(beside, values, allow_unused=True)
        reached = {n for n, g in zip(names, found, strict=True) if g is not None}
        assert parts(reached) == {"teacher", "teacher_backbone"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_prompts_and_heads_are_trained(scheme: str) -> None:
    run = build(distilled("dual_prompt", scheme), epochs=2)
    until(run, 1)
    expected = [("student", {"student", "parts", "kd_head"})]
    if scheme != "cdl_prompt":
        expected.insert(0, ("teacher", {"teacher"}))
    else:
        expected[0][1].add("teacher")
    for name, wanted in expected:
        assert run.advance()["phase"] == name
        trained = {n for n, p in run.method.named_parameters() if p.requires_grad}
        there = {n.partition(".")[0] for n, _ in run.method.named_parameters()}
        assert parts(trained) == wanted & there
        run.advance()


# ----------------------------------------------------------------------------------- what counts


def losses(method: dict[str, Any]) -> dict[str, Tensor]:
    run = build(method)
    task, batch = scrambled(run)
    run.method.train()
    return dict(run.method.objective(task)(batch))


@pytest.mark.parametrize("scheme", ["none", "kd", "fitnets", "review_kd", "kdp", "cdl_prompt"])
def test_two_gpus_double_losses_of_keys_and_features_only(scheme: str) -> None:
    once, twice = (losses(distilled("l2p", scheme, aux_loss_scale=n)) for n in (1, 2))
    assert once.keys() == twice.keys()
    for name, value in once.items():
        doubled = name.endswith("keys") or name == "features"
        torch.testing.assert_close(twice[name], value * (2 if doubled else 1), rtol=0, atol=0)


@pytest.mark.parametrize("scheme", ["kd", "dkd", "review_kd", "kdp", "cdl_prompt"])
def test_the_teacher_says_nothing_of_old_classes(scheme: str) -> None:
    """Invariant 15."""
    run = build(distilled("l2p", scheme))
    task, batch = scrambled(run)
    before = run.method.objective(task)(batch)
    with torch.no_grad():
        run.method.teacher.head.weight[:2] += 7
        run.method.teacher.head.bias[:2] -= 7
    after = run.method.objective(task)(batch)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("alpha,silent", [(0.0, "kd_head"), (1.0, "head")])
def test_both_ends_of_alpha(alpha: float, silent: str) -> None:
    """One head is as it was drawn, and has no weight in the answer; both are told apart."""
    run = build(distilled("l2p", "kdp", alpha=alpha))
    until(run, 0, phase=3)
    name = "student.head" if silent == "head" else silent
    before = state(run)
    result = finish(run)
    after = state(run)
    other = "kd_head" if silent == "head" else "student.head"
    assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    assert not torch.equal(before[f"{other}.weight"], after[f"{other}.weight"])
    speaks = "kd_head" if silent == "head" else "head"
    assert result["matrices"]["class"] == result["matrices"][f"{speaks}/class"]


def test_answers_of_two_heads() -> None:
    """Invariant 9: (2, 1) and (0, 4) make (1, 2.5)."""
    for scheme, alpha in (("kdp", 0.5), ("kd_token", 0.5), ("cdl_prompt", 0.9)):
        run = build(distilled("l2p", scheme, alpha=alpha))
        with torch.no_grad():
            for head, values in ((run.method.student.head, (2, 1)), (run.method.kd_head, (0, 4))):
                head.weight.zero_()
                head.bias.copy_(torch.tensor([*values, 0, 0]))
        run.method.eval()
        said = run.method.logits(torch.zeros(1, 1, 8, 8), None)[0, :2]
        assert said.tolist() == pytest.approx([1, 2.5])


def test_matrices_of_every_predictor() -> None:
    for scheme, wanted in {
        "kd": ["class", "teacher/class"],
        "kdp": ["class", "teacher/class", "head/class", "kd_head/class"],
    }.items():
        trial = build(distilled("apt", scheme), epochs=1)
        matrices = finish(trial)["matrices"]
        assert [name for name in matrices if name.endswith("class")] == wanted


# --------------------------------------------------------------------------- what is computed once


@pytest.mark.parametrize("learner,scheme", [("l2p", "kd"), ("coda_prompt", "kdp"), ("apt", "dkd")])
def test_what_the_teacher_said_once_is_what_it_says(learner: str, scheme: str) -> None:
    """The phase's loss looks it up without augmentation; it is that of the method's objective."""
    run = build(distilled(learner, scheme), epochs=1)
    until(run, 1, phase=1)
    method, task, phase = run.method, run._task, run._phases[1]
    calls: list[int] = []
    taught = method.taught

    def counted(images: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(len(images))
        return taught(images, *arguments, **options)

    method.taught = counted
    for batch in task.train.batches(8, generator=torch.Generator().manual_seed(2)):
        kept = phase.loss(batch)["distillation"]
        now = method.objective(task)(batch)["distillation"]
        torch.testing.assert_close(kept, now, rtol=1e-5, atol=1e-6)
    assert calls[0] == len(task.train), "all images at once"
    assert len(calls) == 1 + len([*task.train.batches(8)])
    del method.taught


def test_an_augmented_image_is_shown_to_the_teacher() -> None:
    run = build(distilled("l2p", "kd"), epochs=1, augment="flip")
    until(run, 1, phase=1)
    batch = next(iter(run._task.train.batches(8)))
    batch.images = torch.randn(8, 1, 8, 8)
    losses = [
        f(batch)["distillation"] for f in (run._phases[1].loss, run.method.objective(run._task))
    ]
    assert torch.equal(*losses)


def test_epochs_are_scored_by_what_the_teacher_says_of_validation_images() -> None:
    """Numbers of images mean others there than in the training set."""
    run = build(
        distilled("l2p", "kd"), benchmark={"validation": 0.3}, select="validation_loss", epochs=1
    )
    until(run, 1, phase=1)
    method, task, phase = run.method, run._task, run._phases[1]
    next(iter(task.train.batches(8)))
    phase.loss(next(iter(task.train.batches(8))))
    method.eval()
    (batch,) = task.validation.batches(1000)
    active = method.active(task.info)
    with torch.no_grad():
        own = method.logits(batch.images, None)[:, active]
        teacher = method.logits(batch.images, None, predictor="teacher")[:, active]
        target = (teacher / 2).softmax(1)
        soft = 4 * (target * (target.log() - (own / 2).log_softmax(1))).sum(1).mean()
        ce = torch.nn.functional.cross_entropy(own, batch.labels - 2)
        keys = method.student.learner.prompts(method.query(batch.images, None), None)[1]
    assert phase.score() == pytest.approx(-float(0.5 * ce + 0.5 * soft + 2 * keys), rel=1e-5)


def test_queries_of_the_teachers_own(networks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    student, teacher = networks
    method = distilled("l2p", "kd", query_backbone="own", anchor="weights", teacher_network=teacher)
    run = build(method, student)
    assert run.method.teacher.learner.keys[0].shape == (5, 24)
    assert run.method.student.learner.keys[0].shape == (5, 16)
    computed = build(method, student, evaluate={"cache_mb": 0})
    assert finish(run)["matrices"] == finish(computed)["matrices"]
    assert not changed(state(run), state(computed))
    images = torch.randn(3, 1, 8, 8)
    values = run.method.frozen_values(images)
    torch.testing.assert_close(values[:, 16:], run.method.teacher_backbone(images))
    shared = build(distilled("l2p", "kd"))
    assert shared.method.teacher.learner.keys[0].shape == (5, 16)


def test_neither_network_is_in_a_checkpoint(
    networks: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    student, teacher = networks
    run = build(distilled(anchor="weights", teacher_network=teacher), student)
    assert parts(set(run.state_dict()["method"])) == {"student", "teacher", "parts", "kd_head"}
