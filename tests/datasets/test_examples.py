"""Batches: order, normalisation, shared memory, unions, and images streamed from files."""

from __future__ import annotations

import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_making import write_tree

from raycl import datasets
from raycl.benchmarks.split import Split
from raycl.datasets import Batch, DatasetConfig, Examples, FileSet, ImageSet, augment, concat
from raycl.datasets import files as image_files
from raycl.datasets.examples import UnionSet
from raycl.errors import UserError
from raycl.sweep.execution import trainable

MEAN, STD = (0.1, 0.5), (0.3, 0.2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_set(n: int = 20, **options: object) -> ImageSet:
    images = torch.randint(0, 256, (50, 2, 4, 5), dtype=torch.uint8, generator=seeded())
    rows = torch.randperm(50, generator=seeded())[:n]
    labels = torch.arange(n) % 3
    return ImageSet(images, rows, labels, MEAN, STD, **options)  # type: ignore[arg-type]


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.index, y.index)
        for x, y in zip(a, b, strict=True)
    )


def run(examples: Examples, seed: int | None = 0, size: int = 6, **options: object) -> list[Batch]:
    generator = None if seed is None else seeded(seed)
    return list(examples.batches(size, generator=generator, **options))  # type: ignore[arg-type]


def test_a_pass_visits_every_image_once_with_its_label() -> None:
    examples = image_set()
    batches = run(examples)
    assert [len(b) for b in batches] == [6, 6, 6, 2]
    index = torch.cat([b.index for b in batches])
    assert sorted(index.tolist()) == list(range(20))
    assert index.tolist() != list(range(20))
    mean, std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
    expected = (examples.images[examples.rows[index]] / 255 - mean) / std
    torch.testing.assert_close(torch.cat([b.images for b in batches]), expected)
    assert torch.equal(torch.cat([b.labels for b in batches]), examples.labels[index])


def test_order_comes_from_the_generator_alone() -> None:
    examples = image_set()
    state = torch.random.get_rng_state()
    assert equal(run(examples, 1), run(examples, 1))
    assert not equal(run(examples, 1), run(examples, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    in_order = torch.cat([b.index for b in run(examples, None)])
    assert torch.equal(in_order, torch.arange(20))


def test_last_batch() -> None:
    assert [len(b) for b in run(image_set(), drop_last=True)] == [6, 6, 6]
    assert [len(b) for b in run(image_set(18), drop_last=True)] == [6, 6, 6]
    assert [len(b) for b in run(image_set(1))] == [1]


def test_no_batch_is_empty(photos: Path) -> None:
    few = image_set(5)
    union = UnionSet([few, image_set(4)])
    data = datasets.load(DatasetConfig(name="folder", path=str(photos)), photos)
    files = FileSet(data.train, torch.arange(5), torch.arange(5), data.mean, data.std)
    for examples in (few, union, files):
        assert run(examples, size=10, drop_last=True) == []


def test_transform_comes_before_augmentation_and_normalisation() -> None:
    examples = image_set(transform=lambda x: 255 - x)
    raw = examples.raw(torch.arange(20))
    assert torch.equal(raw, 255 - examples.images[examples.rows])
    batch = run(examples, None, 20, augment=lambda x: x // 2)[0]
    assert torch.equal(batch.images, examples.prepare(raw // 2))


def test_shared_read_only_images_are_not_copied(recwarn: pytest.WarningsRecorder) -> None:
    config = DatasetConfig(name="digits")
    buffers: list[pickle.PickleBuffer] = []
    stored = pickle.dumps(
        datasets.load(config, Path("nowhere")), protocol=5, buffer_callback=buffers.append
    )
    # what Ray does: arrays on top of read-only memory
    data = pickle.loads(stored, buffers=[bytes(b.raw()) for b in buffers])
    assert not data.train.images.flags.writeable
    before = data.train.images.copy()
    stream = Split(Split.Config(name="split", dataset=config)).stream({"digits": data}, 0)
    for task in stream.data:
        for part, array in ((task.train, data.train.images), (task.test, data.test.images)):
            assert part.images.data_ptr() == array.ctypes.data
            run(part, augment=augment("crop_flip", seeded()))
    np.testing.assert_array_equal(data.train.images, before)
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_sets_of_one_store_are_merged() -> None:
    whole = image_set()
    parts = [
        ImageSet(whole.images, whole.rows[i], whole.labels[i], MEAN, STD)
        for i in torch.arange(20).split(7)
    ]
    union = concat(parts)
    assert isinstance(union, ImageSet)
    assert union.images is whole.images
    assert equal(run(union), run(whole))
    assert len(parts[0]) == 7


def test_other_sets_are_gathered_part_by_part() -> None:
    a = image_set()
    b = image_set(15, transform=lambda x: 255 - x)
    c = ImageSet(a.images, a.rows, a.labels + 5, (0.0, 0.0), (1.0, 1.0))
    union = concat([concat([a, b]), c])
    assert isinstance(union, UnionSet)
    assert len(union.parts) == 3
    singles = [x for part in (a, b, c) for x in run(part, None, 1)]
    batches = run(union, 3, 8)
    assert [len(x) for x in batches] == [8] * 6 + [7]
    seen = torch.cat([x.index for x in batches])
    assert sorted(seen.tolist()) == list(range(55))
    first = set((seen[:8] >= 20).tolist() + (seen[:8] >= 35).tolist())
    assert first == {True, False}  # shuffled over the parts, not one after the other
    for batch in batches:
        for k, i in enumerate(batch.index.tolist()):
            torch.testing.assert_close(batch.images[k], singles[i].images[0])
            assert batch.labels[k] == singles[i].labels[0]
    assert equal(run(union, 3), run(union, 3))
    index = torch.tensor([54, 0, 20, 19])
    expected = [part.raw(torch.tensor([i]))[0] for part, i in ((c, 19), (a, 0), (b, 0), (a, 19))]
    assert torch.equal(union.raw(index), torch.stack(expected))
    with pytest.raises(ValueError, match="normalised differently"):
        union.prepare(union.raw(index))
    alike = concat([a, b])
    assert torch.equal(alike.prepare(alike.raw(index % 20)), a.prepare(alike.raw(index % 20)))


def test_a_union_is_augmented_as_one_batch() -> None:
    a, b = image_set(), image_set(15, transform=lambda x: 255 - x)
    sizes: list[int] = []
    run(concat([a, b]), 0, 10, augment=lambda x: (sizes.append(len(x)), x)[1])
    assert sizes == [10, 10, 10, 5]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("photos"), ("a", "b", "c", "d"), each=10, side=70)


def file_sets(root: Path) -> list[Examples]:
    config = DatasetConfig(name="folder", path=str(root), size=66)
    data = {datasets.key(config): datasets.load(config, root)}
    stream = Split(Split.Config(name="split", dataset=config, tasks=2, validation=0)).stream(
        data, 0
    )
    return [task.train for task in stream.data]


def test_files_are_streamed_in_the_order_of_the_generator(photos: Path) -> None:
    examples = file_sets(photos)[0]
    assert isinstance(examples, FileSet)
    state = torch.random.get_rng_state()
    first = run(examples, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [len(b) for b in first] == [6, 6, 4]
    assert first[0].images.shape == (6, 3, 66, 66)
    assert equal(first, run(examples, 4))
    assert not equal(first, run(examples, 5))
    for batch in first:
        assert torch.equal(batch.images, examples.prepare(examples.raw(batch.index)))
        assert torch.equal(batch.labels, examples.labels[batch.index])


def test_files_are_augmented_from_the_generator(photos: Path) -> None:
    examples = file_sets(photos)[0]
    passes = [run(examples, 4, augment=augment("crop_flip", seeded(s))) for s in (0, 0, 1)]
    assert equal(passes[0], passes[1])
    assert not equal(passes[0], passes[2])


def test_a_pass_over_files_may_be_left_early(photos: Path) -> None:
    examples = file_sets(photos)[0]
    assert len(next(examples.batches(4, generator=seeded()))) == 4


@pytest.mark.parametrize("beside", [False, True], ids=["main thread", "as on Ray"])
def test_a_killed_process_that_reads_is_lost_and_no_fault_of_the_trial(
    photos: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    examples = file_sets(photos)[0]
    monkeypatch.setattr(
        image_files, "decode", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    )
    said = r"was lost: DataLoader worker \(pid"
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(image_files.ReaderLost, match=said) as caught,
    ):
        _ = pool.submit(run, examples).result() if beside else run(examples)
    assert trainable.lost(caught.value)


@pytest.mark.parametrize(
    "error",
    [MemoryError("none left"), RuntimeError("x: can't allocate memory: 9"), ValueError("y")],
)
def test_errors_of_processes_that_read_arrive_as_they_were(
    photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    examples = file_sets(photos)[0]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(image_files, "decode", fail)
    with pytest.raises(type(error), match=str(error)) as caught:
        run(examples)
    assert not trainable.lost(caught.value)
    assert (str(caught.value) == str(error)) == (not isinstance(error, ValueError))


def test_a_full_shared_memory_is_told_and_no_fault_of_the_trial(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch alone prints the error in the process that reads, and waits for ever."""
    examples = file_sets(photos)[0]

    def full(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(image_files.ReaderLost, match=r"handed over: .*No space left") as caught:
        run(examples)
    assert trainable.lost(caught.value)


def test_file_sets_of_one_folder_are_merged(photos: Path) -> None:
    sets = file_sets(photos)
    union = concat(sets)
    assert isinstance(union, FileSet)
    assert len(union) == sum(len(part) for part in sets)
    assert torch.equal(union.raw(torch.tensor([len(sets[0]) + 5])), sets[1].raw(torch.tensor([5])))


@pytest.mark.parametrize("workers", [1, 2])  # 1: fewer than sets that want one
def test_files_in_a_union_are_read_ahead(
    photos: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("raycl.datasets.files.WORKERS", workers)
    first, second = file_sets(photos)
    assert isinstance(first, FileSet)
    other = ((0.1,) * 3, (0.3,) * 3)
    inverted = FileSet(first.files, first.rows, second.labels, *other, lambda x: 255 - x)
    stored = ImageSet(first.raw(torch.arange(3)), torch.arange(3), torch.arange(3), *other)
    parts = (first, stored, inverted)
    batches = run(UnionSet(parts), 2, 8)
    assert [len(batch) for batch in batches] == [8] * 4 + [3]
    images = torch.cat([part.prepare(part.raw(torch.arange(len(part)))) for part in parts])
    for batch in batches:
        torch.testing.assert_close(batch.images, images[batch.index])
        assert torch.equal(batch.labels, UnionSet(parts).labels[batch.index])


def test_a_subset_keeps_images_labels_and_order_and_shares_the_store() -> None:
    whole = image_set(transform=lambda x: 255 - x)
    chosen = torch.tensor([7, 2, 2, 19])
    part = whole.subset(chosen)
    assert isinstance(part, ImageSet)
    assert part.images is whole.images
    assert torch.equal(part.raw(torch.arange(4)), whole.raw(chosen))
    assert torch.equal(part.labels, whole.labels[chosen])
    assert len(whole) == 20
    assert len(whole.subset(chosen[:0])) == 0
    again = part.subset(torch.tensor([3, 0]))
    assert torch.equal(again.raw(torch.arange(2)), whole.raw(torch.tensor([19, 7])))
    assert equal(run(concat([part, part]), None), run(whole.subset(chosen.repeat(2)), None))


def test_a_subset_of_a_union_goes_part_by_part() -> None:
    first, second = image_set(5), image_set(4, transform=lambda x: 255 - x)
    union = concat([first, second])
    assert isinstance(union, UnionSet)
    part = union.subset(torch.tensor([8, 1, 5, 0]))
    in_parts = torch.tensor([1, 0, 8, 5])  # first those of the first part, in the given order
    assert torch.equal(part.raw(torch.arange(4)), union.raw(in_parts))
    assert torch.equal(part.labels, union.labels[in_parts])
    expected = torch.cat([b.images for b in run(union, None)])[in_parts]
    assert torch.equal(run(part, None)[0].images, expected)
    alone = union.subset(torch.tensor([6]))  # nothing of the first part
    assert torch.equal(alone.raw(torch.tensor([0])), second.raw(torch.tensor([1])))


def test_a_subset_of_files(photos: Path) -> None:
    whole = file_sets(photos)[0]
    chosen = torch.tensor([3, 0])
    part = whole.subset(chosen)
    assert isinstance(part, FileSet)
    assert part.files is whole.files
    assert torch.equal(part.raw(torch.arange(2)), whole.raw(chosen))
    (batch,) = run(part, None)
    assert torch.equal(batch.labels, whole.labels[chosen])


def test_a_file_that_breaks_while_training_is_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ("a", "b"), each=10, side=70)
    examples = file_sets(root)[0]
    broken = root / "b" / "03.png"
    broken.write_bytes(broken.read_bytes()[:100])
    for other in (root / "a").iterdir():
        other.write_bytes(broken.read_bytes())
    with pytest.raises(UserError, match=r"cannot read the image '.*\.png'"):
        run(examples)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_are_those_of_the_cpu() -> None:
    config = DatasetConfig(name="digits")
    data = {"digits": datasets.load(config, Path("nowhere"))}
    made = {}
    for device in ("cpu", "cuda"):
        stream = Split(Split.Config(name="split", dataset=config)).stream(data, 0, device)
        a, b = stream.data[0].train, stream.data[1].train
        assert isinstance(a, ImageSet)
        shifted = ImageSet(a.images, a.rows, a.labels, (0.0,), (1.0,))
        made[device] = run(concat([a, b])) + run(concat([shifted, b]))
        random = torch.Generator(device).manual_seed(0)
        changed = run(a, augment=augment("crop_flip", random))
        assert changed[0].images.device.type == device
    on_cpu = [Batch(x.images.cpu(), x.labels.cpu(), x.index.cpu()) for x in made["cuda"]]
    assert equal(made["cpu"], on_cpu)
