"""The sweeper: what has to happen by itself, again and again, until nothing is left to take back.

Closing has workers of its own, so that a dead target delays neither other targets nor the loop. Every step is
idempotent and every failure is retried; an error in one step never stops the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from taskpass.broker.complete_task import end_expired_tasks
from taskpass.broker.context import Broker
from taskpass.broker.expire import expire_leases
from taskpass.broker.late import LateEntry
from taskpass.broker.reconcile import Reconciled, reconcile
from taskpass.broker.renew_lease import end_wider_leases, renew_leases
from taskpass.broker.request_access import lapse_requests
from taskpass.broker.take_back import clean_lease, close_lease, record_late
from taskpass.core.clock import SECOND
from taskpass.core.errors import TaskpassError
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease, LeaseState
from taskpass.runtime.fitness import TargetFitness

TICK = 0.25
LATE_SWEEP = 1 * SECOND
"""Milliseconds after ``closed`` at which the first late sweep runs (design: architecture.md, *closing*)."""
CLEAN_RETRY = 30
"""Seconds between two attempts to clean what is blocked."""
RECONCILE_EVERY = 30
MANIFESTS_EVERY = 15
CLOSERS = 8

_log = logging.getLogger("taskpass.runtime.sweeper")


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    every: float
    run: Callable[[], object]


class Sweeper:
    """One thread for the clockwork, a pool for closing and one for cleaning."""

    def __init__(self, broker: Broker, fitness: TargetFitness, *, restore_reserve: Callable[[], bool]) -> None:
        self._broker = broker
        self._fitness = fitness
        self._restore_reserve = restore_reserve
        self._wake = threading.Event()
        self._stopping = False
        self._busy: set[LeaseId] = set()
        self._busy_lock = threading.Lock()
        self._closers = ThreadPoolExecutor(CLOSERS, thread_name_prefix="closer")
        self._cleaners = ThreadPoolExecutor(2, thread_name_prefix="cleaner")
        self._not_before: dict[LeaseId, int] = {}
        self._reconciling = False
        self.reconciled = Reconciled()
        self._jobs = (
            _Job("expire", TICK, lambda: expire_leases(broker)),
            _Job("close", TICK, self._close_due),
            _Job("lapse", 1, lambda: lapse_requests(broker) if self._something_lapses() else 0),
            _Job("renew", 1, lambda: renew_leases(broker)),
            _Job("clean", TICK, self._clean_due),
            _Job("late", 1, self._record_late),
            _Job("tasks", 1, lambda: end_expired_tasks(broker)),
            _Job("manifests", MANIFESTS_EVERY, lambda: self._closers.submit(_quiet, end_wider_leases, broker)),
            _Job("reconcile", RECONCILE_EVERY, lambda: self._cleaners.submit(_quiet, self._reconcile)),
        )
        self._due: dict[str, float] = {job.name: 0.0 for job in self._jobs}
        self._ticks = 0.0
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something has to be taken back now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the clockwork; a close that runs is waited for, what is left is found at the next start."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._closers.shutdown(wait=True, cancel_futures=True)
        self._cleaners.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopping:
            self.tick()
            self._wake.wait(TICK)
            self._wake.clear()

    def tick(self) -> None:
        """One round of everything that is due."""
        self._ticks += TICK
        for job in self._jobs:
            if self._ticks >= self._due[job.name]:
                self._due[job.name] = self._ticks + job.every
                _quiet(job.run)

    def _something_lapses(self) -> bool:
        with self._broker.store.read() as unit:
            now = max(self._broker.clock.now(), unit.installation.latest_seen)
            return bool(unit.requests.lapsing(now))

    def _close_due(self) -> None:
        with self._broker.store.read() as unit:
            due = unit.leases.due(self._broker.clock.now())
        for lease in due:
            self._submit(self._closers, lease, self._close)

    def _close(self, lease: Lease) -> None:
        close_lease(self._broker, lease.id)

    def _clean_due(self) -> None:
        now = self._broker.clock.now()
        with self._broker.store.read() as unit:
            closed = unit.leases.list(states=[LeaseState.CLOSED])
        for lease in closed:
            if now >= self._not_before.get(lease.id, (lease.closed_at or now) + LATE_SWEEP):
                self._submit(self._cleaners, lease, self._clean)

    def _clean(self, lease: Lease) -> None:
        if lease.proof.get("answer") == "target gone, not proven":
            return
        self._not_before[lease.id] = self._broker.clock.now() + CLEAN_RETRY * SECOND
        if clean_lease(self._broker, lease.id):
            self._not_before.pop(lease.id, None)

    def _submit(self, pool: ThreadPoolExecutor, lease: Lease, work: Callable[[Lease], None]) -> None:
        with self._busy_lock:
            if lease.id in self._busy:
                return
            self._busy.add(lease.id)
        pool.submit(self._work, lease, work)

    def _work(self, lease: Lease, work: Callable[[Lease], None]) -> None:
        try:
            _quiet(work, lease)
        finally:
            with self._busy_lock:
                self._busy.discard(lease.id)

    def _record_late(self) -> None:
        if self._broker.late.pending():
            self._broker.late.flush(self._record_one)
        if not self._broker.late.pending():
            self._restore_reserve()

    def _record_one(self, entry: LateEntry) -> None:
        record_late(self._broker, entry)

    def _reconcile(self) -> None:
        if self._reconciling:
            return
        self._reconciling = True
        try:
            for resource in self._broker.issuers:
                self._fitness.check(resource)
            self.reconciled = reconcile(self._broker)
        finally:
            self._reconciling = False


def _quiet(work: Callable[..., object], *args: object) -> None:
    try:
        work(*args)
    except TaskpassError as error:
        _log.warning("%s: %s", error.code, error.message)
    except Exception as error:  # noqa: BLE001 - the clockwork must go on; a defect is logged by class only.
        _log.error("a defect in the sweeper: %s", type(error).__name__)
