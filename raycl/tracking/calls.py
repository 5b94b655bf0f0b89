"""Calls of MLflow for one run: what it refuses for good is kept, named once and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requests import HTTPError

from raycl.tracking import store
from raycl.tracking.state import State

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

log = logging.getLogger(__name__)

LIMITS = {"Metric": 1000, "Param": 100, "RunTag": 100}
"""MLflow's own, per call; together they may be as many as the largest of them."""

REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
"""MLflow's answers that another attempt cannot change."""

TOO_LARGE = "failed with error code 413"
"""A proxy's answer to a call of more bytes than it lets through; MLflow has no code for it."""

LATER = (408, 429)
"""HTTP's answers to what may be sent again later."""

Item = tuple[int, "Metric | Param | RunTag"]
"""The journal's line that a value comes from, and the value."""


class Calls:
    """Whatever is sent to one client. Every method raises what is worth another attempt.

    Args:
        client: Of MLflow.
        state: Where refused values are counted.
        named: Names of values that were refused before, by whichever client.
    """

    def __init__(self, client: MlflowClient, state: State, named: set[str]) -> None:
        self.client, self.state, self.named = client, state, named
        self.refusal: str | None = None
        self._gone: set[str] = set()

    def values(self, run_id: str, items: Sequence[Item]) -> None:
        """Send metrics, params and tags of a run in as few calls as can be.

        One value that is refused takes no other with it: a refused call is made again in halves.
        """
        for batch in _batches(items):
            self._batch(run_id, batch)

    def files(self, run_id: str, line: int, folder: Path) -> None:
        """Send all files of a folder in one call, under their paths in it.

        One file that is refused takes no other with it: they are sent again, each alone.

        Args:
            run_id: The run.
            line: The journal's line that they come from.
            folder: Where they are.
        """
        try:
            self.client.log_artifacts(run_id, str(folder))
        except Exception as error:
            if not self._refused(run_id, error):
                raise
            if run_id in self._gone:
                return
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                path = file.relative_to(folder)
                where = (run_id, str(file), path.parent.as_posix())
                self.one(path.as_posix(), line, self.client.log_artifact, *where)

    def _batch(self, run_id: str, batch: Sequence[Item]) -> None:
        if run_id in self._gone:
            return
        given: dict[str, list[Any]] = {kind: [] for kind in LIMITS}
        for _, value in batch:
            given[type(value).__name__].append(value)
        metrics, params, tags = given.values()
        try:
            self.client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        except Exception as error:
            if not self._refused(run_id, error):
                raise
            if run_id in self._gone:
                return
            if len(batch) == 1:
                self._refuse(batch[0][0], batch[0][1].key, error)
                return
            half = len(batch) // 2
            self._batch(run_id, batch[:half])
            self._batch(run_id, batch[half:])

    def one(
        self, what: str, line: int, call: Callable[..., Any], run_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Make one call.

        Args:
            what: Name of what is sent.
            line: The journal's line that it comes from; negative: it is not missed.
            call: Of the client.
            run_id: Its first argument.
            *args: Further ones.
            **kwargs: Further ones.

        Returns:
            What the call does; None if it is refused.
        """
        try:
            return call(run_id, *args, **kwargs)
        except Exception as error:
            if not self._refused(run_id, error):
                raise
            if run_id not in self._gone and line >= 0:
                self._refuse(line, what, error)
            return None

    def _refused(self, run_id: str, error: Exception) -> bool:
        """Whether an error is MLflow's last word; a run that was deleted by hand is remembered."""
        if not _is_final(error):
            return False
        if run_id not in self._gone and self._is_gone(run_id):
            self._gone.add(run_id)
            log.warning("MLflow refused a value of run %s: %s", run_id, store.reason(error))
        return True

    def _is_gone(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True

    def _refuse(self, line: int, what: str, error: Exception) -> None:
        self.count(line, what, f"MLflow refused {what}: {store.reason(error)}")

    def count(self, line: int, what: str, problem: str) -> None:
        """Count a value that MLflow does not get; what it is, is said once.

        Args:
            line: The journal's line that it comes from.
            what: Name of the value.
            problem: What went wrong, in one line.
        """
        refused = self.state.refused
        refused[str(line)] = refused.get(str(line), 0) + 1
        self.refusal = problem
        if what not in self.named:
            self.named.add(what)
            log.warning("%s; it is kept in the journal", problem)


def _is_final(error: Exception) -> bool:
    """Whether another attempt cannot change an answer of MLflow, or of a proxy in front of it."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, HTTPError):  # files are sent without MLflow's codes
        status = 0 if error.response is None else error.response.status_code
        return 400 <= status < 500 and status not in LATER
    if not isinstance(error, MlflowException):
        return False
    return error.error_code in REFUSALS or TOO_LARGE in str(error)


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield as few batches as MLflow's limits allow; tags, which tell a run's end, come last."""
    kinds: dict[str, list[Item]] = {"Param": [], "Metric": [], "RunTag": []}
    for item in items:
        kinds[type(item[1]).__name__].append(item)
    while any(kinds.values()):
        batch: list[Item] = []
        for kind, rest in kinds.items():
            room = min(LIMITS[kind], max(LIMITS.values()) - len(batch))
            batch += rest[:room]
            del rest[:room]
        yield batch
