"""The Ray cluster of a sweep: starts or joins it, and checks whether the trials fit."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

import psutil

from raycl import secrets
from raycl.errors import UserError
from raycl.sweep.execution import environment, ray_here, signals
from raycl.sweep.execution.storage import check_nodes
from raycl.sweep.plan.expand import Preview

PASSED_ON = ("RAYCL_", "MLFLOW_", "AWS_", "AZURE_STORAGE_", "FSSPEC_", "GOOGLE_")
"""Beginnings of the names of variables that mean the same on another node."""
OURS = {"RAYCL_RUNS": "runs", "RAYCL_DATA": "data"}
"""Variables that name folders, with the default names of those folders."""
NOT_UPLOADED = (
    *("/runs/", "/data/", "/mlruns/", "/mlflow.db", ".venv/", "*.pt", "*.gif"),
    *(".env", ".env.*"),  # passwords, by custom
)
"""Never part of a working directory that is sent to a cluster, in the words of .gitignore."""


GB = 1e9
DIED = "Ray on this machine has died"
RAY_DIED = 3
"""Exit code."""


class Interrupted(Exception):
    """A signal came: the trials were told to save and to stop."""


class Broken(Exception):
    """Results cannot be kept any more, e.g. because a disk is full."""


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

    here = {"GPU": float(torch.cuda.device_count()), "CPU": float(os.cpu_count() or 1)}
    _check(plans, [here | {"memory": float(psutil.virtual_memory().total)}])


def in_job() -> bool:
    """Whether this process is the driver of a Ray job."""
    return JOB in os.environ


JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def passed_on() -> dict[str, str]:
    """Variables of this process that workers on other nodes need to find data and stores."""
    return {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}


def hidden(address: str | None) -> dict[str, str]:
    """Variables of ``passed_on`` that hold secrets; none for a local Ray, which has them already.

    They are handed over as arguments: Ray shows the variables of a runtime environment to everybody
    who sees its dashboard, and writes them into its logs.
    """
    return {} if is_local(address) else secrets.split(passed_on())[1]


def not_uploaded() -> list[str]:
    """Patterns, as in .gitignore, of files that are not sent to a cluster."""
    here = Path.cwd().resolve()
    folders = [Path(v).resolve() for k in OURS if (v := os.environ.get(k))]
    inside = [f"/{f.relative_to(here)}/" for f in folders if here in f.parents]
    return [*NOT_UPLOADED, *inside]


def is_uploaded(path: Path) -> bool:
    """Whether a file below the current directory is one of those that Ray sends to a cluster."""
    from ray._private.ray_constants import (
        RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
        get_runtime_env_default_excludes,
    )
    from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

    here, path = Path.cwd().resolve(), path.resolve()
    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    ignored = [_get_excludes(here, [*get_runtime_env_default_excludes(), *not_uploaded()])]
    for folder in path.parents:
        if folder.is_relative_to(here):
            ignored += get_excludes_from_ignore_files(folder, include_gitignore=gitignore)
    return not any(matches(path) for matches in ignored)


def at_home() -> None:
    """Put runs and data of a Ray job into ~/raycl, as its working directory is deleted."""
    if in_job():
        for name, folder in OURS.items():
            os.environ.setdefault(name, str(Path.home() / "raycl" / folder))


def _runtime_env(where: str, own_files: bool) -> dict[str, Any] | None:
    """The runtime environment for workers elsewhere; a job has its files already."""
    if where == "local":
        return None  # workers are children of this process
    job = json.loads(os.environ.get(JOB, "{}")).get("runtime_env", {})
    has = job.get("env_vars", {})
    visible, _ = secrets.split(passed_on())
    found: dict[str, Any] = {"env_vars": {k: v for k, v in visible.items() if k not in has}}
    if own_files and "working_dir" not in job:
        found |= {"working_dir": str(Path.cwd()), "excludes": not_uploaded()}
    return found


@contextlib.contextmanager
def connect(
    address: str | None,
    plans: Sequence[Preview],
    storage: str | None,
    own_files: bool = False,
    stuck: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Start or join a Ray cluster for the time of a sweep.

    Args:
        address: Address of a running cluster; default: ``RAY_ADDRESS``, else a new one on this
            machine. A cluster that merely happens to run here is never joined.
        plans: What will run, to refuse what cannot fit.
        storage: Folder of the sweep's checkpoints; ``None``: nothing is kept.
        own_files: Whether trials need Python files of the current directory.
        stuck: See ``ray_here.Watch``; default: end this process, with a line.

    Raises:
        RayDied: The Ray that was started here died.
        UserError: Ray cannot read a variable, the cluster does not answer, a trial fits on none of
            its nodes, or nodes do not share the storage.
    """
    environment.prepare()
    where = _where(address)
    import ray

    meanwhile = Thread(target=_import_meanwhile, daemon=True)
    meanwhile.start()
    local, watch = where == "local", ray_here.Watch(stuck or _end)
    with ray_here.reaped() if local else contextlib.nullcontext() as reaper:
        try:
            with signals.blocked():
                _init(where, _runtime_env(where, own_files))
        except Exception as error:
            raise _not_started(where, error) from error
        try:
            ray_here.tell(reaper)
            with watch.watching() if local else contextlib.nullcontext():
                _look(plans, storage, meanwhile, hidden(address))
                yield
        finally:
            with signals.unheard():
                if watch.died:
                    atexit.unregister(ray.shutdown)  # it would wait for what is dead
                else:
                    ray_here.tell(reaper)
                    ray.shutdown()


def _end() -> None:
    """End from another thread: the main one waits in Ray's library for what is dead."""
    with contextlib.suppress(OSError):  # the terminal is gone
        print(f"error: {DIED}", file=sys.stderr, flush=True)
    os._exit(RAY_DIED)


def _not_started(where: str, error: Exception) -> UserError:
    """The reason, in one line, why Ray did not start."""
    text = " ".join(str(error).split())[:500] or type(error).__name__
    if where != "local":
        return UserError("--address", f"no Ray cluster answers at '{where}': {text}")
    if isinstance(error, OSError):
        hint = f"its files are in {ray_here.default_folder()}: see TMPDIR, or set RAY_TMPDIR"
        return UserError("ray", f"Ray does not start: {text}", hint)
    return UserError("ray", f"Ray does not start: {text}")


def _look(
    plans: Sequence[Preview], storage: str | None, meanwhile: Thread, variables: Mapping[str, str]
) -> None:
    """Refuse what does not fit on the cluster, or cannot be kept by it."""
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    meanwhile.join()  # MLflow must not be imported by two threads at once
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"]]
    _check(plans, [node["Resources"] for node in alive])
    if len(alive) > 1 and storage is not None:
        able = [node for node in alive if node["Resources"].get("CPU")]
        check_nodes(storage, able, variables)


def _init(where: str, runtime_env: dict[str, Any] | None) -> None:
    """Start or join; a cluster that wants Ray's token gets it.

    Ray's clients send no token unless told, and a cluster without authentication takes none.
    """
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    if where == "local":
        make_token_private()

    options: dict[str, Any] = {
        "address": where,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "include_dashboard": False if where == "local" else None,
        "runtime_env": runtime_env,
    }
    if where == "local" and (folder := ray_here.temporary_folder()) is not None:
        options["_temp_dir"] = folder
    try:
        with on_loopback() if where == "local" else contextlib.nullcontext():
            ray.init(**options)
    except ConnectionError:
        if where == "local" or "RAY_AUTH_MODE" in os.environ or token() is None:
            raise
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # read the environment again
        ray.init(**options)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Have a Ray that starts meanwhile listen on 127.0.0.1 only.

    Ray does so by itself where it has no clusters (macOS, Windows), for a firewall would ask; on
    Linux it listens on every interface, whatever address it is given.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if name in os.environ:  # somebody has decided
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[name]
        ray_constants.ENABLE_RAY_CLUSTER = before


def make_token_private() -> None:
    """Let only its owner read Ray's token file, which Ray makes with the mode of any file.

    If Ray is about to make one, it is made here. Where neither can be done, Ray says why.
    """
    path = Path.home() / ".ray" / "auth_token"
    wanted = os.environ.get("RAY_AUTH_MODE", "token") == "token"
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    with contextlib.suppress(OSError):
        if path.is_file():
            path.chmod(0o600)
        elif wanted and not elsewhere:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_name(f"auth_token.{os.getpid()}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(draft, flags, 0o600), "w") as file:
                file.write(token_hex(32))
            try:
                os.link(draft, path)  # of two that start at once, one makes it
            finally:
                draft.unlink()


def token() -> str | None:
    """Ray's authentication token, from where Ray itself looks for it.

    Raises:
        UserError: ``RAY_AUTH_TOKEN_PATH`` names no file.
    """
    if found := os.environ.get("RAY_AUTH_TOKEN"):
        return found.strip()
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    if path.is_file():
        return path.read_text().strip()
    if given:
        raise UserError("RAY_AUTH_TOKEN_PATH", f"there is no {given}")
    return None


def _import_meanwhile() -> None:
    """Import what the driver needs next while ``ray.init`` waits, which saves seconds."""
    import raycl.report.main  # noqa: F401


def bundles(resources: Mapping[str, float]) -> list[dict[str, float]]:
    """The bundles that a trial asks Ray for: its own process, then each env runner."""
    own = {kind.upper(): resources[kind] for kind in ("cpu", "gpu") if resources.get(kind)}
    if resources.get("memory"):
        own["memory"] = resources["memory"] * GB
    return [own, *[{"CPU": 1.0}] * int(resources.get("env_runners", 0))]


def _check(plans: Sequence[Preview], nodes: Sequence[dict[str, float]]) -> None:
    for plan in plans:
        for kind, key, unit, of in (
            ("gpu", "GPU", "GPUs", 1.0),
            ("cpu", "CPU", "CPUs", 1.0),
            ("memory", "memory", "GB", GB),
        ):
            wanted = plan.resources.get(kind, 0.0)
            largest = max((node.get(key, 0.0) / of for node in nodes), default=0.0)
            if wanted > largest:
                what = f"trial {plan.name} asks for {wanted:g} {unit}; "
                raise TooMuch(plan, kind, f"{what}the largest node has {largest:.4g}")
        _check_at_once(plan, nodes)
        _check_runners(plan, nodes)


def _check_at_once(plan: Preview, nodes: Sequence[dict[str, float]]) -> None:
    """Refuse a trial for which one node has enough of this, another of that, and none of all."""
    own, *_ = bundles(plan.resources)
    if any(_holds(node, own) for node in nodes):
        return
    units = {"cpu": "CPUs", "gpu": "GPUs", "memory": "GB of memory"}
    asked = [(kind, plan.resources[kind]) for kind in units if plan.resources.get(kind)]
    words = " and ".join(f"{wanted:g} {units[kind]}" for kind, wanted in asked)
    what = f"trial {plan.name} asks for {words} at once; no node has all of that"
    raise TooMuch(plan, "gpu" if plan.resources.get("gpu") else "cpu", what)


def _holds(node: Mapping[str, float], bundle: Mapping[str, float]) -> bool:
    return all(node.get(kind, 0.0) >= n for kind, n in bundle.items())


def _check_runners(plan: Preview, nodes: Sequence[dict[str, float]]) -> None:
    """Refuse a trial whose process and env runners do not fit on the nodes at once."""
    own, *runners = bundles(plan.resources)
    if not runners:
        return
    rooms = []
    for i, node in enumerate(nodes):
        if _holds(node, own):
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
