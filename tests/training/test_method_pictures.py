"""Pictures that a method makes: their names, their files, and a run that is resumed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raycl.methods.finetune import Finetune
from raycl.testing import MethodConformance, finish, toy_data
from raycl.tracking.records import PICTURES
from raycl.training import pictures
from raycl.training.run import Run
from raycl.trial.checkpoint import CheckpointStore

HERE = f"{__name__}:"


class Painter(Finetune):
    """Shows its head's weights.

    Nobody, 2026. Departures: none.
    """

    def pictures(self) -> dict[str, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        weights = self.head.weight
        grey = (255 * (weights - weights.min()) / (weights.max() - weights.min())).byte()
        return {"head": grey.expand(3, -1, -1), "noise": noise()}


def noise() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, 6, 8), generator=generator).byte()


class Wrong(Painter):
    """Gives an image that is none."""

    def pictures(self) -> dict[str, Tensor]:
        return {"head": torch.zeros(3, 4, 4)}


class Noisy(Painter):
    """Draws from a generator of the run."""

    def pictures(self) -> dict[str, Tensor]:
        return {"noise": torch.randint(256, (3, 4, 4)).byte()}


def build(method: str, tasks: int = 2) -> Run:
    config: dict[str, Any] = {
        "benchmark": {"name": "split", "dataset": "digits", "tasks": tasks},
        "method": {"name": HERE + method},
        "network": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": 2, "batch_size": 16, "lr": 0.05},
    }
    return Run(config, toy_data())


class TestPainter(MethodConformance):
    method = HERE + "Painter"


@pytest.mark.parametrize("method, why", [("Wrong", "torch.uint8"), ("Noisy", "random")])
def test_the_suite_finds_what_is_wrong(method: str, why: str) -> None:
    suite = type("Suite", (MethodConformance,), {"method": HERE + method})()
    with pytest.raises((AssertionError, ValueError), match=why):
        suite.test_evaluation_changes_nothing()


def test_names_of_all_pictures_so_far_are_in_the_rows_of_task_ends() -> None:
    run = build("Painter")
    rows = []
    while not run.done:
        rows.append(run.advance())
        assert bool(run.pictures) == rows[-1]["at_task_end"]
    first, second = ["head-task-1", "noise-task-1"], ["head-task-2", "noise-task-2"]
    assert [row.get("pictures") for row in rows] == [None, first, None, first + second]
    assert list(run.pictures) == second
    assert torch.equal(run.pictures["noise-task-2"], noise())
    assert "pictures" not in rows[-1]["result"]


def test_a_resumed_run_has_the_same_names_and_pictures() -> None:
    reference = build("Painter")
    finish(reference)
    for stop in (1, 2, 3):
        run = build("Painter")
        for _ in range(stop):
            run.advance()
        other = build("Painter")
        other.load_state_dict(run.state_dict())
        assert other.last_row.get("pictures") == run.last_row.get("pictures")
        finish(other)
        assert other.last_row["pictures"] == reference.last_row["pictures"]
        assert all(torch.equal(other.pictures[k], v) for k, v in reference.pictures.items())


def test_methods_without_pictures_say_nothing_of_them() -> None:
    run = Run(build("Painter").config.model_dump() | {"method": {"name": "finetune"}}, toy_data())
    finish(run)
    assert "pictures" not in run.last_row


# ---------------------------------------------------------------------- names and files


@pytest.mark.parametrize(
    "task, tasks, name",
    [(1, 9, "a-task-1"), (1, 10, "a-task-01"), (10, 10, "a-task-10"), (7, 100, "a-task-007")],
)
def test_names_sort(task: int, tasks: int, name: str) -> None:
    assert list(pictures.named({"a": noise()}, task, tasks)) == [name]


@pytest.mark.parametrize("stem", ["", "../a", "a/b", ".a", "a b", "ä", "a" * 65])
def test_a_name_is_a_file_name(stem: str) -> None:
    with pytest.raises(ValueError, match="make a name"):
        pictures.named({stem: noise()}, 1, 2)


@pytest.mark.parametrize(
    "image", [noise().float(), noise()[:1], noise()[0], noise()[:, :0], noise().permute(1, 2, 0)]
)
def test_a_picture_is_rgb(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"picture a must be torch.uint8 \(3, H, W\), not torch"):
        pictures.named({"a": image}, 1, 2)


def test_there_are_not_too_many() -> None:
    found = {f"p{i}": noise() for i in range(pictures.MOST + 1)}
    with pytest.raises(ValueError, match="at most 16 pictures"):
        pictures.named(found, 1, 2)


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def test_a_file_holds_the_pixels_as_squares() -> None:
    image = noise().permute(0, 2, 1)  # not contiguous
    picture = opened(pictures.png(image))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (6 * 64, 8 * 64))
    squares = image.permute(1, 2, 0).numpy().repeat(64, axis=0).repeat(64, axis=1)
    assert np.array_equal(np.asarray(picture), squares)
    large = torch.zeros(3, 300, 257, dtype=torch.uint8)
    assert opened(pictures.png(large)).size == (257, 300), "too large to be twice as large"


def test_what_is_too_large_is_shrunk() -> None:
    image = torch.zeros(3, 8, 4 * pictures.LONGEST, dtype=torch.uint8)
    image[:, :, 2 * pictures.LONGEST :] = 200
    picture = opened(pictures.png(image))
    assert picture.size == (pictures.LONGEST, 2)
    colours = picture.getcolors()
    assert colours is not None
    assert {colour for _, colour in colours} == {(0, 0, 0), (200, 200, 200)}


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(str(tmp_path / "a trial"))
    path = Path(store.put_bytes("pictures/a.png", b"one"))
    assert path == tmp_path / "a trial" / "pictures" / "a.png"
    store.put_bytes("pictures/a.png", b"t", b"wo")
    assert path.read_bytes() == b"two"

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store.fs, "mv", full)
    with pytest.raises(OSError, match="no space"):
        store.put_bytes("pictures/a.png", b"three")
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"two"


def test_tracking_looks_where_files_are() -> None:
    assert pictures.FOLDER == PICTURES
