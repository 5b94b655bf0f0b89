"""Options of continual distillation, and the method whose prompts teacher and student have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from raycl import registry
from raycl.errors import UserError, nearest
from raycl.methods._prompted import PromptMethod
from raycl.methods.base import Method
from raycl.networks.base import Weights
from raycl.trial.sharing import not_in_phase

SHARED = ("anchor", "aux_loss_scale")
"""Options of a learner that teacher and student have from the method."""
STUDENTS = not_in_phase("teacher")
"""An option of the student alone."""
BLOCK = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
"""JSON schema of a learner: its name, or its name and options."""


class CDLConfig(PromptMethod.Config):
    """Options of ``cdl``."""

    networks = ("teacher_network",)
    other_weights = ("teacher",)

    learner: Annotated[dict[str, Any], WithJsonSchema(BLOCK)] = Field(
        {"name": "l2p"}, description="prompt learner of both: name of a method and its options"
    )
    scheme: Literal[
        "none", "kd", "dkd", "fitnets", "review_kd", "kd_token", "kdp", "cdl_prompt"
    ] = Field(
        "kdp",
        description="how the student learns from the teacher",
        json_schema_extra=STUDENTS,
    )
    teacher_network: dict[str, Any] = Field(description="network of the teacher: a block")
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of what the teacher says",
        json_schema_extra=STUDENTS,
    )
    temperature: float = Field(
        2.0,
        gt=0,
        description="temperature of logits (not for dkd)",
        json_schema_extra=STUDENTS,
    )
    kd_blocks: int | None = Field(
        None,
        ge=1,
        description="kdp: blocks with a token or a prefix; default: 12, or all",
        json_schema_extra=STUDENTS,
    )
    kd_length: int = Field(
        6,
        ge=2,
        multiple_of=2,
        description="kdp: rows of a prefix",
        json_schema_extra=STUDENTS,
    )
    mapper: Literal["components", "attention"] = Field(
        "components", description="cdl_prompt: how prefixes get the student's width"
    )
    query_backbone: Literal["student", "own"] = Field(
        "student", description="network whose features are the teacher's queries"
    )
    apt_merge: Literal["after_student", "after_teacher"] = Field(
        "after_student", description="when the teacher of learner apt averages"
    )
    teacher: Weights | None = Field(
        None, description="{trial: RUN/KEY}: a trial with keep_teachers; default: trained here"
    )
    keep_teachers: bool = Field(
        False,
        description="keep the teacher of every task, for other trials to learn from",
        json_schema_extra=STUDENTS,
    )

    @field_validator("learner", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("learner")
    @classmethod
    def _complete(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Fill in the options of the learner that were left out."""
        try:
            options = find_learner(value).Config
        except UserError as error:
            raise ValueError(f"{error.what}; {error.hint}") from error
        if given := [name for name in SHARED if name in value]:
            raise ValueError(f"{given[0]} is an option of cdl itself, not of its learner")
        own = options.model_fields.keys() - SHARED
        if unknown := [name for name in value if name not in own]:
            hint = nearest(unknown[0], own)
            raise ValueError(f"{value['name']} has no option '{unknown[0]}'; {hint}")
        done = options.model_validate(value).model_dump(mode="json")
        return {name: option for name, option in done.items() if name in own}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.teacher is None and not self.keep_teachers:
            return self
        if self.teacher is not None and self.keep_teachers:
            raise ValueError("keep_teachers keeps teachers trained here: leave out teacher")
        if self.scheme == "cdl_prompt":
            raise ValueError("cdl_prompt trains teacher and student together: no other teacher")
        if self.anchor != "weights":
            raise ValueError("a teacher for several trials needs anchor: weights")
        if self.teacher is not None and self.teacher.trial is None:
            raise ValueError("teacher is a trial: {trial: RUN/KEY}")
        return self

    def has_phase(self, name: str) -> bool:
        """See ``MethodConfig.has_phase``: a teacher may learn with its student, or elsewhere.

        A learner from outside raycl claims nothing.
        """
        own = find_learner(self.learner).__module__.startswith("raycl.")
        return own and self.scheme != "cdl_prompt" and self.teacher is None

    def learner_config(self) -> Any:
        """All options of the learner's method: its own, and those that it shares with this one."""
        cls = find_learner(self.learner)
        shared = {name: getattr(self, name) for name in SHARED}
        return cls.Config.model_validate({**self.learner, **shared})


def find_learner(block: Mapping[str, Any]) -> type[PromptMethod]:
    """The method whose prompts a block asks for.

    Raises:
        UserError: There is none of that name, or it has no prompts.
    """
    name, where = str(block.get("name", "")), "method.learner"
    if not name:
        raise UserError(where, "a learner needs a name", "e.g. l2p")
    cls = registry.find("raycl.methods", Method, name, where=where)  # type: ignore[type-abstract]
    if not issubclass(cls, PromptMethod) or "learner" in cls.Config.model_fields:
        what = f"{name} has no prompts to learn"
        raise UserError(where, what, "take l2p, dual_prompt, coda_prompt or apt")
    return cls
