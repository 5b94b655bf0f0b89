"""Checks whether this machine is fit to run sweeps: one line per question, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import raycl
from raycl.errors import UserError

SLOW_IMPORT_S = 4.0
"""Torch takes 1.7 s with byte code and 4.4 s without, on a quiet machine."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question of ``raycl doctor``.

    Attributes:
        level: ``fail``: sweeps will not work; ``warn``: something is worth doing.
        topic: The thing that was looked at.
        what: The observation.
        cure: The remedy, if there is something to do.
    """

    level: Literal["ok", "warn", "fail"]
    topic: str
    what: str
    cure: str = ""


def examine(runs: Path | None, data_root: Path, tracking_uri: str | None) -> int:
    """Print all findings.

    Args:
        runs: The runs folder as given, or ``None``.
        data_root: The data folder.
        tracking_uri: As given, or ``None``.

    Returns:
        Exit code: 1 if something fails.
    """
    from raycl.trial.checkpoint import runs_root

    root = runs_root(runs)
    findings = []
    for finding in (
        *_python(),
        *packages(Path.cwd() / "constraints.txt"),
        *_hardware(),
        *_torch_import(),
        *_writable(root),
        *_tracking(root, tracking_uri),
        *_orphans(root),
        *ray_token(os.environ, Path.home() / ".ray" / "auth_token"),
        *token_mode(os.environ, Path.home() / ".ray" / "auth_token"),
        *_data(data_root),
    ):
        findings.append(finding)
        cure = f"; {finding.cure}" if finding.cure else ""
        print(f"{finding.level:<5} {finding.topic}: {finding.what}{cure}")
    return int(any(finding.level == "fail" for finding in findings))


def _python() -> Iterator[Finding]:
    text = f"{sys.version.split()[0]} in {sys.prefix}, raycl {raycl.__version__}"
    yield Finding("ok", "python", text)


def packages(constraints: Path, installed: Callable[[str], str] = version) -> Iterator[Finding]:
    """Compare the installed versions with the tested ones.

    Args:
        constraints: A file of ``name==version`` lines; may be absent.
        installed: Package name to version.
    """
    if not constraints.is_file():
        yield Finding("ok", "packages", f"no {constraints.name} here to compare with")
        return
    wanted = dict(
        line.split(";")[0].strip().split("==")
        for line in constraints.read_text().splitlines()
        if "==" in line and not line.lstrip().startswith("#")
    )
    others = []
    for name, tested in wanted.items():
        try:
            found = installed(name)
        except PackageNotFoundError:
            continue  # a constraint is not a requirement
        if found.partition("+")[0] != tested.strip().partition("+")[0]:
            others.append(f"{name} {found} (tested: {tested})")
    if others:
        cure = f"pip install -c {constraints.name} -e ."
        yield Finding("warn", "packages", "other versions than tested: " + ", ".join(others), cure)
    else:
        yield Finding("ok", "packages", f"the versions of {constraints.name}")


def _hardware() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "ok", "cpu", f"{cores} cores, PyTorch would use {torch.get_num_threads()} threads"
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if gpus:
        yield Finding("ok", "gpu", ", ".join(gpus))
    else:
        yield Finding("ok", "gpu", "none that PyTorch sees; trials run on the CPU")


def _torch_import() -> Iterator[Finding]:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    seconds = time.perf_counter() - began
    what = f"a fresh process takes {seconds:.1f} s"
    if seconds > SLOW_IMPORT_S:
        cure = f"if the machine is quiet, compile byte code: python -m compileall -q {sys.prefix}"
        yield Finding("warn", "import torch", what, cure)
    else:
        yield Finding("ok", "import torch", what)


def _writable(root: Path) -> Iterator[Finding]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        cure = "choose another with --runs or RAYCL_RUNS"
        yield Finding("fail", "runs folder", f"{root} cannot be written: {error.strerror}", cure)
    else:
        yield Finding("ok", "runs folder", str(root))


def _tracking(root: Path, uri: str | None) -> Iterator[Finding]:
    from raycl.tracking import store

    try:
        used = store.resolve(root, uri)
        store.check(used.uri)
    except UserError as error:
        yield Finding("fail", "tracking", error.what, error.hint)
    else:
        yield Finding("ok", "tracking", store.shown(used.uri))


def _orphans(root: Path) -> Iterator[Finding]:
    from raycl.tracking.sync import orphans

    open_sweeps = orphans(root)
    for path in open_sweeps:
        what = f"{path.name} has values or ends that MLflow does not know, and no process"
        cure = f"raycl run continues it, raycl sync {path.name} closes it"
        yield Finding("warn", "left behind", what, cure)
    if not open_sweeps:
        yield Finding("ok", "left behind", "no run without its driver")


def ray_token(environment: Mapping[str, str], default: Path) -> Iterator[Finding]:
    """Check Ray's token authentication, whose trap ends in "401" at ``ray job submit``.

    ``ray.init`` turns it on and writes a token; ``ray start`` uses a token that is there; clients
    of Ray Jobs send none unless ``RAY_AUTH_MODE=token`` is set.

    Args:
        environment: Environment variables.
        default: The file in which Ray keeps the token.
    """
    mode, path = environment.get("RAY_AUTH_MODE"), environment.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).is_file():
        what = f"RAY_AUTH_TOKEN_PATH is {path}, which is not there"
        yield Finding("fail", "ray token", what, "unset it, or ray get-auth-token --generate")
    elif mode is not None:
        yield Finding("ok", "ray token", f"RAY_AUTH_MODE={mode}")
    elif environment.get("RAY_AUTH_TOKEN") or path or default.is_file():
        what = "a token exists but RAY_AUTH_MODE is not set: ray job submit would be refused (401)"
        yield Finding(
            "warn", "ray token", what, "export RAY_AUTH_MODE=token before using a cluster"
        )
    else:
        yield Finding("ok", "ray token", "none yet; only clusters need one")


def token_mode(environment: Mapping[str, str], default: Path) -> Iterator[Finding]:
    """Check that nobody else can read Ray's token; the arguments are those of ``ray_token``."""
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or default)
    if file.is_file() and file.stat().st_mode & 0o077:
        what = f"others can read {file}, and run code on clusters that take it"
        yield Finding("warn", "ray token", what, f"chmod 600 {file}")


def _data(root: Path) -> Iterator[Finding]:
    from raycl.datasets import catalogue

    there = [e.name for e in catalogue(root) if e.present and e.classes is not None]
    yield Finding("ok", "data", f"{', '.join(there)} in {root}; raycl data fetch NAME gets others")
