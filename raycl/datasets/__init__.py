"""Images as tensors: digits, glyphs, torchvision sets, IDX files and image folders."""

from raycl.datasets.augment import augment
from raycl.datasets.base import Arrays, Dataset, DatasetConfig, Files, key
from raycl.datasets.disk import Entry, catalogue, data_root, fetch, load, names, present
from raycl.datasets.examples import Augment, Batch, Examples, ImageSet, concat
from raycl.datasets.files import FileSet

__all__ = [
    "Arrays",
    "Augment",
    "Batch",
    "Dataset",
    "DatasetConfig",
    "Entry",
    "Examples",
    "FileSet",
    "Files",
    "ImageSet",
    "augment",
    "catalogue",
    "concat",
    "data_root",
    "fetch",
    "key",
    "load",
    "names",
    "present",
]
