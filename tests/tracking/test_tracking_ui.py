"""The address of MLflow's pages, and how its server is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from raycl import secrets
from raycl.errors import UserError
from raycl.tracking import ui
from tests.waiting import free_port

RUNNING: Any = SimpleNamespace(poll=lambda: None)


def test_the_address_of_a_view_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = SimpleNamespace(experiment_id="7")
    client = SimpleNamespace(get_experiment_by_name=lambda name: experiment)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda uri: client)
    shown = ui.page("http://host:5000", "http://host:5000", "s")
    assert shown.endswith("&viewStateShareKey=raycl-methods")
    assert secrets.redact(f"MLflow: {shown}\n") == f"MLflow: {shown}\n"


@pytest.fixture
def address() -> Iterator[str]:
    """A server that answers everything with nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_does_not_hide_the_server(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(ui, "START_S", 20.0)
    assert ui._answers(RUNNING, address)


def test_a_server_that_does_not_answer_in_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "START_S", 0.0)
    with pytest.raises(UserError, match=r"raycl ui: .* does not answer at http://127\.0\.0\.1:"):
        ui._answers(RUNNING, f"http://127.0.0.1:{free_port()}")
    ended: Any = SimpleNamespace(poll=lambda: 1)
    assert not ui._answers(ended, f"http://127.0.0.1:{free_port()}"), "it has said why itself"
