"""Environment variables of Ray and Tune: what a sweep sets, and what would make them raise."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

from raycl.errors import UserError, printable

log = logging.getLogger(__name__)

OURS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON or TensorBoard files
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # we print each error once ourselves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours turns SIGINT and SIGTERM into Tune's SIGUSR1
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant to the user
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "1",
}
REFUSED = ("TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR", "RAY_TUNE_CALLBACKS", "RAY_STORAGE")
"""Variables with which Tune raises, or writes elsewhere, whatever their value."""
WORDS = ("TUNE_PLACEMENT_GROUP_PREFIX", "TUNE_RESULT_DELIM", "TUNE_ORIG_WORKING_DIR")
"""Tune's variables that are no numbers."""
WHOLE = ("TUNE_FORCE_TRIAL_CLEANUP_S", "TUNE_FUNCTION_THREAD_TIMEOUT_S")
"""Tune's numbers of seconds that have to be whole; others may have a fraction."""
AUTO = ("TUNE_GLOBAL_CHECKPOINT_S", "TUNE_MAX_PENDING_TRIALS_PG")
TUNE = ("TUNE_", "RAY_AIR_", "RAY_TRAIN_")
PROBE_S = 120
PROBE = "import ray\nfrom ray._raylet import Config\nConfig.initialize('')"
"""Code by which Ray reads its variables; a value that it cannot read ends the process."""
QUIET = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_JOB_", "RAY_AUTH_", *TUNE)
"""Beginnings of the names of variables that Ray does not read then."""


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that a sweep needs, and remove, with one line, those that break Tune.

    Raises:
        UserError: A variable that Ray itself cannot read.
    """
    taken = sorted(name for name, value in environment.items() if not _usable(name, value))
    for name in taken:
        value = printable(environment.pop(name))
        log.warning("warning: the environment's %s is not used: Tune refuses '%s'", name, value)
    environment.update(OURS)
    asked = [name for name in environment if name.startswith("RAY_") and name not in OURS]
    asked = sorted(name for name in asked if not name.startswith(QUIET))
    if not asked or _starts(environment):
        return
    rest = {name: value for name, value in environment.items() if name not in asked}
    for name in asked:
        value = environment[name]
        if not _starts(rest | {name: value}):
            what = f"Ray cannot read its value '{printable(value)}'"
            raise UserError(f"environment variable {name}", what, "correct it, or unset it")


def _usable(name: str, value: str) -> bool:
    """Whether Tune takes a variable as it is; others than Tune's are not looked at."""
    if name in OURS:
        return True  # it gets our value
    if name in REFUSED:
        return False
    if not name.startswith(TUNE) or name in WORDS or (name in AUTO and value == "auto"):
        return True
    if name.startswith("TUNE_"):
        kind = float if name.endswith(("_S", "_PERIOD")) and name not in WHOLE else int
        with suppress(ValueError):
            kind(value)
            return True
        return False
    return value.lower() in ("true", "false") or value.lstrip("-").isdecimal()


def _starts(environment: Mapping[str, str]) -> bool:
    """Whether Ray reads its variables; so it is taken where a machine is too slow to tell."""
    command = [sys.executable, "-c", PROBE]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return True
    return not done.returncode
