"""Variables of Ray and Tune with which they would raise, or end the process."""

from __future__ import annotations

import logging
import os

import pytest

from raycl.errors import UserError
from raycl.sweep.execution import environment


@pytest.mark.parametrize(
    "name, value",
    [
        ("TUNE_RESULT_DIR", "/somewhere"),
        ("RAY_AIR_LOCAL_CACHE_DIR", "/somewhere"),
        ("RAY_TUNE_CALLBACKS", "no.such.Callback"),
        ("TUNE_GLOBAL_CHECKPOINT_S", "often"),
        ("TUNE_MAX_PENDING_TRIALS_PG", "1.5"),
        ("TUNE_RESULT_BUFFER_LENGTH", ""),
        ("TUNE_FUNCTION_THREAD_TIMEOUT_S", "0.5"),
        ("TUNE_WARN_THRESHOLD_S", "soon"),
        ("RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE", "perhaps"),
    ],
)
def test_what_tune_refuses_is_taken_away_and_named(
    name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = {name: value, "TUNE_DISABLE_SIGINT_HANDLER": "no", "PATH": "x"}
    with caplog.at_level(logging.WARNING):
        environment.prepare(given)
    assert given == environment.OURS | {"PATH": "x"}
    assert caplog.messages == [
        f"warning: the environment's {name} is not used: Tune refuses '{value}'"
    ]


def test_what_tune_reads_stays(caplog: pytest.LogCaptureFixture) -> None:
    fine = {
        "TUNE_GLOBAL_CHECKPOINT_S": "auto",
        "TUNE_MAX_PENDING_TRIALS_PG": "16",
        "TUNE_WARN_THRESHOLD_S": "0.5",
        "TUNE_PLACEMENT_GROUP_PREFIX": "mine",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
        "RAY_ADDRESS": "auto",
    }
    given = dict(fine)
    environment.prepare(given)
    assert given == fine | environment.OURS
    assert not caplog.messages


def test_a_flag_that_ray_cannot_read_is_named() -> None:
    """Ray would end the process by a segmentation fault. Ray is imported three times: seconds."""
    given = dict(os.environ) | {"RAY_task_retry_delay_ms": "1.5", "RAY_event_stats": "1"}
    with pytest.raises(UserError, match=r"RAY_task_retry_delay_ms: .*'1\.5'; correct it, or unset"):
        environment.prepare(given)
