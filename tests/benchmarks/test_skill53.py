"""The 53 tasks of CLR: their table, the rule of how many images are taken, and a tiny stream."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from raycl import datasets
from raycl.benchmarks.folder_sequence import FolderSequence
from raycl.datasets.base import Budget, DatasetConfig
from raycl.sweep.file import spec
from raycl.sweep.plan.expand import final_plans
from raycl.training.run import Run

DIGITS = DatasetConfig(name="digits", size=32, limit=20)
SWEEPS = Path(__file__).parents[2] / "sweeps" / "clr"
TABLE = list(csv.DictReader((SWEEPS / "skill53.csv").read_text().splitlines()))
CLASSES = [int(row["classes"]) for row in TABLE]


def test_totals_of_the_table() -> None:
    assert len(TABLE) == len({row["id"] for row in TABLE}) == len({row["name"] for row in TABLE})
    assert len(TABLE) == 53
    assert (sum(CLASSES), min(CLASSES), max(CLASSES)) == (1583, 2, 200)
    for column, total, least, most in (("train", 132625, 112, 5200), ("eval", 13863, 18, 600)):
        counts = [int(row[column]) for row in TABLE]
        assert (sum(counts), min(counts), max(counts)) == (total, least, most)


@pytest.mark.parametrize(
    "classes, train, trained, held, evaluated",
    [
        (67, 76, 5092, 8, 536),
        (200, 26, 5200, 3, 600),
        (10, 256, 2560, 26, 260),
        (9, 284, 2556, 28, 252),
    ],
)
def test_images_of_each_class(
    classes: int, train: int, trained: int, held: int, evaluated: int
) -> None:
    budget = Budget()
    assert budget.per_class(classes) == train
    assert budget.per_class(classes, held=True) == held
    assert (classes * train, classes * held) == (trained, evaluated)


def test_no_task_of_the_table_is_above_its_budget() -> None:
    budget, full = Budget(), {"train": 0, "eval": 0}
    for row, classes in zip(TABLE, CLASSES, strict=True):
        for column, held in (("train", False), ("eval", True)):
            most = classes * budget.per_class(classes, held=held)
            assert int(row[column]) <= most, row
            full[column] += int(row[column]) == most
    assert full == {"train": 26, "eval": 31}


def pictures(count: int) -> list[bytes]:
    """Different PNG files of 8 x 8 pixels."""
    found = []
    for pixels in np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8):
        Image.fromarray(pixels).save(buffer := BytesIO(), "png")
        found.append(buffer.getvalue())
    return found


def write(root: Path, name: str, classes: int, splits: dict[str, list[bytes]]) -> None:
    for split, contents in splits.items():
        for c in range(classes):
            folder = root / name / split / f"{c:05d}"
            folder.mkdir(parents=True)
            for i, content in enumerate(contents):
                (folder / f"{i:03}.png").write_bytes(content)


def benchmark(**options: object) -> FolderSequence:
    block = {"name": "folder_sequence", "path": "skill53", "validation": "folder", "budget": {}}
    return FolderSequence(FolderSequence.Config.model_validate(block | options))


def test_53_tiny_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    a, b, c, d = pictures(4)
    for row, classes in zip(TABLE, CLASSES, strict=True):
        splits = {"train": [a, b], "val": [c], "test": [d]}
        write(tmp_path / "skill53" / "outer", row["name"], classes, splits)
    (tmp_path / "stat.csv").write_text((SWEEPS / "skill53.csv").read_text())
    made = benchmark(order="stat.csv", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = {datasets.key(one): datasets.load(one, tmp_path) for one in made.datasets()}
    stream = made.stream(data, 0)
    names = [f"{i + 1}/53 ({r['name']}: {r['classes']} classes)" for i, r in enumerate(TABLE)]
    assert [task.name for task in stream.info.tasks] == names
    assert [output for task in stream.info.tasks for output in task.classes] == list(range(1583))
    assert stream.info.num_outputs == 1583
    assert stream.info.readouts == ("class", "task")
    for task, classes in zip(stream.data, CLASSES, strict=True):
        assert task.validation is not None
        sizes = [len(part) for part in (task.train, task.validation, task.test)]
        assert sizes == [2 * classes, classes, classes]
    config = {
        "benchmark": made.config.model_dump(mode="json"),
        "method": {"name": "linear_probe"},
        "network": {"name": "mlp", "hidden": [4]},
        "train": {"epochs": 1, "batch_size": 32, "select": "validation_accuracy"},
        "readouts": ["task"],
    }
    run = Run(config, data)
    while not run.done:
        run.advance()
    matrix = np.array(run.result()["matrices"]["task"], dtype=float)
    assert matrix.shape == (53, 53)
    assert not np.isnan(matrix[np.tril_indices(53)]).any()
    for i in range(53):
        assert (matrix[i:, i] == matrix[i, i]).all()


def test_the_budget_in_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    buffer = BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    pixel = buffer.getvalue()
    root = tmp_path / "skill53"
    write(root, "many", 67, {"train": [pixel] * 80, "val": [pixel] * 9, "test": [pixel] * 10})
    write(root, "few", 9, {"train": [pixel] * 300, "val": [pixel] * 5, "test": [pixel] * 40})
    made = benchmark(size=80, mean=(0.5,) * 3, std=(0.5,) * 3)  # so that no pixel is read
    data = {datasets.key(one): datasets.load(one, tmp_path) for one in made.datasets()}
    sizes = [
        (len(t.train), len(t.validation or ()), len(t.test)) for t in made.stream(data, 0).data
    ]
    assert sizes == [(2556, 45, 252), (5092, 536, 536)]


def test_the_sweep_has_the_tasks_of_the_table() -> None:
    first, sequence = yaml.safe_load((SWEEPS / "skill53.yaml").read_text())["benchmark"]
    assert first.pop("tasks") == [TABLE[0]["name"]]
    assert sequence.pop("tasks") == [row["name"] for row in TABLE]
    for block in (first, sequence):
        assert Budget(**block.pop("budget")) == Budget()
        del block["label"]
    assert first == sequence


def test_the_sweep_made_small() -> None:
    found = {}
    for plan in final_plans(spec.load(SWEEPS / "skill53.yaml", smoke=True), {}):
        run = Run(plan.config, {datasets.key(DIGITS): datasets.load(DIGITS, Path("nowhere"))})
        while not run.done:
            run.advance()
        found[plan.method] = run.result()["metrics"]["task"]
    assert list(found) == ["linear_probe", "clr", "clr-full", "finetune"]
    for method, metrics in found.items():
        assert metrics["selection_accuracy"] > 0
        assert method == "finetune" or metrics["forgetting"] == 0
