"""The suite catches what it is there to catch: each bad method fails the test it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from raycl.benchmarks.base import Task
from raycl.datasets.base import Arrays, Dataset
from raycl.methods.base import Classifier, Phase, from_task, not_in_phase
from raycl.methods.finetune import Finetune
from raycl.methods.online_ewc import OnlineEWC
from raycl.testing import MethodConformance, toy_data
from raycl.trial.sharing import unaffected

FILE = str(Path(__file__))


class LearnsNothing(Finetune):
    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) * 0


class ForgetsItsState(Finetune):
    """Memory as a plain attribute, the classic that is lost on resume."""

    def end_task(self, task: Task) -> None:
        self.importance = [p.detach().clone() for p in self.parameters()]


class OwnGenerator(Finetune):
    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.generator = np.random.default_rng(0)


class UnsavedNoise(Finetune):
    """A method whose noise comes from a generator that no checkpoint holds."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.generator = torch.Generator().manual_seed(0)

    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) * (1 + torch.rand((), generator=self.generator))


class Unseeded(Finetune):
    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        torch.seed()
        nn.init.normal_(self.head.weight)


class SecretMemory(Finetune):
    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("cache", torch.zeros(4, 1, 8, 8, dtype=torch.uint8))

    def end_task(self, task: Task) -> None:
        self.cache.copy_(task.train.raw(torch.arange(4)))


class SecretFeatures(Finetune):
    """Images as the network sees them, in what is no tensor of a buffer."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.seen = torch.zeros(4, 1, 8, 8)

    def end_task(self, task: Task) -> None:
        self.seen = task.train.prepare(task.train.raw(torch.arange(4)))

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class BesideTheNetwork(Finetune):
    """A method whose own weights are on the CPU, wherever its network is."""

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("start", self.head.weight.detach() + torch.ones(4, 1))


class TouchyEvaluation(Finetune):
    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("calls", torch.zeros(()))

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        self.calls += 1
        return super().logits(images, task_id)


class StructureFromData(Finetune):
    """A buffer whose size depends on the data cannot be loaded strictly."""

    def end_task(self, task: Task) -> None:
        self.register_buffer("mean", task.train.raw(torch.arange(3)).float())


class NeedsFullBatches(Finetune):
    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) * batch.labels.reshape(8).ne(-1).all()


class PhaseWithSideEffects(Classifier):
    """Changes the method where it should only describe."""

    def phases(self, task: Task) -> list[Phase]:
        with torch.no_grad():
            self.head.bias.add_(1.0).mul_(0.5)
        return super().phases(task)


class ClaimsIsolation(Finetune):
    isolated = True


class Weighted(Finetune):
    """A method whose option matters from the first step and claims to wait for the second task."""

    class Config(Finetune.Config):
        weight: float = Field(1.0, json_schema_extra=from_task(2))

    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) * self.config.weight


class WeightedAtTheEnd(Finetune):
    """A method whose option matters after the second task and claims to wait for the third."""

    class Config(Finetune.Config):
        weight: float = Field(1.0, json_schema_extra=from_task(3))

    def end_task(self, task: Task) -> None:
        if task.info.index == 1:
            self.head.bias.data.mul_(self.config.weight)


class HalfOfFinetune(Finetune):
    first_task_of = "finetune"

    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) / 2


class CountsBatches(Finetune):
    """A method with a buffer of its own that changes in the first task."""

    first_task_of = "finetune"

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("count", torch.zeros(()))

    def objective(self, task: Task) -> Any:
        loss = super().objective(task)

        def counted(batch: Any) -> Any:
            self.count += 1
            return loss(batch)

        return counted


class WeightedFinetune(Finetune):
    """Fine-tuning with the default of its option alone, which it does not say."""

    first_task_of = "finetune"

    class Config(Finetune.Config):
        weight: float = 1.0

    def objective(self, task: Task) -> Any:
        loss = super().objective(task)
        return lambda batch: loss(batch) * self.config.weight


class DrawsAtTheBeginning(Finetune):
    """A method whose later random numbers are not those of fine-tuning."""

    first_task_of = "finetune"

    def begin_task(self, task: Task) -> None:
        torch.rand((), generator=self.context.method_generator)


class Taught(Finetune):
    """A method with a second head, which a phase of its own trains before the rest."""

    class Config(Finetune.Config):
        weight: float = Field(1.0, json_schema_extra=not_in_phase("other"))

    predictors = ("other",)

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.other = torch.nn.Linear(self.backbone.num_features, context.stream.num_outputs)

    def logits(self, images: Any, task_id: Any, predictor: str | None = None) -> Any:
        return (self.head if predictor is None else self.other)(self.backbone(images))

    def scale(self) -> float:
        return 1.0

    def phases(self, task: Task) -> list[Phase]:
        (train,) = super().phases(task)

        def loss(batch: Any) -> Any:
            z = self.other(batch.images.flatten(1)[:, : self.backbone.num_features])
            return torch.nn.functional.cross_entropy(z, batch.labels) * self.scale()

        def optimizer() -> Any:
            return torch.optim.SGD(self.other.parameters(), 0.1)

        other = replace(train, name="other", loss=loss, optimizer=optimizer, score=None)
        other = replace(other, schedule=None, draws="other", result=self.other)
        return [other, replace(train, draws="train")]


class PartInTheOther(Taught):
    """A method whose option has a part in the phase that it does not name."""

    class Config(Taught.Config):
        weight: float = Field(1.0, json_schema_extra=not_in_phase("other"))

    def scale(self) -> float:
        return float(self.config.weight)


class MoreBeforeForOtherValues(Taught):
    """A method whose phase changes more than its result, but not with the default of its option."""

    class Config(Taught.Config):
        weight: float = Field(1.0, json_schema_extra=not_in_phase("other"))

    def phases(self, task: Task) -> list[Phase]:
        other, train = super().phases(task)

        def before() -> None:
            with torch.no_grad():
                self.head.bias.mul_(self.config.weight).add_(1 - self.config.weight)

        return [replace(other, before=before), train]


class ChildThatClaimsNothing(Taught):
    """An honest method that inherits a phase with a result, and no claim."""

    class Config(Taught.Config):
        more: float = 1.0


class MoreThanItsResult(Taught):
    """A method whose phase leaves more behind than its result."""

    class Config(Taught.Config):
        weight: float = Field(1.0, json_schema_extra=not_in_phase("other"))

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.register_buffer("count", torch.zeros(()))

    def scale(self) -> float:
        self.count += 1
        return 1.0


def run(method: str, test: str) -> None:
    suite = type("Suite", (MethodConformance,), {"method": f"{FILE}:{method}"})()
    check: Callable[[], None] = getattr(suite, test)
    check()


@pytest.mark.parametrize(
    "method,test",
    [
        ("LearnsNothing", "test_learns"),
        ("ForgetsItsState", "test_state_is_complete"),
        ("OwnGenerator", "test_state_is_complete"),
        ("UnsavedNoise", "test_state_is_complete"),
        ("UnsavedNoise", "test_resumes_bitwise"),
        ("PhaseWithSideEffects", "test_resumes_bitwise"),
        ("Unseeded", "test_same_seed_same_matrix"),
        ("SecretMemory", "test_sees_only_what_it_declares"),
        ("SecretFeatures", "test_sees_only_what_it_declares"),
        ("TouchyEvaluation", "test_evaluation_changes_nothing"),
        ("BesideTheNetwork", "test_builds_where_the_networks_are"),
        ("StructureFromData", "test_resumes_bitwise"),
        ("NeedsFullBatches", "test_uneven_batches"),
        ("ClaimsIsolation", "test_isolated_tasks_stay"),
        ("Weighted", "test_options_matter_when_they_say"),
        ("WeightedAtTheEnd", "test_options_matter_when_they_say"),
        ("HalfOfFinetune", "test_first_task_is_that_of"),
        ("CountsBatches", "test_first_task_is_that_of"),
        ("WeightedFinetune", "test_first_task_is_that_of"),
        ("DrawsAtTheBeginning", "test_first_task_is_that_of"),
        ("PartInTheOther", "test_phases_are_those_of_others"),
        ("MoreThanItsResult", "test_phases_are_those_of_others"),
        ("MoreBeforeForOtherValues", "test_phases_are_those_of_others"),
        ("ForgetsItsState", "test_docstring"),
    ],
)
def test_a_bad_method_fails(method: str, test: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        run(method, test)


@pytest.mark.parametrize("name", ["Weighted", "WeightedFinetune"])
def test_a_claim_that_is_true_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same classes with a claim that is right."""
    cls: Any = globals()[name]
    if name == "Weighted":
        monkeypatch.setattr(cls, "objective", lambda self, task: Finetune.objective(self, task))
    else:
        option = cls.Config.model_fields["weight"]
        monkeypatch.setattr(option, "json_schema_extra", from_task(1))
    suite = type("Suite", (MethodConformance,), {"method": f"{__name__}:{name}"})()
    suite.test_options_matter_when_they_say()
    suite.test_first_task_is_that_of()


@pytest.mark.parametrize("name", ["Taught", "ChildThatClaimsNothing"])
def test_a_phase_that_is_as_it_says_passes(name: str) -> None:
    suite = type("Suite", (MethodConformance,), {"method": f"{__name__}:{name}"})()
    suite.test_phases_are_those_of_others()
    suite.test_resumes_bitwise()


def test_a_class_with_the_options_of_its_parent_claims_nothing() -> None:
    class Borrowed(OnlineEWC):
        Config = OnlineEWC.Config

    class Inherited(OnlineEWC):
        pass

    class Own(OnlineEWC):
        class Config(OnlineEWC.Config):
            lam: float = Field(1.0, json_schema_extra=from_task(2))

    assert unaffected(OnlineEWC, "lam") == unaffected(Own, "lam") == 2
    assert not unaffected(Borrowed, "lam") + unaffected(Inherited, "lam")
    assert not unaffected(Own, "gamma")


@pytest.mark.parametrize(
    "name, options",
    [
        ("joint", {}),
        ("joint", {"label_smoothing": 0.1}),
        ("naive_rehearsal", {"memory_size": 40}),
        ("lwf_coreset", {"memory_size": 40}),
        ("bic", {"memory_size": 400}),
        ("e2e", {"memory_size": 400}),
    ],
)
def test_the_first_task_is_that_of_finetune_with_ten_classes_and_more(
    name: str, options: dict[str, Any]
) -> None:
    """A softmax over ten outputs rounds otherwise than one over all with the others masked."""
    given = {"method": name, "options": options | {"outputs": "task"}, "data": wide()}
    type("Suite", (MethodConformance,), given)().test_first_task_is_that_of()


def wide() -> dict[str, Dataset]:
    """Twenty classes, ten in each of two tasks."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, size=(20, 1, 8, 8), dtype=np.uint8)
    labels = np.repeat(np.arange(20), 10)
    arrays = Arrays(patterns[labels], labels)
    names = tuple(f"class {i}" for i in range(20))
    (key,) = toy_data()
    return {key: Dataset("wide", arrays, arrays, names, (0.5,), (0.3,))}


@pytest.mark.parametrize("test", [t for t in dir(MethodConformance) if t.startswith("test_")])
def test_a_user_file_passes(tmp_path: Path, test: str) -> None:
    """What the README shows: one file outside the package."""
    path = tmp_path / "mine.py"
    path.write_text(
        '"""A method of one\'s own."""\n'
        "from raycl.methods.base import Classifier\n\n\n"
        "class Mine(Classifier):\n"
        '    """Nothing against forgetting (nobody, 2026). Departures: none."""\n'
    )
    suite = type("Suite", (MethodConformance,), {"method": f"{path}:Mine"})()
    getattr(suite, test)()
