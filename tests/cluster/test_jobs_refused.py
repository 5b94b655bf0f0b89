"""What `raycl submit` refuses, because it would fail only inside the job; no cluster is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl import jobs
from raycl.errors import UserError
from raycl.sweep.execution import cluster
from raycl.sweep.file import spec

METHOD = "from raycl.methods.finetune import Finetune\n\n\nclass Mine(Finetune):\n    pass\n"
NETWORK = "from raycl.networks.mlp import MLP\n\n\nclass Net(MLP):\n    pass\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a file of one's own above it, in it, and in its runs folder."""
    found = tmp_path / "here"
    (found / "runs" / "s").mkdir(parents=True)
    for folder in (tmp_path, found, found / "runs"):
        (folder / "mine.py").write_text(METHOD)
        (folder / "net.py").write_text(NETWORK)
    monkeypatch.chdir(found)
    for name in ("RAYCL_RUNS", "RAYCL_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return found


def check(path: str = "s.yaml", **changes: Any) -> None:
    sweep = {
        "name": "s",
        "benchmark": {"name": "split", "dataset": "digits", "tasks": 2},
        "methods": ["mine.py:Mine"],
        "network": {"name": "net.py:Net", "hidden": [8]},
    }
    Path(path).write_text(yaml.safe_dump(sweep | changes))
    wish = jobs.Wish(Path(path), [], False, None, None, None)
    jobs._check(spec.load(wish.sweep, []), wish)


def test_what_the_job_gets_is_accepted(here: Path) -> None:
    check()
    check(str(here / "s.yaml"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"network": {"name": "../net.py:Net"}}, r"^\.\./net\.py: is not below .*here, and a job"),
        ({"methods": ["../mine.py:Mine"]}, r"^\.\./mine\.py: is not below "),
        ({"methods": ["{here}/mine.py:Mine"]}, r"/mine\.py: is absolute, .*; write mine\.py$"),
        ({"methods": ["runs/mine.py:Mine"]}, r"^runs/mine\.py: is none of the files that a job"),
        ({"path": "runs/s/sweep.yaml"}, r"^runs/s/sweep\.yaml: is none of the files that a job"),
    ],
)
def test_what_the_job_would_not_find_is_refused(
    here: Path, changes: dict[str, Any], said: str
) -> None:
    if "methods" in changes:
        changes = {"methods": [name.format(here=here) for name in changes["methods"]]}
    with pytest.raises(UserError, match=said):
        check(**changes)


def test_files_that_ray_ignores_stay_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".gitignore").write_text("secret.yaml\n")
    (here / "below").mkdir()
    (here / "below" / ".rayignore").write_text("*.txt\n")
    names = ("secret.yaml", "below/a.txt", "below/secret.yaml", "data/s.yaml", "a.gif", ".env")
    names += (".env.local", "runs/s/a.json", "mlruns/0/meta.yaml", "mlflow.db", "below/a.pt")
    names += (".venv/bin/python", "below/.venv/a.py")
    assert not any(cluster.is_uploaded(Path(name)) for name in names)
    names = ("s.yaml", "a.txt", "below/s.yaml", "sweeps/data/s.yaml")
    assert all(cluster.is_uploaded(Path(name)) for name in names)
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert cluster.is_uploaded(Path("secret.yaml"))
