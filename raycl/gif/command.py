"""``raycl gif``: how the policies of a sweep play each game after each game they have learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raycl import atomic
from raycl.datasets.disk import expanded
from raycl.errors import UserError, nearest
from raycl.gif.drawing import Job, draw_cell, draw_grid, draw_methods
from raycl.gif.encode import Gif
from raycl.gif.page import Chapter, Drawn, page, shown, size
from raycl.rl.benchmarks.base import GameSequence, build_games
from raycl.sweep import kinds
from raycl.sweep.execution import cluster
from raycl.sweep.execution.storage import unusable
from raycl.sweep.file import spec
from raycl.sweep.file.blocks import benchmark_configs
from raycl.sweep.plan import expand
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record.folder import SweepFolder
from raycl.tracking import store
from raycl.tracking.names import distinct, file_name
from raycl.trial.checkpoint import CheckpointStore, runs_root

ARTIFACTS = "gifs"


@dataclass(frozen=True)
class Wish:
    """What is to be drawn.

    Attributes:
        seed: Seed of the trials that are drawn; ``None``: the sweep's first.
        methods: Labels; empty: all.
        max_seconds: Seconds of a game's own time, after which it is cut.
        fps: Agent steps shown per second.
        out: Where to; ``None``: ``gifs`` in the sweep's folder.
    """

    seed: int | None = None
    methods: tuple[str, ...] = ()
    max_seconds: float = 60.0
    fps: float = 30.0
    out: Path | None = None


@dataclass(frozen=True)
class Trial:
    """One method on one benchmark.

    Attributes:
        plan: The trial.
        storage: Folder or URL of its checkpoints.
        games: Its sequence.
        count: How many games of it the trial learns.
        learnt: How many it has learnt.
        chapter: Folder of its benchmark, relative to the page: empty, or ending in ``/``.
    """

    plan: TrialPlan
    storage: str
    games: GameSequence
    count: int
    learnt: int
    chapter: str

    @property
    def folder(self) -> str:
        """Folder of the row's pictures, relative to the page."""
        return f"{self.chapter}{self.plan.method}"

    def jobs(self, wish: Wish) -> list[Job]:
        """Every game to be played; those not learnt yet only where they are scored too."""
        method = kinds.GAMES.named("method", self.plan.config["method"])
        # of a separate network that has not begun, which is scored too, no checkpoint is kept
        unseen = self.games.config.evaluation.zero_shot and not method.separate
        return [
            Job(
                self.storage,
                after,
                min(after, game) if method.separate else after,
                game,
                self.games.games[: self.count],
                self.plan.method,
                wish.max_seconds,
                wish.fps,
            )
            for after in range(self.learnt)
            for game in range(self.count if unseen else after + 1)
        ]

    @property
    def note(self) -> str:
        """What has not been learnt yet."""
        if self.learnt == self.count:
            return ""
        return f"{self.learnt} of {self.count} games learnt so far"


def gif(
    name: str, runs: Path | None, address: str | None, tracking_uri: str | None, wish: Wish
) -> int:
    """Draw a sweep's games.

    Returns:
        0; 1 if a game could not be drawn, or the pictures did not reach MLflow.

    Raises:
        UserError: No such sweep, seed or method, a sweep on images, no checkpoint yet, no folder
            or tracking store to write to, or Ray does not answer.
    """
    from raycl.report.main import make_out_folder
    from raycl.tracking.state import store_of

    folder = SweepFolder.existing(runs_root(runs), name)
    uri = store_of(folder.path, tracking_uri).uri
    sweep = spec.load_begun(folder.resolved_file)
    trials, seed = find_trials(sweep, folder, wish)
    out = expanded(wish.out or folder.path / ARTIFACTS, "--out").absolute()
    if wish.out is None and seed != sweep.seeds[0]:
        out = out / f"seed-{seed}"
    make_out_folder(out)
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    for trial in trials:
        if trial.note:
            say(f"{trial.plan.name}: {trial.note}")
    drawable = [trial for trial in trials if trial.learnt]
    with cluster.connect(address, [], folder.storage(sweep.storage), expand.own_files(sweep)):
        chapters = _draw(drawable, wish, seed, say, cluster.hidden(address))
    _write(out, name, seed, wish.fps, chapters)
    problems = _problems(chapters)
    for problem in problems:
        say(f"not drawn: {problem}")
    say(f"pictures: {out / 'index.html'}")
    html = page(name, seed, wish.fps, chapters, embed=True)
    lost = track(folder, uri, out, drawable, html)
    if lost:
        say(f"not in MLflow: {lost}; the same command sends them again")
    return 1 if problems or lost else 0


def _problems(chapters: Sequence[Chapter]) -> list[str]:
    """One line for each game that could not be drawn."""
    return [
        f"{trial.label}, {cell.job.games[cell.job.game]} after "
        f"{cell.job.games[cell.job.after]}: {cell.problem}"
        for chapter in chapters
        for trial in chapter.trials
        for cell in trial.cells
        if cell.problem
    ]


# ---------------------------------------------------------------------- what there is


def find_trials(sweep: spec.Sweep, folder: SweepFolder, wish: Wish) -> tuple[list[Trial], int]:
    """The final trials of the methods and the seed wished for, and the seed.

    Raises:
        UserError: There are none, none has a checkpoint, or the storage does not answer.
    """
    blocks = benchmark_configs(sweep)
    if any(kinds.of(block) is not kinds.GAMES for block in blocks):
        what = f"'{sweep.name}' is a sweep on images; only games can be watched"
        raise UserError("raycl gif", what, f"its figures: raycl report {sweep.name} --out DIR")
    seed = sweep.seeds[0] if wish.seed is None else wish.seed
    if seed not in sweep.seeds:
        valid = ", ".join(map(str, sweep.seeds))
        raise UserError("--seed", f"'{sweep.name}' has no seed {seed}", f"valid: {valid}")
    labels = [entry.label for entry in sweep.methods]
    for method in wish.methods:
        if method not in labels:
            what = f"'{sweep.name}' has no method '{method}'"
            raise UserError("--methods", what, nearest(method, labels))
    plans = [
        plan
        for plan in expand.final_plans(sweep, folder.winners() or {})
        if plan.seed == seed and plan.method in (wish.methods or labels)
    ]
    chapters = distinct((block["label"] for block in blocks), file_name)
    trials = [_trial(sweep, folder, plan, chapters) for plan in plans]
    if not any(trial.learnt for trial in trials):
        what = f"no trial of '{sweep.name}' with seed {seed} has learnt a game yet"
        raise UserError("raycl gif", what, "a checkpoint is kept at the end of each game")
    return trials, seed


def _trial(
    sweep: spec.Sweep, folder: SweepFolder, plan: TrialPlan, chapters: Mapping[str, str]
) -> Trial:
    """The trial of a plan; ``chapters`` are the folders of all benchmarks, by label."""
    storage = f"{folder.storage(sweep.storage)}/{plan.key}"
    games = build_games(plan.config["benchmark"])
    count = min(len(games.games), plan.config["tasks"] or len(games.games))
    try:
        kept = CheckpointStore(storage)
        kept.fs.invalidate_cache()
        names = [Path(path).stem for path in kept.named("after-*.pt")]
    except Exception as error:
        raise unusable(storage, error) from error
    learnt = max((int(name.removeprefix("after-")) + 1 for name in names), default=0)
    ended = {o.key for o in folder.outcomes.all() if o.status == "finished"}
    if plan.key in ended:  # what is missing now was there
        learnt = count
    chapter = f"{chapters[plan.benchmark]}/" if len(chapters) > 1 else ""
    return Trial(plan, storage, games, count, learnt, chapter)


# ---------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class _Pending:
    """References to what is being drawn of one trial."""

    trial: Trial
    cells: list[Any]
    grid: Any


def _draw(
    trials: Sequence[Trial], wish: Wish, seed: int, say: Any, variables: Mapping[str, str]
) -> list[Chapter]:
    """One Ray task for each game, and one for each sheet as soon as its games are there."""
    import ray

    play: Any = ray.remote(num_cpus=1)(draw_cell)
    grid: Any = ray.remote(num_cpus=1)(draw_grid)
    methods: Any = ray.remote(num_cpus=1)(draw_methods)
    pending: dict[str, list[_Pending]] = {}
    last: dict[str, list[Any]] = {}
    for trial in trials:
        plan, jobs = trial.plan, trial.jobs(wish)
        cells = [play.remote(job, variables) for job in jobs]
        title = f"{plan.method} · {plan.benchmark} · seed {seed}"
        found = _Pending(trial, cells, grid.remote(title, *cells))
        pending.setdefault(plan.benchmark, []).append(found)
        last.setdefault(plan.benchmark, []).extend(
            cell for job, cell in zip(jobs, cells, strict=True) if job.after == trial.learnt - 1
        )
    total = sum(len(found.cells) for group in pending.values() for found in group)
    say(f"{total} games are played, {wish.max_seconds:g} s of each at most")
    sheets = {
        benchmark: methods.remote(f"{benchmark} · seed {seed}", *cells)
        for benchmark, cells in last.items()
    }
    return [_chapter(group, sheets[benchmark], say) for benchmark, group in pending.items()]


def _chapter(group: Sequence[_Pending], methods: Any, say: Any) -> Chapter:
    """Wait for the pictures of one benchmark."""
    import ray

    drawn = []
    for found in group:
        trial, cells = found.trial, ray.get(found.cells)
        grid: Gif = ray.get(found.grid)
        drawn.append(Drawn(trial.plan.method, trial.folder, cells, grid, trial.note))
        say(f"{trial.plan.name}: {len(cells)} games, grid {size(grid)}, {shown(grid)}")
    first = group[0].trial
    games, references = first.games.games[: first.count], first.games.references[: first.count]
    sheet: Gif = ray.get(methods)
    return Chapter(first.plan.benchmark, first.chapter, games, references, drawn, sheet)


# ---------------------------------------------------------------------- where it goes


def _write(out: Path, name: str, seed: int, fps: float, chapters: Sequence[Chapter]) -> None:
    """Write every file whole; pictures of an earlier call that are not made again go."""
    for chapter in chapters:
        for trial in chapter.trials:
            folder = out / trial.folder
            for old in [*folder.glob("[0-9][0-9]-*.gif"), *folder.glob("grid.gif")]:
                old.unlink()
            atomic.write(folder / "grid.gif", trial.grid.data)
            for cell in trial.cells:
                if cell.gif is not None:
                    atomic.write(folder / cell.job.file, cell.gif.data)
        atomic.write(out / f"{chapter.folder}methods.gif", chapter.methods.data)
    atomic.write(out / "index.html", page(name, seed, fps, chapters, embed=False))


def track(folder: SweepFolder, uri: str, out: Path, trials: Sequence[Trial], html: str) -> str:
    """Attach the pictures to the trials' runs, and the page to the sweep's.

    Args:
        folder: The sweep's.
        uri: MLflow.
        out: Where the pictures are.
        trials: What was drawn.
        html: The page.

    Returns:
        What went wrong, in one line; empty if nothing did.
    """
    from raycl.report.load import connect, load

    unknown = []
    try:
        sweep = load(folder.name, uri)
        client = connect(uri)
        runs = {run.trial_key: run.run_id for run in sweep.runs}
        for trial in trials:
            if trial.plan.key in runs:
                pictures = str(out / trial.folder)
                client.log_artifacts(runs[trial.plan.key], pictures, ARTIFACTS)
            else:
                unknown.append(trial.plan.name)
        for chapter in sorted({trial.chapter for trial in trials}):
            path = f"{ARTIFACTS}/{chapter}".rstrip("/")
            client.log_artifact(sweep.parent_id, str(out / f"{chapter}methods.gif"), path)
        client.log_text(sweep.parent_id, html, f"{ARTIFACTS}/index.html")
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
        return store.reason(error)
    return f"there is no run of {', '.join(unknown)}" if unknown else ""
