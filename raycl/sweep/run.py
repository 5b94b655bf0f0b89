"""A sweep from its file to its table: search, then final trials, continued where they stood."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raycl import datasets, yaml12
from raycl.atomic import Damaged
from raycl.datasets.base import Dataset
from raycl.errors import NO_ROOM, UserError
from raycl.secrets import redact
from raycl.sweep.execution import cluster, signals
from raycl.sweep.execution.ray_here import RayDied
from raycl.sweep.execution.storage import Lease
from raycl.sweep.file import spec
from raycl.sweep.plan import expand
from raycl.sweep.plan.check_data import check_data, data_of, read_weights
from raycl.sweep.plan.expand import Preview
from raycl.sweep.plan.plan import TrialPlan
from raycl.sweep.record import local, made_of
from raycl.sweep.record.folder import HASH, SweepFolder
from raycl.sweep.record.made_of import MadeOf
from raycl.sweep.record.outcomes import Outcome, Recorder
from raycl.sweep.record.provenance import Provenance
from raycl.sweep.record.tracked import Tracked, sweep_record
from raycl.sweep.record.winners import Labels, choose_winners
from raycl.tracking import state, store
from raycl.tracking.records import SweepStatus
from raycl.tracking.tracker import Tracker
from raycl.trial.checkpoint import TRIALS, runs_root

if TYPE_CHECKING:
    from raycl.sweep.execution.events import Hub

CLOSE_TIMEOUT_S = 60.0
NAMED = 10
"""Largest number of missing trials that are named."""


def run(
    sweep_path: Path,
    overrides: list[str],
    smoke: bool,
    address: str | None,
    runs: Path | None,
    data_root: Path | None,
    tracking_uri: str | None,
    accept_changes: bool = False,
) -> int:
    """Start a sweep, or continue what is there under its name.

    Returns:
        0 all trials finished and are in the table; 1 some did not; 3 Ray died; 130 interrupted.

    Raises:
        UserError: Something is wrong with the file, the arguments or the surroundings.
    """
    sweep = spec.load(sweep_path, overrides, smoke)
    folder = SweepFolder(runs_root(runs), sweep.name)
    return Execution(sweep, folder, address, data_root, tracking_uri, accept_changes).run()


def resume(
    name: str,
    runs: Path | None,
    address: str | None,
    data_root: Path | None,
    tracking_uri: str | None,
    accept_changes: bool = False,
) -> int:
    """Continue a sweep by its name, and run its failed trials again."""
    folder = SweepFolder.existing(runs_root(runs), name)
    with folder.lock():
        mended = folder.mend()
    sweep = spec.load_begun(folder.resolved_file)
    execution = Execution(sweep, folder, address, data_root, tracking_uri, accept_changes)
    execution.mended(mended)
    return execution.run(retry_errors=True)


class Execution:
    """One invocation of a sweep.

    Args:
        sweep: What to run.
        folder: Where it lives.
        address: Ray cluster, see ``cluster.connect``.
        data_root: Where data sets lie; default: see ``datasets.data_root``.
        tracking_uri: MLflow; default: the sweep file's, ``MLFLOW_TRACKING_URI``, or SQLite.
        accept_changes: Go on although code or data are not what the sweep was begun with.
    """

    def __init__(
        self,
        sweep: spec.Sweep,
        folder: SweepFolder,
        address: str | None,
        data_root: Path | None,
        tracking_uri: str | None,
        accept_changes: bool = False,
    ) -> None:
        self.accept_changes = accept_changes
        self.made_of: MadeOf | None = None
        self.repaired: list[str] = []
        self.sweep, self.folder, self.address = sweep, folder, address
        self.data_root = (data_root or datasets.data_root()).resolve()
        self.used = state.used(folder.path)
        self.store = store.resolve(folder.root, tracking_uri or sweep.tracking.uri, used=self.used)
        if store.file_of(self.store.uri) == folder.path.absolute():
            what = f"'{sweep.name}' is the file of the tracking store, {self.store.uri}"
            raise sweep.source.error(("name",), what, "choose another name")
        self.storage = folder.storage(sweep.storage)
        self.console = Console(stderr=True)
        self.reopened = False
        self.broken = ""
        self.lost = self.unsent = 0
        self.hub: Hub | None = None
        self.tracker: Tracker | None = None
        self.accepted: list[str] = []
        self.data: Mapping[str, Dataset] = {}

    def run(self, retry_errors: bool = False) -> int:
        """Run everything, in order; what can be refused is refused before Ray starts."""
        try:
            with signals.raised():
                return self._run(retry_errors)
        except cluster.TooMuch as error:
            raise self._placed(error) from error
        except KeyboardInterrupt:  # before anything was under way, or when all was over
            return self._interrupted()
        except OSError as error:
            self._no_room(error)
            return self._stopped()

    def mended(self, lines: Sequence[str]) -> None:
        """Say which files were damaged, now and at the end."""
        self.repaired += lines
        for line in lines:
            self._say(line)

    def _placed(self, error: cluster.TooMuch) -> UserError:
        """The error, pointing at the line that asks for this resource."""
        path: tuple[str | int, ...] = ("resources", error.resource)
        for i, entry in enumerate(self.sweep.methods):
            if entry.label == error.method and error.resource in entry.resources:
                path = ("methods", i, *path)
        return self.sweep.source.error(path, error.what, error.hint)

    def _run(self, retry_errors: bool) -> int:
        data = self.data = check_data(self.sweep, self.data_root)
        self._check_store()
        requests = expand.preview(self.sweep)
        if cluster.is_local(self.address):
            cluster.fits_here(requests)
        with self.folder.lock():
            self.mended(self.folder.mend())
            self.outcomes = self.folder.outcomes  # nobody else writes any more
            spec_hash, resolved = expand.spec_hash(self.sweep), self.sweep.resolved()
            self.folder.check(spec_hash, resolved)
            self.mended(self._mend_winners())
            self.reopened = retry_errors and bool(self._without_winner())
            again = self._again_by_resume() if retry_errors else []
            if again or self._missing_search() or self._missing_final():
                self._accept(MadeOf.of(self.sweep, self.data_root, self.folder.root))
                return self._with_cluster(requests, data, again)
            self._forget([])
            self._say("every trial is over; nothing to run")
            return self._conclude(*self._tracked(None))

    def _again_by_resume(self) -> list[Outcome]:
        """Failed trials, and those of a search whose time was over before anything finished."""
        cut = self.sweep.search.time_budget is not None
        return self.outcomes.unfinished(self._open_kinds(), self._without_winner(), cut)

    def _forget(self, again: Sequence[Outcome]) -> None:
        """Change the files of outcomes, when nothing can be refused any more."""
        plans = self._final_plans() if self.outcomes.damaged else None
        final = None if plans is None else {plan.key for plan in plans}
        self.mended(self.outcomes.set_aside(final))
        self.outcomes.forget(again)
        failed = sum(one.status == "error" for one in again)
        if failed:
            self._say(f"{failed} failed trials run again")
        if len(again) > failed:
            self._say(f"{len(again) - failed} trials go on that the time of the search cut short")

    def _check_store(self) -> None:
        """Make sure that there is a tracking store; one that was there before may be away for now.

        Raises:
            UserError: There is none.
        """
        try:
            store.check(self.store.uri)
        except store.Away as error:
            if self.used is None or self.used.uri != self.store.uri:
                raise
            self._say(f"{error.what}; values wait in {self.folder.path}")
        if self.used is not None and self.used.uri != self.store.uri:
            new, old = store.shown(self.store.uri), store.shown(self.used.uri)
            self._say(f"tracked in {new} from the beginning; it was tracked in {old} before")

    def _mend_winners(self) -> list[str]:
        """Choose the winners again if their file is damaged: what finals ran with, else as then."""
        try:
            self.folder.winners()
        except Damaged as error:
            search = self.sweep.search
            chosen = {}
            if searches := expand.searches(self.sweep):
                known = self.outcomes.all()
                chosen = choose_winners(known, search.metric, search.mode, search.seeds)
                ran = [outcome for outcome in known if outcome.kind == "winner"]
                chosen |= {searches[one.benchmark, one.method]: one.varied for one in ran}
            self.folder.record_winners(chosen)
            return [f"{error.path} {error.what}: written again from the outcomes"]
        return []

    def _accept(self, now: MadeOf) -> None:
        """Refuse to go on with other code, data or weights of a hub than the sweep was begun with.

        Raises:
            UserError: They differ, and that was not accepted.
        """
        before = self.folder.made_of()
        if before is not None and self.folder.begun and not before.weights:
            now = replace(now, weights={})  # begun by a raycl that did not record them
        if before is not None and self.folder.begun:  # nor networks of one's own by a bare name
            now = replace(now, code={k: v for k, v in now.code.items() if k in before.code})
        self.made_of = now
        changed = now.changes(before) if before is not None else []
        if changed and self.folder.begun and not self.accept_changes:
            what = f"'{self.sweep.name}' was begun with other code or data: {', '.join(changed)}"
            hint = "put them back, or choose another name, or go on with --accept-changes"
            raise UserError("name", what, hint)
        if changed and self.folder.begun:
            self._say(f"accepted: {', '.join(changed)} changed since the sweep was begun")
            self.accepted = changed

    def _with_cluster(
        self, requests: Sequence[Preview], data: Mapping[str, Dataset], again: Sequence[Outcome]
    ) -> int:
        lease = Lease(self.storage, self.folder.sweep_id, self.folder.path)
        own_files = expand.own_files(self.sweep)
        where = (self.address, requests, self.storage, own_files, self._stuck)
        ended = None
        try:
            with lease.held(), cluster.connect(*where):
                self._forget(again)
                ended = self._tracked(data)
        except RayDied:
            if ended is None:
                self._say(f"{cluster.DIED}; {self._again}")
                return cluster.RAY_DIED
        finally:
            if lease.taken_by:
                self._say(f"stopped: {self.storage} was taken over by {lease.taken_by}")
        assert ended is not None
        return self._conclude(*ended)

    def _stuck(self) -> None:
        """End everything from another thread: the main one waits in Ray's library for the dead."""
        if self.hub is not None:
            self.hub.end_all("killed")
        if self.tracker is not None:
            self.tracker.close("KILLED", CLOSE_TIMEOUT_S)
        self._say(f"{cluster.DIED}; {self._again}")
        os._exit(cluster.RAY_DIED)

    # ------------------------------------------------------------------ stages

    def _tracked(self, data: Mapping[str, Dataset] | None) -> tuple[SweepStatus, int]:
        """Run what is missing under the tracker; how it went, and how many values are unsent."""
        resolved = self.sweep.resolved()
        spec_hash = expand.spec_hash(self.sweep)
        sweep_id = self.folder.claim(spec_hash, resolved)
        if self.made_of is not None:
            self.folder.record_made_of(self.made_of, self.accepted)
        tags = {HASH: spec_hash}
        if changes := self.folder.changes():
            tags["changes"] = "; ".join(changes)
        text = yaml12.dump(resolved)
        record = sweep_record(self.sweep, sweep_id, text, tags)
        tracker = self.tracker = Tracker(record, self.folder.path, *self.store)
        status: SweepStatus = "KILLED"
        tracker.start(local.ends(self.folder, self.outcomes.all()))
        try:
            if data is not None:
                self._on_cluster(data, tracker)
            lacks = self._failed()[0] or self._without_winner() or self._missing_final()
            status = "FAILED" if lacks else "FINISHED"
            self._forget_shared()
        except cluster.Interrupted:
            pass
        except cluster.Broken as error:
            self.broken = str(error)
        except OSError as error:
            self._no_room(error)
        finally:
            with signals.unheard():
                unsent = tracker.close(status, CLOSE_TIMEOUT_S)
                self.lost = tracker.lost
        return status, unsent

    def _on_cluster(self, data: Mapping[str, Dataset], tracker: Tracker) -> None:
        from raycl.sweep.execution.events import Hub
        from raycl.sweep.execution.stage import Stage
        from raycl.sweep.execution.stages import Stages
        from raycl.sweep.execution.trainable import Settings

        sweep, folder = self.sweep, self.folder.path
        relative = self.storage if sweep.storage else TRIALS
        provenance = Provenance(sweep, data)
        for line in provenance.lines():
            self._say(line)
        assert self.made_of is not None
        key = {"made_of": self.made_of.key}

        def tags(plan: TrialPlan) -> dict[str, str]:
            return provenance.tags(plan) | key

        # an outcome is tracked
        hub = Hub([Tracked(tracker, relative, tags), Recorder(self.outcomes, tags)])
        self.hub = hub
        settings = Settings(
            storage=self.storage,
            every_s=sweep.checkpoint.every_s,
            keep=sweep.checkpoint.keep,
            metric=sweep.search.metric,
            mode=sweep.search.mode,
            execution=uuid.uuid4().hex,
            variables=cluster.hidden(self.address),
            made=made_of.driver(data),
            made_of=self.made_of,
        )
        retries, grace_s = sweep.failures.max_retries, sweep.checkpoint.grace_s
        scratch, weights = folder / "tune" / "last", read_weights(sweep)
        stage = Stage(data_of(sweep, data), settings, retries, grace_s, scratch, hub, weights)
        stages = Stages(sweep, self.folder, self.outcomes, stage, data, self.console, self._say)
        try:
            if self._missing_search():
                stages.search()
                self.reopened = False
            stages.final(self._final_plans() or [])
        except (KeyboardInterrupt, OSError):
            hub.end_all("killed")
            raise

    def _forget_shared(self) -> None:
        """Delete all states that trials have left for others, which none needs any more."""
        from raycl.sweep.execution.prefixes import remove

        remove(self.storage)

    # ------------------------------------------------------------------ what is left

    def _winners(self) -> dict[Labels, dict[str, Any]] | None:
        """Winners of the search; none needed: empty; not chosen yet: ``None``."""
        return self.folder.winners() if expand.searches(self.sweep) else {}

    def _missing_search(self) -> bool:
        return self.reopened or self._winners() is None

    def _without_winner(self) -> list[Labels]:
        """Groups whose search is over and has finished no configuration."""
        winners = self._winners()
        searched = dict.fromkeys(expand.searches(self.sweep).values())
        return [] if winners is None else [group for group in searched if group not in winners]

    def _final_plans(self) -> list[TrialPlan] | None:
        winners = self._winners()
        return None if winners is None else expand.final_plans(self.sweep, winners)

    def _missing_final(self) -> bool:
        plans = self._final_plans()
        return plans is None or any(plan.key not in self.outcomes for plan in plans)

    def _open_kinds(self) -> set[str]:
        """Failed search trials run again only until winners are chosen, or for want of one."""
        return {"trial", "winner"} | ({"search"} if self._winners() is None else set())

    def _failed(self) -> tuple[list[Outcome], list[Outcome]]:
        """Failed trials that ``resume`` runs again, and those of searches that have a winner."""
        again = self.outcomes.unfinished(self._open_kinds(), self._without_winner())
        keys = {o.key for o in again}
        found = [o for o in self.outcomes.all() if o.status == "error"]
        return again, [o for o in found if o.key not in keys]

    # ------------------------------------------------------------------ the end

    def _conclude(self, status: str, unsent: int) -> int:
        name = self.sweep.name
        failed, passed_over = self._failed()
        for outcome in failed:
            self._say(f"failed: {outcome.name} {outcome.error}")
        for outcome in passed_over:
            self._say(f"failed, so the search chose among others: {outcome.name} {outcome.error}")
        if self.lost:
            self._say(
                f"{self.lost} values could not be written to {self.folder.path}, and are lost"
            )
        if unsent > self.lost:
            self._say(
                f"{unsent - self.lost} values did not reach {store.shown(self.store.uri)}; they "
                f"are kept in {self.folder.path} and sent by: raycl sync {name}"
            )
        if self.broken:
            return self._stopped()
        if status == "KILLED":
            return self._interrupted()
        without = self._without_winner()
        for benchmark, method in without:
            self._say(f"not in the table: {method} on {benchmark}; its search finished nothing")
        if self.sweep.search.time_budget is not None and without:
            self._say(f"give the search as much time again with: raycl resume {name}")
        self.unsent = unsent
        complete = self._report()
        if failed:
            self._say(f"{len(failed)} failed; run them again with: raycl resume {name}")
        self._say(f"runs: {self.folder.path}   compare them in a browser: raycl ui")
        for line in self.repaired:
            self._say(f"repaired: {line}")
        return 0 if status == "FINISHED" and complete else 1

    @property
    def _again(self) -> str:
        """Words that say how to continue the sweep, or to start it if it has not begun."""
        begun = self.folder.spec_file.is_file()
        name = self.sweep.name
        return f"continue with: raycl resume {name}" if begun else "nothing had begun; run it again"

    def _no_room(self, error: OSError) -> None:
        """Note that a disk is full or read-only; anything else is a fault, and is raised."""
        if error.errno not in NO_ROOM:
            raise error
        self.broken = str(error)

    def _stopped(self) -> int:
        self._say(f"stopped: results cannot be kept: {self.broken}")
        begun = self.folder.spec_file.is_file()
        self._say(f"when that is put right, {self._again}" if begun else self._again)
        return 1

    def _interrupted(self) -> int:
        self._say(f"interrupted; {self._again}")
        return 130

    def _report(self) -> bool:
        """Print the table from what there is, and write the report; whether it is all there."""
        from raycl.sweep.printed import print_report

        width = self.console.is_terminal
        printed = print_report(self.folder, self.store.uri, not self.unsent, width, self._say)
        lacks = [plan.name for plan in self._final_plans() or [] if plan.key not in printed.trials]
        if lacks:
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            self._say(f"not in the table: {', '.join(lacks[:NAMED])}{more}")
        return printed.written and not lacks

    def _say(self, text: str) -> None:
        try:
            self.console.print(redact(text), highlight=False, markup=False, soft_wrap=True)
        except OSError:  # the terminal is gone
            signals.abandon(2)
