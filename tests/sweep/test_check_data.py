"""What only the data of a sweep can tell, for every class order and not only the first one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_making import load

from raycl.errors import UserError
from raycl.sweep.plan.check_data import check_data
from raycl.training.run import build_benchmark

TEXT = """\
name: demo
benchmark: {name: split, dataset: digits, tasks: 5}
methods: [finetune]
network: {name: mlp, hidden: [4]}
train: {drop_last: true, batch_size: 16}
"""
SEARCHED = ("methods=[{name: online_ewc, lam: {loguniform: [1, 10]}}]", "search.seeds=1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> dict[int, list[int]]:
    """Training images of each task, by class order: those of search trials and some others."""
    data = check_data(load(TEXT), tmp_path)
    benchmark = build_benchmark({"name": "split", "dataset": {"name": "digits"}, "tasks": 5})
    streams = {seed: benchmark.stream(data, seed) for seed in (*range(20), 1000)}
    return {seed: [len(task.train) for task in stream.data] for seed, stream in streams.items()}


def test_drop_last_is_refused_for_any_seed(tmp_path: Path, images: dict[int, list[int]]) -> None:
    """Classes have different numbers of images, so the smallest task differs between seeds."""
    most, least = (pick(range(20), key=lambda seed: min(images[seed])) for pick in (max, min))
    assert min(images[most]) > min(images[least])
    options = (f"train.batch_size={min(images[most])}",)
    check_data(load(TEXT, *options, f"seeds=[{most}]"), tmp_path)
    fixed = f"fixed_seeds.class_order={most}"
    check_data(load(TEXT, *options, f"seeds=[{most}, {least}]", fixed), tmp_path)
    with pytest.raises(UserError, match=rf"leaves nothing of task \d: {min(images[least])} images"):
        check_data(load(TEXT, *options, f"seeds=[{most}, {least}]"), tmp_path)


def test_drop_last_is_refused_for_seeds_of_a_search(
    tmp_path: Path, images: dict[int, list[int]]
) -> None:
    most, searched = max(range(20), key=lambda seed: min(images[seed])), images[1000]
    assert min(images[most]) > min(searched)
    options = (f"train.batch_size={min(images[most])}", f"seeds=[{most}]")
    check_data(load(TEXT, *options), tmp_path)
    with pytest.raises(UserError, match=rf"leaves nothing of task \d: {min(searched)} images"):
        check_data(load(TEXT, *options, *SEARCHED), tmp_path)


def test_a_search_needs_the_tasks_that_it_runs(
    tmp_path: Path, images: dict[int, list[int]]
) -> None:
    searched = images[1000]
    smallest = searched.index(min(searched))
    assert smallest
    options = (
        *SEARCHED,
        "benchmark.tasks=2",  # larger ones than those of the search
        "search.benchmark={name: split, dataset: digits, tasks: 5}",
        "search.protocol=first_tasks",
        f"train.batch_size={min(searched[:smallest])}",
    )
    check_data(load(TEXT, *options, f"search.tasks={smallest}"), tmp_path)
    with pytest.raises(UserError, match=rf"leaves nothing of task {smallest + 1}: "):
        check_data(load(TEXT, *options, f"search.tasks={smallest + 1}"), tmp_path)
