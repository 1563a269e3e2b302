"""Refusals that a caller can cause as fast as it can call: each kind is recorded at once, its repetitions as one count.

A flood of refused calls must neither fill the record nor the disk. What a party was refused is kept here in memory for
one interval; a crash loses counts, never the first record. Not for refusals that are rare or cost a person something.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskpass.core.audit import Event
from taskpass.core.clock import SECOND, Instant, rfc3339
from taskpass.core.errors import OverBudget
from taskpass.core.task import Task

if TYPE_CHECKING:
    from taskpass.broker.context import Broker

INTERVAL = 600
"""Seconds for which repetitions are counted before the count is recorded."""

_LASTING = frozenset({"too_many_requests", "too_much_record", "too_much_text"})
"""Budgets that nothing but time gives back: until then the answer is known without asking the store."""

Party = tuple[str, str]


@dataclass(slots=True)
class _Kept:
    event: Event
    since: Instant
    repeated: int = 0


class Refusals:
    """Safe to use from several threads.

    Bounded: one entry per party and code (for a lease: request), and parties are people in the config.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[Party, str], _Kept] = {}
        self._closed: dict[Party, tuple[Instant, OverBudget]] = {}

    def is_first(self, party: Party, code: str, event: Event, now: Instant) -> bool:
        """Whether ``event`` has to be recorded now; otherwise it has been counted."""
        with self._lock:
            kept = self._kept.get((party, code))
            if kept is None:
                self._kept[party, code] = _Kept(event, now)
                return True
            kept.repeated += 1
            return False

    def take_counts(self, now: Instant, *, all_of_them: bool = False) -> list[Event]:
        """Counts whose interval is over, as events to be recorded; what was refused next is recorded at once again."""
        with self._lock:
            over = {
                key: kept
                for key, kept in self._kept.items()
                if all_of_them or not 0 <= now - kept.since < INTERVAL * SECOND
            }
            for key in over:
                del self._kept[key]
        return [_counted(kept) for kept in over.values() if kept.repeated]

    def shut(self, party: Party, error: OverBudget, now: Instant) -> None:
        with self._lock:
            self._closed[party] = (Instant(now + error.retry_after * SECOND), error)

    def demand_open(self, task: Task, now: Instant) -> None:
        """Raise what the party of ``task`` was told last, while that must still be true."""
        party = party_of(task)
        with self._lock:
            until, error = self._closed.get(party, (Instant(0), None))
            left = -((now - until) // SECOND)
            if error is None or not 0 < left <= error.retry_after:
                self._closed.pop(party, None)
                return
            error_now = OverBudget(error.message, code=error.code, retry_after=left)
            if (kept := self._kept.get((party, error.code))) is not None:
                kept.repeated += 1
        raise error_now


def party_of(task: Task) -> Party:
    return (task.principal.sponsor, task.principal.machine)


def _counted(kept: _Kept) -> Event:
    event = kept.event
    more = {"repeated": kept.repeated, "since": rfc3339(kept.since)}
    return Event(event.name, event.actor, event.subject, {**event.data, **more})


def refuse(broker: Broker, task: Task, event: Event, code: str) -> None:
    """Record a refusal, or count it."""
    now = broker.clock.now()
    if broker.refusals.is_first(party_of(task), code, event, now):
        with broker.store.write() as unit:
            unit.audit.append(event, broker.now(unit))


@contextlib.contextmanager
def budget_refusals(broker: Broker, task: Task, resource: str) -> Generator[None]:
    """Around a unit of work that may be refused for a budget: the refusal is recorded after the unit was undone."""
    try:
        yield
    except OverBudget as error:
        if error.code in _LASTING:
            broker.refusals.shut(party_of(task), error, broker.clock.now())
        data = {"resource": resource, "code": error.code, "retry_after": error.retry_after}
        refuse(broker, task, Event("budget.refused", task.principal.spiffe_id, {"task": task.id}, data), error.code)
        raise


def record_refusals(broker: Broker, *, all_of_them: bool = False) -> int:
    """Write down the counts whose interval is over; how many."""
    counts = broker.refusals.take_counts(broker.clock.now(), all_of_them=all_of_them)
    if counts:
        with broker.store.write() as unit:
            for event in counts:
                unit.audit.append(event, broker.now(unit))
    return len(counts)
