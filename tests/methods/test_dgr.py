from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from raycl.errors import UserError
from raycl.methods.base import Context
from raycl.methods.dgr import DGR
from raycl.nn.distillation import soft_cross_entropy
from raycl.nn.vae import divergence, reconstruction
from raycl.testing import finish, tensors

TINY = {"latent": 4, "width": 0.05}


def in_second_task(build, **options):
    run = build("dgr", **{**TINY, **options})
    while run.task_index == 0:
        run.advance()
    return run, run._enter_task()


def test_images_are_in_the_unit_interval(build):
    run = build("dgr", **TINY)
    train = run.stream.data[0].train
    raw = train.raw(torch.arange(5))
    plain = run.method.plain(train.prepare(raw))
    torch.testing.assert_close(plain, raw / 255, rtol=0, atol=1e-6)
    images = train.prepare(raw)
    assert torch.equal(run.method.logits(images, None), run.method.network(plain))


def test_loss_of_the_first_task_has_real_images_only(build):
    run = build("dgr", **TINY)
    task = run._enter_task()
    run.method.eval()
    batch = next(iter(task.train.batches(8)))
    state = run.random.method.get_state()
    terms = run.method.objective(task)(batch)
    x = run.method.plain(batch.images)
    run.random.method.set_state(state)
    noise = torch.randn(8, 4, generator=run.random.method)
    logits, mean, log_variance = run.method.vae(x, noise)
    z = run.method.network(x)[:, :2]
    expected = {
        "cross_entropy": cross_entropy(z, batch.labels),
        "reconstruction": reconstruction(logits, x).mean(),
        "divergence": divergence(mean, log_variance).mean() / 64,
    }
    torch.testing.assert_close(terms, expected)


def test_loss_of_a_later_task(build):
    run, task = in_second_task(build, benchmark={"tasks": 3}, mu=0.5)  # 2 old classes, 1 new
    method = run.method.eval()
    with torch.no_grad():
        method.head.bias += torch.arange(4)  # the student moves, the scholar does not
    batch = next(iter(task.train.batches(8)))
    state = run.random.method.get_state()
    terms = method.objective(task)(batch)
    run.random.method.set_state(state)
    latents, noise = (torch.randn(n, 4, generator=run.random.method) for n in (8, 16))
    with torch.no_grad():
        drawn = method.scholar["vae"].decode(latents).sigmoid()
        q = method.scholar["network"](drawn)[:, :2]
    x, y = torch.cat([method.plain(batch.images), drawn]), torch.cat([batch.labels, q.argmax(1)])
    w = torch.tensor([2 / 3, 2 / 3, 1 / 3])[y]
    z = method.network(x)[:, :3]
    logits, mean, log_variance = method.vae(x, noise)
    expected = {
        "cross_entropy": (w * cross_entropy(z, y, reduction="none")).sum() / 16,
        "reconstruction": (w * reconstruction(logits, x)).sum() / 16,
        "divergence": divergence(mean, log_variance).sum() / 16 / 64,
        "distillation": 0.5 * soft_cross_entropy(z[8:, :2], q),
    }
    torch.testing.assert_close(terms, expected)
    sum(terms.values()).backward()
    trained = {id(p) for p in method.trainable()}
    for parameter in method.parameters():
        unseen = parameter is method.head.weight and parameter.grad[3:].any()
        assert (parameter.grad is not None) == (id(parameter) in trained)
        assert not unseen


def test_the_two_losses_share_no_parameter(build):
    run, task = in_second_task(build)
    batch = next(iter(task.train.batches(8)))
    terms = run.method.objective(task)(batch)
    classifier = list(run.method.network.parameters())
    vae = list(run.method.vae.parameters())
    for names, own, other in (
        (("cross_entropy", "distillation"), classifier, vae),
        (("reconstruction", "divergence"), vae, classifier),
    ):
        loss = sum(terms[name] for name in names)
        assert all(
            g is None
            for g in torch.autograd.grad(loss, other, retain_graph=True, allow_unused=True)
        )
        assert all(
            g is not None
            for g in torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
        )


def test_a_weight_per_class_whatever_the_batch(build):
    """Labels may exceed 2B: with B = 1 and label 3 the code of arXiv 2106.09701 fails."""
    run = build("dgr", **TINY, train={"batch_size": 1})
    assert run.method.class_weights(run.stream.info.tasks[0]).tolist() == [1, 1, 1, 1]
    finish(run)
    assert run.method.class_weights(run.stream.info.tasks[1]).tolist() == [0.5] * 4
    assert all(value.isfinite().all() for value in tensors(run.method.state_dict()))


@pytest.mark.parametrize("tasks", [1, 2])
def test_scholar_is_the_pair_before_the_task_in_eval_mode(build, tasks):
    """Also before the third task, when there is a scholar of the second to replace."""
    run = build("dgr", **TINY, benchmark={"tasks": 3})
    assert run.method.scholar is None
    while run.task_index < tasks:
        run.advance()
    before = copy.deepcopy(
        {"network": run.method.network.state_dict(), "vae": run.method.vae.state_dict()}
    )
    run.advance()
    for name, state in before.items():
        frozen = run.method.scholar[name].state_dict()
        assert all(torch.equal(frozen[k], v) for k, v in state.items())
    run.method.train()
    assert not any(m.training for m in run.method.scholar.modules())


def test_replayed_labels_are_old(build):
    run, _ = in_second_task(build)
    old = torch.tensor([0, 1])
    drawn, answers = run.method.replay(run.method.scholar, 20, old)
    assert drawn.shape == (20, 1, 8, 8)
    assert answers.shape == (20, 2)
    assert not drawn.requires_grad
    assert not answers.requires_grad


def test_state_round_trip_and_restored_pictures(build):
    run = build("dgr", **TINY)
    finish(run)
    twin = build("dgr", **TINY)
    for info in twin.stream.info.tasks:
        twin.method.add_task(info)
    twin.method.load_state_dict(run.method.state_dict(), strict=True)
    for one in (run, twin):
        one.method.eval()
    state = run.random.method.get_state()
    ((name, picture),) = run.method.pictures().items()
    assert name == "samples"
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 71, 71)
    assert picture.any()
    assert torch.equal(picture, twin.method.pictures()["samples"])
    assert torch.equal(state, run.random.method.get_state())


def test_picture_has_all_values_and_all_classes_so_far(build, monkeypatch):
    run = build("dgr", **TINY)
    assert run.method.memory == "generator"
    finish(run)
    grids = []
    monkeypatch.setattr(
        "raycl.methods.dgr.class_grid", lambda *given: grids.append(given) or given[0][0]
    )
    monkeypatch.setattr(run.method.vae, "decode", lambda z: torch.zeros(len(z), 1, 8, 8) - 1.0)
    run.method.pictures()
    ((images, labels, classes),) = grids
    assert set(images.flatten().tolist()) == {69}  # 255 sigmoid(-1), rounded
    assert set(classes) == {0, 1, 2, 3}
    assert len(images) == len(labels) == 256


@pytest.mark.parametrize("outputs", ["seen", "task", "all"])
def test_every_output_setting_learns(build, outputs):
    run = build("dgr", outputs=outputs, **TINY, train={"epochs": 6, "lr": 0.2})
    matrix = finish(run)["matrices"]["task"]
    assert matrix[0][0] > 80
    assert matrix[1][1] > 80


@pytest.mark.parametrize("name", ["permuted", "rotated"])
def test_shared_outputs(build, name):
    run = build("dgr", **TINY, benchmark={"name": name}, train={"augment": "flip"})
    finish(run)
    assert run.method.class_weights(run.stream.info.tasks[1]).tolist() == [1] * 4
    assert all(value.isfinite().all() for value in tensors(run.method.state_dict()))


def changed(context: Context, **changes):
    stream = type(context.stream)(**{**vars(context.stream), **changes})
    return Context(**{**vars(context), "stream": stream})


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"mean": ((0.5,), (0.4,))}, "tasks are normalised differently"),
        ({"std": ((0.5,), (0.4,))}, "tasks are normalised differently"),
        ({"input_shape": (1, 28, 28)}, "divisible by 8, not 28 x 28"),
    ],
)
def test_refused_at_construction(build, changes, text):
    method = build("dgr", **TINY).method
    with pytest.raises(UserError, match=text):
        DGR(method.config, changed(method.context, **changes))
