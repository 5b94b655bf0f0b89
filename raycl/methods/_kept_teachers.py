"""Teachers that one trial keeps, so that students in other trials can learn from them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.networks.base import Tensors

NAME = "kept"
"""Name of the module in the method that keeps teachers."""
WHERE = "method.teacher.trial"


class KeptTeachers(nn.Module):
    """Copies of the teacher, one for each task, as it was when it had learnt the task.

    Args:
        about: Settings that a trial must share to learn from them, as plain data.

    Attributes:
        teachers: One copy for each task seen.
        about: The settings as JSON, in bytes.
        done: Number of tasks whose teacher is complete.
    """

    about: Tensor
    done: Tensor

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList()
        text = json.dumps(about, sort_keys=True).encode()
        self.register_buffer("about", torch.tensor([*text], dtype=torch.uint8))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def add(self, teacher: nn.Module) -> None:
        """Make room for the teacher of a further task."""
        self.teachers.append(copy.deepcopy(teacher))

    def keep(self, teacher: nn.Module) -> None:
        """Keep the teacher of the task that was added last."""
        self.teachers[-1].load_state_dict(teacher.state_dict())
        self.done.add_(1)


def check_kept(tensors: Tensors, trial: str, about: Mapping[str, Any], tasks: int) -> None:
    """Refuse teachers that learnt something else, or did not learn all tasks.

    Args:
        tensors: State of the trial.
        trial: Its name, for messages.
        about: Settings that must be the same there.
        tasks: Number of tasks that teachers are needed for.

    Raises:
        UserError: Names the first part that differs.
    """
    if f"{NAME}.about" not in tensors:
        hint = "run it with method: {name: cdl, keep_teachers: true, ...}"
        raise UserError(WHERE, f"{trial} has kept no teachers", hint)
    theirs = json.loads(bytes(tensors[f"{NAME}.about"]))
    for name, value in json.loads(json.dumps(about)).items():
        if theirs.get(name) != value:
            what = f"the teachers of {trial} have another {name}"
            raise UserError(WHERE, what, f"theirs is {theirs.get(name)}")
    done = int(tensors[f"{NAME}.done"])
    if done < tasks:
        what = f"{trial} has teachers of {done} tasks, and {tasks} are to be learnt"
        raise UserError(WHERE, what, "let it finish first")


def kept_state(tensors: Tensors, task: int) -> dict[str, Tensor]:
    """The state of the teacher of a task."""
    prefix = f"{NAME}.teachers.{task}."
    named = ((n.removeprefix(prefix), v) for n, v in tensors.items() if n.startswith(prefix))
    return {name: torch.tensor(value) for name, value in named}
