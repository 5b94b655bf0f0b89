"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_every_file_and_target_exists() -> None:
    titles = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", README, re.M)}
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link[1:] in titles if link.startswith("#") else (ROOT / link).exists(), link
    targets = set(re.findall(r"\bmake ([a-z]+)", README + MAP))
    makefile = (ROOT / "Makefile").read_text()
    known = {"quickstart", "format", "quick", "check", "test", "lint", "bench", "install"}
    for target in targets & known:
        assert f"\n{target}:" in makefile
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
