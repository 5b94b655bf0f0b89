"""Split ImageNet-R: classes, images and order are those of the published lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from raycl import datasets
from raycl.benchmarks.base import Stream
from raycl.benchmarks.split import Split
from raycl.datasets import split_lists
from raycl.sweep.file import spec

SWEEPS = Path(__file__).parents[2] / "sweeps" / "cdl"
ORDER = """
    02165456 03594945 02325366 02814860 02966193 02480495 02106030 02088364 02066245 02843684
    04591713 02110185 02092339 02980441 01833805 03947888 03602883 03649909 02841315 01855672
    02007558 03424325 03710193 02992529 12267677 02233338 04254680 07714990 01644373 02077923
    02138441 03498962 01484850 01847000 02113799 02129165 02119022 07697537 02480855 02009912
    07693725 02445715 04487394 02802426 09835506 04133789 02113023 02091134 02110341 02317335
    02607072 07768694 07880968 01843383 02769748 03494278 02106166 04086273 01944390 02098286
    01806143 01514859 01498041 07614500 04465501 02398521 02117135 02808440 02112018 02906734
    02486410 07720875 02110958 03124170 01632777 01986214 02437616 04192698 02134084 02655020
    02086240 03345487 02395406 04147183 01748264 02113624 03272010 03495258 02128385 03467068
    02096585 04310018 04146614 04536866 07745940 02088238 02363005 02364673 02226429 07753592
    02510455 04266014 02948072 07695742 02099712 02112137 07873807 02102318 02106662 01774750
    02219486 02114367 01614925 07734744 01770393 01616318 04275548 03452741 02950826 02883205
    02279972 03775071 01443537 02088466 04325704 02129604 02091032 07714571 02085620 04347754
    01677366 04118538 01882714 07697313 01820546 02097298 02088094 03372029 02108915 02797295
    01531178 03930630 02268443 02823750 02106550 01494475 02190166 02346627 02130308 02481823
    07718472 04522168 07753275 01910747 02447366 02109525 02099601 01784675 04141076 04389033
    03481172 02483362 02749479 04552348 02123045 01860187 03676483 02526121 02236044 04409515
    02423022 02206856 02108089 02051845 10565667 07749582 01630670 02128757 02939185 02672831
    02951358 07920052 01518878 02793495 03773504 01694178 09472597 02909870 02701002 03888257
    01983481 02356798 02410509 07742313 02391049 03630383 02094433 02056570 02071294 01534433
"""
"""Numbers of the WordNet ids in the order of their labels, 20 for each task."""
CLASSES = [f"n{number}" for number in ORDER.split()]
TRAIN = [2166, 2655, 2292, 2799, 2463, 2624, 2209, 2539, 2195, 2058]
TEST = [543, 716, 553, 686, 620, 631, 557, 636, 587, 471]
SUMS = {
    "train": "c05f173b66251f73b9137e37b0b2e6a41a8ec266a3b68ad6f8f240fc9e41c65c",
    "test": "cd70b3433dc9fea2cac8f738d231be4d64176b5711e39ffae18ce6a602f179c1",
}
"""SHA-256 of the lines ``class/file label`` of a list, sorted and joined by newlines."""


def config(name: str = "imagenet_r") -> Split.Config:
    (block,) = spec.load(SWEEPS / f"{name}.yaml").benchmark
    return Split.Config.model_validate(block)


def stream(name: str, root: Path) -> Stream:
    made = Split(config(name))
    (dataset,) = made.datasets()
    return made.stream({datasets.key(dataset): datasets.load(dataset, root)}, 1)


def write_set(root: Path) -> None:
    """Two images for training and one for testing of each class, and lists in mixed-up order."""
    for wnid in CLASSES:
        (root / "imagenet-r" / wnid).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((5 + i, 7, 3), 40 * i, np.uint8)
            Image.fromarray(pixels).save(root / "imagenet-r" / wnid / f"art_{i}.png")
    order = np.random.RandomState(0).permutation(len(CLASSES)).tolist()
    for part, files in (("train", (0, 2)), ("test", (1,))):
        entries = [(f"data/imagenet-r/{CLASSES[c]}/art_{i}.png", c) for c in order for i in files]
        listed = {"data": [e[0] for e in entries], "targets": [e[1] for e in entries]}
        (root / f"imagenet-r_{part}.yaml").write_text(yaml.safe_dump(listed))


@pytest.mark.parametrize("name", ["imagenet_r", "imagenet_r-large"])
def test_tasks_are_those_of_the_lists(tmp_path: Path, name: str) -> None:
    write_set(tmp_path)
    made = stream(name, tmp_path)
    assert list(made.info.class_names) == CLASSES
    assert made.info.input_shape == (3, 224, 224)
    assert [task.classes for task in made.info.tasks] == [
        tuple(range(20 * t, 20 * t + 20)) for t in range(10)
    ]
    for t, task in enumerate(made.data):
        for part, each in ((task.train, 2), (task.test, 1)):
            assert sorted(part.labels.tolist()) == sorted([*range(20 * t, 20 * t + 20)] * each)


def test_the_lists_are_the_published_ones() -> None:
    files, root = config().dataset.split_file, datasets.data_root()
    assert files is not None
    paths = {"train": root / files.train, "test": root / files.test}
    if missing := [path for path in paths.values() if not path.exists()]:
        pytest.skip(f"there is no {missing[0]}; set RAYCL_DATA to a folder that has it")
    folders: dict[int, str] = {}
    for part, counts in (("train", TRAIN), ("test", TEST)):
        entries = [(split_lists._end(i), k) for i, k in split_lists._read(part, paths[part])]
        lines = sorted(f"{image} {label}" for image, label in entries)
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == SUMS[part]
        folders |= {label: image.partition("/")[0] for image, label in entries}
        of_task = np.array([label // 20 for _, label in entries])
        assert np.bincount(of_task).tolist() == counts
    assert [folders[label] for label in sorted(folders)] == CLASSES
