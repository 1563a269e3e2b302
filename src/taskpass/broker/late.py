"""Events of taking back that could not be recorded when they happened.

The one exception to record-first: if the store cannot be written, access is taken back all the same, the event is kept
here (and on stderr by the runtime) and recorded later, marked *late*. Nothing else may use this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from taskpass.core.audit import Event
from taskpass.core.clock import Instant
from taskpass.core.errors import TaskpassError
from taskpass.core.ids import LeaseId


@dataclass(frozen=True, slots=True)
class LateEntry:
    """``lease`` and ``reason`` let the flush bring the lease's row along; ``event`` is what happened at ``at``."""

    lease: LeaseId
    reason: str
    event: Event
    at: Instant


class LateBook:
    """A thread-safe list that survives until it is flushed; lost with the process, which the reconciler then mends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LateEntry] = []

    def add(self, entry: LateEntry) -> None:
        with self._lock:
            self._entries.append(replace(entry, event=replace(entry.event, late=True)))

    def pending(self) -> int:
        with self._lock:
            return len(self._entries)

    def flush(self, record: Callable[[LateEntry], None]) -> int:
        """Record what is waiting, oldest first, and stop at the first that still fails; the number recorded."""
        done = 0
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
