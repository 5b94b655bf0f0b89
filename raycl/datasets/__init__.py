"""Images as tensors: bundled digits, torchvision sets, IDX files and image folders."""
