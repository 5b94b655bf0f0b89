"""Which MLflow store a sweep is tracked in, and whether it answers."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import psutil
from requests.utils import get_environ_proxies, select_proxy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from raycl import atomic
from raycl.errors import UserError, nearest, printable
from raycl.secrets import CODES, ENDS, MASK, cut_off, masked, redact, remember, user_end

log = logging.getLogger(__name__)

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https")
ANSWER_S = 5.0
MAKING_S = 60.0
"""Seconds that another process is given to finish the store that it makes."""
MISLEADING = (
    "MLFLOW_ACTIVE_MODEL_ID",  # every metric would be a model's
    "_MLFLOW_ACTIVE_MODEL_ID",
    "MLFLOW_ENABLE_ASYNC_LOGGING",  # calls would return before they fail
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",  # runs would be looked for in another store
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_RUN_CONTEXT",
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_DIR",
    "MLFLOW_TRUNCATE_LONG_VALUES",
)
"""Variables meant for other programs that use MLflow."""


class Store(NamedTuple):
    """Where runs go.

    Attributes:
        uri: Absolute tracking URI.
        artifacts: Where the files of new experiments go; None leaves that to the server.
    """

    uri: str
    artifacts: str | None


def resolve(
    runs: Path,
    uri: str | None = None,
    artifacts: str | None = None,
    used: Store | None = None,
) -> Store:
    """The store to use: the given URI, else MLFLOW_TRACKING_URI, else ``used``, else SQLite.

    A relative SQLite path is taken from the current directory, as MLflow does, and made absolute
    here, because Ray changes the directory of its workers. SQLite lies below ``runs``.

    Args:
        runs: The runs folder.
        uri: As it is asked for. Files that everybody may read have no password in it.
        artifacts: Where the files of new experiments go.
        used: What the sweep was tracked in before: it has the password that ``uri`` may lack. A
            SQLite file that is not there is passed over (``is_there``): the runs have been moved or
            copied.

    Raises:
        UserError: The URI is of no kind that raycl can use, or the folder's name is not UTF-8.
    """
    runs = runs.absolute()
    try:
        str(runs).encode()
    except UnicodeEncodeError as error:
        what = f"MLflow cannot keep runs in '{printable(str(runs))}', whose name is not UTF-8"
        raise UserError("--runs", what, "take another folder") from error
    where = "tracking.uri" if uri else "MLFLOW_TRACKING_URI"
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and MASK in uri:
        if used is None or masked(used.uri) != uri:
            hint = "give the whole URI with --tracking-uri, or set MLFLOW_TRACKING_URI"
            raise UserError(where, f"{uri} is without its password, which no file keeps", hint)
        uri = used.uri
    if not uri and used is not None and is_there(used, runs):
        remember(used.uri)
        return used
    remember(uri or "")
    if not uri:
        uri = _sqlite(runs / "mlflow.db")
    elif kind(uri, where) == "sqlite":
        uri = _sqlite(Path(make_url(uri).database or "").absolute(), uri)
    if artifacts is None and kind(uri, where) not in SERVERS:
        artifacts = (runs / "artifacts").as_uri()
    return Store(uri, artifacts)


def is_there(used: Store, runs: Path) -> bool:
    """Whether the store that a sweep was tracked in is still its own.

    An SQLite file that is gone is not, nor is one that lay beside the runs in another folder than
    ``runs``, an absolute path.
    """
    path = file_of(used.uri)
    beside = path is not None and used.artifacts == (path.parent / "artifacts").as_uri()
    return path is None or (path.is_file() and not (beside and path.parent != runs))


def _sqlite(path: Path, given: str = "sqlite:") -> str:
    """The URI of a file, with the path as it is but for what would be read otherwise.

    MLflow makes the folder that stands in the URI, SQLAlchemy opens the file that it means.
    """
    scheme, _, rest = given.partition(":")
    query = rest.partition("?")[2]
    coded = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", str(path)).replace("?", "%3F")
    return f"{scheme}:///{coded}" + (f"?{query}" if query else "")


@cache
def for_mlflow(uri: str) -> str:
    """The URI to give to MLflow: where a path needs escapes, a link without them leads to the file.

    Without it MLflow makes a folder called as the path is written in the URI. The link lives as
    long as this process.
    """
    if kind(uri) != "sqlite" or "%" not in uri.partition("?")[0]:
        return uri
    path = make_url(uri).database or ""
    if _sqlite(Path(path)) == f"sqlite:///{path}":
        return _sqlite(Path(path), uri)  # escapes that nobody needs
    plain = (p for p in (tempfile.gettempdir(), "/tmp", "/var/tmp") if not re.search("[%?]", p))
    folder = tempfile.mkdtemp(prefix="raycl-mlflow-", dir=next(plain))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder) / "mlflow.db"
    link.symlink_to(path)
    return _sqlite(link, uri)


def kind(uri: str, where: str = "tracking.uri") -> str:
    """The scheme of a usable tracking URI, without its driver: ``sqlite``, ``http``, ...

    Raises:
        UserError: Any other.
    """
    remember(uri)
    _check_quoting(uri, where)
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises if it is no number
    except ValueError as error:
        raise UserError(where, f"not a URI: {uri}: {error}") from None
    scheme = parts.scheme.split("+")[0]
    if scheme in ("", "file"):
        raise UserError(
            where,
            f"MLflow no longer keeps runs in plain files ({uri})",
            f"use sqlite:///{os.sep}absolute/path/mlflow.db or the http address of a server",
        )
    if scheme not in DATABASES + SERVERS:
        raise UserError(
            where, f"unknown kind of tracking store {uri}", nearest(scheme, DATABASES + SERVERS)
        )
    if scheme in DATABASES:
        try:
            database = make_url(uri).database
        except (ArgumentError, ValueError) as error:
            raise UserError(where, f"not a database URI: {uri}: {error}") from None
        if scheme == "sqlite" and database in (None, "", ":memory:"):
            raise UserError(where, "a SQLite store must be a file", "sqlite:////absolute/path")
    return scheme


def _check_quoting(uri: str, where: str) -> None:
    """Refuse a secret that would be taken for a host, a port or a path, or end the URI in text."""
    rest = uri.partition("://")[2]
    user = rest[: max(user_end(rest), 0)]
    if ENDS.search(user) or re.search(r"[/?#@\[\]]", user):
        what = "the password has a character that URIs use themselves"
        codes = "@ as %40, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D"
        raise UserError(where, what, f"write {codes}, {CODES}")
    if what := cut_off(uri):
        raise UserError(where, what, f"write {CODES}")


def shown(uri: str) -> str:
    """The URI without its password, for messages; without the user, where it is a server's."""
    if uri.startswith("sqlite"):
        return unquote(masked(uri))
    scheme, _, rest = masked(uri).partition("://")
    return f"{scheme}://{rest[user_end(rest) + 1 :]}" if scheme in SERVERS else masked(uri)


def file_of(uri: str) -> Path | None:
    """The file of an SQLite store; ``None`` for any other."""
    return Path(make_url(uri).database or "") if kind(uri) == "sqlite" else None


class Away(UserError):
    """Nobody answers at the address of a tracking server."""


def check(uri: str) -> None:
    """Make sure that the tracking store answers; takes a few seconds at most.

    A SQLite file that does not exist yet is made later, by the writer thread; here only its folder
    is made.

    Raises:
        UserError: It does not answer, names the URI and the reason.
    """
    scheme = kind(uri)
    if scheme == "sqlite":
        path = Path(make_url(uri).database or "")
        if not path.is_absolute():
            raise UserError("tracking.uri", f"{uri} is relative", f"sqlite:///{path.absolute()}")
        if not _usable(path, uri):
            return
        _clear_half_made(path)
        if not path.exists():
            return
    else:
        _reach(uri, scheme)
    quiet()
    from mlflow import MlflowClient

    with _environment(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT=f"{ANSWER_S:.0f}"
    ):
        try:
            MlflowClient(for_mlflow(uri)).search_experiments(max_results=1)
        except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
            what = f"{shown(uri)} does not work: {reason(error)}"
            if scheme != "sqlite" and _is_elsewhere(uri, scheme):
                raise Away("tracking.uri", what) from None
            raise UserError("tracking.uri", what, _REFILL if scheme == "sqlite" else "") from None


_REFILL = "if it is damaged, move it away: a new one is filled from the sweeps' own folders"


def make(uri: str) -> None:
    """Make an SQLite store that is not there; it appears whole or, if this is killed, not at all.

    Making its tables takes seconds. Two that do so at once end up with the store of the faster one.
    """
    if kind(uri) != "sqlite":
        return
    path = Path(make_url(uri).database or "")
    if path.exists() and path.stat().st_size:
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for old in path.parent.glob(f".{path.name}.*.tmp"):
        if not psutil.pid_exists(int(old.suffixes[-2][1:])):
            old.unlink(missing_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft_uri = for_mlflow(_sqlite(draft, uri))
        make_store: Any = SqlAlchemyStore
        make_store(draft_uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        if path.exists() and not path.stat().st_size:
            path.unlink()
        try:
            os.link(draft, path)
        except OSError:  # another process was faster, or the file system has no hard links
            if not path.exists():
                draft.replace(path)
        atomic.sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _clear_half_made(path: Path) -> None:
    """Move away an SQLite file whose making was cut short: it has no experiment, not even MLflow's.

    A process that still makes it is waited for.

    Raises:
        UserError: Another program's tables are in it, or its making does not end.
    """
    deadline = time.monotonic() + MAKING_S
    while _is_half_made(path):
        if not _open_elsewhere(path):
            aside = _free(path.with_name(f"{path.name}.half-made"))
            path.replace(aside)
            for end in ("-journal", "-wal", "-shm"):  # they belong to that file
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{path}{end}").replace(f"{aside}{end}")
            log.warning("%s was never finished, and holds nothing: moved to %s", path, aside.name)
            return
        if time.monotonic() > deadline:
            what = f"{path} is being made by another process for {MAKING_S:.0f} s already"
            raise UserError("tracking.uri", what, "end that process, then run this again")
        time.sleep(0.5)


def _is_half_made(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=ANSWER_S)) as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in found if not name.startswith("sqlite_")}
            if "experiments" in tables:
                return not connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchall()
    except sqlite3.DatabaseError:
        return False  # it is something else, which MLflow will say
    if foreign := sorted(tables - _tables()):
        what = f"{path} is no store of MLflow: it has a table '{foreign[0]}'"
        raise UserError("tracking.uri", what, "give another file")
    return True


def _tables() -> set[str]:
    """Names of the tables of a store."""
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.dbmodels import models

    assert models  # importing them fills the metadata
    return {"alembic_version", *Base.metadata.tables}


def _free(path: Path) -> Path:
    """The path, or the first of ``path-2``, ``path-3``, ... that is not there."""
    names = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _open_elsewhere(path: Path) -> bool:
    """Whether another process of this user has a file open."""
    mine = os.getpid()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != mine and any(f.path == str(path) for f in process.open_files()):
                return True
    return False


def existing(uri: str) -> None:
    """Make sure that there is something to read; unlike MLflow this never creates a store.

    Raises:
        UserError: There is no such SQLite file, or the store does not answer.
    """
    if kind(uri) != "sqlite":
        check(uri)
    elif not (path := Path(make_url(uri).database or "")).is_file():
        raise UserError("tracking.uri", f"there is no {path}", "has a sweep been run here?")


def _usable(path: Path, uri: str) -> bool:
    """Whether an SQLite file is there already; its folder is made and tried."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "tracking.uri", f"cannot make the folder of {shown(uri)}: {error}"
        ) from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError("tracking.uri", f"{path} cannot be written")
    return path.exists() and path.stat().st_size > 0


def _is_elsewhere(uri: str, scheme: str) -> bool:
    """Whether a store is reached through a proxy, or through a socket of the file system."""
    if scheme in SERVERS:
        return select_proxy(uri, get_environ_proxies(uri, no_proxy=None)) is not None
    return not urlsplit(uri).hostname


def _reach(uri: str, scheme: str) -> None:
    """Open a connection, so that an address nobody listens on fails at once."""
    parts = urlsplit(uri)
    if _is_elsewhere(uri, scheme):
        return
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
    try:
        address = (parts.hostname or "localhost", parts.port or ports[scheme])
        socket.create_connection(address, timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise Away(
            "tracking.uri",
            f"no tracking server answers at {shown(uri)} ({error})",
            "start it, or leave the URI out to track in a local SQLite file",
        ) from None


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def quiet() -> None:
    """Set MLflow up for use inside the driver, for the whole process; the user's settings win.

    No retries inside a call (the writer retries by itself, and a call must not hang for minutes),
    nothing printed, no usage statistics sent. Variables that change what calls mean are taken away.
    """
    for name in MISLEADING:
        os.environ.pop(name, None)
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):  # in case MLflow was imported before
        logging.getLogger(name).setLevel(logging.ERROR)
    # a traceback for every statement that a database refuses; it raises, and we say it once
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


_NETWORK = re.compile(r"\[Errno -?\d+\] [^'\")]+|(Read|Connect) timed out[^'\")]*")


def reason(error: Exception) -> str:
    """One line that says why a store failed, without the layers a network error is wrapped in."""
    text = str(error) or type(error).__name__
    found = _NETWORK.search(text)
    return " ".join(redact(found.group() if found else text.split("\n[SQL")[0]).split())[:300]
