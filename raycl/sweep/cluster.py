"""Ray: where trials run. Starting it, joining it, and whether a trial fits."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from threading import Thread
from typing import Any

from raycl.errors import UserError
from raycl.sweep.expand import Preview

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON or TensorBoard files
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # we print each error once ourselves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours turns SIGINT and SIGTERM into Tune's SIGUSR1
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant to the user
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "1",
}


class Interrupted(Exception):
    """SIGINT or SIGTERM: the trials were told to save and to stop."""


class TooMuch(UserError):
    """A trial asks for more than there is.

    Args:
        plan: The trial.
        resource: Key of the ``resources`` block.
        what: What is wrong.
        hint: What to do about it.
    """

    def __init__(self, plan: Preview, resource: str, what: str, hint: str = "") -> None:
        super().__init__(f"resources.{resource}", what, hint)
        self.method, self.resource = plan.method, resource


def is_local(address: str | None) -> bool:
    """Whether a sweep starts a Ray of its own on this machine."""
    return _where(address) == "local"


def _where(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def fits_here(plans: Sequence[Preview]) -> None:
    """Check the requests against this machine, before a local Ray is started.

    Raises:
        TooMuch: A trial, its env runners included, asks for more than there is.
    """
    import torch

    _check(plans, [{"GPU": float(torch.cuda.device_count()), "CPU": float(os.cpu_count() or 1)}])


@contextlib.contextmanager
def connect(address: str | None, plans: Sequence[Preview], storage: str | None) -> Iterator[None]:
    """A Ray cluster for the time of a sweep.

    Args:
        address: Of a running cluster; default: ``RAY_ADDRESS``, else a new one on this machine. A
            cluster that merely happens to run here is never joined.
        plans: What will run, to refuse what cannot fit.
        storage: Where checkpoints go; ``None``: below the runs folder.

    Raises:
        UserError: The cluster does not answer, a trial fits on none of its nodes, or there are
            several nodes and checkpoints would go to the disk of whichever a trial runs on.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    where = _where(address)
    import ray

    meanwhile = Thread(target=_import_meanwhile, daemon=True)
    meanwhile.start()
    try:
        ray.init(
            address=where,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if where == "local" else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = "Ray does not start" if where == "local" else f"no Ray cluster answers at '{where}'"
        raise UserError("--address", f"{what}: {error}") from error
    try:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        meanwhile.join()  # MLflow must not be imported by two threads at once
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        _check(plans, alive)
        if len(alive) > 1 and storage is None:
            raise UserError(
                "storage",
                f"the cluster has {len(alive)} nodes, and checkpoints must be where all can read",
                "give a shared folder or a URL, e.g. storage: s3://bucket/raycl",
            )
        yield
    finally:
        ray.shutdown()


def _import_meanwhile() -> None:
    """What the driver needs next, imported while ``ray.init`` waits: seconds off every sweep."""
    import raycl.report.main  # noqa: F401


def bundles(resources: Mapping[str, float]) -> list[dict[str, float]]:
    """What a trial asks Ray for: its own process, then each env runner."""
    own = {kind.upper(): resources[kind] for kind in ("cpu", "gpu") if resources.get(kind)}
    return [own, *[{"CPU": 1.0}] * int(resources.get("env_runners", 0))]


def _check(plans: Sequence[Preview], nodes: Sequence[dict[str, float]]) -> None:
    for plan in plans:
        for kind in ("gpu", "cpu"):
            wanted = plan.resources.get(kind, 0.0)
            largest = max((node.get(kind.upper(), 0.0) for node in nodes), default=0.0)
            if wanted > largest:
                raise TooMuch(
                    plan,
                    kind,
                    f"trial {plan.name} asks for {wanted:g} {kind.upper()}s; "
                    f"the largest node has {largest:g}",
                )
        _check_runners(plan, nodes)


def _check_runners(plan: Preview, nodes: Sequence[dict[str, float]]) -> None:
    """The whole trial must fit at once: its own process on a node, its runners on what is left."""
    own, *runners = bundles(plan.resources)
    if not runners:
        return
    rooms = []
    for i, node in enumerate(nodes):
        if all(node.get(kind, 0.0) >= n for kind, n in own.items()):
            free = [
                other.get("CPU", 0.0) - (own["CPU"] if i == j else 0.0)
                for j, other in enumerate(nodes)
            ]
            rooms.append(sum(int(cpus) for cpus in free))
    room = max(rooms, default=0)
    if len(runners) > room:
        has = sum(node.get("CPU", 0.0) for node in nodes)
        raise TooMuch(
            plan,
            "env_runners",
            f"trial {plan.name} asks for {own['CPU']:g} CPUs and {len(runners)} env runners of 1 "
            f"each; {'this machine' if len(nodes) == 1 else 'the cluster'} has {has:g} CPUs",
            f"at most {room} fit" if room else "use 0: the trial itself plays",
        )
