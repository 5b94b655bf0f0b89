"""The storage of checkpoints: one driver at a time uses it, and every node sees it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from raycl import atomic
from raycl.errors import UserError
from raycl.secrets import adopt
from raycl.sweep.execution.reaper import began
from raycl.trial.checkpoint import filesystem, make_folder

log = logging.getLogger(__name__)

LEASE = "driver.json"
BEAT_S, STALE_S = 20.0, 90.0
"""How often a driver says that it lives, and when it is taken for dead; clocks may differ."""
PROBE_S = 120.0


class Lease:
    """A file that says who runs a sweep in a storage; its driver renews it.

    The lock of the sweep's folder keeps drivers apart that share that folder. Two with folders of
    their own, on two machines, meet only here. A driver that died leaves its file: it is taken over
    at once from the same folder, whose lock is held then, and by anybody on the machine where the
    process is gone, else after ``STALE_S``. A copy of a folder has the sweep's identity, but
    neither its place nor its lock.

    Args:
        url: Folder of the sweep in the storage: a path, or any URL fsspec knows.
        sweep_id: Identity that the sweep's folder has.
        folder: The sweep's folder.
    """

    def __init__(self, url: str, sweep_id: str, folder: Path) -> None:
        self.url, self.path = url, f"{url}/{LEASE}"
        self.mine = {"sweep_id": sweep_id, "folder": str(folder)}
        self.mine |= {"host": socket.gethostname(), "pid": str(os.getpid())}
        self.mine |= {"machine": _machine(), "began": began(os.getpid())}
        self.taken_by = ""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease.

        Raises:
            UserError: Another driver does, or the storage cannot be written.
        """
        try:
            other = self._other()
            if other is None:
                self._write()
                other = self._other()  # two that began at once: the one that wrote last has it
        except Exception as error:
            raise unusable(self.url, error) from error
        if other is not None:
            raise UserError("storage", f"{self.url} is in use by {_named(other)}", _HINT)
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._let_go()

    def _let_go(self) -> None:
        """Remove the file, unless another driver has written it since."""
        with contextlib.suppress(Exception):  # of any kind; the file goes stale by itself
            found = json.loads(self.fs.cat_file(self.place))
            if all(found.get(key) == value for key, value in self.mine.items()):
                self.fs.rm(self.place)

    def _renew(self, ended: threading.Event) -> None:
        failed = False
        while not ended.wait(BEAT_S):
            try:
                other = self._other()
                if other is None:
                    self._write()
                    failed = False
                    continue
            except Exception as error:  # noqa: BLE001  (file systems raise what they like)
                if not failed:
                    log.warning("%s cannot be renewed: %s", self.path, error)
                failed = True
                continue
            self.taken_by = _named(other)  # while this process was suspended
            os.kill(os.getpid(), signal.SIGTERM)
            return

    @property
    def fs(self) -> Any:
        """The file system."""
        return filesystem(self.url)[0]

    @property
    def place(self) -> str:
        """The file's path on it."""
        return f"{filesystem(self.url)[1]}/{LEASE}"

    def _write(self) -> None:
        fs, place = self.fs, self.place
        make_folder(fs, place.rpartition("/")[0])
        text = json.dumps(self.mine | {"beat": time.time()})
        if isinstance(fs, LocalFileSystem):
            atomic.write(Path(place), text)
            return
        draft = f"{place}.{uuid.uuid4().hex}"  # a copy of the sweep's folder has its sweep_id
        fs.pipe_file(draft, text.encode())
        fs.mv(draft, place)

    def _other(self) -> Mapping[str, Any] | None:
        """The lease of another folder's driver that lives."""
        fs = self.fs
        fs.invalidate_cache()
        try:
            found = json.loads(fs.cat_file(self.place))
            ours = all(found[key] == self.mine[key] for key in ("sweep_id", "folder"))
            if ours or self._is_dead(found):
                return None
            return None if time.time() - float(found["beat"]) > STALE_S else found
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            log.warning("%s is damaged: it is written again", self.path)
            return None

    def _is_dead(self, found: Mapping[str, Any]) -> bool:
        """Whether a lease is of a process of this machine that is gone."""
        here = bool(self.mine["machine"]) and found.get("machine") == self.mine["machine"]
        return here and began(int(found["pid"])) != found.get("began")


_HINT = "wait for it or stop it, or choose another name or storage"


def _machine() -> str:
    """Id of this start of the machine and of its process numbers; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _named(lease: Mapping[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']} ({lease['folder']})"


def unusable(url: str, error: Exception) -> UserError:
    """The error about a storage that does not work."""
    text = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
    hint = "pip install s3fs" if isinstance(error, ImportError) and "s3" in url else ""
    return UserError("storage", f"{url} cannot be used: {text}", hint)


def look(url: str, theirs: str, mine: str, variables: Mapping[str, str]) -> bool:
    """Look, on a node, whether the driver's file is there, and write one back."""
    adopt(variables)
    fs, root = filesystem(url)
    fs.invalidate_cache()
    there = bool(fs.exists(f"{root}/{theirs}"))
    if there:
        fs.pipe_file(f"{root}/{mine}", b"")
    return there


def check_nodes(url: str, nodes: Sequence[Mapping[str, Any]], variables: Mapping[str, str]) -> None:
    """Make sure that all nodes that can run trials write to one place.

    Each looks for a file of the driver's, and leaves one that the driver looks for.

    Args:
        url: Folder of the sweep in the storage.
        nodes: Entries of ``ray.nodes()``.
        variables: Set on each of them, for what the storage asks for.

    Raises:
        UserError: A node sees another folder than the driver, or cannot write.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    asked: dict[Any, tuple[str, str]] = {}
    try:
        fs, root = filesystem(url)
        make_folder(fs, root)
        fs.pipe_file(f"{root}/{probe}", b"")
    except Exception as error:
        raise unusable(url, error) from error
    try:
        for i, node in enumerate(nodes):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            mine = f"{probe}-{i}"
            ref = task.options(scheduling_strategy=there).remote(url, probe, mine, variables)
            asked[ref] = (node["NodeManagerAddress"], f"{root}/{mine}")
        ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S, fetch_local=False)
        for ref, (address, left) in asked.items():
            _check_answer(ref, url, address, left, fs)
    finally:
        for path in (f"{root}/{probe}", *(left for _, left in asked.values())):
            with contextlib.suppress(Exception):  # of any kind; what stays is empty
                fs.rm(path)


def _check_answer(ref: Any, url: str, address: str, left: str, fs: Any) -> None:
    import ray

    try:
        seen = ray.get(ref, timeout=0)
    except ray.exceptions.GetTimeoutError:
        what = f"node {address} did not say within {PROBE_S:.0f} s whether it can use {url}"
        raise UserError("storage", what) from None
    except ray.exceptions.RayTaskError as error:
        what = str(error.cause).strip().partition("\n")[0] or type(error.cause).__name__
        raise UserError("storage", f"node {address} cannot use {url}: {what}") from None
    except ray.exceptions.RayError:
        return  # the node is gone: no trial will run there
    fs.invalidate_cache()
    if not seen or not fs.exists(left):
        raise UserError(
            "storage",
            f"{url} is not one folder for all: node {address} does not see what the driver writes",
            "give a folder that all nodes share, or a URL, e.g. storage: s3://bucket/raycl",
        )
