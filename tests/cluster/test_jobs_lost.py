"""Jobs of one name, and a connection to the cluster that breaks; no cluster is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientError
from ray.job_submission import JobStatus
from requests.exceptions import ConnectionError as NotReached

from raycl import jobs


def job(name: str, status: JobStatus, start: int, sweep: str = "s") -> Any:
    return SimpleNamespace(
        submission_id=name,
        status=status,
        start_time=start,
        metadata={jobs.SWEEP: sweep},
        driver_exit_code=0,
        runtime_env=None,
        message="",
    )


class Client:
    """A client whose answers come from a list; an exception in it is raised."""

    def __init__(self, answers: list[Any], logs: list[Any] = ()) -> None:  # type: ignore[assignment]
        self.answers, self.logs = answers, list(logs)
        self.stopped: list[str] = []
        self.log = "a\nb\n"

    def list_jobs(self) -> list[Any]:
        return [one for one in self.answers if not isinstance(one, Exception)]

    def get_job_info(self, name: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        return self._tail()

    def get_job_logs(self, name: str) -> str:
        return self.log

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)

    async def _tail(self) -> AsyncIterator[str]:
        for text in self.logs.pop(0):
            if isinstance(text, Exception):
                raise text
            yield text


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)


RUNNING, FAILED = job("first", JobStatus.RUNNING, 1), job("second", JobStatus.FAILED, 2)
OVER = job("first", JobStatus.SUCCEEDED, 1)


def test_a_name_means_the_job_that_still_runs() -> None:
    client: Any = Client([RUNNING, FAILED])
    assert jobs._find(client, "s") is RUNNING
    assert jobs._find(client, "second") is FAILED
    client = Client([OVER, FAILED])
    assert jobs._find(client, "s") is FAILED, "the newest, where all are over"


@pytest.mark.parametrize("error", [NotReached("x"), RuntimeError("x"), ClientError("x")])
@pytest.mark.parametrize("quietly", [True, False])
def test_a_connection_that_breaks_is_made_again(
    capsys: pytest.CaptureFixture[str], error: Exception, quietly: bool
) -> None:
    client: Any = Client([RUNNING, error, RUNNING, OVER], [["a\n", error], ["a\n", "b\n"]])
    assert jobs._to_the_end(client, "first", None, quietly) == 0
    out, err = capsys.readouterr()
    assert out == ("first: succeeded, code 0\n" if quietly else "a\nb\n")
    assert err == ""


def test_a_job_that_ended_meanwhile_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    client: Any = Client([OVER], [["a\n", NotReached("x")]])
    assert jobs._to_the_end(client, "first", None, False) == 0
    assert capsys.readouterr() == ("a\nb\n", "")


def test_a_connection_that_stays_away_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    client: Any = Client([NotReached("away")])
    assert jobs._to_the_end(client, "first", None, True) == 1
    assert "the connection is lost (away); first may go on" in capsys.readouterr().err


RAYS = "Runtime env is setting up.\nRunning entrypoint for job first: python -m raycl run s\n"
PENDING, STOPPED = job("first", JobStatus.PENDING, 1), job("first", JobStatus.STOPPED, 1)
STOPPED.driver_exit_code = None


@pytest.mark.parametrize(
    "begun, end, log, code, said",
    [
        (RUNNING, STOPPED, "interrupted; continue with: raycl resume s", 0, "first: stopped; the"),
        (RUNNING, STOPPED, "interrupted; nothing had begun; run it again", 0, "first: stopped; "),
        (RUNNING, STOPPED, "3 of 9 trials", 1, "first: stopped; the same submission continues it"),
        (RUNNING, STOPPED, "", 0, "first: stopped; the same submission continues it"),
        (RUNNING, OVER, "runs: /runs/s", 0, "first has ended by itself: succeeded"),
        (PENDING, STOPPED, "", 0, "first: stopped; the same submission continues it"),
        (PENDING, STOPPED, "1 of 9 trials", 1, "first: stopped; "),
    ],
)
def test_only_a_job_that_had_to_be_killed_is_stopped_with_1(
    begun: Any,
    end: Any,
    log: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = Client([begun])
    monkeypatch.setattr(jobs, "connect", lambda _: client)
    find = jobs._find

    def found(*arguments: Any) -> Any:
        one = find(*arguments)
        client.answers, client.log = [end], f"{RAYS}{log}"
        return one

    monkeypatch.setattr(jobs, "_find", found)
    assert jobs.stop("s", None) == code
    assert client.stopped == ["first"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(said)
    assert "" not in lines
