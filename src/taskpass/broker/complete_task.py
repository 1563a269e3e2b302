"""A task ends: its children end with it, every lease is taken back, and the proofs are gathered."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from taskpass.broker.context import Broker
from taskpass.broker.take_back import as_it_stands, close_lease, is_unproven, take_back
from taskpass.broker.take_back_many import MANY, close_many, take_back_many
from taskpass.core.audit import Event
from taskpass.core.clock import Instant
from taskpass.core.errors import StoreUnavailable
from taskpass.core.guard import effective_now
from taskpass.core.ids import LeaseId, TaskId
from taskpass.core.lease import UNENDED, Lease
from taskpass.core.request import RequestEvent, RequestState
from taskpass.core.task import Task, TaskEvent, TaskState
from taskpass.issuers.base import BULK
from taskpass.store.base import Unit

CLOSERS = 8
"""Leases that one call closes side by side; a slow target delays only its own."""


_DROP = {RequestState.PENDING: RequestEvent.CANCEL, RequestState.APPROVED: RequestEvent.WITHDRAW}


@dataclass(frozen=True, slots=True)
class Completed:
    """``leases`` are those the task had open, as they stand now: ``closed`` with a proof,
    or ``closing`` and retried.
    """

    task: Task
    leases: tuple[Lease, ...]


def complete_task(broker: Broker, task_id: TaskId, *, actor: str, reason: str) -> Completed:
    """End the task and everything under it. Idempotent; a parent ends its children first.

    Raises ``StoreUnavailable`` if the end could not be recorded; its leases were taken back then all the same.
    """
    leases = close_all(broker, end_task(broker, task_id, actor=actor, reason=reason))
    with broker.store.read() as unit:
        task = unit.tasks.get(task_id)
    if task.state is TaskState.OPEN:
        raise StoreUnavailable("the end of the task could not be recorded", hint="its accesses were taken back")
    return Completed(task, tuple(leases))


def end_task(broker: Broker, task_id: TaskId, *, actor: str, reason: str) -> list[LeaseId]:
    """Record the end of the task and of those under it and take their leases back; the leases, for closing.

    Nothing here waits for a target, so a slow one under one child delays no other child's end.
    """
    try:
        with broker.store.read() as unit:
            below = unit.tasks.children(task_id)
    except StoreUnavailable:
        return _take_back_remembered(broker, task_id, actor)
    ended: list[LeaseId] = []
    for child in sorted(below, key=lambda task: -len(task.principal.parents)):
        ended += _end_one(broker, child.id, actor, "parent_ended")
    ended += _end_one(broker, task_id, actor, reason)
    with broker.store.read() as unit:
        late = unit.tasks.children(task_id)
    for child in late:  # opened between the first look and the end of its parent; no more can come
        ended += _end_one(broker, child.id, actor, "parent_ended")
    return ended


def _take_back_remembered(broker: Broker, task_id: TaskId, actor: str) -> list[LeaseId]:
    """For a store that is away as a whole: the task stays open there and is ended once more when it is back."""
    known = broker.remembered.all()
    held = [lease.id for lease, task in known if task_id in (task.id, *task.principal.parents)]
    take_back(broker, held, reason="task_ended", actor=actor, writable=False)
    return held


def _end_one(broker: Broker, task_id: TaskId, actor: str, reason: str) -> list[LeaseId]:
    try:
        with broker.store.write() as unit:
            task = unit.tasks.get(task_id)
            if task.state is TaskState.OPEN:
                _end(broker, unit, task, actor, reason)
    except StoreUnavailable:
        pass  # what the task holds is taken back all the same; whoever asked finds the task still open
    with broker.store.read() as unit:
        open_leases = [lease.id for lease in unit.leases.list(states=UNENDED, task=task_id)]
    take_back_many(broker, open_leases, reason="task_ended", actor=actor)
    return open_leases


def _end(broker: Broker, unit: Unit, task: Task, actor: str, reason: str) -> None:
    now = broker.now(unit)
    unit.tasks.advance(task.id, TaskEvent.COMPLETE, now, reason=reason)
    dropped: list[str] = []
    for request in unit.requests.list(task=task.id):
        event = _DROP.get(request.state)
        if event:
            unit.requests.advance(request.id, event, now)
            dropped.append(request.id)
    unit.audit.append(
        Event(
            "task.completed",
            actor,
            {"task": task.id},
            {"reason": reason, "principal": task.principal.to_json(), "requests_cancelled": dropped},
        ),
        now,
    )


def end_leases(
    broker: Broker, lease_ids: list[LeaseId], *, reason: str, actor: str, writable: bool = True
) -> list[Lease]:
    """Take back and close side by side; the leases as they stand afterwards. ``writable`` as in ``take_back``."""
    take_back_many(broker, lease_ids, reason=reason, actor=actor, writable=writable)
    return close_all(broker, lease_ids)


def close_all(broker: Broker, lease_ids: list[LeaseId]) -> list[Lease]:
    """Close side by side; the leases as they stand afterwards.

    Once a target has not proven one close, its other ones are left to the sweeper: whoever asked is told what is not
    proven yet instead of waiting for each.
    """
    leases = [as_it_stands(broker, lease_id) for lease_id in lease_ids]
    if not leases:
        return []
    if len(leases) >= MANY:
        with contextlib.suppress(StoreUnavailable):
            _close_in_bulks(broker, leases)
            return [as_it_stands(broker, lease_id) for lease_id in lease_ids]
    away: set[str] = set()
    with _closers(broker, len(leases)) as pool:
        list(pool.map(partial(_close_unless_away, broker, away), leases))
    return [as_it_stands(broker, lease_id) for lease_id in lease_ids]


def _close_in_bulks(broker: Broker, leases: list[Lease]) -> None:
    """Targets side by side, the bulks of one target in turn. What a bulk leaves is closed by the sweeper."""
    targets: dict[str, list[LeaseId]] = {}
    for lease in leases:
        targets.setdefault(lease.target.address, []).append(lease.id)

    def close(mine: list[LeaseId]) -> None:
        for start in range(0, len(mine), BULK):
            if not close_many(broker, mine[start : start + BULK]):
                return

    with _closers(broker, len(targets)) as pool:
        list(pool.map(close, targets.values()))


def _closers(broker: Broker, most: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(CLOSERS, most), thread_name_prefix="close", initializer=broker.reserve_thread)


def _close_unless_away(broker: Broker, away: set[str], lease: Lease) -> None:
    if lease.target.address not in away and close_lease(broker, lease.id) is None and is_unproven(broker, lease.id):
        away.add(lease.target.address)


def end_expired_tasks(broker: Broker) -> int:
    """End open tasks whose absolute end has come, or whose run ended with a broker that crashed on it; how many.

    Their leases are taken back; closing them is the sweeper's.
    """
    with broker.store.read() as unit:
        now = effective_now(broker.clock.now(), unit.installation.latest_seen)
        over = {task.id: why for task in unit.tasks.list(state=TaskState.OPEN) if (why := _why_over(unit, task, now))}
    for task_id, why in over.items():
        end_task(broker, task_id, actor="broker", reason=why)
    return len(over)


def _why_over(unit: Unit, task: Task, now: Instant) -> str:
    if task.expires_at <= now:
        return "expired"
    run = task.principal.run
    return "run_ended" if run and unit.runs.get(run).ended_at is not None else ""
