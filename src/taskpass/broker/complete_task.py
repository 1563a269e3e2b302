"""A task ends: its children end with it, every lease is taken back, and the proofs are gathered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from taskpass.broker.context import Broker
from taskpass.broker.take_back import close_lease, take_back
from taskpass.core.audit import Event
from taskpass.core.ids import LeaseId, TaskId
from taskpass.core.lease import UNENDED, Lease
from taskpass.core.request import RequestEvent, RequestState
from taskpass.core.task import Task, TaskEvent, TaskState
from taskpass.store.base import Unit

CLOSERS = 8
"""Leases that one call closes side by side; a slow target delays only its own."""


@dataclass(frozen=True, slots=True)
class Completed:
    """``leases`` are those the task had open, as they stand now: ``closed`` with a proof,
    or ``closing`` and retried.
    """

    task: Task
    leases: tuple[Lease, ...]


def complete_task(broker: Broker, task_id: TaskId, *, actor: str, reason: str) -> Completed:
    """End the task and everything under it. Idempotent; a parent ends its children first."""
    with broker.store.read() as unit:
        task = unit.tasks.get(task_id)
        children = unit.tasks.children(task_id)
    ended: list[Lease] = []
    for child in children:
        ended.extend(complete_task(broker, child.id, actor=actor, reason="parent_ended").leases)
    with broker.store.write() as unit:
        task = unit.tasks.get(task_id)
        if task.state is TaskState.OPEN:
            task = _end(broker, unit, task, actor, reason)
        open_leases = [lease.id for lease in unit.leases.list(states=UNENDED, task=task_id)]
    ended.extend(end_leases(broker, open_leases, reason="task_ended", actor=actor))
    return Completed(task, tuple(ended))


def _end(broker: Broker, unit: Unit, task: Task, actor: str, reason: str) -> Task:
    now = broker.now(unit)
    ended = unit.tasks.advance(task.id, TaskEvent.COMPLETE, now, reason=reason)
    for request in unit.requests.list(task=task.id):
        if request.state is RequestState.PENDING:
            unit.requests.advance(request.id, RequestEvent.CANCEL, now)
        elif request.state is RequestState.APPROVED:
            unit.requests.advance(request.id, RequestEvent.WITHDRAW, now)
    unit.audit.append(
        Event("task.completed", actor, {"task": task.id}, {"reason": reason, "principal": task.principal.to_json()}),
        now,
    )
    return ended


def end_leases(broker: Broker, lease_ids: list[LeaseId], *, reason: str, actor: str) -> list[Lease]:
    """Take back and close side by side; the leases as they stand afterwards."""
    take_back(broker, lease_ids, reason=reason, actor=actor)
    if lease_ids:
        with ThreadPoolExecutor(max_workers=min(CLOSERS, len(lease_ids)), thread_name_prefix="close") as pool:
            list(pool.map(partial(close_lease, broker), lease_ids))
    with broker.store.read() as unit:
        return [unit.leases.get(lease_id) for lease_id in lease_ids]


def end_expired_tasks(broker: Broker) -> int:
    """Complete open tasks whose absolute end has come; how many."""
    with broker.store.read() as unit:
        now = max(broker.clock.now(), unit.installation.latest_seen)
        expired = [task for task in unit.tasks.list(state=TaskState.OPEN, limit=10_000) if task.expires_at <= now]
    for task in expired:
        complete_task(broker, task.id, actor="broker", reason="expired")
    return len(expired)
