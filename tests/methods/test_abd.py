"""ABD; with it what all methods that dream share: teacher, inversion, replay, pictures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from stepping import until
from torch import nn

from raycl.errors import UserError
from raycl.methods._dreaming import arrangement
from raycl.methods.abd import balance, drift, moved_twice, separation
from raycl.nn.inversion import Inversion, Seen, Smoothness, Statistics, normalisations
from raycl.testing import MethodConformance, finish

RESNET = {"name": "resnet32", "blocks": 1}
SMALL = {"power_iterations": 6, "latent": 8}
DREAMERS = ["abd", "deep_inversion", "lwf_synthetic"]


class TestOnResNet(MethodConformance):
    method = "abd"
    options = {"power_iterations": 6, "latent": 8}
    network = RESNET
    train = {"epochs": 2, "batch_size": 8, "lr": 0.02}


@pytest.fixture
def build(build):
    def build_small(method="abd", /, **changes):
        small = {} if method == "finetune" else SMALL
        return build(method, **{"network": RESNET, **small, **changes})

    return build_small


def gradients(run, loss):
    run.method.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in run.method.named_parameters() if p.grad is not None}
    run.method.zero_grad()
    return found


# ---------------------------------------------------------------------- losses


def test_drift_by_hand():
    head = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    features = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    old = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert drift(features, old, head).item() == pytest.approx(0.5)
    null = torch.tensor([[-2.0, 1.0, 1.0]]) * torch.tensor([[3.0], [-0.7]])
    assert drift(features + null, old, head).item() == pytest.approx(0.5, abs=1e-5)
    assert drift(old, old, head).item() == 0


def test_drift_under_autocast_is_squared_and_averaged_in_float32():
    generator = torch.Generator().manual_seed(0)
    features, old, head = (torch.randn(n, 16, generator=generator) for n in (64, 64, 5))
    with torch.autocast("cpu", torch.bfloat16):
        found = drift(features, old, head)
    assert found.dtype == torch.float32
    expected = drift(features, old, head)
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)


@pytest.mark.parametrize(
    "old, new, expected",
    [(20, 20, (0.5, 0.5)), (40, 20, (2 / 3, 1 / 3)), (80, 20, (0.8, 0.2)), (95, 5, (0.95, 0.05))],
)
def test_balance_by_hand(old, new, expected):
    assert balance(old, new) == pytest.approx(expected)


@pytest.mark.parametrize("scope, expected", [(6, 0.217247), (4, 0.158254)])
def test_separation_by_hand(scope, expected):
    z = torch.tensor([[0.0, 1, 2, 0, 0, 0], [3.0, 0, 0, 0, 0, 0]])
    found = separation(z, torch.tensor([2, 0]), torch.arange(scope), torch.full((6,), 0.5))
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weighted, expected", [(True, 0.063464), (False, 0.126928)])
def test_local_loss_by_hand(build, weighted, expected):
    run = build(network={"name": "mlp", "hidden": [16]}, local_ce_weighted=weighted)
    task = until(run, 1)
    method = run.method
    with torch.no_grad():  # six outputs, four of them seen
        method.head.weight.zero_()
        method.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 0.0]))
    batch = next(iter(task.train.batches(len(task.train))))
    batch.images, batch.labels = batch.images[:1], torch.tensor([2])
    found = method.objective(task)(batch)["local"]
    assert found.item() == pytest.approx(expected, abs=1e-6)


def literal(method, batch, images, n_old, n_new):
    """A step of the specification, with slices and separate passes."""
    old, new = slice(0, n_old), slice(n_old, n_old + n_new)
    b, teacher = len(batch), method.teacher
    with torch.no_grad():
        dreamt = teacher(images[b:])[:, old].argmax(1)
        features_old = torch.cat([teacher[0](images[:b]), teacher[0](images[b:])])
    features = method.backbone(images)
    with torch.no_grad():
        again = method.backbone(images)  # in train mode: statistics move a second time
    torch.testing.assert_close(again, features.detach())
    labels = torch.cat([batch.labels, dreamt])
    head, w_old = method.head, teacher[1].weight[old].detach()
    w = torch.where(labels < n_old, n_old / new.stop, n_new / new.stop)
    local = F.cross_entropy(head(features[:b])[:, new], batch.labels - n_old, reduction="none")
    local = (w[:b] * local).mean()
    ft = (w * F.cross_entropy(head(again), labels, reduction="none")).mean()
    kd = ((features - features_old) @ w_old.T).square().sum() / (2 * b * n_old)
    return {"local": local, "separation": ft, "distillation": 0.1 * kd}


@pytest.mark.parametrize("index, n_old, n_new", [(1, 2, 2), (2, 8, 4)])
def test_a_step_against_the_specification(build, index, n_old, n_new):
    separate = {"name": "permuted", "outputs": "separate", "tasks": 3}
    run = build(benchmark=separate if index == 2 else None)
    task = until(run, index, phase=1)
    method = run.method
    method.train()
    with torch.no_grad():
        for p in method.network.parameters():
            p.add_(torch.randn(p.shape) * 0.02)
    batch = next(iter(task.train.batches(8)))
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    state = run.random.method.get_state()
    found = method.objective(task)(batch)
    gradient = gradients(run, torch.stack(list(found.values())).sum())
    moved = {k: v.clone() for k, v in method.backbone.state_dict().items()}

    run.random.method.set_state(state)
    method.backbone.load_state_dict(before)
    with torch.no_grad():
        images = torch.cat([batch.images, method.generator(method.noise(8))])
    expected = literal(method, batch, images, n_old, n_new)
    literal_gradient = gradients(run, torch.stack(list(expected.values())).sum())
    torch.testing.assert_close(found, expected)
    assert found["distillation"] > 0
    torch.testing.assert_close(gradient, literal_gradient, rtol=1e-3, atol=1e-5)
    assert {name.split(".")[0] for name in gradient} == {"backbone", "head"}
    for name, value in method.backbone.state_dict().items():
        torch.testing.assert_close(moved[name], value, rtol=1e-5, atol=1e-6)
        assert "running" not in name or not torch.equal(value, before[name])


@pytest.mark.parametrize("scope, outputs", [("all", 16), ("seen", 12)])
def test_a_step_with_more_old_classes_than_new_ones(build, scope, outputs):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 4}
    run = build(benchmark=stream, network={"name": "mlp", "hidden": [16]}, head_scope=scope)
    task, method = until(run, 2, phase=1), run.method
    batch = next(iter(task.train.batches(8)))
    state = run.random.method.get_state()
    found = method.objective(task)(batch)
    run.random.method.set_state(state)
    dreams = method.generator(method.noise(8))
    dreamt = method.teacher(dreams)[:, :8].argmax(1)
    real, synthetic = (method.network(images) for images in (batch.images, dreams))
    cross = F.cross_entropy
    old, new = cross(synthetic[:, :outputs], dreamt), cross(real[:, :outputs], batch.labels)
    expected = (2 / 3 * old + 1 / 3 * new) / 2
    torch.testing.assert_close(found["separation"], expected)
    local = cross(real[:, 8:12], batch.labels - 8) / 3
    torch.testing.assert_close(found["local"], local)


def test_gradients_go_where_they_should(build):
    run = build(benchmark={"tasks": 2}, ft_weight=1.0)
    task = until(run, 1, phase=1)
    method = run.method
    with torch.no_grad():
        method.backbone.stem[0].weight.mul_(1.1)
    method.train()
    batch = next(iter(task.train.batches(8)))
    terms = method.objective(task)(batch)
    parts = {}
    for name, term in terms.items():
        method.zero_grad()
        term.backward(retain_graph=True)
        parts[name] = {
            n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None
        }
    for name, found in parts.items():
        reached = {n.split(".")[0] for n, g in found.items() if g.any()}
        expected = {"local": {"backbone", "head"}, "separation": {"head"}}
        assert reached == expected.get(name, {"backbone"})
    local = parts["local"]["head.weight"]
    assert not local[:2].any()
    assert local[2:].abs().sum(1).all()


def test_the_last_tasks_head_is_kept(build):
    run = build(benchmark={"tasks": 2})
    until(run, 1)
    head = {k: v.clone() for k, v in run.method.head.state_dict().items()}
    finish(run)
    for name, value in run.method.teacher[1].state_dict().items():
        assert torch.equal(value, head[name])
        assert not torch.equal(value, run.method.head.state_dict()[name])


@pytest.mark.parametrize("scope", ["all", "seen"])
def test_rows_of_classes_to_come(build, scope):
    run = build(head_scope=scope)
    before = run.method.head.weight.detach().clone()
    run.advance()
    after = run.method.head.weight.detach()
    assert (after[:2] != before[:2]).any()
    assert torch.equal(after[2:], before[2:]) == (scope == "seen")


def test_first_task_is_fine_tuning(build):
    run, plain = build(), build("finetune", outputs="all")
    assert plain.advance()["train/loss"] == run.advance()["train/loss"]
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value)


def test_shared_classes_are_refused(build):
    for name in ("permuted", "rotated"):
        with pytest.raises(UserError, match="share classes"):
            build(benchmark={"name": name})
    run = build(benchmark={"name": "permuted", "outputs": "separate"})
    finish(run)


# ---------------------------------------------------------------------- running statistics


def test_moved_twice_by_hand():
    layer = nn.BatchNorm1d(1).train()
    x = torch.tensor([[0.0], [2.0]])
    with moved_twice([layer]):
        layer(x)
    assert layer.running_mean.item() == pytest.approx(0.19)
    assert layer.num_batches_tracked.item() == 2
    assert layer.momentum == 0.1
    twice = nn.BatchNorm1d(1).train()
    twice(x), twice(x)
    torch.testing.assert_close(layer.running_var, twice.running_var)


def test_momentum_is_put_back_after_an_error():
    layers = [nn.BatchNorm1d(1), nn.BatchNorm1d(1, momentum=None)]

    def fail():
        with moved_twice(layers):
            assert layers[0].momentum == pytest.approx(0.19)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [layer.momentum for layer in layers] == [0.1, None]
    assert not layers[0].num_batches_tracked


@pytest.mark.parametrize("double", [True, False])
def test_batches_counted(build, double):
    run = build(bn_double_update=double)
    norms = normalisations(run.method.backbone)
    run.advance()
    steps = -(-len(run.stream.data[0].train) // 8)
    assert {int(layer.num_batches_tracked) for layer in norms} == {steps}
    finish(run)
    more = -(-len(run.stream.data[1].train) // 8) * (2 if double else 1)
    assert {int(layer.num_batches_tracked) for layer in norms} == {steps + more}


def test_scoring_moves_no_statistics(build):
    run = build(train={"select": "validation_loss"}, benchmark={"validation": 0.3})
    task = until(run, 1, phase=1)
    run.method.eval()
    before = {k: v.clone() for k, v in run.method.backbone.state_dict().items()}
    run.method.score(task, run.method.objective(task))
    for name, value in run.method.backbone.state_dict().items():
        assert torch.equal(value, before[name])
    finish(run)


# ---------------------------------------------------------------------- inversion


def adam_steps(method):
    return {int(state["step"]) for state in method.get_extra_state()["adam"]["state"].values()}


def test_inversions_go_on_from_task_to_task(build):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}
    run = build(benchmark=stream)
    phases = []
    assert run.method.get_extra_state() == {"adam": None}
    while not run.done:
        row = run.advance()
        phases.append((row["task"], row["phase"]))
        if row["phase"] == "inversion":
            assert "validation/accuracy_current" not in row
        if row["task"] and row["at_task_end"]:
            assert adam_steps(run.method) == {6 * row["task"]}
    inversion = [(task, "inversion") for task in (1, 2) for _ in range(3)]
    assert phases == [
        (0, "train"),
        *inversion[:3],
        (1, "train"),
        *inversion[3:],
        (2, "train"),
    ]


def test_moments_are_carried_over(build):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}
    run = build(benchmark=stream)
    until(run, 1, phase=1)
    carried = run.method.get_extra_state()["adam"]["state"][0]["exp_avg"].clone()
    assert carried.any()
    until(run, 2)
    for name, value in run.method.network.state_dict().items():
        assert torch.equal(run.method.teacher.state_dict()[name], value)
    generator = {k: v.clone() for k, v in run.method.generator.state_dict().items()}
    optimizer = run._phases[0].optimizer()
    (group,) = optimizer.param_groups
    assert torch.equal(optimizer.state[group["params"][0]]["exp_avg"], carried)
    assert group["betas"] == (0.9, 0.999)
    assert group["lr"] == 1e-3
    assert group["weight_decay"] == 0
    for name, value in run.method.generator.state_dict().items():
        assert torch.equal(value, generator[name])


def test_generator_reset(build):
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3}
    run = build(benchmark=stream, generator_reset=True)
    until(run, 1, phase=1)
    steps = normalisations(run.method.generator)[0].num_batches_tracked
    assert int(steps) == 6
    finish(run)
    assert adam_steps(run.method) == {6}
    assert int(normalisations(run.method.generator)[0].num_batches_tracked) == 6


@pytest.mark.parametrize("method", DREAMERS)
def test_the_solver_stays_as_it_is(build, method):
    run = build(method)
    until(run, 1)
    before = {k: v.clone() for k, v in run.method.state_dict().items() if k != "_extra_state"}
    while run.phase_index == 0:
        assert run.advance()["phase"] == "inversion"
    after = run.method.state_dict()
    changed = {name.split(".")[0] for name, v in before.items() if not torch.equal(after[name], v)}
    assert changed == {"generator"}
    assert all(p.grad is None for p in run.method.parameters())
    teacher = run.method.teacher
    assert not any(layer._forward_pre_hooks for layer in teacher.modules())
    for name, value in run.method.network.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)


@pytest.mark.parametrize(
    "method, mu", [("abd", 0.1), ("deep_inversion", 1), ("lwf_synthetic", 0.1)]
)
def test_defaults(build, method, mu):
    run = build(method, power_iterations=10_000, latent=1000)
    config = run.method.config
    assert config == type(config)(name=method)
    assert config.mu == mu
    (phase, _) = run.method.phases(until(run, 1))
    assert phase.epochs * len(list(phase.batches())) == 10_000
    engine = run.method.engine(run.method.teacher, torch.tensor([0, 1]))
    weights = {name: weight for name, (weight, _) in engine.terms.items()}
    assert weights == {"content": 1, "diversity": 1, "statistics": 50, "prior": 1e-3}
    images, logits = torch.zeros(1, 1, 8, 8), torch.tensor([[2.0, 0.0, -1.0]])
    cool = engine.terms["content"][1](Seen(images, logits, None, None))
    assert cool.item() == pytest.approx(1.096946, abs=1e-6)
    assert next(iter(phase.batches())).shape == (8, 1000)


def test_the_inversion_learns(build):
    run = build(power_iterations=60, train={"epochs": 3, "lr": 0.02})
    until(run, 1)
    rows = []
    while run.phase_index == 0:
        rows.append(run.advance())
    terms = ("content", "diversity", "statistics", "prior")
    assert {f"train/{t}" for t in terms} < rows[0].keys()
    assert rows[-1]["train/statistics"] < 0.6 * rows[0]["train/statistics"]
    method = run.method
    method.eval()
    classes = method.replay(torch.zeros(64, 1, 8, 8), torch.tensor([0, 1])).chosen.bincount()
    assert classes.min() > 0


def test_options_of_the_inversion(build):
    run = build(
        content_weight=2.0,
        content_temperature=5.0,
        stat_weight=3.0,
        prior_weight=0.5,
        inversion_lr=0.02,
        inversion_batch_size=5,
    )
    until(run, 1)
    method, phase = run.method, run._phases[0]
    with torch.no_grad():  # far from uniform
        method.teacher[1].weight.mul_(5)
    noise = next(iter(phase.batches()))
    assert noise.shape == (5, 8)
    found = phase.loss(noise)
    images = method.generator(noise)
    o = method.teacher(images)[:, :2]
    p = o.softmax(1).mean(0)
    layers = normalisations(method.teacher)
    plain = {"statistics": (1.0, Statistics(layers)), "prior": (1.0, Smoothness((8, 8)))}
    other = Inversion(method.teacher, torch.arange(2), plain, layers).losses(images)
    expected = {
        "content": 2 * F.cross_entropy(o / 5, o.argmax(1)),
        "diversity": 1 + (p * p.log()).sum() / torch.tensor(2.0).log(),
        "statistics": 3 * other["statistics"],
        "prior": 0.5 * other["prior"],
    }
    torch.testing.assert_close(found, expected)
    assert phase.optimizer().param_groups[0]["lr"] == 0.02


def test_without_batch_normalisation_there_is_no_statistics_term(build):
    run = build(network={"name": "mlp", "hidden": [16]})
    until(run, 1)
    row = run.advance()
    assert "train/statistics" not in row
    assert row["train/diversity"] >= 0


def test_sure_networks_leave_the_generator_finite(build):
    run = build(content_temperature=1.0, content_weight=10.0, inversion_lr=0.05)
    until(run, 1)
    with torch.no_grad():  # two classes, and logits in the thousands
        run.method.teacher[1].weight.mul_(1e4)
    finish(run)
    for value in run.method.generator.state_dict().values():
        assert value.isfinite().all()


def test_modes(build):
    run = build()
    task = until(run, 1)
    method = run.method
    method.train()
    assert method.backbone.training
    assert not method.teacher.training
    assert not any(m.training for m in method.generator.modules())
    norm = normalisations(method.generator)[0]
    count = int(norm.num_batches_tracked)
    method.objective(task)(next(iter(task.train.batches(4))))
    assert int(norm.num_batches_tracked) == count
    method.phases(task)[0].loss(method.noise(4))
    assert int(norm.num_batches_tracked) == count + 1
    method.train()
    assert not any(m.training for m in method.generator.modules())


def test_one_pass_of_the_teacher_is_two(build):
    run = build()
    task = until(run, 1, phase=1)
    method = run.method
    method.train()
    real = next(iter(task.train.batches(8))).images
    replay = method.replay(real, torch.tensor([0, 1]))
    assert replay.images.shape == (16, 1, 8, 8)
    assert not replay.images.is_inference()
    assert torch.equal(replay.images[:8], real)
    backbone, head = method.teacher
    with torch.no_grad():
        for part in (slice(0, 8), slice(8, 16)):
            features = backbone(replay.images[part])
            torch.testing.assert_close(replay.features[part], features)
            torch.testing.assert_close(replay.logits[part], head(features))
    assert torch.equal(replay.chosen, replay.logits[8:, :2].argmax(1))
    with torch.no_grad():  # a new class is likelier: the old ones are asked all the same
        head.bias[2:] += 100
    replay = method.replay(real, torch.tensor([0, 1]))
    assert torch.equal(replay.chosen, replay.logits[8:, :2].argmax(1))
    assert replay.chosen.unique().tolist() == [0, 1]
    assert not torch.equal(method.replay(real, torch.tensor([0, 1])).images[8:], replay.images[8:])


# ---------------------------------------------------------------------- pictures


def test_pictures(build):
    run = build(benchmark={"tasks": 2})
    run.advance()
    assert run.method.pictures() == {}
    finish(run)
    method = run.method
    state = run.random.state_dict()["own"]
    ((name, image),) = method.pictures().items()
    assert (name, image.dtype, image.shape) == ("inversion", torch.uint8, (3, 64, 64))
    assert torch.equal(image, method.pictures()["inversion"])
    assert all(
        torch.equal(a, b) for a, b in zip(state, run.random.state_dict()["own"], strict=True)
    )
    cell = image[:, :8, :8].float() / 255
    normal = (cell[:1] - run.stream.info.mean[0][0]) / run.stream.info.std[0][0]
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples = method.generator(noise)
    low, high = (-0.5 / 0.3, 0.5 / 0.3)
    distance = (samples.clamp(low, high) - normal[None]).abs().amax((1, 2, 3))
    assert distance.min() < 0.01


def test_arrangement():
    chosen = torch.tensor([1, 0, 2, 1] * 64)
    placed = dict(arrangement(chosen, 3, 64))
    assert len(placed) == 64
    labels = [int(chosen[placed[cell]]) for cell in range(64)]
    assert labels == [0] * 24 + [1] * 24 + [2] * 16
    few = dict(arrangement(torch.tensor([0] * 70 + [1] * 3), 2, 64))
    assert set(few) == {*range(32), 32, 33, 34}
    many = torch.arange(80) % 20
    order = [int(many[source]) for _, source in arrangement(many, 20, 64)]
    assert order == sorted(many[:64].tolist())
