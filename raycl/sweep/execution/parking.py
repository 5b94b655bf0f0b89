"""Tells running trials to save now, because the driver stops or their node goes away.

Tune can stop a function only when it reports, and kills it ten seconds later. So the driver leaves
a word in Ray's key-value store (that of its control service) and trials look there, between epochs;
at the same time they ask whether their node is being drained, which is how a preemption is
announced. What comes before and after that word is told in ``signals``.
"""

from __future__ import annotations

import time
from typing import Literal

import ray
from ray.experimental import internal_kv

POLL_S, DRAIN_POLL_S = 0.5, 5.0
"""Between two looks of a trial for the driver's word, and at its node; each is a call of about a
millisecond, and a thousand trials share one control service."""


class Parking:
    """The order to save and wait, of one execution of a sweep.

    Args:
        execution: Its id, of its own; empty: outside of Ray, where nothing is ever said.
    """

    def __init__(self, execution: str) -> None:
        self.execution = execution
        self.key = f"raycl-park-{execution}"
        self.looked_at = self.asked_at = time.monotonic()
        self.node = ""
        self.draining = False

    def ask(self) -> None:
        """Ask every trial, from the driver, to save its state and to wait for its end."""
        internal_kv._internal_kv_put(self.key, b"1")

    def look(self) -> Literal["", "park", "drain"]:
        """Tell a trial whether to save and wait, or to save often because its node goes away."""
        now = time.monotonic()
        if not self.execution or now - self.looked_at < POLL_S:
            return ""
        self.looked_at = now
        if internal_kv._internal_kv_get(self.key) is not None:
            return "park"
        if now - self.asked_at > DRAIN_POLL_S:
            self.asked_at = now
            self.node = self.node or ray.get_runtime_context().get_node_id()
            self.draining = self.node in ray._private.state.state.get_draining_nodes()
        return "drain" if self.draining else ""
