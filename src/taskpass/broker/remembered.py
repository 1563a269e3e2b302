"""What this process made usable, kept in memory: it can be taken back also while the store cannot be read.

A store on another machine can be away as a whole; endpoints are still open then, and a person still pulls the plug. Not
for: deciding that something may be issued, for which only the store counts. After a restart nothing is remembered and
nothing is open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from taskpass.core.clock import Instant
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease, LeaseState
from taskpass.core.task import Task


class Remembered:
    """Safe to use from several threads. ``head`` is the newest audit head that a lease was made under."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[LeaseId, tuple[Lease, Task]] = {}
        self.head = "0:"

    def keep(self, lease: Lease, task: Task, head: str) -> None:
        with self._lock:
            self._held[lease.id] = (lease, task)
            self.head = head

    def prolong(self, lease_id: LeaseId, expires_at: Instant) -> None:
        self._change(lease_id, lambda lease: replace(lease, expires_at=expires_at))

    def closing(self, lease_id: LeaseId, reason: str) -> None:
        """It was taken back, recorded or not."""
        self._change(lease_id, lambda lease: replace(lease, state=LeaseState.CLOSING, reason=reason))

    def forget(self, lease_id: LeaseId) -> None:
        """It is closed, and the store knows."""
        with self._lock:
            self._held.pop(lease_id, None)

    def lease(self, lease_id: LeaseId) -> Lease | None:
        with self._lock:
            found = self._held.get(lease_id)
        return found[0] if found else None

    def all(self) -> list[tuple[Lease, Task]]:
        with self._lock:
            return list(self._held.values())

    def _change(self, lease_id: LeaseId, change: Callable[[Lease], Lease]) -> None:
        with self._lock:
            if lease_id in self._held:
                lease, task = self._held[lease_id]
                self._held[lease_id] = (change(lease), task)
