"""Separate nodes on one machine: a network namespace, an address and a private disk each.

Every node sees the files of this machine, as if shared by NFS, but for one folder that is a disk of
its own. Needs root, `ip` and `unshare`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import until

BIN = Path(sys.executable).parent
COUNT = iter(range(1, 1000))
QUICK = {  # a node that is gone is noticed in seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}


def why_not() -> str:
    """Why there can be no nodes here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"no {' and no '.join(missing)} here"
    probe = f"rp{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespace can be made: {done.stderr.strip()}"
    ip("netns", "del", probe)
    return ""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Node:
    """One machine.

    Attributes:
        name: Of its network namespace.
        address: Its own.
        cable: Its network device at the switch.
        ray: ``ray start --block``, the first process of its mount namespace.
        folder: Of its log.
    """

    name: str
    address: str
    cable: str
    ray: subprocess.Popen[bytes]
    folder: Path

    def pids(self) -> list[int]:
        """Every process on it."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in done.stdout.split()]

    def kill(self) -> None:
        """The plug is pulled."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.ray.poll()
            time.sleep(0.05)

    def command(self, *command: str, folder: Path = Path("/")) -> list[str]:
        """A command that runs on it, in a folder."""
        inside = ["nsenter", "-t", str(self.ray.pid), "-m", "sh", "-c", 'cd "$0" && exec "$@"']
        return ["ip", "netns", "exec", self.name, *inside, str(folder), *command]

    def plug(self, *, out: bool) -> None:
        """Take its network cable out, or put it back."""
        ip("link", "set", self.cable, "down" if out else "up")

    @property
    def network(self) -> str:
        """The node's network namespace, as a process sees it."""
        command = ["ip", "netns", "exec", self.name, "readlink", "/proc/self/ns/net"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Nodes:
    """A switch and the machines on it.

    Args:
        private: The folder that is a disk of its own on every node.
    """

    def __init__(self, private: Path) -> None:
        self.tag = f"{os.getpid() % 100_000}{next(COUNT)}"
        self.net = f"10.{os.getpid() % 200 + 20}.{next(COUNT)}"
        self.private, self.nodes = private, list[Node]()
        self.files = Path(tempfile.mkdtemp(prefix="rn"))  # paths of sockets are short
        private.mkdir(exist_ok=True)
        (self.files / "ray").mkdir()
        ip("link", "add", f"rb{self.tag}", "type", "bridge")
        ip("link", "set", f"rb{self.tag}", "up")

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def address(self) -> str:
        """The cluster's address."""
        return f"{self.head.address}:6379"

    def start(self, cpus: float, *options: str, **environment: str) -> Node:
        """Add a node; the first one is the head."""
        number = len(self.nodes) + 1
        name, address = f"rn{self.tag}x{number}", f"{self.net}.{number}"
        cable, plug = f"rv{self.tag}x{number}"[:15], f"rp{self.tag}x{number}"[:15]
        ip("netns", "add", name)
        ip("link", "add", cable, "type", "veth", "peer", "name", plug)
        ip("link", "set", cable, "master", f"rb{self.tag}", "up")
        ip("link", "set", plug, "netns", name)
        for arguments in (
            ("addr", "add", f"{address}/24", "dev", plug),
            ("link", "set", plug, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", name, *arguments)
        folder = self.files / str(number)
        folder.mkdir()
        where = ["--head", "--port=6379"] if number == 1 else [f"--address={self.address}"]
        start = [str(BIN / "ray"), "start", "--block", *where, f"--num-cpus={cpus:g}"]
        start += [f"--node-ip-address={address}", "--object-store-memory=100000000"]
        start += ["--disable-usage-stats", *options]
        if number == 1:
            start += [f"--temp-dir={self.files}/ray"]
            if not any("dashboard" in option for option in options):
                start += ["--include-dashboard=false"]
        disks = [f"mount -t tmpfs tmpfs {disk}" for disk in (self.private, f"{self.files}/ray")]
        script = " && ".join([*disks, f"exec {' '.join(start)}"])
        inside = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, *inside],
                env=self.environment() | QUICK | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        node = Node(name, address, cable, process, folder)
        self.nodes.append(node)
        return node

    @staticmethod
    def environment() -> dict[str, str]:
        found = dict(os.environ)
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAYCL_DATA"):
            found.pop(name, None)
        path = f"{BIN}:{found['PATH']}"
        return found | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PATH": path}

    def wait(self, count: int) -> None:
        """Until so many nodes are alive."""
        code = (
            "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        )
        code += "print(sum(n['Alive'] for n in ray.nodes()))"
        ask = self.head.command(sys.executable, "-c", code, self.address)

        def counted() -> bool:
            done = subprocess.run(ask, env=self.environment(), capture_output=True, text=True)
            return done.stdout.strip() == str(count)

        until(counted, self.head.ray, self.head.folder / "log")

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
            node.ray.wait()
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", node.name)
        ip("link", "del", f"rb{self.tag}")
        shutil.rmtree(self.files, ignore_errors=True)


@contextlib.contextmanager
def nodes(private: Path) -> Iterator[Nodes]:
    """Machines for the time of a test."""
    made = Nodes(private)
    try:
        yield made
    finally:
        made.close()
