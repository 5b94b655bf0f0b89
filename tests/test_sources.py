"""Which files stand for the code of somebody's own class."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from raycl import registry
from raycl.methods.base import Method
from raycl.sources import sources

MINE = '''
import json
import numpy
import torch.nn.functional as F
from helper import FACTOR
from lib.deep import loss, nothing_of_this_name
from raycl.methods.finetune import Finetune


class Mine(Finetune):
    """Mine. Departures: none."""

    def objective(self, task):
        import late
        from lib import *

        return super().objective(task)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "helper.py").write_text("import below\nFACTOR = 1.0\n")
    (tmp_path / "below.py").write_text("")
    (tmp_path / "late.py").write_text("raise RuntimeError('looked at, not run')\n")
    lib = tmp_path / "lib"
    (lib / "deep").mkdir(parents=True)
    (lib / "__init__.py").write_text("")
    (lib / "deep" / "__init__.py").write_text("from . import loss\nfrom ..other import x\n")
    (lib / "deep" / "loss.py").write_text("from .. import broken\n")
    (lib / "other.py").write_text("x = 1\n")
    (lib / "broken.py").write_text("this is no Python\n")
    (tmp_path / "unused.py").write_text("")
    importlib.invalidate_caches()
    return tmp_path


FILES = {
    "mine.py": "mine.py",
    "helper": "helper.py",
    "below": "below.py",
    "late": "late.py",
    "lib": "lib/__init__.py",
    "lib.deep": "lib/deep/__init__.py",
    "lib.deep.loss": "lib/deep/loss.py",
    "lib.other": "lib/other.py",
    "lib.broken": "lib/broken.py",
}


def test_everything_that_a_file_imports_and_is_not_installed(here: Path) -> None:
    before = sources("mine.py")
    assert set(before) == set(FILES)
    for name, file in FILES.items():
        content = (here / file).read_text()
        (here / file).write_text(content + "# changed\n")
        changed = sources("mine.py")
        assert [one for one in before if changed[one] != before[one]] == [name]
        (here / file).write_text(content)
    (here / "unused.py").write_text("# changed")
    assert sources("mine.py") == before


def test_a_module_on_the_path_and_one_that_is_installed(here: Path) -> None:
    assert set(sources("helper")) == {"helper", "below"}
    assert sources("raycl.methods.finetune") == {}
    assert sources("torch.nn") == {}
    assert sources("no.such.module") == {}


def test_what_is_imported_under_a_computed_name_while_the_file_is_loaded(here: Path) -> None:
    lines = ["import importlib", "from raycl.methods.finetune import Finetune"]
    lines += [
        "hidden = importlib.import_module('hid' + 'den')",
        "class Mine(Finetune):",
        "    pass",
    ]
    (here / "computed.py").write_text("\n".join(lines) + "\n")
    (here / "hidden.py").write_text("")
    importlib.invalidate_caches()
    registry.find("raycl.methods", Method, "computed.py:Mine")
    assert set(sources("computed.py")) == {"computed.py", "hidden"}
