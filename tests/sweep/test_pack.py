"""``raycl bench pack``: what is measured, what is chosen; and the threads that trials have."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import pytest
import torch
import yaml

from raycl import datasets, describe, pack
from raycl.cli import main
from raycl.pack import Copy, Device, Packed, Result, rated
from raycl.sweep.file import spec
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.plan.plan import TrialPlan
from tests.waiting import until

CORES = os.cpu_count() or 1
METHOD = '''
"""Fine-tuning that tells what it may use, and does not survive company."""

import os
import signal
import time
from pathlib import Path

import torch

from raycl.methods.finetune import Finetune
from raycl.trial.randomness import Seeds

HERE = Path(__file__).parent


class Told(Finetune):
    """Told (2026). Departures: none."""

    class Config(Finetune.Config):
        """Options."""

        tag: str = ""
        fragile: bool = False

    def begin_task(self, task):
        seed = self.context.data_generator.initial_seed()
        threads, omp = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
        line = f"{self.config.tag} {threads} {omp} {os.getpid()} {seed} {task.info.index}"
        with (HERE / "told.txt").open("a") as file:
            file.write(line + "\\n")
        if self.config.fragile and task.info.index == 1 and seed in self.others():
            time.sleep(1)  # its neighbours are measured meanwhile
            if not (HERE / "full").exists():
                (HERE / "full").touch()
                raise MemoryError("no room for a second one")
            os.kill(os.getpid(), signal.SIGKILL)

    def others(self):
        """First numbers of the trials that are not alone."""
        seeds = [Seeds.derive(seed).data for seed in range(1, 4)]
        return [
            int(__import__("numpy").random.SeedSequence(seed).generate_state(3)[0])
            for seed in seeds
        ]
'''


def sweep_file(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "name": "packed",
        "benchmark": {"name": "split", "dataset": {"name": "digits", "limit": 30}, "tasks": 5},
        "methods": ["finetune", "joint"],
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 2, "batch_size": 16, "lr": 0.05},
    } | changes
    (folder / "told.py").write_text(METHOD)
    path = folder / "packed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def plan_of(folder: Path, **changes: Any) -> TrialPlan:
    return pack._plan(spec.load(sweep_file(folder, **changes)), None)


class Started:
    """A command, and all processes that come of it, wherever they are."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid4().hex
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raycl", *arguments],
            cwd=folder,
            env=inherited | {"RAYCL_RUNS": str(folder / "runs"), "RAYCL_MARK": self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def left(self) -> list[psutil.Process]:
        """Processes that run."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("RAYCL_MARK") == self.mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue  # it ended meanwhile
        return found

    def leaves_none(self) -> None:
        """Ray's processes need a moment to see that their driver is gone."""
        until(lambda: not self.left())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def begin(*arguments: str) -> Started:
        started.append(Started(tmp_path, *arguments))
        return started[-1]

    yield begin
    for one in started:
        for process in one.left():
            process.kill()
        one.process.communicate()


# ---------------------------------------------------------------------- what is asked for


def test_equal_shares_are_never_more_than_there_is() -> None:
    device = Device("node", cpus=16, gpu=True, memory=64)
    assert device.share(1) == {"cpu": 16, "gpu": 1}
    assert device.share(3) == {"cpu": 5.3333, "gpu": 0.3333}
    assert Device("node", cpus=2, gpu=False, memory=8).share(4) == {"cpu": 0.5, "gpu": 0}
    for trials in range(1, 1025):
        share = device.share(trials) | {"memory": 0.0}
        assert device.holds(share) >= trials, "what was measured together must fit together"


@pytest.mark.parametrize(
    "asked, trials",
    [
        ({"cpu": 1, "gpu": 0.25, "memory": 0}, 4),
        ({"cpu": 8, "gpu": 0.25, "memory": 0}, 2),
        ({"cpu": 1, "gpu": 0.25, "memory": 30}, 2),
        ({"cpu": 32, "gpu": 0.25, "memory": 0}, 0),
    ],
)
def test_how_many_a_device_holds(asked: dict[str, float], trials: int) -> None:
    assert Device("node", cpus=16, gpu=True, memory=64).holds(asked) == trials


def test_counts_are_powers_of_two_and_one_trial_per_core() -> None:
    assert pack._counts(Device("node", 2, False, 8)) == [1, 2, 4]
    assert pack._counts(Device("node", 6, False, 8)) == [1, 2, 4, 6, 8]
    assert pack._counts(Device("node", 6, True, 8)) == [1, 2, 4, 8]


def test_what_the_file_asks_for_is_measured_as_it_is(tmp_path: Path) -> None:
    device = Device("node", cpus=16, gpu=True, memory=64)

    def requests(counts: list[int], **resources: float) -> list[tuple[int, float, float]]:
        plan = plan_of(tmp_path, resources=resources)
        found = pack._requests(plan, device, counts, device.holds(plan.resources))
        return [(count, asked["cpu"], asked["gpu"]) for count, asked in found]

    assert requests([1, 4], cpu=1, gpu=0.25) == [(1, 16, 1), (4, 1, 0.25), (4, 4, 0.25)]
    assert requests([1], cpu=4, gpu=0.25) == [(1, 16, 1), (4, 4, 0.25)], "for the comparison"
    assert requests([3], cpu=5, gpu=0.33) == [(3, 5, 0.33)], "equal shares come to the same"
    assert requests([1], cpu=32, gpu=1) == [(1, 16, 1)], "more than there is"


# ---------------------------------------------------------------------- what is chosen


def rows(*rates: float) -> list[Packed]:
    return [Packed(2**i, {"cpu": 8 / 2**i, "gpu": 0}, 1, rate=r) for i, r in enumerate(rates)]


@pytest.mark.parametrize(
    "rates, trials",
    [
        ([100, 190, 195, 196], 2),
        ([100, 180, 195, 196], 4),
        ([100, 90, 80, 0], 1),
        ([0, 0, 80, 0], 4),
    ],
)
def test_the_best_is_the_fewest_that_are_almost_the_fastest(
    tmp_path: Path, rates: list[float], trials: int
) -> None:
    found = Result(plan_of(tmp_path), Device("node", 8, False, 8), rows(*rates), 0)
    assert found.best is not None
    assert found.best.trials == trials


def test_rates_are_of_the_same_epochs() -> None:
    cheap, dear = (100, 1.0), (200, 100.0)  # the second epoch is of an expensive phase
    alone = Packed(1, {}, 1, marks=[[cheap, dear]])
    packed = Packed(2, {}, 1, marks=[[(100, 2.0)], [(100, 2.0), (200, 3.0)]])
    failed = Packed(4, {}, 1, problem="MemoryError")
    found = rated([alone, packed, failed])
    assert [row.rate for row in found] == [100, 100, 0], "alone got further, and is not slower"
    assert rated([failed]) == [failed]


def test_the_table_and_the_line_for_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = [
        Packed(1, {"cpu": 8, "gpu": 0}, 8, [[(1, 1.0)] * 5], rate=1000, memory_mb=321),
        Packed(8, {"cpu": 1, "gpu": 0}, 1, [[(1, 1.0)] * 3] * 8, rate=2000, memory_mb=123),
        Packed(16, {"cpu": 0.5, "gpu": 0}, 1, problem="MemoryError: no room"),
    ]
    plan = plan_of(tmp_path, resources={"cpu": 8})
    describe.print_packed(Result(plan, Device("node", 8, False, 8), measured, now=1))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "8", "0", "8", "1,000", "1,000", "1.00", "321", "as", "in", "the", "file"] in lines
    assert ["8", "1", "0", "1", "2,000", "250", "2.00", "123"] in lines
    assert ["16", "0.5", "0", "1", "MemoryError:", "no", "room"] in lines
    assert ["best:", "resources:", "{cpu:", "1,", "gpu:", "0}"] in lines
    *_, rates, _, told = lines
    assert " ".join(rates).startswith("rates: the 3 epochs after the first of each trial")
    assert " ".join(told) == "trials of finetune would take 0.50 of the time they take now"


# ---------------------------------------------------------------------- what is measured


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[..., Copy]]:
    threads = torch.get_num_threads()

    def build(**changes: Any) -> Copy:
        path = sweep_file(tmp_path, **changes)
        sweep = spec.load(path)
        return Copy(asdict(pack._plan(sweep, None)), check_data(sweep, datasets.data_root()))

    yield build
    torch.set_num_threads(threads)


def test_whole_epochs_that_end_in_time_are_counted(
    copy: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = copy()
    found.warm()
    assert found.examples == (per_epoch := found.run.costs.examples)
    ticks = itertools.count(0, 0.125)  # an epoch takes an eighth of a second
    monkeypatch.setattr(pack, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    marks, memory = found.measure(2.1)
    examples, seconds = zip(*marks, strict=True)
    assert seconds == tuple(i / 8 for i in range(1, 17))
    assert found.run.progress == (len(marks) + 1) % 10 + 1, "5 tasks with 2 epochs, then anew"
    assert examples[-1] == per_epoch * len(marks)
    assert found.examples == per_epoch * (1 + len(marks) + 1), "the last one did not end in time"
    assert 50 < memory < 1e5
    assert memory == pytest.approx(found._memory())


def test_an_epoch_that_is_longer_than_the_time_is_measured_whole(
    copy: Callable[..., Copy],
) -> None:
    found = copy(train={"epochs": 2, "batch_size": 1, "lr": 0.01})
    found.warm()
    before = found.examples
    ((examples, seconds),), _ = found.measure(1e-3)
    assert seconds > 1e-3
    assert examples == found.examples - before > 0


def test_a_trial_has_the_threads_it_is_given(copy: Callable[..., Copy]) -> None:
    found = copy(resources={"cpu": 3.5})
    found.warm()
    assert torch.get_num_threads() == 3


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--trials", "0"], "error: --trials: '0' is no list of numbers from 1 to 1024"),
        (["--trials", "1,,2"], "error: --trials: '1,,2' is no list"),
        (["--method", "jont"], "error: --method: no method has the label 'jont'; did you mean"),
        (["--set", "train.epoch=1"], "did you mean 'epochs'?"),
        (["--seconds", "0"], "--seconds"),
        pytest.param(
            ["--set", "resources.gpu=0.5"],
            "error: resources.gpu: finetune asks for a GPU, and there is none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_is_wrong_is_refused_before_ray_starts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(pack.cluster, "connect", None)
    path = sweep_file(tmp_path)
    monkeypatch.setattr(sys, "argv", ["raycl", "bench", "pack", str(path), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err


@pytest.mark.slow
def test_trials_that_run_out_of_memory_or_are_lost_are_rows(
    tmp_path: Path, start: Callable[..., Started]
) -> None:
    method = {"name": "told.py:Told", "tag": "x", "fragile": True}
    path = sweep_file(tmp_path, methods=["joint", method], resources={"cpu": CORES})
    options = ["--method", "Told", "--trials", "2,3", "--seconds", "1"]
    command = start("bench", "pack", str(path), *options)
    output, errors = command.process.communicate()
    assert command.process.returncode == 0, errors
    table = [line.split() for line in output.splitlines()]
    alone, two, three = (next(line for line in table if line[:1] == [n]) for n in "123")
    assert alone[1:4] == [str(CORES), "0", str(CORES)]
    assert alone[-4:] == ["as", "in", "the", "file"]
    assert float(alone[4].replace(",", "")) > 0
    assert "MemoryError: no room for a second one" in " ".join(two)
    assert "ActorDiedError" in three[4]
    assert f"best: resources: {{cpu: {CORES}, gpu: 0}}\nwhich is what the file asks for" in output
    told = [line.split() for line in (tmp_path / "told.txt").read_text().splitlines()]
    assert told[0][1:3] == [str(CORES)] * 2
    assert len({line[3] for line in told}) == 6, "each trial has a process of its own"
    assert not (tmp_path / "runs").exists(), "nothing is tracked or kept"
    command.leaves_none()


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path, start: Callable[..., Started]) -> None:
    path = sweep_file(tmp_path, methods=[{"name": "told.py:Told", "tag": "x"}])
    command = start("bench", "pack", str(path), "--trials", "2", "--seconds", "500")
    until((tmp_path / "told.txt").exists, command.process)
    time.sleep(1)
    assert len(command.left()) > 3
    os.killpg(command.process.pid, signal.SIGINT)
    output, errors = command.process.communicate()
    assert command.process.returncode == 130, errors
    assert "Traceback" not in errors
    assert output == ""
    command.leaves_none()


# ---------------------------------------------------------------------- a sweep's own trials


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_threads_follow_the_cpus_asked_for(tmp_path: Path, start: Callable[..., Started]) -> None:
    wide, one = ({"name": "told.py:Told", "label": tag, "tag": tag} for tag in ("wide", "one"))
    stream = {"name": "split", "dataset": {"name": "digits", "limit": 30}, "tasks": 2}
    path = sweep_file(
        tmp_path,
        benchmark=[stream, stream | {"tasks": 3}],  # so that the methods take turns
        methods=[one | {"resources": {"cpu": 0.5}}, wide | {"resources": {"cpu": 2}}],
        seeds=2,
    )
    command = start("run", str(path))
    _, errors = command.process.communicate()
    assert command.process.returncode == 0, errors
    told = [line.split() for line in (tmp_path / "told.txt").read_text().splitlines()]
    assert sorted({(tag, int(torch), int(omp)) for tag, torch, omp, *_ in told}) == [
        ("one", 1, 1),
        ("wide", 2, 2),
    ]
    trials = {(tag, pid, seed) for tag, _, _, pid, seed, _ in told}
    processes = {(tag, pid) for tag, pid, _ in trials}
    assert len(processes) < 8, "a worker is used again, and only by trials that ask for the same"
    assert len({pid for _, pid in processes}) == len(processes)
