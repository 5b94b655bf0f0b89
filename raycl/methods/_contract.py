"""The contract of a method; import its classes from ``raycl.methods.base``.

A method is one file: its hyper-parameters, its state, its losses. The loop in ``raycl.training``
knows nothing of any method; everything a method does to the loop, it does through its phases.

**State is the module's state.** What must survive a crash is a parameter, a buffer, a submodule or
part of ``get_extra_state``. To restore, the loop builds the method, calls ``add_task`` for every
task seen and then ``load_state_dict(strict=True)``; so structure may depend on ``TaskInfo`` and the
configuration, never on data. What is as large as the data, and an optimiser that outlives its
phase, go into ``get_extra_state``, whose tensors come back on the CPU. ``requires_grad`` and
``training`` are no state: the loop sets both.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from torch import Tensor, nn

from raycl.benchmarks.base import StreamInfo, Task, TaskInfo
from raycl.datasets.base import without_defaults
from raycl.datasets.examples import Augment
from raycl.networks.base import Backbone, Tensors, Weights, complete_block, named_block
from raycl.nn.optim import TrainConfig
from raycl.trial.sharing import SHARED

Memory = Literal["exemplars", "generator", "all"]
Losses = Tensor | Mapping[str, Tensor]


class MethodConfig(BaseModel):
    """Hyper-parameters of a method, each once: type, bounds, unit, default, one-line meaning.

    Attributes:
        networks: Options (``dict[str, Any]``, or that and ``None``) that are the block of another
            network than the sweep's, for ``Context.build_network``: a name, or a mapping as under
            ``network``. Defaults are filled in, and weights that such a network starts from are
            treated as those of the sweep's network are: hashed, checked and read by the driver.
        other_weights: Options (``Weights``, or that and ``None``) that are weights for the method
            itself, for ``Context.read_tensors``; treated likewise.
        unless_given: Names of options that came after the method had trials. They are left out of
            what is dumped while they have their default: keys of trials are hashes of that, and
            must stay as they are. So an option that is added to a method later goes in here, and
            whoever overrides it goes on from the parent's.

    An option that cannot matter before a task says so, in ``json_schema_extra=from_task(2)`` of its
    ``Field``: trials that differ in it alone then share the work before that task. An option that
    has no part in a phase says ``not_in_phase("teacher")``; then they share the phase. Whoever
    overrides an option says it again. See ``raycl.trial.sharing``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    networks: ClassVar[tuple[str, ...]] = ()
    other_weights: ClassVar[tuple[str, ...]] = ()
    unless_given: ClassVar[tuple[str, ...]] = ()

    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class whose ``networks``, say, names what is no option."""
        super().__pydantic_init_subclass__(**kwargs)
        for kind in ("networks", "other_weights", "unless_given"):
            if unknown := [name for name in getattr(cls, kind) if name not in cls.model_fields]:
                raise TypeError(f"{cls.__qualname__}.{kind} names no option: {unknown[0]}")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        """Leave out of a schema for editors what options say of sharing."""
        found = handler.resolve_ref_schema(handler(core))
        for option in found.get("properties", {}).values():
            option.pop(SHARED, None)
        return found

    @field_validator("*", mode="before")
    @classmethod
    def _network(cls, value: Any, info: ValidationInfo) -> Any:
        """Fill in the defaults of an option that is a network's block."""
        if info.field_name not in cls.networks:
            return value
        block = named_block(value)
        return complete_block(block) if isinstance(block, Mapping) else block

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), self.unless_given)

    def network_options(self) -> dict[str, dict[str, Any]]:
        """The blocks of other networks that are given, by the name of the option."""
        blocks = {name: getattr(self, name) for name in self.networks}
        return {name: block for name, block in blocks.items() if block is not None}

    def has_phase(self, name: str) -> bool:
        """Whether there is a phase that an option names in ``not_in_phase``, with these options."""
        return True

    def weights_options(self) -> dict[str, Weights]:
        """The weights for the method itself that are given, by the name of the option."""
        blocks = {name: getattr(self, name) for name in self.other_weights}
        return {name: block for name, block in blocks.items() if block is not None}


@dataclass(frozen=True)
class Context:
    """The things that a method is built from.

    Attributes:
        stream: The tasks to come, without their data.
        train: The ``train`` block of the sweep file.
        build_network: Makes a fresh backbone on ``device``: without argument the network of the
            first task, with ``task=i`` that of task i, or that of a given block
            (``{"name": "mlp", ...}``, see ``MethodConfig.networks``); with ``shape=(C, H, W)`` for
            images of another shape than the stream's.
        device: Device of the run; the loop moves the method there.
        data_generator: CPU generator of data order, saved with the run.
        method_generator: CPU generator of everything else a method samples, saved with the run.
        augment: The training augmentation (uint8 to uint8), or ``None``.
        augmentation: Name to another augmentation than the training one, for stored images.
        read_tensors: All tensors of weights, by name; for ``MethodConfig.other_weights``.
        networks: The ``network`` block of each task; empty: one network for all.
        stop: Number of tasks of the stream that are run, the first ones; ``None``: all.
        seen_accuracy: Percent right on the validation data of all tasks so far, which only the loop
            sees: the mean over tasks, and over the readouts ``class`` (else ``domain``) and
            ``task``.
    """

    stream: StreamInfo
    train: TrainConfig
    build_network: Callable[..., Backbone]
    device: torch.device
    data_generator: torch.Generator
    method_generator: torch.Generator
    augment: Augment | None = None
    augmentation: Callable[[str], Augment | None] = lambda name: None
    read_tensors: Callable[[Weights], Tensors] = lambda weights: {}
    networks: tuple[Mapping[str, Any], ...] = ()
    stop: int | None = None
    seen_accuracy: Callable[[], float] = lambda: math.nan

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks that are run."""
        return self.stream.tasks[: self.stop]

    @property
    def last_old(self) -> tuple[int, ...]:
        """Outputs that are old when the last task that is run begins."""
        return self.stream.seen(len(self.tasks) - 2) if len(self.tasks) > 1 else ()

    def network_changes(self, task: int) -> bool:
        """Whether a task has another network than the task before it."""
        return 0 < task < len(self.networks) and self.networks[task] != self.networks[task - 1]


@dataclass
class Phase:
    """One optimisation problem, made by ``phases``; the loop runs all of them in the same way.

    Attributes:
        name: For progress and metrics, e.g. ``"train"`` or ``"inversion"``.
        epochs: Passes over ``batches``.
        optimizer: Makes the optimiser when the phase starts. Only its parameters require
            gradients while the phase lasts.
        batches: Makes one epoch's batches.
        loss: A batch to a scalar, or to named terms whose sum is minimised (each is logged).
            The method is in train mode. With ``train.precision: bfloat16`` it is computed under
            autocast, as is ``score``: networks give rounded numbers, see
            ``raycl.training.precision``.
        schedule: Makes the learning-rate schedule of the optimiser, stepped once per epoch.
        step_schedule: Step the schedule after every optimiser step instead.
        clip_norm: Bound of the gradient's global norm.
        before: Called once when the phase starts, in eval mode.
        after_step: Called after every optimiser step (projections).
        after: Called once when the phase ends, after the selected epoch was restored, in eval mode.
        score: After each epoch, in eval mode: higher is better. Feeds ``keep`` and a plateau
            schedule. ``None``: the last epoch counts.
        keep: (score, score of the kept epoch or ``None``) to whether this epoch is kept; not asked
            about a score that is NaN.
        kept: Called at the end with the state of the kept epoch, in eval mode, instead of putting
            it back. It holds the parameters that the phase trains and the buffers of the modules
            (direct children of the method) they are in; what else a phase changes goes on.
        patience: Epochs after the kept one before the phase ends early.
        stop: (score, learning rate) to whether the phase ends early.
        diverged: Effect of a loss that is not finite: ``"fail"`` ends the run with an error,
            ``"stop"`` ends the phase with the kept epoch, if there is one.
        validate: Whether the accuracy on the current task is measured after each epoch; not where
            the phase leaves the outputs as they are.
        draws: Name of random numbers that begin anew with this phase (data order, augmentation,
            ``method_generator``), by the run's seed, the task and the name. Then what the phase
            draws depends on no phase before it, and phases of other methods draw the same under
            the same name. ``None``: they go on.
        result: A module whose state is all that the phase changes, with its ``before`` and without
            its ``after``; the phase has ``draws``. Trials that differ only in options which have no
            part in the phase (``raycl.trial.sharing.not_in_phase``) then train it once; the
            conformance suite proves the claim. ``None``: every trial trains it.
    """

    name: str
    epochs: int
    optimizer: Callable[[], torch.optim.Optimizer]
    batches: Callable[[], Iterable[Any]]
    loss: Callable[[Any], Losses]
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    step_schedule: bool = False
    clip_norm: float | None = None
    before: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    score: Callable[[], float] | None = None
    keep: Callable[[float, float | None], bool] = field(
        default=lambda score, kept: kept is None or score > kept
    )
    kept: Callable[[Mapping[str, Any]], None] | None = None
    patience: int | None = None
    stop: Callable[[float, float], bool] | None = None
    diverged: Literal["fail", "stop"] = "fail"
    validate: bool = True
    draws: str | None = None
    result: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"phase {self.name} needs at least one epoch, not {self.epochs}")
        if self.result is not None and self.draws is None:
            raise ValueError(f"phase {self.name} has a result and no random numbers of its own")


class Method(nn.Module, ABC):
    """A continual-learning method.

    Attributes:
        settings: The readouts it can be evaluated under.
        memory: Declared access to old data: ``None``, ``"exemplars"`` (it stores images it has
            seen), ``"generator"`` (it makes them), ``"all"`` (an upper bound: every task's data).
        zero_shot: Whether ``logits`` also answers for tasks that were not added yet.
        uses_task_id: Whether ``logits`` depends on its ``task_id``.
        predictors: Names (``a-z``, digits, ``_``) of what can be asked beside the method itself,
            such as the ``teacher`` that it also trains: ``logits`` has a parameter ``predictor``
            for them. Each has matrices of its own, ``teacher/class``, by which nothing is selected.
            A class names all that there may be; where options decide, the constructor sets those
            that there are.
        any_network: Whether it can go on in another network, because what it keeps is images or
            outputs and belongs to no single weight. ``add_task`` then makes the new network.
        isolated: Whether learning a task leaves the answers for all earlier tasks as they are, bit
            for bit. Each task is then measured once, when it has been learnt.
        fixed: Prefixes of names in the state that the constructor makes the same every time and
            nothing ever changes, e.g. ``("backbone.",)`` if that is pre-trained and frozen. They
            are counted, but not written into every checkpoint, which has their hash instead.
            Options may decide: then the constructor sets it.
        first_task_of: Name of another method (``finetune``) to which this one is equal until its
            first task has been trained, before ``Phase.after`` of its last phase and ``end_task``:
            with the same values of the options that both have, and whatever the others are (but see
            ``raycl.trial.sharing.from_task``). Weights, random numbers and rows have the same bits
            then, and the rest of the state is as the constructor and ``add_task`` leave it. Trials
            of both methods share that work; the conformance suite proves the claim.
        frozen_alone: Whether ``frozen_values`` are all that the method looks at; see ``FrozenSet``.
        frozen_training: Whether ``frozen_values`` are for training only. Sets of validation and
            test images then go without.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    settings: ClassVar[frozenset[str]] = frozenset({"class", "task", "domain"})
    memory: ClassVar[Memory | None] = None
    zero_shot: ClassVar[bool] = False
    uses_task_id: ClassVar[bool] = True
    any_network: ClassVar[bool] = False
    isolated: ClassVar[bool] = False
    frozen_alone: ClassVar[bool] = False
    frozen_training: ClassVar[bool] = False
    first_task_of: ClassVar[str | None] = None
    fixed: tuple[str, ...] = ()
    predictors: tuple[str, ...] = ()

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__()
        self.config = config
        self.context = context

    def add_task(self, task: TaskInfo) -> None:
        """Change structure, without data: grow heads, add a teacher. Called once per task."""

    def begin_task(self, task: Task) -> None:
        """Do what needs data, or random numbers, before training, in eval mode.

        Not called again on resume.
        """

    @abstractmethod
    def phases(self, task: Task) -> list[Phase]:
        """The optimisation problems of a task, in order.

        Called after ``begin_task``, and again when a run is resumed in mid-task; so it only
        describes. Whatever it does to the method belongs into ``Phase.before`` or ``after``.
        """

    def end_task(self, task: Task) -> None:
        """Finish a task before it is evaluated: Fisher information, exemplars, merging."""

    @abstractmethod
    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        """Compute the scores of all outputs.

        A method with ``frozen_values`` has a third parameter, ``frozen: Tensor | None = None``, and
        one with ``predictors`` a last one, ``predictor: str | None = None``: whose scores they are;
        ``None`` is the method itself.

        Args:
            images: float32 (B, C, H, W), normalised.
            task_id: The task the images come from, or ``None`` where that must not be known.

        Returns:
            float (B, num_outputs). The harness masks what a readout excludes.
        """

    def answers(self, images: Tensor, task_id: int | None, **frozen: Tensor) -> dict[str, Tensor]:
        """Scores of the method itself, under an empty name, and of each of its ``predictors``.

        A method overrides this whose predictors share passes through a network; every answer has
        the bits that ``logits`` gives.

        Args:
            images: See ``logits``.
            task_id: See ``logits``.
            frozen: See ``logits``.
        """
        ask: Callable[..., Tensor] = self.logits
        others = {n: ask(images, task_id, **frozen, predictor=n) for n in self.predictors}
        return {"": ask(images, task_id, **frozen)} | others

    def frozen_values(self, images: Tensor) -> Tensor:
        """Compute values that depend on image and ``fixed`` state only, once per image.

        A method that overrides this, and of which something is fixed, finds the values of a batch
        in ``Batch.frozen`` and in ``logits``. They are kept for each set of images as far as
        ``evaluate.cache_mb`` goes, for training images only without augmentation. In eval mode,
        without gradients.

        Args:
            images: float32 (B, C, H, W), normalised.

        Returns:
            (B, ...), a row for each image.
        """
        raise NotImplementedError

    def task_parts(self, task: int) -> Mapping[str, Sequence[Tensor]]:
        """Tensors that belong to one task beside its head, for ``cost/task_percent``.

        Returns:
            ``weights``, ``affine`` (of normalisations) and ``statistics`` (of normalisations), each
            a list of tensors of the state; empty for a method whose tasks own nothing.
        """
        return {}

    def features(self, images: Tensor, task_id: int | None) -> Tensor:
        """Features for a linear probe (``evaluate.probe``), in eval mode; arguments: ``logits``.

        A method without this is refused where a probe is asked for.

        Returns:
            float32 (B, F), of any width F that is the same for all tasks at a time.
        """
        raise NotImplementedError

    def remedy(self, lr: float) -> str:
        """Advice about a loss that is no number any more: the end of an error message.

        Args:
            lr: Learning rate at which the loss became no number.
        """
        return "try a lower lr or a clip_norm"

    def diagnostics(self) -> dict[str, float]:
        """Numbers of the method's own at a task's end, e.g. capacity; logged as ``method/*``."""
        return {}

    def histograms(self) -> dict[str, list[int]]:
        """Distributions of the method's own at a task's end; drawn over tasks as an artifact.

        Returns:
            Name to counts per bin, with the same bins after every task. Names like
            ``bits/layers.1.weight``: what comes before the ``/`` is counted and shares a picture.
        """
        return {}

    def pictures(self) -> dict[str, Tensor]:
        """Images of the method's own at a task's end: ``pictures/NAME-task-N.png`` in MLflow.

        In eval mode, before ``end_task``. Random numbers come from a generator made here, so that
        looking changes nothing.

        Returns:
            Name (a file's stem, e.g. ``inversion``: letters, digits, ``.``, ``_``, ``-``) to one
            image: uint8 (3, H, W). At most 16. In the files, images with a side of more than 1024
            pixels are shrunk, and each pixel of a small one is a square of several.
        """
        return {}

    def saved_state(self) -> dict[str, Any]:
        """The part of the state that a checkpoint holds: all but what is ``fixed``."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(self.fixed)}

    def fixed_hash(self) -> str:
        """SHA-256 of names and values of the ``fixed`` state; empty if nothing is fixed."""
        if not self.fixed:
            return ""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            if name.startswith(self.fixed):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``saved_state``; nothing may be missing or left over."""
        fixed = {k: v for k, v in self.state_dict().items() if k.startswith(self.fixed)}
        self.load_state_dict({**fixed, **state}, strict=True)
