"""A folder sequence with validation images of its own, tasks from a CSV file, and a budget."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycl import datasets
from raycl.benchmarks.base import Stream
from raycl.benchmarks.folder_sequence import FolderSequence
from raycl.benchmarks.split import Split
from raycl.cli import main
from raycl.datasets import DatasetConfig
from raycl.errors import UserError
from raycl.sweep.file import spec
from raycl.sweep.plan.check_data import check_data
from raycl.sweep.plan.expand import final_plans

SPLITS = {"train": 4, "val": 3, "test": 2}


def write(root: Path, tasks: dict[str, str], splits: dict[str, int] = SPLITS) -> Path:
    """Tasks and a letter for each of their classes, as small images."""
    rng = np.random.default_rng(0)
    for task, classes in tasks.items():
        for split, each in splits.items():
            for c in classes:
                for i in range(each):
                    path = root / task / split / c / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(**options: object) -> FolderSequence:
    block = {"name": "folder_sequence", "path": "seq", **options}
    return FolderSequence(FolderSequence.Config.model_validate(block))


def made(benchmark: FolderSequence | Split) -> Stream:
    root = datasets.data_root()
    return benchmark.stream(
        {datasets.key(c): datasets.load(c, root) for c in benchmark.datasets()}, 0
    )


def test_val_is_the_validation_set(data: Path) -> None:
    write(data / "seq", {"b": "xyz", "a": "xy"})
    stream = made(configured(validation="folder"))
    sizes = [(len(t.train), len(t.validation or ()), len(t.test)) for t in stream.data]
    assert sizes == [(8, 6, 4), (12, 9, 6)]
    assert stream.data[1].validation is not None
    assert stream.data[1].validation.labels.tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    image = np.asarray(Image.open(data / "seq/a/val/y/2.png")).transpose(2, 0, 1)
    batch = next(iter(stream.data[0].validation.batches(6)))
    mean, std = (np.array(v[0])[:, None, None] for v in (stream.info.mean, stream.info.std))
    np.testing.assert_allclose(batch.images[5].numpy(), (image / 255 - mean) / std, atol=1e-5)
    sizes = [
        (len(t.train), len(t.validation or ()), len(t.test))
        for t in made(configured(tasks=["b"])).data
    ]
    assert sizes == [(11, 1, 6)]


def test_mean_and_std_are_those_of_all_tasks(data: Path) -> None:
    write(data / "seq", {"a": "xy", "b": "xy"})
    for path in (data / "seq" / "b").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    info = made(configured(mean=mean, std=std, validation="folder")).info
    assert info.input_shape == (3, 8, 8)
    for given in info.mean:
        assert given == pytest.approx(mean, rel=1e-12)
    for given in info.std:
        assert given == pytest.approx(std, rel=1e-12)


def test_split_of_an_image_folder(data: Path) -> None:
    write(data / "seq", {"a": "wxyz"})
    block = {"name": "folder", "path": "seq/a"}
    options = {"dataset": block, "tasks": 2, "class_order": "none", "validation": "folder"}
    benchmark = Split(Split.Config.model_validate({"name": "split", **options}))
    stream = made(benchmark)
    assert [len(t.validation or ()) for t in stream.data] == [6, 6]
    assert [len(t.train) for t in stream.data] == [8, 8]


# ------------------------------------------------------------------ order


def test_order_comes_from_a_csv_file(data: Path) -> None:
    write(data / "seq", {"a": "xy", "b": "xy", "c": "xy", "7": "xy"}, {"train": 5, "test": 1})
    (data / "stat.csv").write_text("id,name,classes\n3,c,2\n7,seven,2\n\n1,a,2\n")
    benchmark = configured(order="stat.csv")
    assert benchmark.config.tasks == ("c", "7", "a")
    dumped = benchmark.config.model_dump(mode="json")
    assert "order" not in dumped
    (data / "stat.csv").unlink()
    again = FolderSequence.Config.model_validate(dumped)
    assert again == benchmark.config
    names = [task.name for task in made(benchmark).info.tasks]
    assert names == ["1/3 (c: 2 classes)", "2/3 (7: 2 classes)", "3/3 (a: 2 classes)"]


@pytest.mark.parametrize("header", ["name", "\ufeffNAME ,x", "dataset_name", "x,Name"])
def test_columns_of_the_csv_file(data: Path, header: str) -> None:
    write(data / "seq", {"a": "xy", "b": "xy"}, {"train": 5})
    column = [cell.strip("\ufeff ").lower() for cell in header.split(",")]
    at = next(i for i, cell in enumerate(column) if cell.endswith("name"))
    lines = [",".join(["9"] * at + [task]) for task in "ba"]
    (data / "stat.csv").write_text("\n".join([header, *lines]), "utf-8")
    assert configured(order="stat.csv").config.tasks == ("b", "a")


def test_ids_alone(data: Path) -> None:
    write(data / "seq", {"1": "xy", "12": "xy"}, {"train": 5})
    (data / "stat.csv").write_text("dataset_id\n12\n1\n")
    assert configured(order="stat.csv").config.tasks == ("12", "1")


def test_a_lone_folder_around_the_tasks_is_skipped(data: Path) -> None:
    write(data / "seq" / "outer", {"a": "xy", "b": "xyz"})
    shutil.make_archive(str(data / "zipped"), "zip", data / "seq")
    (data / "stat.csv").write_text("name\nb\na\n")
    for path in ("seq", "zipped.zip"):
        assert configured(path=path).config.tasks == ("outer/a", "outer/b")
        for options in ({"order": "stat.csv"}, {"tasks": ["b", "a"]}):
            benchmark = configured(path=path, validation="folder", **options)
            assert benchmark.config.tasks == ("outer/b", "outer/a")
            again = FolderSequence.Config.model_validate(benchmark.config.model_dump())
            assert again == benchmark.config
            names = [task.name for task in made(benchmark).info.tasks]
            assert names == ["1/2 (b: 3 classes)", "2/2 (a: 2 classes)"]


# ------------------------------------------------------------------ keys


def test_options_that_came_later_leave_keys_as_they_were(data: Path) -> None:
    """All hashes are from before there were ``order``, ``mean``, ``std`` and ``budget``."""
    block = configured(tasks=["b", "a"]).config.model_dump(mode="json")
    written = ["name", "label", "validation", "top_k", "class_outputs", "path", "tasks"]
    assert list(block) == [*written, "size", "limit", "hold_out"]
    assert [datasets.key(c) for c in configured(tasks=["b", "a"], size=32).datasets()] == [
        "folder-6498f70f",
        "folder-18442558",
    ]
    text = (
        "name: demo\nmethods: [finetune]\nnetwork: {name: mlp}\nbenchmark:\n"
        "  - {name: folder_sequence, path: seq, tasks: [b, a]}\n"
        "  - {name: split, dataset: {name: folder, path: seq}, tasks: 2}\n"
    )
    (data / "s.yaml").write_text(text)
    plans = final_plans(spec.load(data / "s.yaml"), {})
    assert [plan.key for plan in plans] == ["6c420dd545ab3114", "f053d8a9c3957df5"]


# ------------------------------------------------------------------ bad input

SWEEP = """\
name: demo
benchmark: {name: folder_sequence, path: seq, validation: folder, size: 8}
methods: [{name: finetune, outputs: task}]
network: {name: mlp}
readouts: [task]
seeds: 1
"""


def refused(capsys: pytest.CaptureFixture[str], *overrides: str, text: str = SWEEP) -> str:
    """What ``raycl run`` says, on one line, before any work."""
    Path("s.yaml").write_text(text)
    given = [word for o in overrides for word in ("--set", o)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raycl", "run", "s.yaml", *given])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert not Path("runs").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_task_without_the_split(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data / "seq", {"a": "xy"})
    write(data / "seq", {"b": "xy"}, {"train": 4, "test": 2})
    said = refused(capsys)
    assert "benchmark.validation" in said
    assert "/seq/b' has no images in a folder 'val'; validation: folder takes train, val" in said


def test_a_task_with_one_class(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data / "seq", {"a": "xy", "b": "x"})
    assert "b has one class only" in refused(capsys)


@pytest.mark.parametrize(
    "content, said",
    [
        (
            "name\na\nbrids\n",
            "line 3 of '{}': unknown task 'brids'; did you mean 'birds'?",
        ),
        ("id,name\n", "'{}' lists no tasks"),
        ("", "'{}' lists no tasks"),
        (
            "data set,count\na,3\n",
            "'{}' has neither a column 'name' nor 'id' in its first line, only 'data set', 'count'",
        ),
        ("id,name\n1,a\n1,birds\n", "line 3 of '{}' lists '1' again, after line 2"),
        ("id,name\n1,a\n2,a\n", "line 3 of '{}' lists 'a' again, after line 2"),
        ("x,name\n1\n", "line 2 of '{}' names no task"),
        (None, "there is no file '{}'; relative paths start at the data root"),
    ],
)
def test_a_wrong_csv_file(
    data: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    write(data / "seq", {"a": "xy", "birds": "xy"}, {"train": 1, "val": 1, "test": 1})
    if content is not None:
        (data / "stat.csv").write_text(content)
    found = refused(capsys, "benchmark.order=stat.csv")
    assert f"benchmark.order: {said.format(data / 'stat.csv')}\n" in found


@pytest.mark.parametrize(
    "override, said",
    [
        ("benchmark.tasks=[a, b]", "tasks and order both list the tasks: leave one out"),
        ("benchmark.limit=3", "budget and limit both say how many images are taken"),
        ("benchmark.budget.smal=3", "unknown key 'smal'; did you mean 'small'?"),
        ("benchmark.budget.small=0", "should be greater than or equal to 1, not 0"),
        ("benchmark.validation=fodler", "a share below 1, or one of the words train and folder"),
    ],
)
def test_options_that_do_not_go_together(
    data: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    write(data / "seq", {"a": "xy", "b": "xy"}, {"train": 1, "val": 1, "test": 1})
    given = ("benchmark.order=stat.csv", "benchmark.budget.seed=1", override)
    assert said in refused(capsys, *given)


@pytest.mark.parametrize(
    "benchmark, said",
    [
        ("{name: permuted}", "benchmark.validation: folder is for folder_sequence, and for split"),
        (
            "{name: split}",
            "validation: folder takes the images in the folder val of an image folder",
        ),
        ("{name: split, dataset: mnist}", "of an image folder, and dataset is mnist"),
    ],
)
def test_validation_folder_of_other_benchmarks(
    data: Path, capsys: pytest.CaptureFixture[str], benchmark: str, said: str
) -> None:
    text = SWEEP.replace(
        "{name: folder_sequence, path: seq, validation: folder, size: 8}", benchmark
    )
    assert said in refused(capsys, "benchmark.validation=folder", text=text)


def test_a_dataset_without_validation_images(data: Path) -> None:
    write(data / "seq", {"a": "xy"})
    benchmark = configured(validation="folder")
    plain = DatasetConfig(name="folder", path="seq/a")
    loaded = {datasets.key(benchmark.datasets()[0]): datasets.load(plain, data)}
    with pytest.raises(UserError, match="a has no validation images of a: 2 classes"):
        benchmark.stream(loaded, 0)


ALONE = """
name: s
benchmark: {name: folder_sequence, path: PATH, validation: 0}
methods: [finetune]
network: {name: mlp, hidden: [8]}
train: {epochs: 1, batch_size: 4}
"""


def checked(folder: Path, path: str, *overrides: str) -> list[str]:
    """Names of the data sets that are loaded."""
    (folder / "s.yaml").write_text(ALONE.replace("PATH", path))
    found = check_data(spec.load(folder / "s.yaml", list(overrides)), folder)
    return [one.name for one in found.values()]


def test_all_that_was_left_out_is_one_line(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(data / "seq", {"t1": "ab", "t2": "ab"}, {"train": 4, "test": 2})
    for name in ("t1/train/c/0.heic", "t2/train/c/0.heic", "t3/a/0.heic", "t1/.DS_Store"):
        (data / "seq" / name).parent.mkdir(parents=True, exist_ok=True)
        (data / "seq" / name).write_bytes(b"x")
    assert checked(data, "seq") == ["t1", "t2"]
    start = f"{data}/seq"
    assert caplog.messages == [
        f"warning: left out: 2 files of other kinds ('{start}/t1/train/c/0.heic', "
        f"'{start}/t2/train/c/0.heic'); 3 folders without images ('{start}/t1/train/c', "
        f"'{start}/t2/train/c', '{start}/t3')"
    ]
    caplog.clear()
    shutil.rmtree(data / "seq" / "t1" / "train" / "b")
    with pytest.raises(UserError, match=r"class 'b' of '.*/t1' is in test but not in train"):
        checked(data, "seq")
    shutil.rmtree(data / "seq" / "t1" / "test" / "b")
    (data / "seq" / "t1" / "test" / "b").mkdir()
    with pytest.raises(UserError, match=r"t1 has one class only; left out: .*/t1/test/b'"):
        checked(data, "seq")


@pytest.mark.parametrize("name", ["SEQ.ZIP", "seq.zip"])
def test_the_suffix_of_a_zip_in_any_case(data: Path, name: str) -> None:
    write(data / "made", {"t1": "ab", "t2": "ab"}, {"train": 4, "test": 2})
    shutil.make_archive(str(data / "made"), "zip", data / "made")
    (data / "made.zip").rename(data / name)
    assert checked(data, name) == ["t1", "t2"]


def test_a_folder_that_is_called_zip(data: Path) -> None:
    write(data / "seq.zip", {"t1.zip": "ab", "t2": "ab"}, {"train": 4, "test": 2})
    assert checked(data, "seq.zip") == ["t1", "t2"]


def test_a_task_that_vanishes_is_named(data: Path) -> None:
    write(data / "seq", {"t1": "ab"}, {"train": 4, "test": 2})
    with pytest.raises(UserError, match=r"there is no '.*/seq/t2'"):
        checked(data, "seq", "benchmark.tasks=[t1, t2]")


@pytest.mark.parametrize(
    "method, batch_size, wrong",
    [("finetune", 8, None), ("finetune", 9, 1), ("naive_rehearsal", 8, None), ("joint", 9, 1)],
)
def test_drop_last_that_leaves_nothing_is_refused(
    data: Path, method: str, batch_size: int, wrong: int | None
) -> None:
    write(data / "seq", {"t1": "ab", "t2": "ab"}, {"train": 4, "test": 2})
    options = (f"methods=[{method}]", "train.drop_last=true", f"train.batch_size={batch_size}")
    if wrong is None:
        assert checked(data, "seq", *options) == ["t1", "t2"]
        return
    with pytest.raises(UserError, match=f"leaves nothing of task {wrong}: 8 images, and batches"):
        checked(data, "seq", *options)


def test_drop_last_looks_at_every_task_that_is_learnt_alone(data: Path) -> None:
    write(data / "seq", {"t1": "abc", "t2": "ab"}, {"train": 4, "test": 2})
    options = ("train.drop_last=true", "train.batch_size=12")
    assert checked(data, "seq", *options, "methods=[joint]") == ["t1", "t2"]
    assert checked(data, "seq", *options, "stop.tasks=1") == ["t1", "t2"]
    rehearsal = "methods=[{name: naive_rehearsal, replay: list}]"
    assert checked(data, "seq", *options, rehearsal) == ["t1", "t2"]
    for alone in ("finetune", "naive_rehearsal", "er"):  # stored images stand behind each batch
        with pytest.raises(UserError, match="leaves nothing of task 2: 8 images, and batches of"):
            checked(data, "seq", *options, f"methods=[{alone}]")
