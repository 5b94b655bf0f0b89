"""Accidents drawn from a seed, which happen to a sweep until it is done."""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.conftest import Lab
from tests.faults.test_tracker_lost import kill_server, serve
from tests.waiting import free_port, until_answered

COUNTED = '''
"""Fine-tuning whose steps are counted, whoever takes them."""

import os
import time

import torch
from fragile import HERE, Fragile


class Counted(Fragile):
    """Counted (2026). Departures: none."""

    class Config(Fragile.Config):
        """Options."""

        scale: float = 1.0

    def __init__(self, config, context):
        super().__init__(config, context)
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))

    def objective(self, task):
        """Cross-entropy, scaled; a step is written down before its loss is used."""
        loss = super().objective(task)
        who = f"{self.config.scale!r}/{self.context.data_generator.initial_seed()}"

        def counted(batch):
            value = self.config.scale * loss(batch)
            self.taken += 1
            with (HERE / "steps" / str(os.getpid())).open("a") as file:
                file.write(f"{who} {int(self.taken)} {time.time()}\\n")
            return value

        return counted
'''

SHARES = {"worker": 12, "driver": 1, "ray": 1, "tracker": 1.5, "disk": 1}
"""How often each accident is drawn, relative to the others."""
STEPS = 150
"""Mean number of steps of all trials from one accident to the next: a busy machine is not killed
before it has begun."""
LONGEST_S, DOUBLED = 60.0, 4
"""Seconds after which an accident happens however few steps were made, so that some fall into a
start; and how often in a row that time is doubled, so that in the end something does start."""
AWAY_S = (5.0, 40.0)
"""How long the tracking server is away, and the disk full; drawn evenly."""
PATIENCE_S = 1800.0
"""No step of any trial for so long: the sweep is stuck."""
LEFT_S = 90.0
"""How soon the processes of a driver that is gone must be gone, on a busy machine."""
BY_RAY = ("Failed to register worker to Raylet", "Attempting to recover")
"""Ray's library may end the driver by itself, with 1: while Ray starts, and when a raylet that has
lost an agent says good-bye before the driver has noticed (see ``ray_here.Watch``)."""
AS_NICE = {"RAY_worker_niceness": "0"}
"""Trials are as nice as their driver; Ray's default, 15 more, starves them on a busy machine."""
LINE = 36
"""Bytes that ``Counted`` writes for a step, about."""
FULL = "No space left on device"


@dataclass
class Chaos:
    """A command that is started again and again while things happen to it.

    Attributes:
        lab: Where.
        command: Of raycl; the tracking server is added.
        seed: Of the accidents.
        minutes: After so many nothing more happens, and the command comes to its end.
        disk: Whether ``lab.runs`` is a file system of its own, which may be filled.
        happened: How often each accident did.
        exits: How often the command ended with which code.
        log: What happened when, a line each.
    """

    lab: Lab
    command: tuple[str, ...]
    seed: int
    minutes: float
    disk: bool
    happened: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.began = time.monotonic()
        self.server: subprocess.Popen[bytes] | None = None
        self.driver: subprocess.Popen[str] | None = None
        self.since: set[str] = set()
        self.repairs: list[tuple[float, str, Callable[[], None]]] = []
        self.families: list[tuple[float, list[psutil.Process]]] = []
        self.seen, self.last_step = 0, self.began

    # ------------------------------------------------------------------ what is drawn

    def accidents(self) -> Iterator[tuple[float, str, float, float]]:
        """Steps before it, what, which one (0 to 1), and for how long; the same for each seed."""
        chooser = random.Random(self.seed)
        names = [name for name in SHARES if name != "disk" or self.disk]
        while True:
            yield (
                chooser.expovariate(1 / STEPS),
                chooser.choices(names, [SHARES[name] for name in names])[0],
                chooser.random(),
                chooser.uniform(*AWAY_S),
            )

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Until the command ends with 0; afterwards the server is there, and the disk empty."""
        try:
            self.find_tracker()
            until_answered(f"http://127.0.0.1:{self.port}/health", self.server)
            self.start()
            doubled = 0
            for pause, name, which, how_long in self.accidents():
                steps, late = self.steps() + pause, time.monotonic() + LONGEST_S * 2**doubled
                while not (ended := self.over()) and time.monotonic() < late:
                    self.look()
                    if self.steps() >= steps:
                        break
                    time.sleep(0.1)
                if ended:
                    break
                if time.monotonic() - self.began > 60 * self.minutes:
                    continue
                doubled = 0 if self.steps() >= steps else min(doubled + 1, DOUBLED)
                self.cause(name, which, how_long)
            self.repair(now=True)
            until_answered(f"http://127.0.0.1:{self.port}/health", self.server)
            self.gone(wait=True)
        finally:
            self.end()

    @contextlib.contextmanager
    def tracker(self) -> Iterator[None]:
        """The server once more, for what is left to be sent."""
        try:
            self.find_tracker()
            until_answered(f"http://127.0.0.1:{self.port}/health", self.server)
            yield
        finally:
            self.end()

    def end(self) -> None:
        """Leave nothing behind."""
        self.empty()
        if self.server is not None:
            kill_server(self.server)
            self.server = None

    def start(self) -> None:
        """The command, for the first time or again."""
        self.since = {"disk"} if self.eater.exists() else set()
        self.output = self.lab.path / f"driver-{self.exits.total():03d}.log"
        with self.output.open("w") as file:
            self.driver = self.lab.start(
                *self.command, "--tracking-uri", self.uri, to=file, **AS_NICE
            )

    def over(self) -> bool:
        """Whether the command has done all there is; if it has ended, it is judged."""
        assert self.driver is not None
        code = self.driver.poll()
        if code is None:
            return False
        self.exits[code] += 1
        said = self.output.read_text()
        last = said.splitlines()[-1] if said else ""
        self.note(f"the driver ended with {code}: {last[:150]}")
        self.judge(code, said)
        if code == 0:
            return True
        self.start()
        return False

    def judge(self, code: int, said: str) -> None:
        """Only a documented end that has a cause is one."""
        allowed = {0}
        if "driver" in self.since:
            allowed.add(-signal.SIGKILL)
        if "ray" in self.since:
            allowed |= {3, 1} if any(line in said for line in BY_RAY) else {3}
        if "disk" in self.since and FULL in said:
            allowed |= {1, 2}
        assert code in allowed, f"exit code {code} after {self.since or 'nothing'}:\n{said}"
        assert "Traceback" not in said, said
        assert "failed: " not in said, said

    def look(self) -> None:
        """What is due is repaired; what is stuck or left behind is an error."""
        self.repair()
        self.gone()
        steps = self.steps()
        if steps > self.seen:
            self.seen, self.last_step = steps, time.monotonic()
        waited = time.monotonic() - self.last_step
        assert waited < PATIENCE_S, f"stuck:\n{self.output.read_text()}"

    def steps(self) -> int:
        """About how many steps have been taken: lines of one length, nearly."""
        return sum(path.stat().st_size for path in (self.lab.path / "steps").iterdir()) // LINE

    def gone(self, wait: bool = False) -> None:
        """Nothing of a driver that has ended is left."""
        for entry in list(self.families):
            deadline, family = entry
            left = [process for process in family if alive(process)]
            while left and wait and time.monotonic() < deadline:
                time.sleep(0.5)
                left = [process for process in left if alive(process)]
            assert not left or time.monotonic() < deadline, f"left behind: {left}"
            if not left:
                self.families.remove(entry)

    # ------------------------------------------------------------------ accidents

    def cause(self, name: str, which: float, how_long: float) -> None:
        """Have one of them; one that nobody is there for is left out."""
        done = {
            "worker": lambda: self.kill_one("worker", which),
            "ray": lambda: self.kill_one("ray", which),
            "driver": self.kill_driver,
            "tracker": lambda: self.lose_tracker(how_long),
            "disk": lambda: self.fill(how_long),
        }[name]()
        if done:
            self.happened[name] += 1
            self.since.add(name)
            self.note(done)

    def family(self) -> dict[str, list[psutil.Process]]:
        """The driver's descendants: trials' workers and Ray's own processes."""
        found: dict[str, list[psutil.Process]] = {"worker": [], "ray": [], "other": []}
        assert self.driver is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.driver.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    line = " ".join(process.cmdline())
                    other = "reaper.py" in line or not line  # raycl's own watchman
                    worker = line.startswith("ray::") and "Agent" not in line
                    kind = "other" if other else "worker" if worker else "ray"
                    found[kind].append(process)
        return found

    def kill_one(self, kind: str, which: float) -> str:
        processes = sorted(self.family()[kind], key=lambda process: process.pid)
        if not processes:
            return ""
        victim = processes[int(which * len(processes))]
        with contextlib.suppress(psutil.NoSuchProcess):
            name = f"{victim.name()} {' '.join(victim.cmdline())[:60]}"
            victim.kill()
            return f"killed {kind}: {victim.pid} {name}"
        return ""

    def kill_driver(self) -> str:
        assert self.driver is not None
        family = [process for group in self.family().values() for process in group]
        self.families.append((time.monotonic() + LEFT_S, family))
        self.driver.kill()
        self.driver.wait()
        return f"killed the driver, {len(family)} processes below it"

    def lose_tracker(self, how_long: float) -> str:
        if self.server is None:
            return ""
        kill_server(self.server)
        self.server = None
        self.later(how_long, "the tracking server comes back", self.find_tracker)
        return f"killed the tracking server for {how_long:.0f} s"

    def find_tracker(self) -> None:
        self.server = serve(self.lab.path, self.port)

    @property
    def eater(self) -> Path:
        return self.lab.runs / ".eater"

    def fill(self, how_long: float) -> str:
        if self.eater.exists():
            return ""
        with self.eater.open("wb") as file:
            size = os.statvfs(self.lab.runs).f_bavail * os.statvfs(self.lab.runs).f_bsize
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
            with contextlib.suppress(OSError):  # what has been given back meanwhile
                while True:
                    os.write(file.fileno(), b"\0" * 4096)
        self.later(how_long, "the disk is empty again", self.empty)
        return f"filled the disk for {how_long:.0f} s"

    def empty(self) -> None:
        self.eater.unlink(missing_ok=True)

    def later(self, how_long: float, what: str, call: Callable[[], None]) -> None:
        heapq.heappush(self.repairs, (time.monotonic() + how_long, what, call))

    def repair(self, now: bool = False) -> None:
        while self.repairs and (now or self.repairs[0][0] < time.monotonic()):
            _, what, call = heapq.heappop(self.repairs)
            call()
            self.note(what)

    def note(self, text: str) -> None:
        line = f"{time.monotonic() - self.began:7.1f} s  {text}"
        self.log.append(line)
        print(line, flush=True)


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
