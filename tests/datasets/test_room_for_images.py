"""Small images are held in memory: what does not fit there is refused before it is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dataset_making import write_tree

from raycl import datasets
from raycl.datasets import Arrays, DatasetConfig, Files, folder, memory
from raycl.errors import UserError


class Counts(NamedTuple):
    """Memory of a machine, as psutil tells it."""

    available: int = 0
    free: int = 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """Bytes that are free in memory and as swap space; no group has a limit."""
    left = {"available": 10_000, "free": 2_000}
    monkeypatch.setattr("psutil.virtual_memory", lambda: Counts(available=left["available"]))
    monkeypatch.setattr("psutil.swap_memory", lambda: Counts(free=left["free"]))
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    return left


def test_a_folder_that_does_not_fit(
    machine: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of 12 x 12 pixels in three channels take 432 bytes each."""
    root = tmp_path / "pets"
    write_tree(root)
    count = len(list(root.rglob("*.png")))
    needed = 2 * 432 * count
    config = DatasetConfig(name="folder", path=str(root))
    machine |= {"available": needed - 100, "free": 100}
    assert isinstance(datasets.load(config, tmp_path).train, Arrays)
    machine["free"] = 99

    def decoded(*_: Any, **__: Any) -> None:
        pytest.fail("it has decoded images")

    monkeypatch.setattr(folder, "decode_all", decoded)
    with pytest.raises(UserError) as caught:
        datasets.load(config, tmp_path)
    text = f"{count} images of 12 x 12 pixels take {needed / 1e9:.3g} GB of memory, and "
    assert str(caught.value).startswith(f"benchmark.dataset.path: {text}")
    machine["available"] = needed // 4 - 100
    with pytest.raises(UserError, match="images of 6 x 6 pixels take"):
        datasets.load(config.model_copy(update={"size": 6}), tmp_path)
    machine["available"] = needed // 4
    with pytest.raises(pytest.fail.Exception):
        datasets.load(config.model_copy(update={"size": 6}), tmp_path)
    large = config.model_copy(update={"size": 65, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert isinstance(datasets.load(large, tmp_path).train, Files), "read when they are needed"


def test_two_hundred_thousand_images(machine: dict[str, int]) -> None:
    machine["available"] = 4_000_000_000
    memory.check(200_000, 1, (64, 64), "here")
    with pytest.raises(UserError) as caught:
        memory.check(200_000, 3, (64, 64), "here")
    assert str(caught.value) == (
        "here: 200,000 images of 64 x 64 pixels take 4.92 GB of memory, and 4 GB are free; take "
        "fewer (budget) or smaller ones (size); beyond 64 pixels they stay in files"
    )


@pytest.mark.parametrize(
    "line, group, files",
    [
        ("0::/job/step", "job/step", ("memory.max", "memory.current", "inactive_file")),
        ("0::/job/step", "job", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu:/\n9:memory:/job",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
        (
            "4:cpu:/\n9:memory:/outside/job",  # a container sees its own group as the top
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_limit_of_a_batch_job_or_a_container(
    machine: dict[str, int], tmp_path: Path, line: str, group: str, files: tuple[str, ...]
) -> None:
    limit, used, cached = files
    (tmp_path / "cgroup").write_text(f"{line}\n")
    folder = tmp_path / "groups" / group
    folder.mkdir(parents=True)
    assert memory.free() == 12_000
    (folder / limit).write_text("5000\n")
    (folder / used).write_text("3000\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\n{cached} 500\n")
    assert memory.free() == 2500
    (folder / used).write_text("9000\n")
    assert memory.free() == 0
    (folder / limit).write_text("max\n")
    assert memory.free() == 12_000


def test_this_machine_has_memory() -> None:
    assert memory.free() > 1_000_000
