"""A PostgreSQL of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.waiting import free_port

PASSWORD = "pass word/1"  # one that has to be quoted in a URL
QUOTED_PASSWORD = quote(PASSWORD, safe="")


@contextmanager
def running() -> Iterator[int]:
    """Port of a PostgreSQL with a user and a database ``mlflow``; skips where there is none."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl) is installed")
    as_other: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:  # it refuses to run as root
        if not shutil.which("setpriv"):
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        shutil.chown(folder, "nobody")
        as_other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    port = free_port()
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    data, options = folder / "data", f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"

    def run(program: str, *arguments: str) -> None:
        command = [*as_other, str(programs / program), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    who = ["--username=mlflow", f"--pwfile={folder}/password", "--auth=scram-sha-256"]
    run("initdb", f"--pgdata={data}", *who, "--encoding=UTF8", "--no-sync")
    run("pg_ctl", f"--pgdata={data}", f"--log={folder}/log", "-o", options, "--wait", "start")
    try:
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        create = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
        subprocess.run([*create, "mlflow"], env=environment, check=True)
        yield port
    finally:
        run("pg_ctl", f"--pgdata={data}", "--mode=immediate", "--wait", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """Folder of initdb and pg_ctl."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if found := shutil.which("pg_ctl"):
        places.append(Path(found).resolve().parent)
    return next((p for p in places if (p / "initdb").exists() and (p / "pg_ctl").exists()), None)
