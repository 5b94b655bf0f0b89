"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from raycl.cli import app
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.testing import MethodConformance

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAP = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
PAGES = [ROOT / ".github" / "CONTRIBUTING.md", ROOT / "tests" / "README.md"]
RESULTS = ROOT / "sweeps" / "README.md"
PAGES += [RESULTS, *sorted((ROOT / "sweeps").glob("*/README.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def calls(program: str, text: str) -> list[list[str]]:
    """What stands behind a program's name, word by word, in code blocks and between back-quotes."""
    fenced = re.compile(r"^```(.*)\n([\s\S]*?)^```$", re.MULTILINE)
    code = [c for c in re.findall(r"`([^`]*)`", fenced.sub("", text)) if c.startswith(program)]
    for language, block in fenced.findall(text):
        code += [] if language else block.splitlines()
    lines = [line.split(" # ")[0] for line in code]
    return [part.split() for line in lines for part in re.split(rf"\b{program} ", line)[1:]]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The method of the README, in a file, in the current directory."""
    (code,) = [b for b in blocks("python") if "LabelSmoothing(Classifier)" in b]
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "test", [t for t in dir(MethodConformance) if t.startswith("test_") and t != "test_docstring"]
)
def test_the_method_conforms(mine: Path, test: str) -> None:
    suite = type("Suite", (MethodConformance,), {"method": "mine.py:LabelSmoothing"})()
    getattr(suite, test)()


def test_the_sweep_file_is_valid(mine: Path) -> None:
    (text,) = [b for b in blocks("yaml") if "mine.py:LabelSmoothing" in b]
    path = mine / "smoothing.yaml"
    path.write_text(text)
    sweep = spec.load(path)
    # the learning rate is searched for both, the smoothing for one
    assert {len(group.spaces) for group in expand.groups(sweep)} == {1, 2}
    assert len(expand.search_plans(sweep)) == 2 * 8


def test_the_search_on_another_stream_is_valid(tmp_path: Path) -> None:
    (text,) = [b for b in blocks("yaml") if "dataset: glyphs" in b]
    (tmp_path / "tuned.yaml").write_text(f"name: tuned\nnetwork: mlp\n{text}")
    sweep = spec.load(tmp_path / "tuned.yaml")
    assert {plan.benchmark for plan in expand.search_plans(sweep)} == {"split-glyphs-5"}
    assert {plan.benchmark for plan in expand.final_plans(sweep, {})} == {"split-digits-5"}


def test_the_plain_loop_runs(tmp_path: Path) -> None:
    (code,) = [b for b in blocks("python") if "toy_data()" in b]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.split()]
    assert len(losses) == 10
    assert losses[4] < losses[0]


def test_every_command_exists() -> None:
    commands = re.findall(
        r"^(?:\$ )?raycl ([a-z]+)|`raycl ([a-z]+)[ `]|  raycl ([a-z]+)", README, re.M
    )
    words = {word for found in commands for word in found if word}
    listing = subprocess.run(
        [sys.executable, "-m", "raycl", "--help"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"^  ([a-z]+)  ", listing, re.MULTILINE))
    assert {"run", "resume", "report", "ui", "sync", "data", "doctor"} <= words
    assert words <= known, words - known


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.parent.name)
def test_every_option_exists(page: Path) -> None:
    """An option that a page shows behind a command is one of that command."""
    root: Any = typer.main.get_command(app)
    for name, *words in calls("raycl", page.read_text()):
        command = root.commands[name]
        if hasattr(command, "commands"):
            command = command.commands[words[0]]
        known = {option for one in command.params for option in one.opts}
        shown = set(re.findall(r"(?<!\S)\[?(--[a-z-]+)", " ".join(words)))
        assert shown <= known, f"raycl {name}: {shown - known}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.parent.name)
def test_every_target_exists(page: Path) -> None:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {name for name, *_ in calls("make", page.read_text())}
    assert targets <= set(known), targets - set(known)


def test_targets_and_options_are_found() -> None:
    assert ["bench"] in calls("make", README)
    assert {"quickstart", "install", "check"} <= {name for name, *_ in calls("make", README + MAP)}
    (run,) = [words for words in calls("raycl", README) if words[:2] == ["run", "SWEEP"]]
    assert {"[--smoke]", "[--accept-changes]"} <= set(run)


def test_every_file_exists() -> None:
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", README, re.M)}
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link[1:] in titles if link.startswith("#") else (ROOT / link).exists(), link
    for path in re.findall(r"\bsweeps/[a-z/_-]+\.yaml", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path = link.partition("#")[0]
        assert path.startswith("http") or (page.parent / path).exists(), link


def test_the_page_of_results_has_every_sweep_once() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", RESULTS.read_text()) if ".yaml" in link]
    sweeps = [path for path in RESULTS.parent.rglob("*.yaml") if path.parent.name != "cluster"]
    assert sorted(links) == sorted(str(path.relative_to(RESULTS.parent)) for path in sweeps)


def test_the_map_names_every_package_and_module() -> None:
    inside = ROOT / "raycl"
    packages = [*inside.glob("*/__init__.py"), *(inside / "sweep").glob("*/__init__.py")]
    for package in packages:
        assert f"`{package.parent.relative_to(ROOT)}/`" in MAP
    for module in inside.glob("[!_]*.py"):
        assert module.name in MAP
    for path in re.findall(r"`((?:raycl|envs|sweeps|tests)/[a-z_/.]*)`", MAP):
        assert (ROOT / path).exists(), path


def test_the_sweep_of_games_is_valid(tmp_path: Path) -> None:
    (text,) = [b for b in blocks("yaml") if "name: atari" in b]
    path = tmp_path / "games.yaml"
    path.write_text(text)
    sweep = spec.load(path)
    assert len(expand.final_plans(sweep, {})) == 4 * 3
    spec.load(path, smoke=True)
