"""Tracking in MLflow: a journal on disk, and one thread of the driver that sends it.

A sweep file's name is an MLflow experiment; one execution of it is a parent run; its trials are the
runs below.
"""

from raycl.tracking.records import SweepRecord, TrialEnd, TrialRecord
from raycl.tracking.store import Store, check, resolve
from raycl.tracking.sync import Synced, orphans, sync
from raycl.tracking.tracker import Tracker

__all__ = [
    "Store",
    "SweepRecord",
    "Synced",
    "Tracker",
    "TrialEnd",
    "TrialRecord",
    "check",
    "orphans",
    "resolve",
    "sync",
]
