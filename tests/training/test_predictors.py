"""A method that trains a second predictor: its matrices, beside which the method's own stay."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycl.benchmarks.base import Task
from raycl.errors import UserError
from raycl.methods.base import Classifier, masked_cross_entropy
from raycl.sweep.file import spec
from raycl.testing import MethodConformance, finish, toy_data
from raycl.tracking import names
from raycl.training.readouts import further_readouts
from raycl.training.run import Run

HERE = f"{__name__}:"
FILE = str(Path(__file__))


class Two(Classifier):
    """A network with a second head, the teacher, and the mean of both (a toy, 2026).

    Departures: none.
    """

    predictors = ("teacher", "mean")

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.teacher = nn.Linear(self.backbone.num_features, context.stream.num_outputs)

    def logits(
        self,
        images: Tensor,
        task_id: int | None,
        frozen: Tensor | None = None,
        predictor: str | None = None,
    ) -> Tensor:
        features = self.backbone(images) if frozen is None else frozen
        own, teacher = self.head(features), self.teacher(features)
        found: Tensor = {None: own, "teacher": teacher, "mean": (own + teacher) / 2}[predictor]
        return found

    def objective(self, task: Task) -> Any:
        active = self.active(task.info)

        def loss(batch: Any) -> dict[str, Tensor]:
            return {
                who or "own": masked_cross_entropy(
                    self.logits(batch.images, None, batch.frozen, who), batch.labels, active
                )
                for who in (None, "teacher")
            }

        return loss


class Alone(Two):
    """The same method, with nobody asked beside it."""

    predictors = ()


class Sometimes(Two):
    """An option decides whether there is a teacher."""

    class Config(Classifier.Config):
        taught: bool = True

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.predictors = ("teacher",) if config.taught else ()


class Frozen(Two):
    """Features of a network that is never trained, computed once for each image."""

    fixed = ("backbone.",)

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        for i, p in enumerate(self.backbone.parameters()):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(i))

    def trainable(self) -> list[nn.Parameter]:
        return [*self.head.parameters(), *self.teacher.parameters()]

    def frozen_values(self, images: Tensor) -> Tensor:
        found: Tensor = self.backbone(images)
        return found


def build(name: str = "Two", options: dict[str, Any] | None = None, **changes: Any) -> Run:
    """Two features and few epochs, so that nothing is perfect."""
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "tasks": 2, "validation": 0.2},
        "method": {"name": f"{HERE}{name}", **(options or {})},
        "network": {"name": "mlp", "hidden": [2]},
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.02},
    }
    return Run(config | changes, toy_data())


OWN = ["class", "task", "domain"]
ALL = [*OWN, *(f"{who}/{way}" for who in ("teacher", "mean") for way in OWN)]
PER_READOUT = (
    "matrices",
    "validation_matrices",
    "baseline",
    "metrics",
    "validation_metrics",
)


def test_each_has_all_that_the_method_has() -> None:
    result = finish(build())
    for key in PER_READOUT:
        assert list(result[key]) == ALL, key
    for way in OWN:
        for who in ("teacher", "mean"):
            assert result["metrics"][f"{who}/{way}"].keys() == result["metrics"][way].keys()
    assert result["matrices"]["teacher/class"][0][1] is None
    assert result["matrices"]["teacher/task"][0][1] is not None
    assert result["matrices"]["teacher/task"] != result["matrices"]["task"]


@torch.no_grad()
def test_the_numbers_are_those_of_the_predictor() -> None:
    run = build()
    matrices = finish(run)["matrices"]
    for i, (task, data) in enumerate(zip(run.stream.info.tasks, run.stream.data, strict=True)):
        images = data.test.prepare(data.test.raw(torch.arange(len(data.test))))
        features = run.method.backbone(images)
        own, teacher = run.method.head(features), run.method.teacher(features)
        for prefix, z in (("", own), ("teacher/", teacher), ("mean/", (own + teacher) / 2)):
            right = 100 * (z.argmax(1) == data.test.labels).double().mean()
            assert matrices[f"{prefix}class"][1][i] == pytest.approx(float(right))
            outputs = torch.tensor(task.classes)
            best = outputs[z[:, outputs].argmax(1)]
            right = 100 * (best == data.test.labels).double().mean()
            assert matrices[f"{prefix}task"][1][i] == pytest.approx(float(right))


def test_the_method_itself_stays_as_it_is_without_them() -> None:
    rows: list[list[dict[str, Any]]] = []
    for name in ("Two", "Alone"):
        run, found = build(name), []
        while not run.done:
            found.append(run.advance())
        rows.append(found)
    result, alone = (found[-1]["result"] for found in rows)
    for key in PER_READOUT:
        assert {r: result[key][r] for r in OWN} == alone[key]
    assert list(alone["matrices"]) == OWN
    for both, only in zip(*rows, strict=True):
        for key in ("validation/accuracy_current", "validation/average_accuracy", "train/own"):
            assert both.get(key) == only.get(key)
        measured = [key for key in both if key.startswith(("eval/", "validation/"))]
        own = [key for key in measured if key.split("/")[1] not in ("teacher", "mean")]
        assert own == [key for key in only if key.startswith(("eval/", "validation/"))]
    first = next(key for key in rows[0][-1] if key.endswith("/average_accuracy"))
    assert first == "eval/class/average_accuracy"


def test_names_in_mlflow() -> None:
    run = build()
    finish(run)
    row = run.last_row
    for key in ("eval/teacher/class/average_accuracy", "validation/mean/task/forgetting"):
        assert key in row
        assert names.axis(key) == names.axis(key.replace("teacher/", "").replace("mean/", ""))
        assert names.metric_name(key) == key
    assert {f"eval/teacher/class/task_{i:02d}" for i in (0, 1)} <= row.keys()


def test_readouts_that_are_asked_for() -> None:
    result = finish(build(readouts=["task"]))
    assert list(result["matrices"]) == ["task", "teacher/task", "mean/task"]


def test_options_may_decide() -> None:
    assert list(finish(build("Sometimes"))["matrices"]) == ALL[:6]
    assert list(finish(build("Sometimes", {"taught": False}))["matrices"]) == OWN


def test_what_is_computed_once_is_handed_to_all_of_them() -> None:
    found = [finish(build("Frozen", evaluate={"cache_mb": size}))["matrices"] for size in (1024, 0)]
    assert found[0] == found[1]
    assert list(found[0]) == ALL


def test_it_survives_a_resume() -> None:
    whole = finish(build())
    run = build()
    while not run.task_index:
        run.advance()
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    buffer.seek(0)
    other = build()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    result = finish(other)
    for key in PER_READOUT:
        assert result[key] == whole[key]


@pytest.mark.parametrize("name", ["probe", "Teacher", "a/b", "", "two words"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a predictor"):
        further_readouts(("class",), [name])


def test_a_name_that_is_there_twice() -> None:
    with pytest.raises(ValueError, match="names one twice"):
        further_readouts(("class",), ["teacher", "teacher"])


# ------------------------------------------------------------------ in a sweep file

SWEEP = """\
name: two
benchmark: {{name: split, dataset: digits, tasks: 2}}
methods: [{method}]
network: {{name: mlp, hidden: [{hidden}]}}
search: {{num_samples: 2, metric: {metric}}}
published:
  source: a paper
  {published}: {{it: 81.5}}
"""
GOOD = {
    "method": f"{{name: '{FILE}:Two', label: it}}",
    "hidden": "4",
    "metric": "validation/average_accuracy",
    "published": "teacher/class/average_accuracy",
}


def check(folder: Path, **changes: str) -> spec.Sweep:
    path = folder / "two.yaml"
    path.write_text(SWEEP.format(**GOOD | changes))
    return spec.load(path, ())


def test_published_numbers_of_a_predictor(tmp_path: Path) -> None:
    sweep = check(tmp_path)
    assert sweep.published is not None
    with pytest.raises(UserError, match="unknown readout 'student/class'"):
        check(tmp_path, published="student/class/average_accuracy")
    with pytest.raises(UserError, match="unknown readout 'teacher/class'"):
        check(tmp_path, method="{name: finetune, label: it}")


def test_a_search_goes_by_the_method_itself(tmp_path: Path) -> None:
    searched = {"hidden": "{choice: [4, 8]}"}
    check(tmp_path, **searched, metric="validation/class/average_accuracy")
    with pytest.raises(UserError, match="cannot be evaluated by 'teacher/class'"):
        check(tmp_path, **searched, metric="validation/teacher/class/average_accuracy")


class TestTwo(MethodConformance):
    """A method with two predictors passes the whole suite."""

    method = f"{FILE}:Two"
