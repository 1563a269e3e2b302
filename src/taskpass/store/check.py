"""Do the rows of a store agree with each other and with the audit record? One consistent read; nothing is changed.

Not for the chain itself (``taskpass.audit.verify``), nor for what stands in the targets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from taskpass.core.approval import Verdict
from taskpass.core.grant import Grant
from taskpass.core.ids import TaskId
from taskpass.core.lease import Lease, LeaseState
from taskpass.core.request import AccessRequest, RequestState
from taskpass.core.task import Task, TaskState
from taskpass.store.base import Store, Unit

_BATCH = 1000

_LEASE_EVENTS = {
    "lease.intended": LeaseState.INTENDED,
    "lease.activated": LeaseState.ACTIVE,
    "lease.closing": LeaseState.CLOSING,
    "lease.closed": LeaseState.CLOSED,
    "lease.written_off": LeaseState.CLOSED,
    "lease.cleaned": LeaseState.CLEANED,
}
_ORDER = list(LeaseState)


@dataclass(frozen=True, slots=True)
class Checked:
    """How many rows were looked at, and each disagreement as a sentence for an operator."""

    leases: int
    grants: int
    requests: int
    tasks: int
    problems: tuple[str, ...]


@dataclass
class _Told:
    """What the audit record says, by id. A lease's state is the furthest that was recorded: late records come late."""

    leases: dict[str, LeaseState] = field(default_factory=dict[str, LeaseState])
    decided: set[str] = field(default_factory=set[str])
    opened: set[str] = field(default_factory=set[str])
    ended: set[str] = field(default_factory=set[str])
    epoch: int = 0

    def hear(self, body: dict[str, Any]) -> None:
        subject, event = body["subject"], body["event"]
        self.epoch = body["epoch"]
        state = _LEASE_EVENTS.get(event)
        # A record of a bulk names all its leases in its data.
        many = [item["lease"] for item in body["data"].get("leases", [])] if event.startswith("lease.") else []
        for lease in many or [subject.get("lease", "")]:
            if event == "orphan.closed" and body["data"].get("cleaned") and lease in self.leases:
                state = LeaseState.CLEANED
            known = self.leases.get(lease)
            if state is not None and (known is None or _ORDER.index(known) < _ORDER.index(state)):
                self.leases[lease] = state
        if event == "request.decided":
            self.decided.add(subject["request"])
        if event == "task.opened":
            self.opened.add(subject["task"])
        if event == "task.completed":
            self.ended.add(subject["task"])


def check(store: Store) -> Checked:
    """Look at everything. Raises ``StoreUnavailable``, also for a row that cannot be read (store_corrupt)."""
    with store.read() as unit:
        told = _listen(unit)
        leases, grants = unit.leases.list(), {grant.id: grant for grant in unit.grants.list()}
        requests = {request.id: request for request in unit.requests.list()}
        tasks = unit.tasks.list()
        problems = [
            *_of_leases(leases, grants, told),
            *_of_grants(unit, grants.values(), requests),
            *_of_requests(requests.values(), {grant.request for grant in grants.values()}, told),
            *_of_tasks(tasks, told),
            *_of_epoch(unit, told),
        ]
    return Checked(len(leases), len(grants), len(requests), len(tasks), tuple(problems))


def _listen(unit: Unit) -> _Told:
    told, after = _Told(), 0
    while records := unit.audit.records(after=after, limit=_BATCH):
        for record in records:
            told.hear(json.loads(record.body))
        after = records[-1].seq
    return told


def _of_leases(leases: list[Lease], grants: dict[Any, Grant], told: _Told) -> Iterator[str]:
    known = {lease.id for lease in leases}
    for lease_id in sorted(told.leases.keys() - known):
        yield f"lease {lease_id} stands in the record and not in the store"
    for lease in leases:
        recorded = told.leases.get(lease.id)
        if recorded is None:
            yield f"lease {lease.id} is {lease.state} and the record has nothing of it"
        elif recorded is not lease.state:
            yield f"lease {lease.id} is {lease.state}; the record says {recorded}"
        grant = grants.get(lease.grant)
        if grant is None:
            yield f"lease {lease.id} has no grant"
        elif (lease.task, lease.manifest_digest) != (grant.task, grant.manifest.digest()):
            yield f"lease {lease.id} is of another task or other rights than its grant"
        if lease.state in (LeaseState.CLOSED, LeaseState.CLEANED) and not lease.proof:
            yield f"lease {lease.id} is {lease.state} without a proof"


def _of_grants(unit: Unit, grants: Any, requests: dict[Any, AccessRequest]) -> Iterator[str]:
    for grant in grants:
        request = requests.get(grant.request)
        if request is None:
            yield f"grant {grant.id} has no request"
            continue
        if request.state is not RequestState.FULFILLED or request.task != grant.task:
            yield f"grant {grant.id} is of a request that is {request.state}, or of another task"
        if grant.approvals:
            yield from _of_votes(unit, grant)


def _of_votes(unit: Unit, grant: Grant) -> Iterator[str]:
    votes = {vote.id: vote for vote in unit.approvals.of_request(grant.request)}
    for approval in grant.approvals:
        vote = votes.get(approval)
        if vote is None or vote.verdict is not Verdict.APPROVE:
            yield f"grant {grant.id} names {approval}, which is no yes to its request"
        elif unit.approvals.consumed(approval) != grant.id:
            yield f"approval {approval} is not marked as used by {grant.id}"


def _of_requests(requests: Any, granted: set[Any], told: _Told) -> Iterator[str]:
    for request in requests:
        if request.id not in told.decided:
            yield f"request {request.id} is not in the record"
        if (request.state is RequestState.FULFILLED) != (request.id in granted):
            yield f"request {request.id} is {request.state} and {'has' if request.id in granted else 'has no'} grant"


def _of_tasks(tasks: list[Task], told: _Told) -> Iterator[str]:
    known: set[TaskId] = {task.id for task in tasks}
    for task_id in sorted(told.opened - known):
        yield f"task {task_id} stands in the record and not in the store"
    for task in tasks:
        if task.id not in told.opened:
            yield f"task {task.id} is not in the record"
        elif (task.state is not TaskState.OPEN) != (task.id in told.ended):
            yield f"task {task.id} is {task.state}, and the record says otherwise"


def _of_epoch(unit: Unit, told: _Told) -> Iterator[str]:
    if told.epoch > unit.installation.epoch:
        yield f"the store's epoch is {unit.installation.epoch}; the record has one of epoch {told.epoch}"
