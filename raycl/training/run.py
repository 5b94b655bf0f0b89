"""The only supervised training loop: tasks, phases, epochs, one matrix.

``Run`` is an object that is stepped: ``advance`` trains one epoch, moves on to the next phase or
task, and fills a row of ``R`` at a task's end. It knows nothing of Ray or of any method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from raycl import datasets, registry
from raycl.benchmarks.base import Benchmark, Task
from raycl.datasets.base import Dataset
from raycl.methods.base import Context, Method, Phase
from raycl.networks.base import Backbone, Tensors, networks_of
from raycl.training import pictures, probe
from raycl.training.check import check_networks, find_method
from raycl.training.config import TrialConfig
from raycl.training.coverage import SETS, Coverage
from raycl.training.evaluation import Evaluator
from raycl.training.frozen import with_frozen
from raycl.training.matrices import Matrices
from raycl.training.phase import PhaseState, train_one_epoch
from raycl.training.precision import to_channels_last, with_precision
from raycl.training.readouts import choose_readouts, further_readouts
from raycl.training.shared_phase import Watch, load_result
from raycl.trial.costs import Costs, PlainSizes
from raycl.trial.randomness import Randomness, Seeds
from raycl.trial.run import Row, Shelf, TrainingError, add_histograms
from raycl.trial.sharing import first_method
from raycl.trial.weights import (
    build_network,
    normalisation,
    tensors_of,
    with_hashes,
    with_option_hashes,
)

Module = TypeVar("Module", bound=nn.Module)
FIRST_TASK = ("position", "method", "phase", "open", "costs", "last", "random")
"""The part of a state that methods share when their first task has been trained."""


class Run:
    """One trial: a method on a stream, with one seed.

    The constructor sets every piece of global state that results depend on, so runs may follow one
    another in one process.

    Args:
        config: The finished trial configuration.
        data: Loaded data sets by ``raycl.datasets.key``.
        device: ``"cpu"`` or ``"cuda"``.
        weights: Tensors of weights files that networks start from, by the hash of the file; what
            is not there is read.

    Attributes:
        pictures: The method's pictures of the task that ended in the last step, by the names of
            their files; the caller may store them.
        readouts: Readouts of the method itself; the first is the primary one.
        trained: Called when a task has been trained, before its end.
        shelf, exact: See ``TrialRun``; a run that goes on is the same to the last bit.
    """

    trained: Callable[[], None]
    shelf: Shelf | None = None
    exact = True

    def __init__(
        self,
        config: TrialConfig | Mapping[str, Any],
        data: Mapping[str, Dataset],
        device: str | torch.device = "cpu",
        weights: Mapping[str, Tensors] | None = None,
    ) -> None:
        config = TrialConfig.model_validate(config)
        self.weights = weights
        hashed = {"network": with_hashes(config.network), "method": _with_hashes(config.method)}
        self.config = config.model_copy(update=hashed)
        self.device = torch.device(device)
        self.seeds = Seeds.derive(self.config.seed, **self.config.fixed_seeds.model_dump())
        self.random = Randomness(self.seeds, self.device, self.config.threads)
        benchmark = build_benchmark(self.config.benchmark)
        stream = benchmark.stream(data, self.seeds.class_order, self.device)
        tasks = len(stream.info.tasks)
        self.num_tasks = min(tasks, self.config.tasks or tasks)
        self.networks = networks_of(self.config.network, self.num_tasks)
        statistics = normalisation(self.networks)
        self.stream = stream if statistics is None else stream.renormalised(*statistics)
        info = self.stream.info
        self.method = self._placed(self._build_method())
        self.readouts = choose_readouts(info.readouts, type(self.method), self.config.readouts)
        rule = benchmark.config.top_k, benchmark.config.class_outputs
        evaluate = self.config.evaluate
        asked = (*self.readouts, *further_readouts(self.readouts, self.method.predictors))
        self.evaluator = Evaluator(info, asked, self.device, *rule, evaluate.precision)
        self.own_evaluator = Evaluator(info, self.readouts, self.device, *rule, evaluate.precision)
        self.selector = Evaluator(info, self._selecting(), self.device, *rule)
        self.costs = Costs(self.device)
        augmented = self.config.train.augment != "none"
        self.sets = with_frozen(self.stream, self.method, evaluate.cache_mb, augmented)
        self.probe = probe.Probe(self.config, self.stream, self.method, self.evaluator)
        selects = self.config.train.select == "validation_accuracy"
        self.coverage = Coverage(evaluate, self.sets, self.num_tasks, self.method)
        self.matrices = Matrices(asked, self.num_tasks, self.probe.rows, selects, self.coverage)
        self._plain_sizes = PlainSizes(self._build_network, info.num_outputs)
        self.histograms: dict[str, list[list[int]]] = {}
        self.pictures: dict[str, Tensor] = {}
        self.picture_names: list[str] = []
        self.task_index = self.phase_index = self.progress = 0
        self._begun = False
        self._task: Task | None = None
        self._phases: list[Phase] = []
        self._phase: PhaseState | None = None
        self._last: Row = {}
        self._open: Row | None = None
        self._watch: Watch | None = None
        self.trained = lambda: None
        self._fresh = self.random.of_process()

    # ------------------------------------------------------------------ stepping

    @property
    def done(self) -> bool:
        """Whether every task has been learnt."""
        return self.task_index == self.num_tasks

    @property
    def last_row(self) -> Row:
        """The row ``advance`` returned last; survives a restore."""
        return dict(self._last)

    def advance(self) -> Row:
        """Train one epoch; at the end of a phase or a task, also finish that.

        Returns:
            A flat row of numbers and short strings; the last one also holds ``result``. At a task's
            end ``pictures`` are the names of all pictures so far, if there are any.
        """
        if self.done:
            raise RuntimeError("the run is done")
        if not self.progress:
            self._evaluate_untrained()
        self.costs.start()
        self.pictures = {}
        task = self._enter_task()
        row: Row = {"task": self.task_index, "at_task_end": False}
        validate = True
        if self._open is not None:  # a state of this very point was loaded
            row, self._open = self._open, None
            self.method.eval()
        else:
            if self.phase_index < len(self._phases):
                phase = self._phases[self.phase_index]
                row |= self._train_epoch(phase)
                validate = phase.validate
            self.progress += 1
            if self.phase_index == len(self._phases):
                self._tell_trained(row)
        if self.phase_index == len(self._phases):
            if self._phases and (after := self._phases[-1].after) is not None:
                after()
            self.costs.stop()
            self._finish_task(task, row)
        else:
            self.costs.stop()
            if validate:
                row |= self._validate_current(task)
        row |= {"progress": self.progress, "tasks_done": self.task_index, "finished": self.done}
        average = self.matrices.validation_average()
        if not self.matrices.rows_done:  # before the first task ends, the accuracy so far
            average = row.get("validation/accuracy_current")
        if average is not None:
            row["validation/average_accuracy"] = average
        if row["finished"]:
            row["result"] = self.result()
        self._last = row
        return dict(row)

    def result(self) -> dict[str, Any]:
        """The result of the run as plain JSON: matrices, metrics, cost, seeds.

        With ``histograms``, if the method has any: name to counts per bin after each task.
        """
        sizes = [len(d.test) for d in self.stream.data[: self.num_tasks]]
        found = self.matrices.as_dict(sizes) | {
            "cost": self.costs.totals(),
            "tasks": [t.name for t in self.stream.info.tasks[: self.num_tasks]],
            "seeds": self.seeds.as_dict(),
        }
        return found | ({"histograms": self.histograms} if self.histograms else {})

    def keepsake(self) -> None:
        """There is none: nothing needs a method of an earlier task again."""

    def picture_files(self) -> dict[str, bytes]:
        """The method's pictures of the task that ended in the last step, as PNG files by path."""
        return {f"{pictures.FOLDER}/{n}.png": pictures.png(i) for n, i in self.pictures.items()}

    def close(self) -> None:
        """There is nothing to let go."""

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The state from which a run goes on bit by bit: tensors and plain values only."""
        return {
            "config": self.config.model_dump(mode="json"),
            "position": [self.task_index, self.phase_index, self.progress, self._begun],
            "method": self.method.saved_state(),
            "fixed": self._fixed_hash,
            "phase": None if self._phase is None else self._phase.state_dict(),
            "open": self._open,
            "matrices": self.matrices.state_dict(),
            "histograms": self.histograms,
            "pictures": self.picture_names,
            "costs": self.costs.state_dict(),
            "last": self._last,
            "random": self.random.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, in a run that was just built from the same configuration.

        Raises:
            ValueError: The state is of another configuration.
        """
        if _identity(state["config"]) != _identity(self.config.model_dump(mode="json")):
            raise ValueError("the checkpoint is of another configuration")
        self._load(state)

    def shared_state(self) -> dict[str, Any]:
        """See ``TrialRun``."""
        state = self.state_dict()
        if not (self.task_index == 0 and self._open is not None):
            return {name: value for name, value in state.items() if name != "config"}
        base = first_method(self.config.method, lambda name: find_method({"name": name}))
        if base["name"] != self.config.method["name"]:
            names = self._names_of(base)
            state["method"] = {k: v for k, v in state["method"].items() if k in names}
        return {name: state[name] for name in FIRST_TASK}

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """See ``TrialRun``."""
        if "matrices" not in state:
            self._evaluate_untrained()
        self._load({**self.state_dict(), **state}, whole="matrices" in state)

    def _load(self, state: Mapping[str, Any], whole: bool = True) -> None:
        """Restore a state; if it is not whole, the method may have more than it holds."""
        self.task_index, self.phase_index, self.progress, self._begun = state["position"]
        for info in self.stream.info.tasks[: self.task_index + self._begun]:
            self.method.add_task(info)
        self._placed(self.method)
        if state.get("fixed", self._fixed_hash) != self._fixed_hash:
            names = ", ".join(self.method.fixed)
            raise ValueError(f"{names} are not those of the checkpoint: did the weights change?")
        more = {} if whole else self.method.saved_state()
        self.method.load_saved_state({**more, **state["method"]})
        if self._begun:
            self._task = self.sets.open(self.task_index, self.method.memory)
            self._phases = self._make_phases(self._task)
            if state["phase"] is not None:
                self._phase = PhaseState(self._phases[self.phase_index], self.method)
                self._phase.load_state_dict(state["phase"])
        self.matrices.load_state_dict(state["matrices"])
        self.histograms = {name: list(rows) for name, rows in state["histograms"].items()}
        self.picture_names = list(state["pictures"])
        self.costs.load_state_dict(state["costs"])
        self._last = dict(state["last"])
        self._open = dict(state["open"]) if state.get("open") is not None else None
        self.random.load_state_dict(state["random"])

    def _names_of(self, block: Mapping[str, Any]) -> set[str]:
        """Names in the state of another method in its first task; no random number is drawn."""
        cls, before = find_method(block), self.random.state_dict()
        context = replace(
            self.method.context,
            data_generator=torch.Generator(),
            method_generator=torch.Generator(),
        )
        other = cls(cls.Config.model_validate(block), context)
        other.add_task(self.stream.info.tasks[0])
        self.random.load_state_dict(before)
        return set(other.saved_state())

    @cached_property
    def _fixed_hash(self) -> str:
        """Hash of the fixed tensors, which never change and which no checkpoint holds."""
        return self.method.fixed_hash()

    # ------------------------------------------------------------------ parts of a step

    def _build_method(self) -> Method:
        cls = find_method(self.config.method)
        check_networks(cls, self.config.method["name"], self.networks)
        context = Context(
            stream=self.stream.info,
            train=self.config.train,
            build_network=self._build_network,
            device=self.device,
            data_generator=self.random.data,
            method_generator=self.random.method,
            augment=datasets.augment(self.config.train.augment, self.random.augment),
            augmentation=lambda name: datasets.augment(name, self.random.augment),
            read_tensors=lambda weights: tensors_of(weights, self.weights),
            networks=self.networks,
            stop=self.config.tasks,
            seen_accuracy=self._seen_accuracy,
        )
        return cls(cls.Config.model_validate(self.config.method), context)

    def _build_network(
        self,
        block: Mapping[str, Any] | None = None,
        *,
        task: int = 0,
        shape: tuple[int, int, int] | None = None,
    ) -> Backbone:
        shape = shape or self.stream.info.input_shape
        return self._placed(build_network(block or self.networks[task], shape, self.weights))

    def _enter_task(self) -> Task:
        if self._task is None:
            self.method.add_task(self.stream.info.tasks[self.task_index])
            self._placed(self.method)
            self._task = self.sets.open(self.task_index, self.method.memory)
            self.method.eval()  # whatever came before: a restore, a task, nothing
            self.method.begin_task(self._task)
            self._placed(self.method)  # networks made there: a restore finds them placed
            self._begun, self.phase_index = True, 0
            self._phases = self._make_phases(self._task)
        return self._task

    def _placed(self, module: Module) -> Module:
        """Move a module to the run's device, in the run's memory format."""
        module.to(self.device)
        if self.config.train.channels_last:
            to_channels_last(module)
        return module

    def _make_phases(self, task: Task) -> list[Phase]:
        train, device = self.config.train, self.device
        return [with_precision(phase, train, device) for phase in self.method.phases(task)]

    def _train_epoch(self, phase: Phase) -> Row:
        if self._phase is None:
            if phase.draws is not None:
                self.random.restart(phase.draws, self.task_index)
            if (taken := self._take(phase)) is not None:
                return taken
            if phase.before is not None:
                self.method.eval()
                phase.before()
                self._placed(self.method)
            self._phase = PhaseState(phase, self.method)
        started = time.perf_counter()
        row: Row = {"phase": phase.name, "epoch": self._phase.epoch}
        row["train/lr"] = self._phase.lr
        per_step = self._phase.schedule if phase.step_schedule else None
        means, examples = train_one_epoch(phase, self._phase.optimizer, self.method, per_step)
        row |= {f"train/{name}": value for name, value in means.items()}
        self.costs.examples += examples
        over = self._diverged(phase, self._phase, means) or self._phase.finish_epoch()
        if over:
            self._phase.close()
            self._phase = None
        row["time/epoch_s"] = time.perf_counter() - started
        if over:
            self._leave(phase, row)
            self._next_phase(phase)
        return row

    def _take(self, phase: Phase) -> Row | None:
        """Take what another trial has trained in a phase; its last row. ``None``: train it.

        Only as long as nobody has drawn from the process's generators since the constructor: they
        may have drawn otherwise in another trial, and what the phase starts from with them.
        """
        if phase.result is None or self.shelf is None or self.random.of_process() != self._fresh:
            return None
        self.costs.stop()
        found = self.shelf.take(phase.name, self.task_index)
        self.costs.start()
        if found is None:
            self._watch = Watch(self.costs, self.random)
            return None
        self.progress += load_result(phase.result, found, self.costs, self.random)
        self.method.eval()
        self._next_phase(phase)
        return dict(found["row"])

    def _leave(self, phase: Phase, row: Row) -> None:
        """Leave what a phase has trained for other trials, if it began in this process."""
        watch, self._watch = self._watch, None
        if watch is None or phase.result is None or self.shelf is None:
            return
        self.costs.stop()
        if (content := watch.result(phase.result, row)) is not None:
            self.shelf.put(phase.name, self.task_index, content)
        self.costs.start()

    def _next_phase(self, phase: Phase) -> None:
        self.phase_index += 1
        if phase.after is not None and self.phase_index < len(self._phases):
            phase.after()

    def _tell_trained(self, row: Row) -> None:
        """Say that the task has been trained, with the clock stopped."""
        self.costs.stop()
        self._open = dict(row)
        self.trained()
        self._open = None
        self.costs.start()

    def _diverged(self, phase: Phase, state: PhaseState, means: Mapping[str, float]) -> bool:
        """Whether the phase has to end, because a loss is no number any more."""
        name = next((name for name, value in means.items() if not math.isfinite(value)), None)
        if name is None:
            return False
        if phase.diverged == "fail" or state.kept is None:
            raise TrainingError(
                f"{name} became {means[name]} in task {self.task_index}, phase {phase.name}, "
                f"epoch {state.epoch}: {self.method.remedy(state.lr)}"
            )
        self.method.eval()
        return True

    def _finish_task(self, task: Task, row: Row) -> None:
        self.method.eval()
        index = self.task_index
        self.pictures = pictures.of(self.method, index + 1, self.num_tasks)
        self.costs.start()
        self.method.end_task(task)
        self.costs.stop()
        task.close()
        self.method.eval()
        self.task_index, self._begun, self._task, self._phases = index + 1, False, None, []
        ahead = index + 2 if self.method.zero_shot else index + 1
        if self.method.isolated:
            self.matrices.carry_over(index)
        for i in range(index if self.method.isolated else 0, min(ahead, self.num_tasks)):
            self._evaluate(row_index=index, column=i)
        self.probe.measure(index, self.matrices)
        row["at_task_end"] = True
        sizes = [len(d.test) for d in self.stream.data[: self.task_index]]
        row |= self.matrices.row(index, sizes)
        plain, backbone = self._plain_sizes.of(self.networks[index])
        costs = self.costs.measure(self.method, plain, self._kept_data())
        costs |= self.costs.measure_task(self.method.task_parts(index), backbone)
        row |= {f"cost/{name}": value for name, value in costs.items()}
        row |= {f"method/{k}": float(v) for k, v in self.method.diagnostics().items()}
        add_histograms(self.histograms, self.method.histograms(), self.task_index)
        self.picture_names += self.pictures
        if self.picture_names:
            row["pictures"] = list(self.picture_names)
        current = self.matrices.current_validation(index)
        if current is not None:
            row["validation/accuracy_current"] = current

    def _evaluate(self, row_index: int, column: int) -> None:
        for name in SETS if column <= row_index else ("test",):
            examples = self.coverage.examples(name, row_index, column)
            if examples is not None:
                seen = row_index + 1
                accuracy = self.evaluator.accuracy(self.method, examples, column, seen)
                self.matrices.fill(name, row_index, column, accuracy)

    def _evaluate_untrained(self) -> None:
        """Measure the accuracy before any training, the reference of forward transfer."""
        if not self.method.zero_shot:
            return
        self.method.eval()
        for i in range(self.num_tasks):
            test = self.coverage.examples("test", -1, i)  # those of R[i-1, i]; its outputs, too
            assert test is not None
            self.matrices.fill_baseline(i, self.evaluator.accuracy(self.method, test, i, max(i, 1)))

    def _selecting(self) -> list[str]:
        """Readouts of ``seen_accuracy``: all that are possible, whatever the trial asks for."""
        usable = choose_readouts(self.stream.info.readouts, type(self.method), None)
        return [r for r in usable if r != "domain" or "class" not in usable]

    def _seen_accuracy(self) -> float:
        """The accuracy by which ``select: seen_accuracy`` chooses an epoch; see ``Context``."""
        seen = self.task_index + 1
        found: list[float] = []
        for i, data in enumerate(self.sets.data[:seen]):
            if data.validation is None:
                raise ValueError("no validation set to select an epoch on")
            accuracy = self.selector.accuracy(self.method, data.validation, i, seen)
            found += accuracy.values()
        return sum(found) / len(found)

    def _validate_current(self, task: Task) -> Row:
        if task.validation is None:
            return {}
        self.method.eval()
        seen = self.task_index + 1
        accuracy = self.own_evaluator.accuracy(self.method, task.validation, self.task_index, seen)
        return {"validation/accuracy_current": accuracy[self.readouts[0]]}

    def _kept_data(self) -> int:
        """Bytes of the training images that a method with ``memory = "all"`` goes back to."""
        if self.method.memory != "all":
            return 0
        pixels = math.prod(self.stream.info.input_shape)
        return pixels * sum(len(data.train) for data in self.stream.data[: self.task_index])


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that two states must share; the number of threads may differ.

    An option that an earlier raycl did not have is at its default.
    """
    whole = TrialConfig.model_validate(config).model_dump(mode="json")
    return {k: v for k, v in whole.items() if k != "threads"}


def _with_hashes(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's block with the hashes of weights that networks in its options start from."""
    options = find_method(method).Config
    return with_option_hashes(method, options.networks, options.other_weights)


def build_benchmark(block: Mapping[str, Any], where: str = "benchmark") -> Benchmark:
    """The benchmark of a configuration block."""
    cls = registry.find("raycl.benchmarks", Benchmark, block["name"], where=where)  # type: ignore[type-abstract]
    return cls(cls.Config.model_validate(block))
