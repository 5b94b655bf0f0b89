"""Every source of randomness of a run: seeded, saved and restored in one place."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Seeds:
    """The separate seeds of a run, recorded with its results.

    Attributes:
        class_order: Class and task order, permutations and the validation split. Equal
            to the trial's seed unless fixed, so that published orders come out.
        init: The global generators: initial weights, dropout; on games also the order of
            minibatches.
        data: Data order, augmentation and the method's own sampling; on games environments and
            sampled actions.
    """

    class_order: int
    init: int
    data: int

    @classmethod
    def derive(
        cls,
        seed: int,
        class_order: int | None = None,
        init: int | None = None,
        data: int | None = None,
    ) -> Seeds:
        """All seeds from the trial's seed, except those given."""

        def derived(purpose: int) -> int:
            return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0])

        return cls(
            class_order=seed if class_order is None else class_order,
            init=derived(1) if init is None else init,
            data=derived(2) if data is None else data,
        )

    def as_dict(self) -> dict[str, int]:
        """The seeds as plain JSON, for the result of a run."""
        return asdict(self)


class Randomness:
    """The process's generators and the run's own three, as one saved state.

    The constructor also sets the process-wide switches on which results depend, because worker
    processes are reused from trial to trial and must not inherit anything.

    Args:
        seeds: The seeds to start from.
        device: Device on which augmentation draws its numbers.
        threads: CPU threads of torch.
    """

    def __init__(self, seeds: Seeds, device: torch.device, threads: int) -> None:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # which would also write NaN into whatever is allocated: 7 % of a step of training
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # by default convolutions round to ten bits
        torch.set_grad_enabled(True)
        self.device = device
        random.seed(seeds.init)
        np.random.seed(seeds.init % 2**32)  # noqa: NPY002  (libraries draw from it)
        torch.manual_seed(seeds.init)
        self.seed = seeds.data
        self.data, self.method = torch.Generator(), torch.Generator()
        self.augment = torch.Generator(device)
        self._seed_own([seeds.data])

    def restart(self, name: str, task: int) -> None:
        """Begin the run's own three generators anew, whatever they have drawn before.

        Args:
            name: Name of the user of the numbers; every name has numbers of its own.
            task: Number of the task, from 0.
        """
        self._seed_own([self.seed, task, *name.encode()])

    def _seed_own(self, entropy: list[int]) -> None:
        children = np.random.SeedSequence(entropy).generate_state(3)
        for generator, child in zip(self._own, children, strict=True):
            generator.manual_seed(int(child))

    @property
    def _own(self) -> tuple[torch.Generator, ...]:
        return self.data, self.method, self.augment

    def of_process(self) -> tuple[Any, ...]:
        """States of the process's generators, to be compared: who has drawn changes them."""
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        kind, keys, *rest = numpy_state
        found = [torch.get_rng_state()]
        if self.device.type == "cuda":
            found.append(torch.cuda.get_rng_state(self.device))
        tensors = [state.numpy().tobytes() for state in found]
        return random.getstate(), kind, keys.tobytes(), *rest, *tensors

    def own(self) -> list[torch.Tensor]:
        """States of the run's own generators, the part of ``state_dict`` of that name."""
        return [generator.get_state() for generator in self._own]

    def load_own(self, states: Sequence[torch.Tensor]) -> None:
        """Restore what ``own`` gave."""
        for generator, saved in zip(self._own, states, strict=True):
            generator.set_state(saved)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only."""
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        kind, keys, *rest = numpy_state
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "python": random.getstate(),
            "numpy": (str(kind), torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "own": self.own(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Generators of a device have no state on one of another kind: augmentation goes on there with
        new numbers.
        """
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        cuda = state["cuda"]
        if (cuda is not None) != (self.device.type == "cuda"):
            data, method, augment = state["own"]
            drawn = [int(child) for child in hashlib.sha256(augment.numpy().tobytes()).digest()]
            self._seed_own([self.seed, *drawn])
            self.load_own([data, method, self.augment.get_state()])
            return
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self.load_own(state["own"])


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class FixedSeeds(BaseModel):
    """Seeds that stay the same in every trial; ``None``: derived from the trial's seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class_order: Seed | None = Field(
        None, description="class order, task order, transformations and the validation split"
    )
    init: Seed | None = Field(
        None, description="initial weights, dropout; on games also the order of minibatches"
    )
    data: Seed | None = Field(
        None, description="order of batches, augmentation; on games environments, sampled actions"
    )
