"""Leases in the store. See ``store.base.Leases`` for the contract."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, func, or_, select, update

from taskpass.core.clock import Instant
from taskpass.core.errors import IllegalTransition, InvalidInput, NotFound
from taskpass.core.ids import GrantId, HumanId, LeaseId, TaskId
from taskpass.core.lease import LEASE_TABLE, UNENDED, Lease, LeaseEvent, LeaseState
from taskpass.store import codec, rows
from taskpass.store.session import Session
from taskpass.store.tables import leases, tasks

_NOTES = frozenset({"attempts", "retry_at", "last_error", "incidents"})
_CHANGES = _NOTES | {"expires_at", "renewals", "reason", "closing_at", "closed_at", "proof"}
_ENTERED = {LeaseState.CLOSING: "closing_at", LeaseState.CLOSED: "closed_at"}
_EXPIRING = (LeaseState.INTENDED.value, LeaseState.ACTIVE.value)


class SqlLeases:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, lease: Lease) -> None:
        if lease.state is not LeaseState.INTENDED:
            raise IllegalTransition("a lease begins as intended")
        rows.add(self._session, leases, codec.lease_row(lease))

    def get(self, lease_id: LeaseId) -> Lease:
        return codec.lease_of(rows.get(self._session, leases, lease_id, "lease"))

    def advance(self, lease_id: LeaseId, event: LeaseEvent, at: Instant, **changes: Any) -> Lease:
        """``closing_at`` and ``closed_at`` become ``at`` by themselves. Closing without a ``proof`` is refused."""
        rows.allowed(changes, _CHANGES, "lease")
        if event in (LeaseEvent.PROVEN, LeaseEvent.WRITE_OFF) and not changes.get("proof"):
            raise InvalidInput("a lease is closed with a proof only")
        if "proof" in changes:
            changes["proof"] = codec.dump(changes["proof"])
        for after, field in _ENTERED.items():
            if after in {row.get(event) for row in LEASE_TABLE.values()}:
                changes.setdefault(field, at)
        rows.advance(self._session, leases, lease_id, LEASE_TABLE, event, changes, "lease")
        return self.get(lease_id)

    def note(self, lease_id: LeaseId, **changes: Any) -> Lease:
        rows.allowed(changes, _NOTES, "lease")
        if changes and self._session.change(update(leases).where(leases.c.id == lease_id).values(**changes)) != 1:
            raise NotFound("no such lease")
        return self.get(lease_id)

    def list(
        self,
        *,
        states: Iterable[LeaseState] | None = None,
        task: TaskId | None = None,
        grant: GrantId | None = None,
        resource: str | None = None,
        limit: int | None = None,
    ) -> builtins.list[Lease]:
        """Newest first."""
        wanted = select(leases).order_by(leases.c.created_at.desc(), leases.c.id.desc()).limit(limit)
        if states is not None:
            wanted = wanted.where(leases.c.state.in_([state.value for state in states]))
        if task is not None:
            wanted = wanted.where(leases.c.task == task)
        if grant is not None:
            wanted = wanted.where(leases.c.grant == grant)
        if resource is not None:
            wanted = wanted.where(leases.c.resource == resource)
        return [codec.lease_of(row) for row in self._session.rows(wanted)]

    def expiring(self, now: Instant) -> builtins.list[Lease]:
        """Soonest end first."""
        wanted = select(leases).where(leases.c.state.in_(_EXPIRING), leases.c.expires_at <= now)
        found = self._session.rows(wanted.order_by(leases.c.expires_at, leases.c.id))
        return [codec.lease_of(row) for row in found]

    def due(self, now: Instant, *, limit: int = 100) -> builtins.list[Lease]:
        wanted = select(leases).where(
            leases.c.state == LeaseState.CLOSING.value,
            or_(leases.c.retry_at.is_(None), leases.c.retry_at <= now),
        )
        found = self._session.rows(wanted.order_by(leases.c.closing_at, leases.c.id).limit(limit))
        return [codec.lease_of(row) for row in found]

    def count_live(
        self, *, task: TaskId | None = None, sponsor: HumanId | None = None, resource: str | None = None
    ) -> int:
        """Leases in a state of ``UNENDED``: one that is closing and not proven still counts."""
        row = self._session.first(_live(select(func.count().label("n")), task, sponsor, resource))
        return int(row["n"]) if row else 0

    def next_end(self, *, task: TaskId | None = None, sponsor: HumanId | None = None) -> Instant | None:
        row = self._session.first(_live(select(func.min(leases.c.expires_at).label("at")), task, sponsor, None))
        return row["at"] if row else None


def _live(what: Select[Any], task: TaskId | None, sponsor: HumanId | None, resource: str | None) -> Select[Any]:
    joined = what.select_from(leases.join(tasks, leases.c.task == tasks.c.id))
    wanted = joined.where(leases.c.state.in_(sorted(state.value for state in UNENDED)))
    if task is not None:
        wanted = wanted.where(leases.c.task == task)
    if sponsor is not None:
        wanted = wanted.where(tasks.c.sponsor == sponsor)
    if resource is not None:
        wanted = wanted.where(leases.c.resource == resource)
    return wanted
