"""What a running trial is told from outside: save now, for the driver stops or the node goes away.

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
    """The word of one execution of a sweep.

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
        """On the driver: every trial of the execution is to save and to wait for its end."""
        internal_kv._internal_kv_put(self.key, b"1")

    def look(self) -> Literal["", "park", "drain"]:
        """In a trial: whether to save and wait, or to save often because the node goes away."""
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
