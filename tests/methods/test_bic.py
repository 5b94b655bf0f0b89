from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from replay_making import enter, make, numbered, pass_over, split, task_of, who

from raycl.datasets.examples import Batch
from raycl.errors import UserError
from raycl.nn.distillation import soft_cross_entropy
from raycl.training.phase import PhaseState, train_one_epoch

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


def says(module, z):
    """A network whose logits are ``z`` whatever it sees."""
    head = module[1] if isinstance(module, torch.nn.Sequential) else module
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor(z)


def image_of(label):
    return Batch(torch.zeros(1, 3, 1, 1), torch.tensor([label]), torch.tensor([0]))


def three_tasks(**options):
    """One class each; in the third task, whose earlier pair is (2, 1)."""
    method = make("bic", [[0], [1], [2]], memory_size=60, **options)
    for index in range(2):
        pass_over(method, numbered(method, index, 40))
    method.pairs[0].data = torch.tensor([[2.0, 1.0]])
    return method, enter(method, numbered(method, 2, 40))


# ------------------------------------------------------------------ the correction


def test_correction():
    method = make("bic", [[0, 1], [2]])
    pass_over(method, numbered(method, 0, 20))
    z = torch.tensor([[1.0, 0.0, 3.0]])
    assert torch.equal(method.corrected(z), z)  # no pair yet
    enter(method, numbered(method, 1, 20))
    assert torch.equal(method.corrected(z), z)  # (1, 0)
    method.pairs[0].data = torch.tensor([[0.5, -1.0]])
    zc = method.corrected(z)
    assert zc.tolist() == [[1.0, 0.0, 0.5]]
    assert (z.argmax().item(), zc.argmax().item()) == (2, 0)
    y = torch.tensor([0])
    assert F.cross_entropy(z, y).item() == pytest.approx(2.169846, abs=1e-6)
    assert F.cross_entropy(zc, y).item() == pytest.approx(0.680270, abs=1e-6)


def test_each_task_has_its_own_pair():
    method = make("bic", [[2, 0], [3], [1]], memory_size=90)
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    for index, pair in enumerate(((), (10.0, 1.0), (100.0, 2.0))):
        pass_over(method, numbered(method, index, 20))
        if pair:
            method.pairs[-1].data = torch.tensor([pair])
        expected = [[1.0, 202.0 if index > 1 else 2.0, 3.0, 41.0 if index else 4.0]]
        assert method.corrected(z).tolist() == expected
    assert method.diagnostics() == {
        "exemplars": 80.0,
        "held_out_per_class": 2.0,
        "alpha": 100.0,
        "beta": 2.0,
    }


@pytest.mark.parametrize("apply", [True, False])
def test_correction_at_test(apply):
    method, _ = three_tasks(apply_at_eval=apply)
    says(method.head, [0.0, 1.0, 0.5])
    method.pairs[1].data = torch.tensor([[1.0, 50.0]])
    found = method.logits(torch.zeros(1, 3, 1, 1), None).tolist()
    assert found == ([[0.0, 3.0, 50.5]] if apply else [[0.0, 1.0, 0.5]])


# ------------------------------------------------------------------ the losses


@pytest.mark.parametrize("apply, tau", [(True, 2.0), (False, 2.0), (True, 5.0)])
def test_loss_of_training(apply, tau):
    """lambda = 2/3, and earlier pairs are used for both networks."""
    method, task = three_tasks(apply_at_eval=apply, temperature=tau)
    says(method.head, [1.0, 2.0, 3.0])
    says(method.teacher, [0.5, -3.0, 7.0])
    terms = method.objective(task)(image_of(2))
    plain = F.cross_entropy(torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([2]))
    kept = soft_cross_entropy(torch.tensor([[1.0, 5.0]]), torch.tensor([[0.5, -5.0]]), tau)
    assert terms["cross_entropy"].item() == pytest.approx(plain.item() / 3)
    assert terms["distillation"].item() == pytest.approx(2 / 3 * kept.item())


@pytest.mark.parametrize("apply", [True, False])
def test_loss_of_the_bias(apply):
    method, task = three_tasks(apply_at_eval=apply)
    says(method.head, [1.0, 2.0, 3.0])
    method.pairs[1].data = torch.tensor([[0.5, -1.0]])
    _, phase = method.phases(task)
    assert phase.validate == apply
    loss = phase.loss(image_of(0))
    expected = F.cross_entropy(torch.tensor([[1.0, 5.0, 0.5]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(expected.item())


# ------------------------------------------------------------------ what is held out

TABLE = {
    (100, 5): ([10, 5, 3, 2], [400, 300, 240, 200]),
    (100, 10): ([20, 10, 6, 5, 4, 3, 2, 2, 2], [400, 300, 240, 250, 240, 210, 160, 180, 200]),
    (100, 20): ([40, 20, 13, 10], [400, 300, 260, 250]),
    (200, 20): (
        [20, 10, 6, 5, 4, 3, 2, 2, 2, 2, 1, 1],
        [400, 300, 240, 250, 240, 210, 160, 180, 200, 220, 120, 130],
    ),
}
"""Images held out of each class and in all, in tasks 2, 3, ... of arXiv 2106.09701, with 2000
exemplars; by (classes, tasks)."""
LAST = {(100, 20): (2, 200), (200, 20): (1, 200)}


@pytest.mark.parametrize("classes, tasks", TABLE)
def test_hold_out_of_the_paper(classes, tasks, monkeypatch):
    train = {"batch_size": 128, "drop_last": True}
    method = make("bic", split(classes, tasks), train=train)
    # which images are stored does not matter here
    monkeypatch.setattr(type(method), "order", lambda self, features, n: torch.arange(n))
    pass_over(method, numbered(method, 0, 500))
    found = []
    for index in range(1, tasks):
        task = enter(method, numbered(method, index, 500))
        stored = len(method.exemplars)
        rest, held = method.split(task)
        h = int(method.held_out)
        assert held.labels.bincount().tolist() == [h] * (len(held) // h)
        assert len(rest) + len(held) == len(task.train) + stored
        found.append((h, len(held)))
        training, bias = method.phases(task)
        if index == 1:
            assert len(list(training.batches())) == len(rest) // 128
        steps = len(list(bias.batches()))
        # that code takes no step with 120 images; here they are one short batch
        assert steps == max(1, len(held) // 128)
        method.end_task(task)
    expected = list(zip(*TABLE[classes, tasks], strict=True))
    assert found[: len(expected)] == expected
    assert found[-1] == LAST.get((classes, tasks), expected[-1])


def test_the_first_of_each_class_are_held_out():
    method = make("bic", [[0, 1], [2, 3]], memory_size=40)
    pass_over(method, numbered(method, 0, 60))
    stored = who(method.exemplars.images)
    task = enter(method, numbered(method, 1, 50))
    assert int(method.held_out) == 2  # int(0.1 * 40) // 2
    rest, held = (who(one.raw(torch.arange(len(one)))) for one in method.split(task))
    assert set(held) == {(2, 0), (2, 1), (3, 0), (3, 1), *stored[:2], *stored[20:22]}
    assert len(held) == 8
    every = who(task.train.raw(torch.arange(100))) + stored
    assert sorted(rest + held) == sorted(every)
    trained, fitted = method.phases(task)
    assert sum(len(b) for b in trained.batches()) == 140 - 8
    seen = [one for b in fitted.batches() for one in who(b.images)]
    assert sorted(seen) == sorted(held)
    method.end_task(task)  # held-out images may be stored
    candidates = who(method.exemplars.images[20:])
    assert {c for c, _ in candidates} == {2, 3}


def test_exemplars_are_herded():
    method = make("bic", [[0], [1]], memory_size=10, width=1)
    pixels = torch.tensor([0, 100, 120, 250]).to(torch.uint8)  # mean 117.5
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    images = pixels[:, None, None, None]
    pass_over(method, task_of(method, 0, images, zeros))
    # 120; then (120 + 100) / 2 = 110; then (220 + 250) / 3 = 156.7, not (220 + 0) / 3 = 73.3
    assert method.exemplars.images.flatten()[:4].tolist() == [120, 100, 250, 0]
    pass_over(method, task_of(method, 1, images, ones))
    assert method.exemplars.labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 2


def test_little_data_holds_nothing_out():
    """Four stored images are no tenth of 40: the pair stays as it is."""
    method = make("bic", [[0, 1], [2, 3]], memory_size=40)
    pass_over(method, numbered(method, 0, 2))
    task = enter(method, numbered(method, 1, 30))
    assert [phase.name for phase in method.phases(task)] == ["train"]
    assert sum(len(b) for b in method.phases(task)[0].batches()) == 64
    assert method.diagnostics()["held_out_per_class"] == 0


def test_a_small_class_keeps_an_image_to_train_on():
    method = make("bic", [[0], [1, 2]], memory_size=100)
    pass_over(method, numbered(method, 0, 60))
    labels = torch.tensor([1] * 20 + [2] * 3)
    images = torch.zeros(23, 3, 1, 1, dtype=torch.uint8)
    task = enter(method, task_of(method, 1, images, labels))
    assert int(method.held_out) == 6
    rest, held = method.split(task)
    assert held.labels.bincount().tolist() == [6, 6, 2]
    assert rest.labels.bincount().tolist() == [54, 14, 1]


# ------------------------------------------------------------------ the phases


def test_first_task_is_fine_tuning(build):
    ours, theirs = build("bic"), build("finetune")
    assert ours.advance()["train/loss"] == theirs.advance()["train/loss"]
    assert torch.equal(ours.method.head.weight, theirs.method.head.weight)
    assert ours.method.diagnostics()["alpha"] == 1
    assert len(ours.method.pairs) == 0


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_the_bias_phase_trains_one_pair(build, freeze_bn):
    train = {"weight_decay": 0.1}
    run = between(build("bic", memory_size=40, network=RESNET, train=train, freeze_bn=freeze_bn))
    method = run.method
    assert method.pairs[0].tolist() == [[1.0, 0.0]]
    weights = [p.detach().clone() for p in method.network.parameters()]
    statistics = [b.clone() for b in method.backbone.buffers()]
    teacher = network(method.teacher)
    row = run.advance()
    assert row["phase"] == "bias"
    assert row["train/lr"] == pytest.approx(0.05 / 100)
    assert same(weights, method.network.parameters())
    assert same(teacher, network(method.teacher))
    assert same(statistics, method.backbone.buffers()) == freeze_bn
    assert (method.pairs[0] != torch.tensor([[1.0, 0.0]])).all()
    assert method.diagnostics()["alpha"] == pytest.approx(method.pairs[0][0, 0].item())


def test_earlier_pairs_never_change():
    train = {"weight_decay": 0.1, "epochs": 2}
    method, task = three_tasks(train=train)
    for phase in method.phases(task):
        (group,) = phase.optimizer().param_groups
        assert not any(p is method.pairs[0] for p in group["params"])
    assert [p is method.pairs[1] for p in group["params"]] == [True]
    assert group["weight_decay"] == 0.1


def test_fewer_held_out_than_a_batch_are_one_short_batch(build):
    run = between(build("bic", memory_size=20, train={"drop_last": True}))
    assert [len(b) for b in run._phases[1].batches()] == [4]
    run.advance()
    assert run.method.pairs[0].tolist() != [[1.0, 0.0]]


def test_the_pair_takes_the_bias_away():
    """Whatever it sees, the network says "new", which a third of the held-out images are."""
    method, task = three_tasks(train={"epochs": 1, "lr": 5.0, "batch_size": 9})
    says(method.head, [1.0, 0.0, 6.0])  # corrected, before the phase: 1, 1, 6
    _, phase = method.phases(task)
    state = PhaseState(phase, method)
    losses = []
    for _ in range(60):
        means, examples = train_one_epoch(phase, state.optimizer, method)
        losses.append(means["loss"])
    assert examples == 9
    assert losses[0] > 3
    assert losses[-1] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.01)
    assert method.corrected(torch.tensor([[1.0, 0.0, 6.0]]))[0, 2].item() == pytest.approx(
        1, abs=0.1
    )
    assert torch.equal(method.pairs[0].detach(), torch.tensor([[2.0, 1.0]]))


# ------------------------------------------------------------------ what is refused


def test_shared_outputs_are_refused(build):
    with pytest.raises(UserError, match=r"benchmark: bic corrects .* tasks share outputs"):
        build("bic", benchmark={"name": "permuted"})
    build("bic", benchmark={"name": "permuted", "outputs": "separate"})


def test_a_memory_that_holds_nothing_out_is_refused(build):
    with pytest.raises(UserError, match=r"0.1 of 19 .* each of 2 old classes; at least 20"):
        build("bic", memory_size=19)
    build("bic", memory_size=20)
    with pytest.raises(UserError, match="at least 40"):
        build("bic", memory_size=39, holdout=0.05)


def test_the_memory_that_is_asked_for_is_accepted():
    """29 / 0.29 is 100, but int(0.29 * 100) is 28."""
    with pytest.raises(UserError, match="at least 101"):
        make("bic", split(58, 2), memory_size=100, holdout=0.29)
    make("bic", split(58, 2), memory_size=101, holdout=0.29)


def test_only_old_classes_of_tasks_that_are_run_count():
    with pytest.raises(UserError, match=r"0.1 of 399 .* each of 40 old classes; at least 400"):
        make("bic", split(200, 10), memory_size=399, stop=3)
    make("bic", split(200, 10), memory_size=400, stop=3)
