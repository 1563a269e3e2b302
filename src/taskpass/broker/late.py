"""Events of taking back that could not be recorded when they happened.

The one exception to record-first: if the store cannot be written, access is taken back all the same, the event is kept
here and recorded later, marked *late*. Nothing else may use this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from taskpass.core.audit import Event
from taskpass.core.clock import Instant
from taskpass.core.errors import TaskpassError
from taskpass.core.ids import LeaseId, RunId

CLOSING, CLOSED = "lease.closing", "lease.closed"
MOST_ORDERS = 1000
"""Orders to take back that are kept; what they led to is kept for each lease."""


@dataclass(frozen=True, slots=True)
class LateEntry:
    """``lease`` and ``reason`` let the flush bring the lease's row along; ``event`` is what happened at ``at``.

    ``lease`` is None for an order that concerns many.
    """

    lease: LeaseId | None
    reason: str
    event: Event
    at: Instant


class LateBook:
    """A thread-safe list that survives until it is flushed; lost with the process, which the reconciler then mends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._entries: list[LateEntry] = []
        self._runs: dict[RunId, str] = {}

    def add(self, entry: LateEntry) -> bool:
        """False if the same step of the same lease is waiting already: an outage must not make the book grow."""
        with self._lock:
            if self._is_waiting(entry):
                return False
            self._entries.append(replace(entry, event=replace(entry.event, late=True)))
            return True

    def _is_waiting(self, entry: LateEntry) -> bool:
        if entry.lease is None:
            return sum(held.lease is None for held in self._entries) >= MOST_ORDERS
        return any(held.lease == entry.lease and held.event.name == entry.event.name for held in self._entries)

    def pending(self) -> int:
        with self._lock:
            return len(self._entries)

    def is_closing(self, lease: LeaseId) -> bool:
        """Whether ``lease`` was taken back while the store still calls it active."""
        with self._lock:
            return any(held.lease == lease and held.event.name == CLOSING for held in self._entries)

    def is_closed(self, lease: LeaseId) -> bool:
        """Whether ``lease`` was proven closed while the store could not be told."""
        with self._lock:
            return any(held.lease == lease and held.event.name == CLOSED for held in self._entries)

    def unclosed(self) -> list[LeaseId]:
        """Leases that were taken back here and are not proven closed yet: the store cannot name them."""
        with self._lock:
            closed = {held.lease for held in self._entries if held.event.name == CLOSED}
            begun = (held.lease for held in self._entries if held.event.name == CLOSING)
            return [lease for lease in begun if lease is not None and lease not in closed]

    def add_run(self, run: RunId, reason: str) -> None:
        """A run whose end could not be recorded."""
        with self._lock:
            self._runs[run] = reason

    def take_runs(self) -> dict[RunId, str]:
        """The runs to be ended again; they are not kept."""
        with self._lock:
            taken, self._runs = self._runs, {}
        return taken

    def flush(self, record: Callable[[LateEntry], None]) -> int:
        """Record what is waiting, oldest first, and stop at the first that still fails; the number recorded."""
        done = 0
        with self._flushing:
            while True:
                with self._lock:
                    if not self._entries:
                        return done
                    entry = self._entries[0]
                try:
                    record(entry)
                except TaskpassError:
                    return done
                with self._lock:
                    self._entries.pop(0)
                done += 1
