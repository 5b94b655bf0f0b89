"""A method sees the current task and what it declared, nothing else."""

from __future__ import annotations

import pytest
from stream_making import make

from raycl.benchmarks.base import DataAccessError, Stream
from raycl.benchmarks.split import Split


@pytest.fixture
def stream() -> Stream:
    return Split(Split.Config(name="split")).stream({"digits": make()}, 0)


def test_a_task_shows_its_own_data(stream: Stream) -> None:
    task = stream.open(2, None)
    assert task.info is stream.info.tasks[2]
    assert task.train is stream.data[2].train
    assert task.validation is stream.data[2].validation
    assert not hasattr(task, "test")


@pytest.mark.parametrize("memory", [None, "exemplars", "generator"])
def test_the_past_is_closed(stream: Stream, memory: str | None) -> None:
    with pytest.raises(DataAccessError, match="only for memory = 'all'"):
        _ = stream.open(2, memory).past


def test_the_past_of_an_upper_bound(stream: Stream) -> None:
    past = stream.open(2, "all").past
    assert [part is stream.data[i].train for i, part in enumerate(past)] == [True, True]
    assert stream.open(0, "all").past == []


@pytest.mark.parametrize("what", ["train", "validation", "past"])
def test_a_task_that_has_ended_is_closed(stream: Stream, what: str) -> None:
    task = stream.open(2, "all")
    getattr(task, what)
    task.close()
    with pytest.raises(DataAccessError, match="task 2 has ended"):
        getattr(task, what)
