"""The sweeper: what has to happen by itself, again and again, until nothing is left to take back.

Closing has workers of its own, so that a dead target delays neither other targets nor the loop. Every step is
idempotent and every failure is retried; an error in one step never stops the others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from taskpass.broker.aftermath import settle_all
from taskpass.broker.complete_task import end_expired_tasks
from taskpass.broker.context import Broker
from taskpass.broker.drill_schedule import drill_due
from taskpass.broker.expire import expire_leases
from taskpass.broker.late import LateEntry
from taskpass.broker.overdue import end_overdue
from taskpass.broker.owners import BEAT_SECONDS
from taskpass.broker.reconcile import Reconciled, reconcile
from taskpass.broker.refusals import record_refusals
from taskpass.broker.renew_lease import end_wider_leases, renew_leases
from taskpass.broker.request_access import lapse_requests
from taskpass.broker.runs import end_run
from taskpass.broker.take_back import BACKOFF_CAP, WRITTEN_OFF, clean_lease, close_lease, record_late
from taskpass.broker.take_back_many import MANY, clean_many, close_many
from taskpass.broker.take_over import be_seen, take_over
from taskpass.core.errors import StoreUnavailable, TaskpassError
from taskpass.core.guard import effective_now
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease, LeaseState
from taskpass.issuers.base import BULK, CLEAN_BULK, CLOSE_ALONE, STORM_BULK
from taskpass.runtime.fitness import TargetFitness
from taskpass.runtime.system import monotonic

TICK = 0.25
LATE_SWEEP = 1.0
"""Seconds after ``closed`` at which the first late sweep runs (design: architecture.md, *closing*)."""
CLEAN_RETRY = 30.0
"""Seconds between two attempts to clean what is blocked."""
RECONCILE_EVERY = 30
DRILL_LOOK = 10
"""Seconds between two looks whether a drill is due."""
ROTATE_EVERY = 60
"""Seconds between two looks whether a password of the broker's own is due."""
AFTERMATHS_EVERY = 10
"""Seconds between two looks at databases that a migration left wider, or that could not be looked at."""

MANIFESTS_EVERY = 15
WATCH_EVERY = 5
"""Seconds between two looks at sessions that are over their limits: so late may one be ended."""
WATCHERS = 4
CLOSERS = 32
PER_TARGET = 8
"""Closes of one target side by side: one that does not answer leaves threads to the others."""
BULKS = 2
"""Bulks of one target side by side: while one waits for the target's answers, the next one is recorded."""
_IN_BULK = ""
CLEANERS = 4
LAST_ROUND = 5.0
"""Seconds that stopping spends on closing what was taken back last."""
DUE = 1000
"""Closing leases looked at in one tick."""

_log = logging.getLogger("taskpass.runtime.sweeper")


@dataclass(frozen=True, slots=True)
class _Job:
    """``apart``: may wait for a target or for a locked store, so it has a thread of its own, and only one at a time."""

    name: str
    every: float
    run: Callable[[], object]
    apart: bool = False


class Sweeper:
    """One thread for the clockwork, a pool for closing, one for cleaning, one for what asks targets.

    Waiting is measured by ``monotonic`` (seconds), because a wall clock that was set back must not delay taking back.
    ``executor`` makes the pools and ``reserve_thread`` prepares the clockwork's own: whoever takes back goes first.
    """

    def __init__(
        self,
        broker: Broker,
        fitness: TargetFitness,
        *,
        restore_reserve: Callable[[], bool],
        rotate: Callable[[], object] = lambda: None,
        monotonic: Callable[[], float] = monotonic,
        executor: Callable[[int, str], Executor] = ThreadPoolExecutor,
        reserve_thread: Callable[[], None] = lambda: None,
    ) -> None:
        self._broker = broker
        self._fitness = fitness
        self._restore_reserve = restore_reserve
        self._monotonic = monotonic
        self._wake = threading.Event()
        self._stopping = False
        self._busy: dict[LeaseId, str] = {}
        self._bulks: Counter[str] = Counter()
        self._clean_alone: set[LeaseId] = set()
        self._busy_lock = threading.Lock()
        self._closers = executor(CLOSERS, "closer")
        self._cleaners = executor(CLEANERS, "cleaner")
        self._watchers = executor(WATCHERS, "watcher")
        self._running: set[str] = set()
        self._close_after: dict[LeaseId, float] = {}
        self._clean_after: dict[LeaseId, float] = {}
        self.reconciled = Reconciled()
        self._jobs = (
            _Job("seen", BEAT_SECONDS, lambda: be_seen(broker), apart=True),
            _Job("take over", 1, lambda: take_over(broker), apart=True),
            _Job("expire", TICK, lambda: expire_leases(broker)),
            _Job("close", TICK, self._close_due),
            _Job("clean", 2 * TICK, self._clean_due),
            _Job("tasks", 1, lambda: end_expired_tasks(broker), apart=True),
            _Job("lapse", 1, lambda: lapse_requests(broker) if self._something_lapses() else 0, apart=True),
            _Job("late", 1, self._record_late, apart=True),
            _Job("refusals", 10, lambda: record_refusals(broker), apart=True),
            _Job("runs", 1, self._end_runs, apart=True),
            _Job("renew", 1, lambda: renew_leases(broker), apart=True),
            _Job("manifests", MANIFESTS_EVERY, lambda: end_wider_leases(broker), apart=True),
            _Job("watch", WATCH_EVERY, self._watch),
            _Job("aftermaths", AFTERMATHS_EVERY, lambda: settle_all(broker), apart=True),
            _Job("reconcile", RECONCILE_EVERY, self._reconcile, apart=True),
            _Job("drill", DRILL_LOOK, lambda: drill_due(broker), apart=True),
            _Job("rotate", ROTATE_EVERY, rotate, apart=True),
        )
        # A thread for each that may wait: one that does keeps no other one back.
        self._apart = executor(sum(job.apart for job in self._jobs), "sweeper-apart")
        self._due: dict[str, float] = {}
        self._reserve_thread = reserve_thread
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something has to be taken back now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the clockwork and close what can be closed in ``LAST_ROUND``; a close that runs is waited for, what is
        left is found at the next start.
        """
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._close_the_last()
        for pool in (self._closers, self._cleaners, self._watchers, self._apart):
            pool.shutdown(wait=True, cancel_futures=True)

    def _close_the_last(self) -> None:
        deadline, pause = self._monotonic() + LAST_ROUND, threading.Event()
        while self._monotonic() < deadline:
            _quiet(self._close_due)
            with self._busy_lock:
                if not self._busy:
                    return
            pause.wait(0.02)

    def _run(self) -> None:
        self._reserve_thread()
        while not self._stopping:
            self.tick()
            self._wake.wait(TICK)
            self._wake.clear()

    def tick(self) -> None:
        """One round of everything that is due."""
        now = self._monotonic()
        for job in self._jobs:
            if now >= self._due.get(job.name, now):
                self._due[job.name] = now + job.every
                if job.apart:
                    self._start_apart(job)
                else:
                    _quiet(job.run)

    def _start_apart(self, job: _Job, pool: Executor | None = None) -> None:
        with self._busy_lock:
            if job.name in self._running:
                return
            self._running.add(job.name)
        (pool or self._apart).submit(self._run_apart, job)

    def _watch(self) -> None:
        """Each target with a live lease by itself, so that one that does not answer delays no other one."""
        with self._broker.store.read() as unit:
            served = {target.resource for target in unit.leases.targets([LeaseState.ACTIVE])}
        for resource in served & set(self._broker.issuers):
            job = _Job(f"watch {resource}", WATCH_EVERY, partial(end_overdue, self._broker, resource), apart=True)
            self._start_apart(job, self._watchers)

    def _run_apart(self, job: _Job) -> None:
        try:
            _quiet(job.run)
        finally:
            with self._busy_lock:
                self._running.discard(job.name)

    def _something_lapses(self) -> bool:
        with self._broker.store.read() as unit:
            now = effective_now(self._broker.clock.now(), unit.installation.latest_seen)
            return bool(unit.requests.lapsing(now))

    def _close_due(self) -> None:
        """What is to be closed now. ``retry_at`` paces it; behind the latest time seen it would never come, and for
        what the store could not record there is none, so those are paced here.
        """
        try:
            paced = self._due_in_store()
        except StoreUnavailable:
            known = [lease for lease, _ in self._broker.remembered.all() if lease.state is LeaseState.CLOSING]
            paced = [lease for lease in known if not self._broker.late.is_closed(lease.id)]
        waiting = {lease.id for lease in paced}
        self._close_after = {key: at for key, at in self._close_after.items() if key in waiting}
        for lease in paced:
            if self._monotonic() >= self._close_after.get(lease.id, 0.0):
                wait = min(BACKOFF_CAP, 2 ** min(lease.attempts, 6))
                if self._submit(self._closers, lease, self._close):
                    self._close_after[lease.id] = self._monotonic() + wait

    def _due_in_store(self) -> list[Lease]:
        """Submits what its ``retry_at`` paces; returns what is to be paced here."""
        with self._broker.store.read() as unit:
            now = self._broker.clock.now()
            behind = now < unit.installation.latest_seen
            if behind:
                paced = unit.leases.list(states=[LeaseState.CLOSING])
            else:
                paced = []
                free = self._broker.owners.free
                for resource, waiting in unit.leases.due_by_resource(now).items():
                    many = waiting >= MANY
                    if many and self._bulks[f"close/{resource}"] < BULKS:  # else reading who waits would be for nothing
                        self._close_in_bulks(
                            resource, free(unit, unit.leases.due_ids(now, resource=resource, alone=CLOSE_ALONE))
                        )
                    alone = CLOSE_ALONE if many else ""
                    found = {x.id: x for x in unit.leases.due(now, resource=resource, alone=alone, limit=DUE)}
                    for lease_id in free(unit, list(found)):
                        self._submit(self._closers, found[lease_id], self._close)
            return paced + [unit.leases.get(lease_id) for lease_id in self._broker.late.unclosed()]

    def _close_in_bulks(self, resource: str, due: list[LeaseId]) -> None:
        """As many bulks as one target may have at a time; what is left waits for the tick that each of them wakes."""
        with self._busy_lock:
            waiting = [lease_id for lease_id in due if lease_id not in self._busy]
        size = STORM_BULK if len(waiting) > STORM_BULK else BULK
        for start in range(0, len(waiting), size):
            if not self._submit_bulk(self._closers, f"close/{resource}", waiting[start : start + size], close_many):
                return

    def _submit_bulk(
        self,
        pool: Executor,
        name: str,
        leases: list[LeaseId],
        work: Callable[[Broker, list[LeaseId]], object],
        most: int = BULKS,
    ) -> bool:
        with self._busy_lock:
            if self._bulks[name] >= most:
                return False
            self._bulks[name] += 1
            self._busy.update(dict.fromkeys(leases, _IN_BULK))
        pool.submit(self._work_on_bulk, name, leases, work)
        return True

    def _work_on_bulk(self, name: str, leases: list[LeaseId], work: Callable[[Broker, list[LeaseId]], object]) -> None:
        try:
            _quiet(work, self._broker, leases)
        finally:
            with self._busy_lock:
                self._bulks[name] -= 1
                for lease_id in leases:
                    self._busy.pop(lease_id, None)
            self._wake.set()

    def _close(self, lease: Lease) -> None:
        close_lease(self._broker, lease.id)

    def _clean_due(self) -> None:
        now = self._monotonic()
        with self._broker.store.read() as unit:
            closed = unit.leases.closed_ids(but=WRITTEN_OFF)
            free = set(self._broker.owners.free(unit, [lease_id for lease_id, _ in closed]))
            closed = [item for item in closed if item[0] in free]
            known = self._clean_after
            self._clean_after = {lease_id: known.get(lease_id, now + LATE_SWEEP) for lease_id, _ in closed}
            self._clean_alone &= self._clean_after.keys()
            due: dict[str, list[LeaseId]] = {}
            for lease_id, resource in closed:
                if now >= self._clean_after[lease_id]:
                    due.setdefault(resource, []).append(lease_id)
            for resource, ready in due.items():
                if self._bulks[f"close/{resource}"]:
                    continue  # What is still open comes first.
                bulk = [x for x in ready if x not in self._clean_alone] if len(ready) >= MANY else []
                self._clean_in_bulks(resource, bulk)
                for lease in unit.leases.get_many([x for x in ready if x not in bulk][:DUE]):
                    if self._submit(self._cleaners, lease, self._clean):
                        self._clean_after[lease.id] = now + CLEAN_RETRY

    def _clean_in_bulks(self, resource: str, ready: list[LeaseId]) -> None:
        with self._busy_lock:
            ready = [lease_id for lease_id in ready if lease_id not in self._busy][:CLEAN_BULK]
        if ready:
            self._submit_bulk(self._cleaners, f"clean/{resource}", ready, self._clean_bulk, most=1)

    def _clean_bulk(self, broker: Broker, leases: list[LeaseId]) -> None:
        """What a bulk does not clean is cleaned one at a time from then on; a bulk that failed is tried again."""
        again = self._monotonic() + LATE_SWEEP
        self._clean_after.update(dict.fromkeys(leases, again))
        self._clean_alone.update(clean_many(broker, leases))

    def _clean(self, lease: Lease) -> None:
        clean_lease(self._broker, lease.id)

    def _submit(self, pool: Executor, lease: Lease, work: Callable[[Lease], None]) -> bool:
        """False if that lease is being worked on already, or its target has as many as it may."""
        with self._busy_lock:
            if lease.id in self._busy or sum(x == lease.target.address for x in self._busy.values()) >= PER_TARGET:
                return False
            self._busy[lease.id] = lease.target.address
        pool.submit(self._work, lease, work)
        return True

    def _work(self, lease: Lease, work: Callable[[Lease], None]) -> None:
        try:
            _quiet(work, lease)
        finally:
            with self._busy_lock:
                self._busy.pop(lease.id, None)

    def _record_late(self) -> None:
        if self._broker.late.pending():
            self._broker.late.flush(self._record_one)
        if not self._broker.late.pending():
            self._restore_reserve()

    def _record_one(self, entry: LateEntry) -> None:
        record_late(self._broker, entry)

    def _end_runs(self) -> None:
        for run, reason in self._broker.late.take_runs().items():
            _quiet(partial(end_run, self._broker, run, reason=reason))

    def _reconcile(self) -> None:
        for resource in self._broker.issuers:
            self._fitness.check(resource)
        with self._broker.store.read() as unit:
            leads = self._broker.owners.leads(unit)
        if leads:
            self.reconciled = reconcile(self._broker)


def _quiet(work: Callable[..., object], *args: object) -> None:
    try:
        work(*args)
    except TaskpassError as error:
        _log.warning("%s: %s", error.code, error.message)
    except Exception as error:  # noqa: BLE001 - the clockwork must go on; a defect is logged by class only.
        _log.error("a defect in the sweeper: %s", type(error).__name__)
