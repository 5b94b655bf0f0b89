"""Show runs in MLflow's own web interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from raycl.errors import UserError
from raycl.tracking import store, views

HOST = "127.0.0.1"
START_S, STOP_S = 60.0, 10.0


def serve(uri: str, artifacts: str | None, port: int = 5000, name: str | None = None) -> int:
    """Serve a store's runs on this machine until interrupted.

    For a store that is a server already, only its address is printed.

    Args:
        uri: Absolute tracking URI.
        artifacts: Where the files of runs are (their own records name it too).
        port: Port on 127.0.0.1; 0 picks a free one.
        name: Print the address of this experiment; None: of the list of experiments.

    Returns:
        Exit code: 0 when it was asked to stop (SIGINT, SIGTERM, SIGHUP), else the server's own.

    Raises:
        UserError: The store is not there or does not answer, the port is in use, there is no
            such experiment, or the server that is started does not answer in time.
    """
    if store.kind(uri) in store.SERVERS:
        store.check(uri)
        print(f"MLflow: {page(uri, uri, name)}", flush=True)
        return 0
    store.existing(uri)
    port = _free(port)
    address = f"http://{HOST}:{port}"
    process = _start(uri, artifacts, port)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        process.terminate()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        shown = page(uri, address, name)  # while the server is starting
        if _answers(process, address):
            print(f"MLflow: {shown}\nStop it with Ctrl-C.", flush=True)
            process.wait()
    finally:
        process.terminate()
        _end(process)
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if stopped else process.returncode or 1


def page(uri: str, address: str, name: str | None) -> str:
    """Address of an experiment's runs at a server; of the list of experiments if there is none."""
    store.quiet()
    from mlflow import MlflowClient

    try:
        found = MlflowClient(store.for_mlflow(uri)).get_experiment_by_name(name) if name else None
    except Exception as error:  # noqa: BLE001  (stores raise whatever their drivers do)
        what = f"{store.shown(uri)} cannot be read: {store.reason(error)}"
        raise UserError("tracking.uri", what) from None
    if name and found is None:
        raise UserError("raycl ui", f"no experiment {name!r} in {store.shown(uri)}")
    base = f"{store.shown(address).rstrip('/')}/#/experiments"
    view = f"workflowType=machine_learning&viewStateShareKey={views.METHODS}"
    return f"{base}/{found.experiment_id}/runs?{view}" if found else base


def _start(uri: str, artifacts: str | None, port: int) -> subprocess.Popen[bytes]:
    """Start the server in a process group of its own, which can be ended as a whole."""
    uri = store.for_mlflow(uri)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    if artifacts:
        command += ["--default-artifact-root", artifacts]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not on the command line, which everybody can read
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError("--port", f"{port} cannot be used ({error.strerror})") from None
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server answers; False if it ended.

    Raises:
        UserError: It takes too long.
    """
    deadline = time.monotonic() + START_S
    direct = build_opener(ProxyHandler({}))  # it is on this machine, where no proxy reaches it
    while process.poll() is None:
        try:
            with direct.open(f"{address}/health", timeout=1.0):
                return True
        except (URLError, OSError):
            time.sleep(0.1)
        if time.monotonic() > deadline:
            what = f"MLflow's server does not answer at {address} after {START_S:.0f} s"
            raise UserError("raycl ui", what, "try again when the machine is less busy")
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and everything it started."""
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if _group(process.pid):
        os.killpg(process.pid, signal.SIGKILL)


def _group(leader: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True
