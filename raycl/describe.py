"""Prints what ``raycl list``, ``raycl show`` and ``--dry-run`` are asked for."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raycl import yaml12
from raycl.datasets import Entry
from raycl.datasets.packages import Package
from raycl.errors import Problem, UserError, nearest
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.file.json_schema import inlined
from raycl.sweep.kinds import KINDS, registered
from raycl.sweep.plan import expand
from raycl.sweep.record.folder import SweepFolder

if TYPE_CHECKING:
    from raycl.pack import Result

PLAIN_WIDTH = 160
"""Width in columns where the output is no terminal."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a header; long cells wrap."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console().print(table)


def console() -> Console:
    """A console of rich on standard output."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def print_preview(sweep: spec.Sweep) -> None:
    """Print every trial that would run, its resources, and their number."""
    lines = expand.preview(sweep)
    several = len({line.benchmark for line in lines}) > 1
    asked = ["cpu", "gpu"]
    asked += [n for n in ("memory", "env_runners") if any(line.resources[n] for line in lines)]
    columns = [
        "stage",
        "trial",
        *(["benchmark"] if several else []),
        "seed",
        "values",
        *(name.replace("_", " ") for name in asked),
    ]
    rows = [
        [
            line.stage,
            line.name,
            *([line.benchmark] if several else []),
            line.seed,
            _values(line.varied),
            *(f"{line.resources[name]:g}" for name in asked),
        ]
        for line in lines
    ]
    print_table(columns, rows)
    stages = Counter(line.stage for line in lines)
    print(
        f"\n{len(lines)} trials of {sweep.name}: {stages['search']} search, {stages['final']} final"
    )


def print_packed(result: Result) -> None:
    """Print throughput by trials at a time, and the best setting as a line of a sweep file."""
    base = next((row.rate for row in result.rows if row.rate), 0.0)
    memory = "GPU MB of each" if result.device.gpu else "MB of each"
    columns = ["at a time", "cpu", "gpu", "threads", result.unit, "of each", "times", memory, ""]
    cells: list[list[Any]] = []
    for row in result.rows:
        told = ["", "", "", "", row.problem]
        if row.rate:
            each, times = f"{row.rate / row.trials:,.0f}", f"{row.rate / base:.2f}"
            what = "as in the file" if row is result.present else ""
            told = [f"{row.rate:,.0f}", each, times, f"{row.memory_mb:,.0f}", what]
        share = [f"{row.asked[kind]:g}" for kind in ("cpu", "gpu")]
        cells.append([row.trials, *share, row.threads, *told])
    what = "one GPU" if result.device.gpu else "the CPUs of one node"
    print(f"{result.plan.method} on {result.plan.benchmark}: trials at a time on {what}\n")
    print_table(columns, cells)
    best, present = result.best, result.present
    if best is None:
        return
    epochs = "the epoch" if result.epochs == 1 else f"the {result.epochs} epochs"
    print(f"\nrates: {epochs} after the first of each trial, evaluation included")
    print(f"best: {_asked(best.asked)}")
    if present is best:
        print("which is what the file asks for")
    elif present is not None:
        ratio = present.rate / best.rate
        print(f"trials of {result.plan.method} would take {ratio:.2f} of the time they take now")


def _asked(asked: Mapping[str, float]) -> str:
    """The resources of a trial as a line of a sweep file."""
    return f"resources: {{cpu: {asked['cpu']:g}, gpu: {asked['gpu']:g}}}"


def _values(varied: Mapping[str, Any] | str) -> str:
    if isinstance(varied, str):
        return varied
    texts = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in varied.values())
    return " ".join(f"{path}={text}" for path, text in zip(varied, texts, strict=True))


def print_registered(what: str) -> None:
    """Print all methods, benchmarks or networks, each with the first line about it."""
    block = what.removesuffix("s")
    rows = []
    for kinds, name, cls in registered(block):
        about = _doc(cls).partition("\n")[0]
        extra = [_settings(cls), _memory(cls), _networks(cls)] if block == "method" else []
        rows.append([name, kinds, *extra, about])
    extra = ["settings", "memory", "networks"] if block == "method" else []
    print_table([block, "for", *extra, "what it is"], rows)


def _settings(method: Any) -> str:
    """Readouts of a method on images; empty for games, which have one readout only."""
    return ", ".join(sorted(getattr(method, "settings", ())))


def _memory(method: Any) -> str:
    return str(getattr(method, "memory", None) or "")


def _networks(method: Any) -> str:
    """Whether a method on images can go on in another network, or only in the one it began with."""
    changes = getattr(method, "any_network", None)
    return "" if changes is None else "any" if changes else "one"


def print_class(kind: str, name: str) -> None:
    """Print one method, benchmark or network: its documentation and its options.

    A name that several kinds of trials have is shown for each.
    """
    for i, (kinds, cls) in enumerate(_classes(kind, name)):
        print(f"{'' if i == 0 else chr(10)}{name} ({kind}, for {kinds})\n\n{_doc(cls)}\n")
        if _settings(cls):
            print(f"settings: {_settings(cls)}")
            print(f"memory: {_memory(cls) or 'none'}")
            if cls.predictors:
                print(f"predictors: {', '.join(cls.predictors)}")
            print(f"networks: {_networks(cls)}\n")
        columns = ["option", "type", "default", "bounds", "meaning"]
        print_table(columns, options(inlined(cls.Config)))


def _classes(block: str, name: str) -> list[tuple[str, Any]]:
    """Kinds and class of everything that has a name."""
    if ":" not in name:
        known = registered(block)
        if classes := [(kinds, cls) for kinds, other, cls in known if other == name]:
            return classes
        hint = nearest(name, {other for _, other, _ in known})
        raise UserError(f"raycl show {block}", f"unknown {block} '{name}'", hint)
    problems = []
    classes = []
    for kind in KINDS:
        try:
            classes.append((kind.name, kind.named(block, {"name": name})))
        except Problem as problem:
            problems.append(problem)
    if not classes:
        raise UserError(f"raycl show {block}", problems[0].what, problems[0].hint)
    return classes


def options(schema: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Name, type, default, bounds and meaning of each option of a JSON schema, nested ones too."""
    rows = []
    required = schema.get("required", ())
    for name, part in schema["properties"].items():
        if name == "name" and not prefix:
            continue
        default = "required" if name in required else _yaml(part.get("default"))
        inner = next((p for p in _branches(part) if "properties" in p), None)
        kind = _type(part)
        about = part.get("description", "")
        rows.append([prefix + name, kind, default, _bounds(part), about])
        if inner is not None:
            rows += options(inner, f"{prefix}{name}.")
    return rows


def _branches(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [inner for p in part.get("anyOf", ()) for inner in _branches(p)] or [part]


def _type(part: Mapping[str, Any]) -> str:
    types = []
    for branch in _branches(part):
        if "enum" in branch or "const" in branch:
            types += [str(v) for v in branch.get("enum", [branch.get("const")])]
        elif branch.get("type") == "array":
            kinds = dict.fromkeys(_type(item) for item in _items(branch))
            types.append(f"list of {' | '.join(kinds) or 'any'}")
        else:
            types.append("mapping" if "properties" in branch else str(branch.get("type", "any")))
    return " | ".join(types)


def _items(branch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Schemas of a list's elements: one for all, or one for each."""
    return [branch["items"]] if "items" in branch else list(branch.get("prefixItems", ()))


def _bounds(part: Mapping[str, Any]) -> str:
    words = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
        "minItems": "items ≥",
        "maxItems": "items ≤",
    }
    parts = [p for branch in _branches(part) for p in (branch, *_items(branch))]
    bounds = [f"{word} {p[key]:g}" for p in parts for key, word in words.items() if key in p]
    return ", ".join(dict.fromkeys(bounds))


def _yaml(value: Any) -> str:
    text = yaml12.dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def print_sweeps(folder: Path) -> None:
    """Print the sweep files of a folder and its sub-folders."""
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        print(f"no sweep files in {folder.absolute()}")
        return
    rows = []
    for path in files:
        try:
            sweep = spec.load(path)
        except UserError as error:
            rows.append([path, "", f"error: {error}"])
            continue
        methods = ", ".join(entry.label for entry in sweep.methods)
        about = sweep.description or f"{methods} on {', '.join(_labels(sweep))}"
        rows.append([path, len(expand.preview(sweep)), about])
    print_table(["sweep", "trials", "what it is"], rows)


def _labels(sweep: spec.Sweep) -> list[str]:
    return [config["label"] for config in benchmark_configs(sweep)]


def print_runs(root: Path) -> None:
    """Print the sweeps that were started, and how their trials ended."""
    rows = []
    for path in sorted(root.glob("[!.]*/spec.json")):
        folder = SweepFolder(root, path.parent.name)
        ends = Counter(outcome.status for outcome in folder.outcomes.all())
        changed = max(map(_changed, (path, *path.parent.glob("outcomes/*.json"))))
        if not changed:  # the folder is being removed
            continue
        when = datetime.fromtimestamp(changed, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        rows.append([folder.name, ends["finished"], ends["stopped-early"], ends["error"], when])
    if not rows:
        print(f"no runs in {root}; raycl run SWEEP starts one")
        return
    print_table(["run", "finished", "stopped early", "failed", "last change"], rows)


def _changed(path: Path) -> float:
    """When a file was changed; 0 if it was removed after it was listed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def print_sweep(path: Path) -> None:
    """Print a sweep file with short forms written out and defaults filled in; it can be run."""
    print(yaml12.dump(spec.load(path).resolved(), allow_unicode=True), end="")


def print_data(entries: Iterable[Entry]) -> None:
    """Print the data sets, and whether they are there."""
    rows = [
        [
            entry.name,
            entry.classes or "",
            "x".join(map(str, entry.shape or ())),
            "yes" if entry.present else "no",
            entry.location,
        ]
        for entry in entries
    ]
    print_table(["data set", "classes", "shape", "there", "where"], rows)


def print_packages(packages: Mapping[str, Package]) -> None:
    """Print weights that have a package, their networks, and whether they are installed."""
    rows = [
        [
            name,
            f"timm {package.model} ({package.about})",
            "yes" if package.installed() else "no",
            f"{{package: {package.distribution}, resource: {package.resource}, rename: order}}",
        ]
        for name, package in packages.items()
    ]
    print_table(["weights", "of", "there", "in a sweep: network.weights"], rows)
