"""The linear probe: what it is fitted on, what it measures, and that it disturbs nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from raycl.errors import UserError
from raycl.methods.base import Classifier, Method
from raycl.methods.finetune import Finetune
from raycl.testing import finish, tensors, toy_data
from raycl.training import probe
from raycl.training.matrices import Matrices
from raycl.training.probe import fit_linear, probed
from raycl.training.run import Run
from raycl.trial.costs import Costs

HERE = f"{__name__}:"
L2 = 0.01
LAST = {"average_accuracy", "average_accuracy_by_item"}
"""Metrics that need the last row only."""


def build(every: str | None = "task", method: str = "finetune", **changes: Any) -> Run:
    """Two features and few epochs, so that nothing is perfect."""
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "tasks": 2},
        "method": {"name": method},
        "network": {"name": "mlp", "hidden": [2]},
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.01, "augment": "flip"},
    }
    if every is not None:
        config["evaluate"] = {"probe": {"every": every, "l2": L2}}
    return Run(config | changes, toy_data())


def plain(result: dict[str, Any], key: str) -> dict[str, Any]:
    """What the method itself was measured at."""
    return {r: found for r, found in result[key].items() if "/" not in r}


# ------------------------------------------------------------------ the classifier


def test_what_can_be_separated_is() -> None:
    generator = np.random.default_rng(0)
    labels = torch.tensor([7, 3, 5] * 20)
    corners = np.array([{7: [0, 0], 3: [1, 0], 5: [0, 1]}[int(y)] for y in labels])
    noise = 0.1 * generator.uniform(-1, 1, corners.shape)
    features = 50 + 1e-3 * np.column_stack([corners + noise, np.zeros(60)])  # one is constant
    linear = fit_linear(features.copy(), labels, 1e-4)
    scores = linear.scores(torch.from_numpy(features), 9)
    assert scores.shape == (60, 9)
    assert torch.equal(scores.argmax(1), labels)
    assert torch.isneginf(scores[:, [0, 1, 2, 4, 6, 8]]).all()
    assert torch.isfinite(scores[:, [3, 5, 7]]).all()


@pytest.mark.parametrize("classes", [3, 2])
def test_the_objective_is_mean_loss_and_weight_decay(classes: int) -> None:
    generator = np.random.default_rng(1)
    labels = torch.from_numpy(generator.integers(0, classes, 200))
    features = generator.normal(size=(200, 4)) + np.eye(4)[labels.numpy()]
    found = fit_linear(features.copy(), labels, L2)
    x = (torch.from_numpy(features) - found.mean) / found.scale
    torch.testing.assert_close(x.mean(0), torch.zeros(4).double())
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(4).double())
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    decay = weight.square().sum() if classes > 2 else (weight[1] - weight[0]).square().sum()
    loss = F.cross_entropy(x @ weight.T + bias, labels) + L2 / 2 * decay
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 2e-5
    again = fit_linear(features.copy(), labels, L2)
    assert torch.equal(again.weight, found.weight)  # the same every time


def test_two_classes_and_one() -> None:
    generator = np.random.default_rng(2)
    labels = torch.from_numpy(generator.integers(0, 2, 50))
    features = generator.normal(size=(50, 3)) + labels[:, None].numpy()
    found = fit_linear(features.copy(), labels + 4, L2).scores(torch.from_numpy(features), 6)
    scaled = StandardScaler().fit_transform(features)
    model = LogisticRegression(C=1 / (L2 * 50)).fit(scaled, labels)
    np.testing.assert_array_equal(found.argmax(1) - 4, model.predict(scaled))
    alone = fit_linear(features.copy(), torch.full((50,), 2), L2)
    assert (alone.scores(torch.from_numpy(features), 6).argmax(1) == 2).all()


# ------------------------------------------------------------------ in a run


@torch.no_grad()
def read(run: Run, examples: Any) -> tuple[Any, Any]:
    """Features and labels of images as they are, without the code that is tested."""
    images = examples.prepare(examples.raw(torch.arange(len(examples))))
    return run.method.backbone(images).double().numpy(), examples.labels.numpy()


def test_it_is_scikit_learns_logistic_regression() -> None:
    run = build("end")
    matrices = finish(run)["matrices"]
    pairs = [read(run, data.train) for data in run.stream.data]
    features, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1 / (L2 * len(labels)), tol=1e-5, max_iter=1000)
    model.fit(scaler.transform(features), labels)
    for i, task in enumerate(run.stream.info.tasks):
        images, expected = read(run, run.stream.data[i].test)
        scores = model.decision_function(scaler.transform(images))
        right = 100 * (scores.argmax(1) == expected).mean()
        assert matrices["probe/class"][1][i] == pytest.approx(right)
        own = np.array(sorted(task.classes))
        right = 100 * (own[scores[:, own].argmax(1)] == expected).mean()
        assert matrices["probe/task"][1][i] == pytest.approx(right)
    assert 25 < np.mean(matrices["probe/class"][1]) < 100  # nothing perfect was compared


def test_without_it_all_is_as_before() -> None:
    off, on = build(None), build("task")
    before, after = finish(off), finish(on)
    assert list(before["matrices"]) == ["class", "task", "domain"]
    assert not any("probe" in key for key in off.last_row)
    for key in ("matrices", "metrics"):
        assert plain(after, key) == before[key]
    for key in ("validation_matrices", "validation_metrics", "baseline", "sizes"):
        assert after[key] == before[key]
    for a, b in zip(tensors(off.method.state_dict()), tensors(on.method.state_dict()), strict=True):
        assert torch.equal(a, b)
    a, b = off.random.state_dict(), on.random.state_dict()
    assert str(a) == str(b)


def rows(run: Run) -> list[dict[str, Any]]:
    found = []
    while not run.done:
        found.append(run.advance())
    return found


def test_at_the_end_or_after_every_task() -> None:
    each, end = rows(build("task")), rows(build("end"))
    every, last = each[-1]["result"], end[-1]["result"]
    for readout in ("probe/class", "probe/task"):
        assert every["matrices"][readout][0][0] is not None
        assert every["matrices"][readout][0][1] is None
        assert last["matrices"][readout] == [[None, None], every["matrices"][readout][1]]
        assert set(last["metrics"][readout]) == LAST
        assert LAST | {"forgetting", "learning_accuracy"} < set(every["metrics"][readout])
        for name in LAST:
            assert last["metrics"][readout][name] == every["metrics"][readout][name]
            assert end[-1][f"eval/{readout}/{name}"] == last["metrics"][readout][name]
        assert f"eval/{readout}/task_01" in end[-1]
        for found, measured in ((each[1], True), (end[1], False), (end[-1], True)):
            assert found["at_task_end"]
            assert any(key.startswith(f"eval/{readout}/") for key in found) == measured
    assert list(every["metrics"])[:3] == ["class", "task", "domain"]  # the primary one is first
    assert not any("probe" in key for row in each for key in row if key.startswith("valid"))


def test_it_ends_with_the_last_task_of_a_shorter_run() -> None:
    assert finish(build("end", tasks=1))["matrices"]["probe/class"][0][0] is not None


@pytest.mark.parametrize("every", ["task", "end"])
def test_it_survives_a_resume(every: str) -> None:
    whole = finish(build(every))
    run = build(every)
    while not run.task_index:
        run.advance()
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    other = build(every)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert finish(other)["matrices"] == whole["matrices"]
    changed = build("end" if every == "task" else "task")
    with pytest.raises(ValueError, match="another configuration"):
        changed.load_state_dict(run.state_dict())


def test_one_class_in_a_task() -> None:
    result = finish(build("task", benchmark={"name": "split", "tasks": 4}))
    assert result["matrices"]["probe/class"][0][0] == 100
    assert all(row[t] == 100 for t, row in enumerate(result["matrices"]["probe/task"]))


def test_where_tasks_share_labels() -> None:
    benchmark = {"name": "permuted", "outputs": "shared", "tasks": 2}
    result = finish(build("task", benchmark=benchmark))
    assert list(result["matrices"]) == ["domain", "task", "probe/domain", "probe/task"]
    assert result["matrices"]["probe/domain"][1] == result["matrices"]["probe/task"][1]


def measured(run: Run) -> dict[str, Any]:
    matrices = Matrices(run.readouts, 2, run.probe.rows)
    run.probe.measure(1, matrices)
    return {readout: matrices.sets["test"][readout].tolist()[1] for readout in run.probe.rows}


def test_the_head_is_not_asked() -> None:
    run = build("end")
    result = finish(run)
    with torch.no_grad():
        for parameter in run.method.head.parameters():
            parameter.normal_()
    assert measured(run) == {r: result["matrices"][r][1] for r in run.probe.rows}


def test_it_is_fitted_on_training_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    run = build("end")
    finish(run)
    fitted: list[Any] = []
    find: Callable[..., Any] = fit_linear

    def spy(features: Any, labels: Tensor, *rest: Any) -> Any:
        fitted.append((features.copy(), labels))
        return find(features, labels, *rest)

    monkeypatch.setattr(probe, "fit_linear", spy)
    measured(run)
    ((features, labels),) = fitted
    expected = [read(run, data.train) for data in run.stream.data]
    np.testing.assert_allclose(features, np.concatenate([x for x, _ in expected]), rtol=1e-5)
    np.testing.assert_array_equal(labels, np.concatenate([y for _, y in expected]))


def test_its_time_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def watch(cls: Any, name: str) -> None:
        do = getattr(cls, name)

        def noted(self: Any, *rest: Any) -> Any:
            events.append(name)
            return do(self, *rest)

        monkeypatch.setattr(cls, name, noted)

    watch(Costs, "start")
    watch(Costs, "stop")
    watch(probe.Probe, "measure")
    finish(build("task"))
    assert events.count("measure") == 2
    clock = [event for event in events if event != "measure"]
    assert clock == ["start", "stop"] * (len(clock) // 2)
    assert all(events[i - 1] == "stop" for i, event in enumerate(events) if event == "measure")


def test_it_counts_as_the_benchmark_does() -> None:
    result = finish(build("end", benchmark={"name": "split", "tasks": 2, "top_k": 2}))
    assert result["matrices"]["probe/task"][1] == [100, 100]  # two classes in each


# ------------------------------------------------------------------ whose features


class Told(Finetune):
    """Features that hold nothing but the task that was told."""

    uses_task_id = True
    asked: ClassVar[list[int | None]] = []

    def features(self, images: Tensor, task_id: int | None) -> Tensor:
        self.asked.append(task_id)
        return torch.full((len(images), 1), -1.0 if task_id is None else float(task_id))


class OnlyTold(Told):
    settings = frozenset({"task"})


def test_features_that_depend_on_the_task() -> None:
    result = finish(build("end", f"{HERE}Told"))
    assert result["matrices"]["probe/class"][1] in ([50, 0], [0, 50])  # one class for all images
    assert result["matrices"]["probe/task"][1] == [50, 50]
    assert Told.asked.count(None) == Told.asked.count(0) + Told.asked.count(1) == 4
    Told.asked.clear()
    result = finish(build("end", f"{HERE}OnlyTold"))
    assert list(result["matrices"]) == ["task", "probe/task"]
    assert None not in Told.asked


class Bare(Finetune):
    """A method that is no ``Classifier`` as far as features go."""

    features = Method.features


def test_a_method_without_features_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluate\.probe: Bare has no features"):
        build("end", f"{HERE}Bare")
    assert build(None, f"{HERE}Bare")


@pytest.mark.parametrize(
    "name, options",
    [("finetune", {}), ("dgr", {"width": 0.1}), ("e2e", {}), ("bic", {}), ("lwf_mc", {})],
)
def test_features_are_what_the_head_reads(name: str, options: dict[str, Any]) -> None:
    run = Run(
        {
            "benchmark": {"name": "split", "tasks": 2},
            "method": {"name": name, **options},
            "network": {"name": "mlp", "hidden": [6]},
        },
        toy_data(),
    )
    assert isinstance(run.method, Classifier)
    run.method.eval()
    read: list[Tensor] = []
    images = next(run.stream.data[0].test.batches(5)).images
    with run.method.head.register_forward_pre_hook(lambda head, inputs: read.append(inputs[0])):
        run.method.logits(images, None)
    features = run.method.features(images, None)
    assert torch.equal(features, read[-1])
    assert features.dtype == torch.float32


def test_readouts_by_what_the_benchmark_defines() -> None:
    assert probed(("class", "task", "domain"), Finetune) == ("class", "task")
    assert probed(("class", "task"), Told) == ("class", "task")
    assert probed(("domain",), Finetune) == ("domain",)
    assert probed(("class", "task"), OnlyTold) == ("task",)
