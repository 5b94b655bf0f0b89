"""Permuted, rotated, alternating, mixture and folder sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from stream_making import make

from raycl import datasets, registry
from raycl.benchmarks.alternating import Alternating
from raycl.benchmarks.base import Benchmark, Stream
from raycl.benchmarks.folder_sequence import FolderSequence
from raycl.benchmarks.mixture import Mixture
from raycl.benchmarks.permuted import Permuted
from raycl.benchmarks.rotated import Rotated
from raycl.datasets import Dataset, DatasetConfig
from raycl.errors import UserError

ORDERS = {
    0: [2, 8, 4, 9, 1, 6, 7, 3, 0, 5],
    1: [2, 9, 6, 4, 0, 3, 1, 7, 8, 5],
    2: [4, 1, 5, 0, 7, 2, 3, 6, 9, 8],
    3: [5, 4, 1, 2, 9, 6, 7, 0, 3, 8],
    4: [3, 8, 4, 9, 2, 6, 0, 1, 5, 7],
}
"""Task orders of ten tasks by seed, as tabled for arXiv 2105.04444."""


def stream(kind: type[Benchmark], data: dict[str, Dataset], seed: int = 0, **o: object) -> Stream:
    return kind(kind.Config.model_validate({"name": "x", **o})).stream(data, seed)


def raw(examples: object) -> torch.Tensor:
    return examples.raw(torch.arange(len(examples)))  # type: ignore[attr-defined, arg-type, no-any-return]


def test_every_benchmark_is_registered() -> None:
    found = registry.names("raycl.benchmarks")
    assert found == ["alternating", "folder_sequence", "mixture", "permuted", "rotated", "split"]
    for name in found:
        kind = registry.find("raycl.benchmarks", Benchmark, name)  # type: ignore[type-abstract]
        for field in kind.Config.model_fields.values():
            assert field.description or field.annotation in (str, DatasetConfig)


def pixel_order(made: Stream, task: int) -> list[int]:
    return made.data[task].train.transform.keywords["order"].tolist()


def test_permutations_of_the_paper() -> None:
    data = {"mnist": make(each=1, shape=(1, 28, 28))}
    made = stream(Permuted, data, dataset="mnist", validation=0)
    assert pixel_order(made, 0)[:6] == [92, 516, 39, 376, 634, 650]
    assert pixel_order(made, 1)[:6] == [693, 65, 276, 673, 424, 169]
    for seed, order in ORDERS.items():
        info = stream(Permuted, data, seed, dataset="mnist", validation=0).info
        seeds = [f"{i + 1}/10 (pixel seed {100 * r + i})" for i, r in enumerate(order)]
        assert [task.name for task in info.tasks] == seeds


def test_permuted_images() -> None:
    data = make(shape=(3, 4, 5))
    made = stream(Permuted, {"mnist": data}, dataset="mnist", tasks=3, validation=0)
    assert made.info.tasks[2].classes == tuple(range(10))
    assert made.info.num_outputs == 10
    assert made.info.readouts == ("domain", "task")
    for t, task in enumerate(made.data):
        order = pixel_order(made, t)
        assert sorted(order) == list(range(20))
        for part, arrays in ((task.train, data.train), (task.test, data.test)):
            expected = arrays.images.reshape(-1, 3, 20)[:, :, order].reshape(-1, 3, 4, 5)
            assert torch.equal(raw(part), torch.from_numpy(expected))
            assert part.labels.tolist() == arrays.labels.tolist()


@pytest.mark.parametrize("kind", [Permuted, Rotated])
def test_separate_outputs(kind: type[Benchmark]) -> None:
    made = stream(kind, {"mnist": make()}, dataset="mnist", tasks=3, outputs="separate")
    assert [task.classes[0] for task in made.info.tasks] == [0, 10, 20]
    assert made.info.num_outputs == 30
    assert made.info.class_names[10:20] == made.info.class_names[:10]
    assert made.info.readouts == ("class", "task", "domain")
    assert sorted(set(made.data[2].test.labels.tolist())) == list(range(20, 30))


def test_rotated_images() -> None:
    data = make(shape=(1, 7, 7))
    made = stream(Rotated, {"mnist": data}, dataset="mnist", angles=[0, 90, 180], validation=0)
    images = torch.from_numpy(data.train.images)
    assert torch.equal(raw(made.data[0].train), images)
    assert torch.equal(raw(made.data[1].train), torch.rot90(images, 1, (2, 3)))
    assert torch.equal(raw(made.data[2].train), torch.rot90(images, 2, (2, 3)))
    assert made.info.tasks[1].name == "2/3 (90 degrees)"


def test_angles() -> None:
    assert Rotated(Rotated.Config(name="rotated")).angles() == tuple(range(0, 91, 10))
    config = Rotated.Config(name="rotated", tasks=4, max_angle=60)
    assert Rotated(config).angles() == (0, 20, 40, 60)
    with pytest.raises(ValidationError, match="either angles, or tasks and max_angle"):
        Rotated.Config(name="rotated", tasks=4, angles=(0, 1))
    again = Rotated.Config.model_validate(Rotated.Config(name="r", angles=(5,)).model_dump())
    assert again.angles == (5,)


def cifars() -> dict[str, Dataset]:
    ten, hundred = Alternating.Config(name="alternating").parts
    return {
        datasets.key(ten.dataset): make("ten", each=4, shape=(3, 4, 4)),
        datasets.key(hundred.dataset): make("hundred", classes=100, each=4, shape=(3, 4, 4)),
    }


def test_alternating_order_of_the_paper() -> None:
    data = cifars()
    for seed, order in ORDERS.items():
        made = stream(Alternating, data, seed, validation=0)
        names = made.info.class_names
        for task, part in zip(made.info.tasks, order, strict=True):
            own = [names[c] for c in task.classes]
            small = [f"ten{c}" for c in (2 * part, 2 * part + 1)]
            large = [f"hundred{c}" for c in range(20 * (part - 5), 20 * (part - 4))]
            assert own == (small if part < 5 else large)
    assert made.info.num_outputs == 110
    assert made.info.readouts == ("class", "task")
    starts = [task.classes[0] for task in made.info.tasks]
    assert starts == np.cumsum([0] + [len(task.classes) for task in made.info.tasks])[:-1].tolist()


def test_alternating_normalisation_of_the_paper() -> None:
    for part in Alternating.Config(name="alternating").parts:
        np.testing.assert_allclose(np.array(part.dataset.mean) * 255, (125.3, 123.0, 113.9))
        np.testing.assert_allclose(np.array(part.dataset.std) * 255, (63.0, 62.1, 66.7))


def test_round_robin() -> None:
    parts = [{"dataset": "mnist", "tasks": 3}, {"dataset": "kmnist", "tasks": 1}]
    data = {"mnist": make("m"), "kmnist": make("k")}
    made = stream(Alternating, data, parts=parts, order="none")
    assert [task.name for task in made.info.tasks] == [
        "1/4 (mnist: m0, m1, m2, m3)",
        "2/4 (kmnist: 10 classes)",
        "3/4 (mnist: m4, m5, m6)",
        "4/4 (mnist: m7, m8, m9)",
    ]
    with pytest.raises(UserError, match="11 tasks, but kmnist has 10 classes") as caught:
        stream(Alternating, data, parts=[parts[0], {"dataset": "kmnist", "tasks": 11}])
    assert caught.value.where == "benchmark.parts[1].tasks"


def test_images_of_different_shapes_do_not_alternate() -> None:
    parts = [{"dataset": "mnist", "tasks": 2}, {"dataset": "kmnist", "tasks": 2}]
    data = {"mnist": make(), "kmnist": make(shape=(1, 5, 5))}
    with pytest.raises(UserError, match="different shapes: 1x5x5 and 1x6x6"):
        stream(Alternating, data, parts=parts)


MIXED = ["cifar10", "kmnist", "mnist", "svhn", "fashion_mnist"]  # notMNIST's place: kmnist


@pytest.mark.parametrize(
    "seed, order",
    [(0, "20134"), (1, "21403"), (2, "24130"), (3, "34102"), (4, "03142")],
)
def test_mixture_order_of_the_paper(seed: int, order: str) -> None:
    data = {name: make(name, each=4) for name in MIXED}
    info = stream(Mixture, data, seed, datasets=MIXED, validation=0, size=6).info
    names = [MIXED[int(i)] for i in order]
    assert [info.class_names[task.classes[0]] for task in info.tasks] == [f"{n}0" for n in names]
    assert [task.classes for task in info.tasks][1] == tuple(range(10, 20))


def test_mixture_brings_images_to_one_shape() -> None:
    grey, colour = make(shape=(1, 5, 6)), make(shape=(3, 8, 8))
    data = {"mnist": grey, "cifar10": colour}
    made = stream(Mixture, data, datasets=["mnist", "cifar10"], size=8, order="none", validation=0)
    assert made.info.input_shape == (3, 8, 8)
    images = raw(made.data[0].train)
    expected = np.pad(grey.train.images, ((0, 0), (0, 0), (1, 2), (1, 1))).repeat(3, 1)
    assert torch.equal(images, torch.from_numpy(expected))
    assert made.data[1].train.transform is None
    assert made.info.mean[1] == colour.mean
    np.testing.assert_allclose(made.info.std[1], colour.std)
    batch = next(made.data[0].train.batches(7))
    assert batch.images.shape == (7, 3, 8, 8)
    assert batch.images.is_contiguous()


def test_mixture_normalises_with_the_border() -> None:
    """The constants tabled for MNIST and Fashion-MNIST at 32 x 32, from those at 28 x 28."""
    tabled = {"mnist": (0.1307, 0.3081, 0.1, 0.2752), "kmnist": (0.2860, 0.3530, 0.2190, 0.3318)}
    data = {}
    for name, (mean, std, *_) in tabled.items():
        plain = make(name, each=4, shape=(1, 28, 28))
        data[name] = Dataset(name, plain.train, plain.test, plain.classes, (mean,), (std,))
    info = stream(Mixture, data, datasets=list(tabled), order="none", validation=0).info
    for i, (*_, mean, std) in enumerate(tabled.values()):
        np.testing.assert_allclose((info.mean[i][0], info.std[i][0]), (mean, std), atol=1e-4)


def test_mixture_refuses_larger_images() -> None:
    data = {"mnist": make(), "cifar10": make(shape=(3, 40, 40))}
    with pytest.raises(UserError, match="40 x 40 pixels, more than 32") as caught:
        stream(Mixture, data, datasets=["mnist", "cifar10"])
    assert caught.value.where == "benchmark.size"


def write_sequence(root: Path, names: tuple[str, ...], classes: str = "ab") -> None:
    rng = np.random.default_rng(0)
    for name in names:
        for c in classes:
            for i in range(10):
                path = root / name / c / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def sequence(**options: object) -> tuple[FolderSequence, Stream]:
    made = FolderSequence(FolderSequence.Config.model_validate({"name": "x", **options}))
    root = datasets.data_root()
    data = {datasets.key(c): datasets.load(c, root) for c in made.datasets()}
    return made, made.stream(data, 0)


def test_folder_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    write_sequence(tmp_path / "seq", ("two", "one", "three"))
    benchmark, made = sequence(path="seq")
    assert benchmark.label == "folder-sequence-seq"
    names = [task.name for task in made.info.tasks]
    assert names == ["1/3 (one: 2 classes)", "2/3 (three: 2 classes)", "3/3 (two: 2 classes)"]
    assert [task.classes for task in made.info.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert [len(task.test) for task in made.data] == [4, 4, 4]
    _, made = sequence(path="seq", hold_out=3)
    assert [len(task.test) for task in made.data] == [6, 6, 6]
    _, made = sequence(path="seq", tasks=["two", "one"])
    assert [task.name for task in made.info.tasks] == [
        "1/2 (two: 2 classes)",
        "2/2 (one: 2 classes)",
    ]
    first = np.asarray(Image.open(tmp_path / "seq/two/a/0.png"))
    rows = torch.cat([made.data[0].train.rows, made.data[0].validation.rows])
    assert torch.equal(
        made.data[0].train.images[int(rows.min()), 0], torch.from_numpy(first.copy())
    )


def test_folder_sequence_with_classes_of_different_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCL_DATA", str(tmp_path))
    write_sequence(tmp_path, ("one",), "abc")
    write_sequence(tmp_path, ("two",))
    _, made = sequence(path=".")
    assert made.info.readouts == ("class", "task")
    with pytest.raises(UserError, match=r"there is no '.*/nowhere'"):
        sequence(path="nowhere")
    with pytest.raises(UserError, match=r"there is no '.*/four'"):
        sequence(path=".", tasks=["one", "four"])
