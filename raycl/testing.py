"""The conformance suite: what every method proves, ours and a user's.

In a test file of your own::

    from raycl.testing import MethodConformance

    class TestMine(MethodConformance):
        method = "path/to/mine.py:Mine"

and run pytest on it. It takes seconds: two tasks of two classes, made on the spot.
"""

from __future__ import annotations

import io
import pickle
import random
import re
import unittest
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from raycl import datasets, registry
from raycl.datasets.base import Arrays, Dataset, DatasetConfig
from raycl.errors import UserError
from raycl.methods.base import Method
from raycl.networks.base import Backbone
from raycl.testing_claims import SharingConformance
from raycl.training import pictures
from raycl.training.run import Run

CHANCE = 50.0
"""Accuracy in percent that guessing has on a task of two classes."""


def toy_data(seed: int = 0, train: int = 33, test: int = 20) -> dict[str, Dataset]:
    """Four classes of 8x8 images: a fixed pattern each, under noise.

    Args:
        seed: Seed of the images.
        train: Training images per class; odd, so that batches come out uneven.
        test: Test images per class.
    """
    generator = np.random.default_rng(seed)
    patterns = generator.integers(0, 2, size=(4, 1, 8, 8)) * 160

    def images(per_class: int) -> Arrays:
        labels = np.repeat(np.arange(4), per_class)
        noise = generator.integers(0, 96, size=(len(labels), 1, 8, 8))
        pixels = (patterns[labels] + noise).astype(np.uint8)
        pixels.flags.writeable = False  # as it comes from Ray's object store
        return Arrays(pixels, labels.astype(np.int64))

    key = datasets.key(DatasetConfig(name="digits"))
    dataset = Dataset("toy", images(train), images(test), ("a", "b", "c", "d"), (0.5,), (0.3,))
    return {key: dataset}


@dataclass(frozen=True)
class Finished:
    """A finished run that several tests look at, and none may change.

    Attributes:
        run: The run, at its end.
        rows: The row that each epoch returned.
        loose: Tensors, arrays and generators that no state held after each epoch; see ``unsaved``.
    """

    run: Run
    rows: list[dict[str, Any]]
    loose: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        """The result of the run."""
        result: dict[str, Any] = self.rows[-1]["result"]
        return result


class MethodConformance(SharingConformance):
    """The suite for one method: subclass it, set ``method``, and pytest does the rest.

    Attributes:
        method: A registered name, ``package.module:Class`` or ``path/to/file.py:Class``.
        options: Hyper-parameters that differ from the defaults, to make the tests quick.
        network: Backbone.
        second: Backbone of the second task, where a method says it can change networks.
        train: The train block.
        device: Device on which the runs happen.
        learns: Percent that the accuracy right after each task must exceed.
        others: Second values of options that claim not to matter before some task, where the suite
            finds none by itself.
    """

    method: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    network: ClassVar[Mapping[str, Any]] = {"name": "mlp", "hidden": [32]}
    second: ClassVar[Mapping[str, Any]] = {
        "name": "cnn",
        "channels": [8, 16],
        "features": 24,
        "batch_norm": True,
    }
    train: ClassVar[Mapping[str, Any]] = {"epochs": 3, "batch_size": 8, "lr": 0.05}
    device: ClassVar[str] = "cpu"
    learns: ClassVar[float] = 80.0
    _finished: ClassVar[dict[str, Finished]]

    def __init_subclass__(cls) -> None:
        cls._finished = {}

    @classmethod
    def teardown_class(cls) -> None:
        """Forget the runs that the tests shared."""
        cls._finished.clear()

    # ------------------------------------------------------------------ tools

    @cached_property
    def data(self) -> dict[str, Dataset]:
        """The toy images."""
        return toy_data()

    def config(self, seed: int = 0, **train: Any) -> dict[str, Any]:
        """A trial configuration; keywords change the train block."""
        return {
            "benchmark": {"name": "split", "dataset": "digits", "tasks": 2, "validation": 0.1},
            "method": self.block(),
            "network": dict(self.network),
            "train": {**self.train, **train},
            "seed": seed,
        }

    def block(self) -> dict[str, Any]:
        """The ``method`` block of all configurations."""
        return {"name": self.method, **self.options}

    def run_of(self, block: Mapping[str, Any]) -> Run:
        """A run that has not begun, of another ``method`` block."""
        return Run(self.config() | {"method": dict(block)}, self.data, self.device)

    def build(self, seed: int = 0, **train: Any) -> Run:
        """A run that has not begun."""
        return Run(self.config(seed, **train), self.data, self.device)

    def build_changing(self, seed: int = 0) -> Run:
        """A run that has not begun, whose second task has another network."""
        both = {"name": "sequence", "of": [dict(self.network), dict(self.second)]}
        return Run(self.config(seed) | {"network": both}, self.data, self.device)

    def finished(self, seed: int = 0, changing: bool = False) -> Finished:
        """A run at its end, which all tests of the class share that configure it alike.

        Args:
            seed: Seed of the run.
            changing: Whether its second task has another network.
        """
        key = repr((self.config(seed), self.second if changing else None, self.device))
        kept = self._finished.get(key)
        if kept is None:
            run = self.build_changing(seed) if changing else self.build(seed)
            kept = Finished(run, [], [])
            while not run.done:
                kept.rows.append(run.advance())
                loose = unsaved(run.method)
                copies = {k: v.clone() for k, v in loose.items() if isinstance(v, Tensor)}
                kept.loose.append(loose | copies)
            self._finished[key] = kept
        return kept

    def cls(self) -> type[Method]:
        """The method's class."""
        return self.find(self.method)

    def find(self, name: str) -> type[Method]:
        """The class of a method by its name."""
        return registry.find("raycl.methods", Method, name)  # type: ignore[type-abstract]

    # ------------------------------------------------------------------ what is proved

    def test_learns(self) -> None:
        """Every task is learnt, under the readout that is easiest for the method."""
        self._learns(self.finished().result)

    def _learns(self, result: dict[str, Any]) -> None:
        readout = "task" if "task" in result["matrices"] else next(iter(result["matrices"]))
        right_after = [row[t] for t, row in enumerate(result["matrices"][readout])]
        assert min(right_after) > self.learns, f"accuracy right after each task: {right_after}"

    def test_same_seed_same_matrix(self) -> None:
        """A run is a function of its configuration, whatever ran in the process before."""
        first, other = self.finished(), self.finished(seed=1)
        assert finish(self.build())["matrices"] == first.result["matrices"]
        states = [list(tensors(r.run.method.state_dict())) for r in (first, other)]
        pairs = zip(*states, strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), "another seed gives the same state"

    def test_resumes_bitwise(self) -> None:
        """A run killed at a random step of every phase of every task ends with the same bits."""
        self._resumes(self.build, self.finished())

    def test_changes_network(self) -> None:
        """A second network is refused, or learnt with and resumed as bitwise as the first."""
        if not self.cls().any_network:
            refused = ""
            try:
                self.build_changing()
            except UserError as error:
                refused = str(error)
            assert "network" in refused, "another network was taken, though any_network is false"
            return
        build_network = self.build_changing().method.context.build_network
        first, second = build_network(task=0), build_network(task=1)
        assert type(first) is not type(second), "the suite needs networks that differ"
        self._learns(self.finished(changing=True).result)
        self._resumes(self.build_changing, self.finished(changing=True))
        self._complete(changing=True)

    def _resumes(self, build: Callable[[], Run], reference: Finished) -> None:
        stops = self._stops(reference.rows)
        run = build()
        for stop in stops:
            while run.progress < stop:
                run.advance()
            saved = _save(run)
            _advance_and_die(run, random.Random(stop))
            run = build()
            run.load_state_dict(_load(saved))
        result = finish(run)
        assert result["matrices"] == reference.result["matrices"], f"killed in epochs {stops}"
        pairs = zip(
            tensors(run.method.state_dict()),
            tensors(reference.run.method.state_dict()),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs), f"killed in epochs {stops}"

    def test_state_is_complete(self) -> None:
        """The method has no tensor, array or generator that ``state_dict`` does not hold.

        A tensor that is the same in a method of another seed follows from the configuration alone
        and need not be saved.
        """
        self._complete(changing=False)

    def _complete(self, changing: bool) -> None:
        runs = (self.finished(seed, changing) for seed in (0, 1))
        for loose, twins in zip(*(run.loose for run in runs), strict=True):
            for path, value in loose.items():
                twin = twins.get(path)
                same = (
                    isinstance(value, Tensor)
                    and isinstance(twin, Tensor)
                    and torch.equal(value, twin)
                )
                assert same, (
                    f"{path} ({type(value).__name__}) is in no state: make it a buffer, or part of "
                    "get_extra_state; random numbers come from context.method_generator"
                )

    def test_fixed_state_is_fixed(self) -> None:
        """Everything that checkpoints leave out is as the constructor makes it."""
        fresh = self.build()
        fixed = fresh.method.fixed
        if not fixed:
            return
        trained = self.finished().run
        state, made = trained.method.state_dict(), fresh.method.state_dict()
        names = [name for name in state if name.startswith(fixed)]
        assert names, f"no name in the state begins with any of {fixed}"
        changed = [n for n in names if n not in made or not torch.equal(state[n], made[n])]
        assert not changed, f"fixed, but changed or made later: {changed}"

    def test_predictors_answer(self) -> None:
        """Each predictor has scores and matrices of its own, beside those of the method itself."""
        run = self.build()
        names = run.method.predictors
        if not names:
            return
        missing = set(names) - set(self.cls().predictors)
        assert not missing, f"the class does not name all of its predictors: {missing}"
        result = finish(run)
        own = [readout for readout in result["matrices"] if "/" not in readout]
        expected = own + [f"{name}/{readout}" for name in names for readout in own]
        assert list(result["matrices"]) == expected, "the method itself comes first"
        run.method.eval()
        (batch,) = run.stream.data[0].test.batches(len(run.stream.data[0].test))
        with torch.inference_mode():
            answer: Callable[..., Tensor] = run.method.logits
            plain = answer(batch.images, 0)
            assert torch.equal(plain, answer(batch.images, 0, predictor=None))
            every = run.method.answers(batch.images, 0)
            assert torch.equal(plain, every[""])
            for name in names:
                alone = answer(batch.images, 0, predictor=name)
                assert alone.shape == plain.shape, f"{name} has scores of another shape"
                assert torch.equal(alone, every[name]), f"answers has other scores of {name}"
            assert torch.equal(plain, answer(batch.images, 0)), "asking a predictor changed others"

    def test_isolated_tasks_stay(self) -> None:
        """Accuracies that were not measured again, because tasks are isolated, are right."""
        if not self.cls().isolated:
            return
        run = self.build()
        answers = []
        images = run.stream.data[0].test
        (batch,) = images.batches(len(images))
        for count in (1, 2):
            while run.task_index < count:
                run.advance()
            run.method.eval()
            answers.append(run.method.logits(batch.images, 0))
        assert torch.equal(*answers), "task 1 has changed the answers for task 0"
        for readout, matrix in run.last_row["result"]["matrices"].items():
            for i in (0, 1):
                accuracy = run.evaluator.accuracy(run.method, run.stream.data[i].test, i, 2)
                assert matrix[1][i] == accuracy[readout], f"task {i} is measured as {accuracy}"

    def test_sees_only_what_it_declares(self) -> None:
        """A task is closed when it ends, and images are kept only with ``memory``."""
        run = self.finished().run
        if run.method.memory in ("exemplars", "all"):
            return
        images = next(iter(self.data.values())).train
        assert isinstance(images, Arrays)
        known = {image.tobytes() for image in images.images}
        for task in run.stream.data:  # normalised ones are images, too
            every = torch.arange(len(task.train), device=self.device)
            ready = task.train.prepare(task.train.raw(every))
            known |= {image.numpy().tobytes() for image in ready.float().cpu()}
        for tensor in tensors(run.method.state_dict()):
            if tensor.dtype in (torch.uint8, torch.float32) and tensor.numel() % 64 == 0:
                rows = tensor.detach().cpu().reshape(-1, 64).contiguous()
                kept = sum(row.numpy().tobytes() in known for row in rows)
                assert not kept, f"the state holds {kept} training images; declare memory"

    def test_memory_is_counted(self) -> None:
        """Counted bytes are those of the state and, for an upper bound, of all data."""
        run, result = self.finished().run, self.finished().result
        stored = tensors(run.method.state_dict())  # under two names counts once
        sizes = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in stored}
        held = sum(sizes.values())
        if run.method.memory == "all":
            held += 64 * sum(len(data.train) for data in run.stream.data)
        assert result["cost"]["stored_bytes"] == held > 0

    def test_evaluation_changes_nothing(self) -> None:
        """Evaluating, or asking for numbers, leaves state and random numbers as they were."""
        run = self.build()
        while run.task_index == 0:
            run.advance()
        before = _save(run)
        for i in range(2 if run.method.zero_shot else 1):
            run.method.eval()
            run.evaluator.accuracy(run.method, run.stream.data[i].test, i, 1)
        run.method.diagnostics()
        run.method.histograms()
        for image in pictures.of(run.method, 1, 2).values():
            assert pictures.png(image)
        _assert_same(_load(before), _load(_save(run)))

    def test_uneven_batches(self) -> None:
        """A short last batch and batches of one example work."""
        for size in (7, 1):
            finish(self.build(batch_size=size, epochs=1, lr=0.005))

    def test_builds_where_the_networks_are(self) -> None:
        """What a method makes beside its networks fits them on another device than the CPU."""
        run, elsewhere = self.build(), torch.device("meta")
        context = run.method.context

        def build_network(*arguments: Any, **options: Any) -> Backbone:
            return context.build_network(*arguments, **options).to(elsewhere)

        there = replace(context, device=elsewhere, build_network=build_network)
        try:
            method = type(run.method)(run.method.config, there).to(elsewhere)
            for task in there.tasks:
                method.add_task(task)
                method.to(elsewhere)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if re.search(r"expected device|same device", str(error)):
                raise
            what = f"it cannot be built on the device meta, which has no numbers: {error}"
            raise unittest.SkipTest(what) from error

    def test_pickles(self) -> None:
        """Configuration and state go to another process as plain values."""
        run = self.build()
        run.advance()
        assert pickle.loads(pickle.dumps(run.method.config)) == run.method.config
        _load(_save(run))  # weights_only: tensors and plain values

    def test_docstring(self) -> None:
        """The docstring names the source, the hyper-parameters and the departures from it."""
        cls = self.cls()
        text = cls.__doc__ or ""
        assert re.search(r"arXiv|\b(19|20)\d\d\b", text), "name the paper, with year or arXiv id"
        assert "Departures" in text, "list the departures from the paper and the authors' code"
        for name, field in cls.Config.model_fields.items():
            assert name == "name" or field.description, f"Config.{name} has no description"

    # ------------------------------------------------------------------ inside

    @staticmethod
    def _stops(rows: list[dict[str, Any]]) -> list[int]:
        """Epochs in which to kill the run, in order: one at random in each phase of each task."""
        places: dict[tuple[int, str], list[int]] = {}
        for i, row in enumerate(rows):
            places.setdefault((row["task"], row.get("phase", "")), []).append(i)
        chooser = random.Random(0)
        return sorted(chooser.choice(found) for found in places.values())


def finish(run: Run) -> dict[str, Any]:
    """Advance a run to its end, and return its result."""
    while not run.done:
        run.advance()
    result: dict[str, Any] = run.last_row["result"]
    return result


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a nested state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def unsaved(method: Method) -> dict[str, Any]:
    """Tensors, arrays and generators reachable from a method that its state does not hold, by path.

    ``method.context`` belongs to the loop and is left out.
    """
    saved = {t.data_ptr() for t in tensors(method.state_dict()) if t.numel()}
    loose: dict[str, Any] = {}
    visited = {id(method.context)}

    def walk(value: Any, path: str) -> None:
        if id(value) in visited:
            return
        visited.add(id(value))
        if isinstance(value, Tensor):
            if value.numel() and value.data_ptr() not in saved:
                loose[path] = value
        elif isinstance(value, _RANDOM):
            loose[path] = value
        elif isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, f"{path}[{key!r}]")
        elif isinstance(value, (list, tuple, set, frozenset)):
            for i, part in enumerate(value):
                walk(part, f"{path}[{i}]")
        elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Parameter)):
            for key, part in vars(value).items():
                if key not in ("context", "grad"):
                    walk(part, f"{path}.{key}")

    walk(method, "method")
    return loose


_RANDOM = (
    np.ndarray,
    np.random.Generator,
    np.random.RandomState,
    torch.Generator,
    random.Random,
)


def _save(run: Run) -> bytes:
    buffer = io.BytesIO()
    torch.save(run.state_dict(), buffer)
    return buffer.getvalue()


def _load(saved: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(saved), weights_only=True)
    return state


class _Killed(BaseException):
    """Exception that stands for SIGKILL in the middle of an epoch."""


def _advance_and_die(run: Run, chooser: random.Random) -> None:
    """Train a few more steps and drop everything, as a killed process does."""
    if run.done:
        return
    after = chooser.randrange(1, 4)
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count >= after:
            raise _Killed

    handle = register_optimizer_step_post_hook(hook)
    try:
        run.advance()
    except _Killed:
        pass
    finally:
        handle.remove()


def _assert_same(one: Any, other: Any, path: str = "state") -> None:
    assert type(one) is type(other), path
    if isinstance(one, Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, Mapping):
        assert list(one) == list(other), path
        for key in one:
            _assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_same(a, b, f"{path}[{i}]")
    else:
        assert one == other or one != one, path
