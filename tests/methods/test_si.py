from __future__ import annotations

import copy

import pytest
import torch
from replay_making import enter, make, numbered
from reservoir_making import STREAMS, cross_entropy, difference, twin

from raycl.errors import UserError


def one_weight(train=None, **options):
    """SI on a network whose first weight alone is trained: method, its phase, a step on a loss."""
    made = make("si", [[0], [1]], width=1, train={"lr": 0.1, **(train or {})}, **options)
    torch.nn.init.ones_(made.head.weight)
    task = enter(made, numbered(made, 0, 4))
    (phase,) = made.phases(task)
    optimizer = phase.optimizer()

    def step(loss):
        optimizer.zero_grad()
        loss(made.head.weight[0, 0]).backward()
        optimizer.step()
        phase.after_step()

    return made, task, step


def half_square(theta):
    return theta**2 / 2


def test_importance_by_hand():
    made, task, step = one_weight()
    step(half_square)
    assert made.head.weight[0, 0].item() == pytest.approx(0.9)
    assert made.path[0].item() == pytest.approx(0.1)
    step(half_square)
    assert made.head.weight[0, 0].item() == pytest.approx(0.81)
    assert made.path[0].item() == pytest.approx(0.181)
    made.end_task(task)
    assert made.omega[0].item() == pytest.approx(0.1746935, rel=1e-5)  # 0.181 / (0.19^2 + 1)
    assert made.anchor[0].item() == pytest.approx(0.81)
    assert not made.path.any()
    assert not made.omega[1:].any()


def test_damping_by_hand():
    made, task, step = one_weight(xi=0.01)
    step(half_square)
    step(half_square)
    made.end_task(task)
    assert made.omega[0].item() == pytest.approx(0.181 / (0.0361 + 0.01), rel=1e-5)


def test_penalty_by_hand():
    made = make("si", [[0], [1]], width=1, c=0.5)
    parameters = list(made.network.parameters())
    made.anchor.copy_(made.position())
    assert made.penalty()() == 0
    made.omega.copy_(torch.tensor([2.0, 0.0, 1.0, 0.0]))
    made.anchor -= torch.tensor([0.1, 5.0, -0.3, 0.0])
    penalty = made.penalty()() / made.config.c
    assert penalty.item() == pytest.approx(2 * 0.01 + 0.09, rel=1e-4)
    penalty.backward()
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(gradient, torch.tensor([0.4, 0, -0.6, 0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "train, options, step",
    [
        ({}, {"clip_value": None}, 0.5),
        ({}, {}, 0.1),  # the published bound: 1
        ({}, {"clip_value": 2}, 0.2),
        ({"clip_norm": 0.5}, {}, 0.05),
        ({"clip_norm": 0.5}, {"clip_value": 0.2}, 0.02),
        ({"clip_norm": 3.0}, {"clip_value": None}, 0.3),
    ],
)
def test_the_step_is_clipped_and_not_the_slope(train, options, step):
    made, _, go = one_weight(train, **options)
    go(lambda theta: 5 * theta)
    assert made.head.weight[0, 0].item() == pytest.approx(1 - step, abs=1e-6)
    assert made.path[0].item() == pytest.approx(5 * step, rel=1e-5)


def test_the_slope_is_that_of_the_cross_entropy_alone():
    made, _, step = one_weight(c=0.5)
    made.omega[0] = 3
    made.anchor[0] = 0.8  # the penalty's gradient: 2 * 0.5 * 3 * (1 - 0.8) = 0.6, against it
    step(lambda theta: -0.4 * theta + made.penalty()())
    assert made.head.weight[0, 0].item() == pytest.approx(0.98)
    assert made.path[0].item() == pytest.approx(-0.4 * 0.02, rel=1e-4)


def test_no_importance_is_negative():
    made, task, _ = one_weight(xi=1.0)
    made.omega.copy_(torch.tensor([0.3, 0.3, 0.0, 0.0]))
    made.path.copy_(torch.tensor([-0.1, -0.5, -0.5, 0.2]))
    made.end_task(task)
    torch.testing.assert_close(made.omega, torch.tensor([0.2, 0.0, 0.0, 0.2]))


class Written:
    """The method once more, in float64, one parameter tensor after the other."""

    def __init__(self, run):
        self.run, self.data = run, twin(run.random.data)
        self.network = copy.deepcopy(run.method.network).double()
        self.parameters = list(self.network.parameters())
        self.omega = [torch.zeros_like(p) for p in self.parameters]
        self.w = [torch.zeros_like(p) for p in self.parameters]
        self.anchor = [p.detach().clone() for p in self.parameters]

    def start(self):
        self.momentum = [torch.zeros_like(p) for p in self.parameters]

    def epoch(self, task):
        train, config = self.run.config.train, self.run.method.config
        examples, info = self.run.stream.data[task].train, self.run.stream.info
        for index in torch.randperm(len(examples), generator=self.data).split(train.batch_size):
            images = examples.raw(index).double() / 255 - info.mean[task][0]
            z = self.network(images / info.std[task][0])
            own = torch.autograd.grad(cross_entropy(z, examples.labels[index]), self.parameters)
            with torch.no_grad():
                whole = [
                    g + 2 * config.c * omega * (p - anchor)
                    for g, p, omega, anchor in zip(
                        own, self.parameters, self.omega, self.anchor, strict=True
                    )
                ]
                norm = sum((g**2).sum() for g in whole) ** 0.5
                if train.clip_norm and norm > train.clip_norm:
                    whole = [g * train.clip_norm / (norm + 1e-6) for g in whole]
                for i, p in enumerate(self.parameters):
                    g = whole[i]
                    if config.clip_value:
                        g = g.clamp(-config.clip_value, config.clip_value)
                    before = p.clone()
                    self.momentum[i] *= train.momentum
                    self.momentum[i] += g + train.weight_decay * p
                    p -= train.lr * self.momentum[i]
                    self.w[i] += own[i] * (before - p)

    def end(self):
        for i, p in enumerate(self.parameters):
            new = self.w[i] / ((p.detach() - self.anchor[i]) ** 2 + self.run.method.config.xi)
            self.omega[i] = (self.omega[i] + new).clamp(min=0)
            self.anchor[i] = p.detach().clone()
            self.w[i].zero_()


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "train, options",
    [
        ({}, {}),
        ({"lr": 0.02}, {"c": 30.0, "xi": 0.1}),
        ({}, {"c": 2.0, "clip_value": 0.01}),
        ({"momentum": 0.8, "weight_decay": 0.01, "lr": 0.02}, {"c": 5.0, "clip_value": None}),
        ({"clip_norm": 0.5}, {"c": 20.0, "xi": 0.1, "clip_value": 0.1}),
    ],
)
def test_is_the_method_written_out(build, stream, train, options):
    run = build("si", benchmark=STREAMS[stream], train={"epochs": 2, **train}, **options)
    reference = Written(run)
    while not run.done:
        task = run.task_index
        reference.start()
        while run.task_index == task:
            reference.epoch(task)
            run.advance()
            assert difference(run, reference.network) < 1e-6
        reference.end()
        omega = torch.cat([o.flatten() for o in reference.omega])
        assert omega.gt(0).any()
        torch.testing.assert_close(run.method.omega.double(), omega, rtol=1e-4, atol=1e-7)
        assert torch.equal(run.method.anchor, run.method.position())


def test_strength_zero_is_fine_tuning(build):
    plain = build("finetune", outputs="all", train={"epochs": 2})
    run = build("si", c=0, train={"epochs": 2})
    while not run.done:
        plain.advance()
        row = run.advance()
    assert row["train/penalty"] == 0
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value)


def test_the_first_task_has_no_penalty(build):
    row = build("si", c=1000).advance()
    assert not {"train/cross_entropy", "train/penalty"} & row.keys()


def test_the_way_starts_where_the_network_is(build):
    run = build("si")
    with torch.no_grad():
        run.method.head.weight += 1  # weights that are loaded after the method was made
    before = run.method.position()
    run._enter_task()
    assert torch.equal(run.method.anchor, before)


@pytest.mark.parametrize("scores, kept", [((1.0, 3.0, 2.0), 1), ((3.0, 2.0, 1.0), 0)])
def test_the_way_ends_with_the_epoch_that_is_kept(build, monkeypatch, scores, kept):
    train = {"epochs": 3, "select": "validation_loss"}
    run = build("si", benchmark={"validation": 0.2}, train=train)
    given = iter(scores)
    cls = type(run.method)
    monkeypatch.setattr(cls, "score", lambda *_: next(given))
    ended, end_task = [], cls.end_task

    def spy(method, task):
        ended.append((method.path.clone(), method.position()))
        end_task(method, task)

    monkeypatch.setattr(cls, "end_task", spy)
    after = []
    for _ in range(3):
        run.advance()
        after.append((run.method.path.clone(), run.method.position()))
    ((path, position),) = ended
    assert torch.equal(path, after[kept][0])
    assert torch.equal(position, after[kept][1])


def test_what_is_stored(build):
    run = build("si")
    weights = sum(p.numel() for p in run.method.parameters())
    assert sum(b.numel() for b in run.method.buffers()) == 3 * weights
    selecting = build("si", train={"select": "validation_loss"}, benchmark={"validation": 0.2})
    assert sum(b.numel() for b in selecting.method.buffers()) == 4 * weights


def test_the_penalty_holds_what_matters(build):
    distances = []
    for c in (0, 20, 200):
        run = build("si", c=c, train={"lr": 0.02, "epochs": 5})
        while run.task_index == 0:
            run.advance()
        anchor, omega = run.method.anchor.clone(), run.method.omega.clone()
        while not run.done:
            row = run.advance()
        distances.append((omega * (run.method.position() - anchor).square()).sum().item())
        assert row["train/loss"] == pytest.approx(row["train/cross_entropy"] + row["train/penalty"])
    assert distances[0] > 1.2 * distances[1]
    assert distances[1] > 1.2 * distances[2]


def test_another_network_is_refused(build):
    each = [{"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [24]}]
    with pytest.raises(UserError, match="si cannot change networks"):
        build("si", network={"name": "sequence", "of": each})
