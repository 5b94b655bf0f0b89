from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from replay_making import enter, make, numbered, pass_over, split, task_of, who

from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.methods.e2e import per_task
from raycl.testing import MethodConformance

RESNET = {"name": "resnet32", "blocks": 1}


def between(run):
    """The run, advanced to where its second task is between its phases."""
    while run.task_index == 0 or run.phase_index == 0 or not run._phases:
        run.advance()
    return run


def network(module):
    return [value.clone() for value in module.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------ the losses


def test_one_softmax_per_old_task():
    z, q = torch.tensor([[1.0, 0, 2, 0, 9, 9]]), torch.tensor([[0.0, 1, 0, 2, 5, 7]])
    found = per_task(z, q, [torch.tensor([[0, 1], [2, 3]])], 2.0)
    assert found.item() == pytest.approx(0.5 * 0.785307 + 0.5 * 1.044320, abs=1e-6)
    assert found.item() == pytest.approx(0.914813, abs=1e-6)
    assert per_task(z, q, [torch.tensor([[0, 1, 2, 3]])], 2.0).item() == pytest.approx(1.615539)


def test_a_task_counts_by_its_classes():
    z, q = torch.randn(2, 5, 7).unbind()
    found = per_task(z, q, [torch.tensor([[0, 1], [5, 6]]), torch.tensor([[2, 3, 4]])], 2.0)
    parts = ([0, 1], 2 / 7), ([5, 6], 2 / 7), ([2, 3, 4], 3 / 7)
    expected = sum(w * per_task(z, q, [torch.tensor([c])], 2.0) for c, w in parts)
    torch.testing.assert_close(found, expected)


def logits_of(method, z, q, h):
    """A batch of one image for which the student, g and h say this."""
    for module, said in (
        (method.head, z),
        (method.teacher[1], q),
        (method.unbalanced[1], h),
    ):
        torch.nn.init.zeros_(module.weight)
        module.bias.data = torch.tensor(said)
    return Batch(torch.zeros(1, 3, 1, 1), torch.tensor([3]), torch.tensor([0]))


@pytest.mark.parametrize("fix_kd, own", [(True, 0.690802), (False, 1.044320)])
def test_loss_of_the_balanced_phase(fix_kd, own):
    method = make("e2e", [[0, 1], [2, 3]], fix_kd=fix_kd, mu=3)
    pass_over(method, numbered(method, 0, 5))
    task = enter(method, numbered(method, 1, 5))
    z = [0.5, 1.0, 1.0, 3.0]
    batch = logits_of(method, z, [2.0, 0.0, 7.0, 8.0], [9.0, 4.0, 1.0, 2.0])
    terms = method.balanced_objective(task)(batch)
    assert terms["distillation_new"].item() == pytest.approx(3 * 0.5 * own, abs=1e-6)
    # student (.5, 1), teacher (2, 0): softmax(1, 0) against log softmax(.25, .5)
    p = torch.tensor([1.0, 0.0]).softmax(0)
    old = -(p * torch.tensor([0.25, 0.5]).log_softmax(0)).sum()
    assert terms["distillation"].item() == pytest.approx(3 * 0.5 * old.item(), abs=1e-6)
    plain = F.cross_entropy(torch.tensor([z]), torch.tensor([3]))
    assert terms["cross_entropy"].item() == pytest.approx(plain.item(), abs=1e-6)
    first = method.objective(task)(batch)  # the old task alone: its weight is 1
    assert first["distillation"].item() == pytest.approx(3 * old.item(), abs=1e-6)
    assert first.keys() == {"cross_entropy", "distillation"}


def test_weights_of_three_tasks():
    method = make("e2e", [[0, 1], [2, 3], [4, 5, 6]], width=3, temperature=3)
    for index in range(2):
        pass_over(method, numbered(method, index, 5))
    task = enter(method, numbered(method, 2, 5))
    z, q, h = (torch.randn(7).tolist() for _ in range(3))
    batch = logits_of(method, z, q, h)
    terms = method.balanced_objective(task)(batch)

    def distilled(student, teacher, classes):
        s, t = (torch.tensor([[x[c] for c in classes]]) for x in (student, teacher))
        return F.cross_entropy(s / 3, (t / 3).softmax(1)).item()

    old = distilled(z, q, [0, 1]) + distilled(z, q, [2, 3])
    first = method.objective(task)(batch)
    assert first["distillation"].item() == pytest.approx(old * 2 / 4, rel=1e-5)
    assert terms["distillation"].item() == pytest.approx(old * 2 / 7, rel=1e-5)
    own = distilled(z, h, [4, 5, 6]) * 3 / 7
    assert terms["distillation_new"].item() == pytest.approx(own, rel=1e-5)


def test_tasks_with_the_same_classes_are_one_old_head(build):
    run = build("e2e", benchmark={"name": "permuted", "tasks": 3})
    heads = run.method.heads(run.stream.info.tasks[2])
    assert [head.tolist() for head in heads] == [[[0, 1, 2, 3]]]


# ------------------------------------------------------------------ the phases


def test_first_task_has_one_phase_and_its_exemplars(build):
    run = build("e2e", memory_size=12)
    row = run.advance()
    assert row["at_task_end"]
    assert run.method.exemplars.labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_the_balanced_phase_trains_the_head_alone(build, freeze_bn):
    train = {"weight_decay": 0.1}
    run = between(build("e2e", memory_size=12, network=RESNET, train=train, freeze_bn=freeze_bn))
    method = run.method
    weights = [p.detach().clone() for p in method.backbone.parameters()]
    statistics = [b.clone() for b in method.backbone.buffers()]
    head, copies = network(method.head), network(method.teacher) + network(method.unbalanced)
    row = run.advance()
    assert row["phase"] == "balanced"
    assert row["train/lr"] == pytest.approx(0.05 / 100)
    assert same(weights, method.backbone.parameters())
    assert same(statistics, method.backbone.buffers()) == freeze_bn
    assert all((a != b).any() for a, b in zip(head, network(method.head), strict=True))
    assert same(copies, network(method.teacher) + network(method.unbalanced))


def test_g_and_h_are_the_network_before_the_task_and_between_the_phases(build):
    run = build("e2e", memory_size=12)
    run.advance()
    before = network(run.method.network)
    run.advance()
    assert run.phase_index == 1
    assert same(network(run.method.teacher), before)
    assert same(network(run.method.unbalanced), network(run.method.network))
    assert not same(network(run.method.unbalanced), before)


def test_data_of_the_two_phases(build):
    run = build("e2e", memory_size=12)
    run.advance()
    task = run._enter_task()
    first, second = run._phases
    labels = torch.cat([b.labels for b in first.batches()])
    assert labels.bincount().tolist() == [6, 6, 30, 30]
    between(run)
    labels = torch.cat([b.labels for b in second.batches()])
    assert labels.bincount().tolist() == [3, 3, 3, 3]
    assert len(task.train) == 60


def test_exemplars_are_those_nearest_to_the_mean_of_their_class():
    method = make("e2e", [[0], [1]], memory_size=4, width=1)
    pixels = torch.tensor([0, 100, 120, 500 // 2, 110])  # mean 116
    images = pixels.to(torch.uint8)[:, None, None, None]
    pass_over(method, task_of(method, 0, images, torch.zeros(5, dtype=torch.int64)))
    assert method.exemplars.images.flatten().tolist() == [120, 110, 100, 0]
    pass_over(method, task_of(method, 1, images[:3], torch.ones(3, dtype=torch.int64)))
    assert method.exemplars.images.flatten().tolist() == [120, 110, 100, 120]
    assert method.diagnostics() == {"exemplars": 4.0}


def test_steps_per_epoch():
    """Tasks of CIFAR-100 and 2000 exemplars in batches of 128 (arXiv 2106.09701)."""
    for tasks, first, joined in ((5, 78, 93), (10, 39, 54), (20, 19, 35)):
        train = {"batch_size": 128, "drop_last": True}
        method = make("e2e", split(100, tasks), train=train)
        assert len(list(method.train_batches(numbered(method, 0, 500)))) == first
        pass_over(method, numbered(method, 0, 500))
        task = enter(method, numbered(method, 1, 500))
        one, two = method.phases(task)
        assert len(list(one.batches())) == joined
        assert len(list(two.batches())) == 15


def test_learning_rate_of_the_balanced_phase():
    schedule = {"name": "step", "milestones": [100, 150, 200]}
    train = {"epochs": 250, "lr": 0.1, "momentum": 0.9, "schedule": schedule, "weight_decay": 2e-4}
    method = make("e2e", [[0], [1]], train=train)
    pass_over(method, numbered(method, 0, 5))
    _, phase = method.phases(enter(method, numbered(method, 1, 5)))
    optimizer = phase.optimizer()
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 2e-4)
    scheduler, rates = phase.schedule(optimizer), []
    for _ in range(phase.epochs):
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[99:101] == pytest.approx([1e-3, 1e-4])
    assert sum(rates) == pytest.approx(0.10555)


def test_fewer_exemplars_than_a_batch_are_one_short_batch(build):
    run = between(build("e2e", memory_size=5, train={"drop_last": True}))
    head = network(run.method.head)
    assert [len(b) for b in run._phases[1].batches()] == [5]
    run.advance()
    assert not same(head, network(run.method.head))


@pytest.mark.parametrize("method", ["e2e", "bic"])
def test_an_epoch_is_selected_in_the_first_phase_alone(build, method):
    run = build(method, train={"select": "validation_accuracy"})
    run.advance()
    run.advance()
    first, second = run._phases
    assert first.score is not None
    assert second.score is None


@pytest.mark.parametrize("method", ["e2e", "bic"])
def test_what_is_refused(build, method):
    with pytest.raises(UserError, match=r"method\.memory_size: 3 images are too few for 4 classes"):
        build(method, memory_size=3)
    with pytest.raises(UserError, match="19 images are too few for 20 classes"):
        make("e2e", split(200, 10), memory_size=19, stop=1)
    make("e2e", split(200, 10), memory_size=20, stop=1)
    plateau = {"select": "validation_loss", "schedule": {"name": "plateau"}}
    with pytest.raises(UserError, match=r"train\.schedule: plateau is not for"):
        build(method, train=plateau)


MIXED = ["e2e", "bic", "naive_rehearsal", "lwf_coreset"]


@pytest.mark.parametrize("method", MIXED)
def test_images_are_augmented_in_training_and_as_they_are_in_ranking(method):
    options = {} if method in ("e2e", "bic") else {"replay": "list"}
    made = make(method, [[0], [1]], memory_size=20, train={"clip_norm": 0.5}, **options)
    made.context = dataclasses.replace(made.context, augment=lambda images: 255 - images)
    pass_over(made, numbered(made, 0, 30))
    task = enter(made, numbered(made, 1, 30))
    for phase in made.phases(task):
        images = torch.cat([batch.images for batch in phase.batches()])
        assert images[:, 1].round().eq(255).all(), phase.name  # the pixel is 0 in the data
        assert phase.clip_norm == 0.5
    if not options:
        plain = task.train.raw(torch.arange(30)).flatten(1).float()
        torch.testing.assert_close(made.features_of(task.train), plain)


@pytest.mark.parametrize("method", ["e2e", "bic", "lwf_coreset"])
def test_each_task_has_the_network_before_it_as_its_teacher(method):
    made = make(method, split(4, 4), memory_size=40)
    for index in range(4):
        torch.nn.init.normal_(made.head.weight)
        pass_over(made, numbered(made, index, 20))
        if index:
            assert torch.equal(made.teacher[1].weight, made.head.weight)


class Interrupted(MethodConformance):
    """Killed in the balanced phase of a network with running statistics."""

    method = "e2e"
    network = RESNET
    train = {"epochs": 2, "batch_size": 8, "momentum": 0.9, "drop_last": True}


@pytest.mark.parametrize("method, freeze_bn", [("e2e", True), ("e2e", False), ("bic", True)])
def test_resumes_bitwise_with_running_statistics(method, freeze_bn):
    check = Interrupted()
    check.method, check.options = method, {"memory_size": 20, "freeze_bn": freeze_bn}
    check.test_resumes_bitwise()


def test_remembers(build):
    run = build("e2e", memory_size=8, train={"epochs": 5})
    while not run.done:
        row = run.advance()
    assert row["result"]["matrices"]["class"][-1][0] > 80


def test_stored_images_are_those_of_the_data():
    method = make("e2e", split(6, 3), memory_size=12)
    for index in range(3):
        pass_over(method, numbered(method, index, 300))
    stored = who(method.exemplars.images)
    assert [c for c, _ in stored] == method.exemplars.labels.tolist()
    assert len(set(stored)) == 12
