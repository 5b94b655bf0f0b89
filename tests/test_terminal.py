"""Output that cannot fail: encodings, readers that go away, closed descriptors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raycl.terminal import clock

HEAD = "import os, sys; from raycl.terminal import steady; steady()\n"


def run(code: str, tmp_path: Path, shell: str = '"$PYTHON" code.py', **env: str) -> tuple[int, str]:
    (tmp_path / "code.py").write_text(HEAD + code, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        cwd=tmp_path,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
        | env,
        capture_output=True,
    )
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_what_ascii_cannot_print_is_replaced(tmp_path: Path, env: dict[str, str]) -> None:
    code = "print('91.5 ± 0.3 ↑ müller'); print(os.fsdecode(b'caf\\xe9'), file=sys.stderr)"
    assert run(code, tmp_path, **env) == (0, "91.5 +- 0.3 ^ m\\xfcller\ncaf\\udce9\n")


def test_utf_8_is_printed_as_it_is_and_a_name_that_is_not_text_is_escaped(tmp_path: Path) -> None:
    code = "print('± müller', os.fsdecode(b'caf\\xe9'))"
    assert run(code, tmp_path, PYTHONUTF8="1") == (0, "± müller caf\\udce9\n")


def test_rich_prints_its_table_in_ascii(tmp_path: Path) -> None:
    code = (
        "from rich.console import Console; from rich.table import Table\n"
        "t = Table('a ↑', 'b ±'); t.add_row('ü', '1 − 2'); Console(width=40).print(t)"
    )
    status, text = run(code, tmp_path, PYTHONIOENCODING="ascii")
    assert status == 0
    assert "b +-" in text
    assert text.isascii()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path, stream: str) -> None:
    code = (
        "from rich.console import Console; import time\n"
        f"console = Console(file=None, stderr={stream == 'stderr'})\n"
        "for i in range(1500): console.print('line', i); print('line', i, file=sys.STREAM)\n"
        "open('reached', 'w').close()\nsys.exit(7)"
    ).replace("STREAM", stream)
    merged = '"$PYTHON" code.py 2>&1 | head -1'
    assert run(code, tmp_path, merged) == (7, "line 0\n")
    assert (tmp_path / "reached").exists()


def test_closed_descriptors_are_no_files_of_ours(tmp_path: Path) -> None:
    code = (
        "with open('mine', 'w') as file:\n"
        "    print('out'); print('err', file=sys.stderr); os.write(2, b'raw')\n"
        "    sys.stdout.flush(); sys.stderr.flush(); file.write('mine')"
    )
    assert run(code, tmp_path, 'exec "$PYTHON" code.py <&- >&- 2>&-') == (0, "")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_full_disk_below_stdout_is_an_error_and_below_stderr_is_none(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    code = "print('x', file=sys.stderr); sys.stderr.flush(); print('done')"
    assert run(code, tmp_path, '"$PYTHON" code.py 2>/dev/full') == (0, "done\n")
    status, text = run("print('x', flush=True)", tmp_path, '"$PYTHON" code.py >/dev/full')
    assert status != 0
    assert "No space left" in text


def test_the_command_line_with_a_reader_that_goes_away(tmp_path: Path) -> None:
    shell = '"$PYTHON" -m raycl --help | head -1'
    assert run("", tmp_path, shell, PYTHONIOENCODING="ascii")[0] == 0


def test_lengths_of_time() -> None:
    assert [clock(s) for s in (0.2, 65.2, 3599.6, 4866)] == ["0:00", "1:05", "1:00:00", "1:21:06"]
