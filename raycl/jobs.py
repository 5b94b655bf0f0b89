"""Sweeps as Ray jobs: the driver runs on the cluster, and this machine may go away."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import make_url

from raycl import secrets
from raycl.errors import UserError, nearest
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.run import CLOSE_TIMEOUT_S
from raycl.terminal import clock
from raycl.tracking import store

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

SWEEP = "raycl.sweep"
"""Key of a job's metadata that names its sweep."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
POLL_S = 1.0
LOST_LIMIT = 5
"""How many times in a row the connection to a job may break."""
IN_ORDER = ("continue with: raycl resume", "nothing had begun")
"""What a driver says at its end when it was stopped and could save."""
CODES = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


@dataclass(frozen=True)
class Wish:
    """What is to be run; paths of ``runs`` and ``data`` are those of the cluster.

    Attributes:
        sweep: A sweep file below the current directory.
        overrides: ``a.b=c``.
        smoke: As small as can be.
        runs, data: Folders, absolute; ``None``: below the driver's home, see ``cluster.at_home``.
        tracking_uri: MLflow.
        accept_changes: See ``raycl.sweep.run.run``.
    """

    sweep: Path
    overrides: Sequence[str]
    smoke: bool
    runs: Path | None
    data: Path | None
    tracking_uri: str | None
    accept_changes: bool = False


def submit(wish: Wish, address: str | None, wait: bool | None) -> int:
    """Have a cluster run a sweep; the current directory goes with it.

    Args:
        wish: What to run.
        address: The cluster's dashboard; default: what Ray's own command would use.
        wait: ``None``: follow the log to the end; ``True``: wait for the end without it;
            ``False``: return at once.

    Returns:
        The driver's exit code; 0 if nothing is waited for, 130 after Ctrl-C.

    Raises:
        UserError: The file or an argument is wrong, or the cluster does not answer.
    """
    sweep = spec.load(wish.sweep, list(wish.overrides), wish.smoke)
    _check(sweep, wish)
    client = connect(address)
    job = _send(client, sweep, wish)
    print(f"job {job} runs {sweep.name}; its page: {client.get_address()}/#/jobs/{job}")
    uri = wish.tracking_uri or sweep.tracking.uri or cluster.passed_on().get("MLFLOW_TRACKING_URI")
    if uri:
        print(f"tracked in {store.shown(uri)}")
    if wait is False:
        _how_to_attach(job, address)
        return 0
    return _to_the_end(client, job, address, quietly=bool(wait))


def attach(which: str, address: str | None) -> int:
    """Follow the log of a job, from its beginning to its end; its exit code."""
    client = connect(address)
    return _to_the_end(client, str(_find(client, which).submission_id), address, quietly=False)


def jobs(address: str | None) -> list[list[str]]:
    """Every job of the cluster, the newest first: id, sweep, state, start, length, exit code."""
    rows = []
    for job in _all(connect(address)):
        start, end = (job.start_time or 0) / 1000, (job.end_time or time.time() * 1000) / 1000
        began = datetime.fromtimestamp(start).astimezone().strftime("%Y-%m-%d %H:%M")
        code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
        name = (job.metadata or {}).get(SWEEP, "")
        state = str(job.status.value).lower()
        rows.append([str(job.submission_id), name, state, began, clock(end - start), code])
    return rows


def stop(which: str, address: str | None) -> int:
    """End a job in order: its trials save, its runs are closed as killed.

    Returns:
        0, also if it had not begun, or ended by itself meanwhile; 1 if it had to be killed, so that
        the last minute may be lost.
    """
    client = connect(address)
    job = _find(client, which)
    name = str(job.submission_id)
    if job.status.is_terminal():
        print(f"{name} is over: {job.status.value.lower()}")
        return 0
    waits = int((job.runtime_env or {}).get("env_vars", {}).get(STOP_WAIT, 3))
    print(f"{name} is told to save and to stop; it has {waits} s", flush=True)
    with _answers():
        client.stop_job(name)
        job = _at_its_end(client, name)
        log = client.get_job_logs(name)
    # before its line on the entrypoint come Ray's own words, and after it the driver's
    said = log.partition("Running entrypoint for job")[2].strip().splitlines()[1:]
    if said:
        print(said[-1])
    status = job.status.value
    if status != "STOPPED" and job.driver_exit_code is not None:
        print(f"{name} has ended by itself: {status.lower()}")
        return 0
    in_order = any(words in line for line in said[-5:] for words in IN_ORDER)
    print(f"{name}: {status.lower()}; the same submission continues it")
    return 0 if in_order or not said else 1


# ------------------------------------------------------------------ before


def _check(sweep: spec.Sweep, wish: Wish) -> None:
    """What would mean something else, or nothing, on the cluster."""
    here = Path.cwd().resolve()
    own = [Path(name) for name in expand.python_files(sweep)]
    for path in (wish.sweep, *own):
        if not path.resolve().is_relative_to(here):
            what = f"is not below {here}, and a job gets only the current directory"
            raise UserError(str(path), what, "go to a directory above it")
        if path in own and path.is_absolute():
            what = "is absolute, and the job has the current directory at another place"
            raise UserError(str(path), what, f"write {path.resolve().relative_to(here)}")
        if not cluster.is_uploaded(path):
            what = "is none of the files that a job gets: runs, data, and what .gitignore names"
            raise UserError(str(path), what, "copy it to another place")
    for option, folder in (("--runs", wish.runs), ("--data", wish.data)):
        if folder is not None and not folder.is_absolute():
            what = f"{folder} is relative, and the job runs on another machine"
            raise UserError(option, what, "give an absolute path of the cluster")
    passed = cluster.passed_on()
    for name in ("RAYCL_RUNS", "RAYCL_DATA"):
        if name in passed and not Path(passed[name]).is_absolute():
            what = f"{passed[name]} is relative, and the job runs on another machine"
            raise UserError(name, what, "give an absolute path of the cluster, or unset it")
    for where, uri in (
        ("--tracking-uri", wish.tracking_uri),
        ("tracking.uri", sweep.tracking.uri),
        ("MLFLOW_TRACKING_URI", passed.get("MLFLOW_TRACKING_URI")),
    ):
        file = uri and store.kind(uri, where) == "sqlite" and make_url(uri).database
        if file and not Path(file).is_absolute():
            what = f"{uri} is relative, and the job runs on another machine"
            raise UserError(where, what, "give the http address of a server")


def connect(address: str | None) -> JobSubmissionClient:
    """A client of a cluster's jobs, with the token if the cluster asks for one.

    Raises:
        UserError: Nobody answers, or the cluster does not let us in.
    """
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("modules.job.sdk", "modules.dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.{module}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)
    place = None if address == "auto" else address
    try:
        try:
            return JobSubmissionClient(place)
        except AuthenticationError:  # Ray's clients send no token unless told
            token = cluster.token()
            if token is None:
                raise
            return JobSubmissionClient(place, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError as error:
        raise UserError("--address", "the cluster asks for a token", _token_hint()) from error
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        what = f"no Ray dashboard answers at {address or 'the default address'}: {error}"
        hint = (
            "the port of ray start --dashboard-port, 8265 by default; through a tunnel if need be"
        )
        raise UserError("--address", what, hint) from error


def _token_hint() -> str:
    if cluster.token() is not None:
        return "the one found here is not the cluster's: compare ray get-auth-token on its head"
    return "run ray get-auth-token on its head, and here: export RAY_AUTH_TOKEN=..."


def _send(client: JobSubmissionClient, sweep: spec.Sweep, wish: Wish) -> str:
    relative = wish.sweep.resolve().relative_to(Path.cwd().resolve())
    words = ["run", str(relative)]
    words += [word for override in wish.overrides for word in ("--set", override)]
    words += ["--smoke"] if wish.smoke else []
    words += ["--runs", str(wish.runs)] if wish.runs else []
    words += ["--tracking-uri", wish.tracking_uri] if wish.tracking_uri else []
    words += ["--accept-changes"] if wish.accept_changes else []
    variables = cluster.passed_on() | {
        STOP_WAIT: str(int(sweep.checkpoint.grace_s + CLOSE_TIMEOUT_S) + 10),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    if wish.data:  # trials need it too
        variables["RAYCL_DATA"] = str(wish.data)
    visible, hidden = secrets.split(variables)
    if (shown := [secrets.masked(word) for word in words]) != words:
        hidden[secrets.WORDS] = json.dumps(words)
    environment = {
        "working_dir": ".",
        "excludes": cluster.not_uploaded(),
        "env_vars": visible,
    }
    try:
        with TemporaryDirectory() as folder:
            if hidden:
                environment["py_modules"] = [str(secrets.pack(hidden, Path(folder)))]
            return client.submit_job(
                # the driver needs no GPU; trials see those that Ray gives them
                entrypoint=f"CUDA_VISIBLE_DEVICES= exec python -m raycl {shlex.join(shown)}",
                submission_id=f"raycl-{sweep.name}-{uuid.uuid4().hex[:6]}",
                runtime_env=environment,
                metadata={SWEEP: sweep.name},
            )
    except (RuntimeError, ValueError) as error:  # too large, refused
        raise UserError("raycl submit", " ".join(str(error).split())[:500]) from error


# ------------------------------------------------------------------ after


def _to_the_end(client: JobSubmissionClient, job: str, address: str | None, quietly: bool) -> int:
    try:
        if not quietly:
            _follow(client, job)
        info = _at_its_end(client, job)
    except KeyboardInterrupt:
        print(f"\ndetached; {job} goes on", file=sys.stderr)
        _how_to_attach(job, address)
        return 130
    except _lost() as error:
        print(f"\nthe connection is lost ({error}); {job} may go on", file=sys.stderr)
        _how_to_attach(job, address)
        return 1
    code = info.driver_exit_code
    if quietly or info.status.value != "SUCCEEDED":
        print(f"{job}: {info.status.value.lower()}" + ("" if code is None else f", code {code}"))
    if code is None and info.status.value == "FAILED":
        print(str(info.message or "").strip(), file=sys.stderr)  # it never came to run
    return CODES[info.status.value] if code is None else int(code)


def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print the log as it grows; a connection that breaks is made again."""
    printed, lost = [0], 0
    while True:
        before = printed[0]
        try:
            asyncio.run(_print(client, job, printed))
            return
        except _lost():
            lost = 1 if printed[0] > before else lost + 1
            if lost > LOST_LIMIT:
                raise
            time.sleep(2 * POLL_S)
            if _at_its_end(client, job, wait=False).status.is_terminal():
                print(client.get_job_logs(job)[printed[0] :], end="", flush=True)
                return


def _lost() -> tuple[type[Exception], ...]:
    """Exceptions that mean a broken connection; those of ``requests`` are OSErrors."""
    from aiohttp import ClientError

    return RuntimeError, OSError, ClientError


def _at_its_end(client: JobSubmissionClient, job: str, wait: bool = True) -> JobDetails:
    """What is known of a job, at its end if that is waited for; lost connections are made again."""
    lost = 0
    while True:
        try:
            info = client.get_job_info(job)
            lost = 0
            if not wait or info.status.is_terminal():
                return info
        except _lost():
            lost += 1
            if lost > LOST_LIMIT:
                raise
        time.sleep(2 * POLL_S if lost else POLL_S)


async def _print(client: JobSubmissionClient, job: str, printed: list[int]) -> None:
    """Print what of a log has not been printed; a connection gives it from the beginning."""
    seen = 0
    async for text in client.tail_job_logs(job):
        new = text[max(0, printed[0] - seen) :]
        seen += len(text)
        printed[0] = max(printed[0], seen)
        print(new, end="", flush=True)


def _how_to_attach(job: str, address: str | None) -> None:
    where = f" --address {address}" if address else ""
    print(f"its log: raycl jobs {job}{where}   end it: raycl stop {job}{where}", file=sys.stderr)


@contextmanager
def _answers() -> Iterator[None]:
    try:
        yield
    except _lost() as error:
        raise UserError("--address", " ".join(str(error).split())[:500]) from error


def _all(client: JobSubmissionClient) -> list[JobDetails]:
    with _answers():
        found: list[Any] = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0, reverse=True)


def _find(client: JobSubmissionClient, which: str) -> JobDetails:
    """A job by its id, or the newest of a sweep: of those that are not over, if there are any."""
    known = _all(client)
    names = [(job.metadata or {}).get(SWEEP, "") for job in known]
    of_name = [job for job, name in zip(known, names, strict=True) if name == which]
    alive = [job for job in of_name if not job.status.is_terminal()]
    by_id = [job for job in known if job.submission_id == which]
    for job in (*by_id, *alive, *of_name):
        return job
    hint = nearest(which, {*(str(job.submission_id) for job in known), *filter(None, names)})
    raise UserError("job", f"there is none called '{which}'", hint)
