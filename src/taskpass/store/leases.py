"""Leases in the store. See ``store.base.Leases`` for the contract."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, bindparam, func, or_, select, update

from taskpass.core.clock import SECOND, Instant
from taskpass.core.decision import Delivery
from taskpass.core.errors import IllegalTransition, InvalidInput, NotFound
from taskpass.core.ids import GrantId, HumanId, LeaseId, TaskId, first_id
from taskpass.core.lease import LEASE_TABLE, UNENDED, Lease, LeaseEvent, LeaseState, Target
from taskpass.store import codec, rows
from taskpass.store.kept import Kept
from taskpass.store.session import Session
from taskpass.store.tables import grants, leases, requests, tasks

Aggregate = Literal["count", "soonest end"]

_NOTES = frozenset({"attempts", "retry_at", "last_error", "incidents"})
_CHANGES = _NOTES | {"expires_at", "renewals", "reason", "closing_at", "closed_at", "proof"}
_ENTERED = {LeaseState.CLOSING: "closing_at", LeaseState.CLOSED: "closed_at"}
_AT_ONCE = 500
_EXPIRING = (LeaseState.INTENDED.value, LeaseState.ACTIVE.value)


def _live(
    what: Aggregate,
    task: TaskId | None,
    sponsor: HumanId | None,
    resource: str | None = None,
    delivery: Delivery | None = None,
) -> tuple[Kept, dict[str, str]]:
    """The statement for ``what`` of the live leases of a task, a sponsor, a resource, a delivery, and its values."""
    given = {"task": task, "sponsor": sponsor, "resource": resource, "delivery": delivery and delivery.value}
    values = {name: value for name, value in given.items() if value is not None}
    return _live_of(what, tuple(values)), values


@cache
def _live_of(what: Aggregate, names: tuple[str, ...]) -> Kept:
    """Kept, because building a statement takes longer than running it."""
    places = {
        "task": leases.c.task,
        "sponsor": tasks.c.sponsor,
        "resource": leases.c.resource,
        "delivery": leases.c.delivery,
    }
    asked = func.count() if what == "count" else func.min(leases.c.expires_at)
    joined = select(asked.label("found")).select_from(leases.join(tasks, leases.c.task == tasks.c.id))
    # Not IN: the library writes such a list into the statement anew each time.
    wanted = joined.where(or_(*(leases.c.state == state for state in sorted(state.value for state in UNENDED))))
    return Kept(wanted.where(*(places[name] == bindparam(name) for name in names)))


_UNPROVEN = Kept(
    select(leases)
    .where(leases.c.state == LeaseState.CLOSING.value, leases.c.attempts > 0)
    .order_by(leases.c.created_at.desc(), leases.c.id.desc())
    .limit(bindparam("many"))
)
_ACTIVE = leases.c.state == LeaseState.ACTIVE.value
_ASKED = leases.join(grants, leases.c.grant == grants.c.id).join(requests, grants.c.request == requests.c.id)
_RENEWABLE = Kept(
    select(leases)
    .select_from(_ASKED)
    .where(
        _ACTIVE,
        grants.c.renewable,
        or_(
            leases.c.last_error == bindparam("noted"),
            (leases.c.expires_at < grants.c.ends_at)
            & (3 * (leases.c.expires_at - bindparam("now")) <= requests.c.lifetime * SECOND),
        ),
    )
    .order_by(leases.c.expires_at, leases.c.id)
)
_ALIKE = Kept(
    select(leases.c.id, leases.c.target, leases.c.manifest_digest, requests.c.scope)
    .select_from(_ASKED)
    .where(_ACTIVE)
    .order_by(leases.c.id)
)


_RIGHTS = Kept(
    select(leases.c.manifest_digest.label("digest"), func.min(leases.c.created_at).label("first"))
    .select_from(leases.join(tasks, leases.c.task == tasks.c.id))
    # By id as well: ids sort by time and have an index.
    .where(leases.c.id >= bindparam("first"), leases.c.created_at >= bindparam("since"))
    .where(tasks.c.sponsor == bindparam("sponsor"), tasks.c.machine == bindparam("machine"))
    .group_by(leases.c.manifest_digest)
)


def _in(states: Iterable[LeaseState]) -> ColumnElement[bool]:
    return leases.c.state.in_(sorted(state.value for state in states))


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
        for after, field in _ENTERED.items():
            if after in {row.get(event) for row in LEASE_TABLE.values()}:
                changes.setdefault(field, at)
        lease = codec.lease_of(rows.get_to_move(self._session, leases, lease_id, "lease"))
        written = {**changes, "proof": codec.dump(changes["proof"])} if "proof" in changes else changes
        state = rows.advance(self._session, leases, lease_id, lease.state, LEASE_TABLE, event, written, "lease")
        return replace(lease, state=state, **changes)

    def get_many(self, lease_ids: Sequence[LeaseId]) -> builtins.list[Lease]:
        found: builtins.list[Lease] = []
        for start in range(0, len(lease_ids), _AT_ONCE):
            chosen = leases.c.id.in_(lease_ids[start : start + _AT_ONCE])
            found += [codec.lease_of(row) for row in self._session.rows(select(leases).where(chosen))]
        return found

    def advance_many(
        self,
        lease_ids: Sequence[LeaseId],
        event: LeaseEvent,
        at: Instant,
        *,
        proofs: Mapping[LeaseId, Mapping[str, object]] | None = None,
        **changes: Any,
    ) -> builtins.list[LeaseId]:
        rows.allowed(changes, _CHANGES - {"proof"}, "lease")
        if event is LeaseEvent.WRITE_OFF or (event is LeaseEvent.PROVEN and not proofs):
            raise InvalidInput("a lease is closed with a proof only")
        for after, field in _ENTERED.items():
            if after in {row.get(event) for row in LEASE_TABLE.values()}:
                changes.setdefault(field, at)
        each: dict[str, dict[str, Any]] = {
            lease: {**changes, **({"proof": codec.dump(dict(proofs[lease]))} if proofs else {})} for lease in lease_ids
        }
        moved = rows.advance_many(self._session, leases, lease_ids, LEASE_TABLE, event, each, "lease")
        return [LeaseId(key) for key in moved]

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
        among = None if states is None else [state.value for state in states]
        filters = {"state": among, "task": task, "grant": grant, "resource": resource}
        statement, values = rows.newest_first(leases, leases.c.created_at, filters, limit)
        return [codec.lease_of(row) for row in self._session.rows(statement, values)]

    def ids(self, states: Iterable[LeaseState]) -> builtins.list[LeaseId]:
        wanted = select(leases.c.id).where(_in(states)).order_by(leases.c.created_at.desc(), leases.c.id.desc())
        return [LeaseId(row["id"]) for row in self._session.rows(wanted)]

    def count_by_state(self) -> dict[LeaseState, int]:
        wanted = select(leases.c.state, func.count().label("n")).group_by(leases.c.state)
        return {LeaseState(row["state"]): int(row["n"]) for row in self._session.rows(wanted)}

    def targets(self, states: Iterable[LeaseState]) -> builtins.list[Target]:
        wanted = select(leases.c.target).where(_in(states)).distinct().order_by(leases.c.target)
        return [codec.target_of(row) for row in self._session.rows(wanted)]

    def unproven(self, *, limit: int | None = None) -> builtins.list[Lease]:
        return [
            codec.lease_of(row) for row in self._session.rows(_UNPROVEN, {"many": rows.ALL if limit is None else limit})
        ]

    def renewable(self, now: Instant, *, noted: str) -> builtins.list[Lease]:
        return [codec.lease_of(row) for row in self._session.rows(_RENEWABLE, {"now": now, "noted": noted})]

    def alike(self) -> builtins.list[builtins.list[LeaseId]]:
        groups: dict[tuple[str, ...], builtins.list[LeaseId]] = {}
        for row in self._session.rows(_ALIKE):
            key = (row["target"], row["manifest_digest"], row["scope"])
            groups.setdefault(key, []).append(LeaseId(row["id"]))
        return [*groups.values()]

    def expiring(self, now: Instant) -> builtins.list[Lease]:
        """Soonest end first."""
        wanted = select(leases).where(leases.c.state.in_(_EXPIRING), leases.c.expires_at <= now)
        found = self._session.rows(wanted.order_by(leases.c.expires_at, leases.c.id))
        return [codec.lease_of(row) for row in found]

    def due(
        self, now: Instant, *, resource: str | None = None, alone: str = "", limit: int = 100
    ) -> builtins.list[Lease]:
        wanted = select(leases).where(*_due(now))
        if resource is not None:
            wanted = wanted.where(leases.c.resource == resource)
        if alone:
            wanted = wanted.where(leases.c.last_error.startswith(alone, autoescape=True))
        found = self._session.rows(wanted.order_by(leases.c.closing_at, leases.c.id).limit(limit))
        return [codec.lease_of(row) for row in found]

    def due_by_resource(self, now: Instant) -> dict[str, int]:
        wanted = select(leases.c.resource, func.count().label("n")).where(*_due(now)).group_by(leases.c.resource)
        return {str(row["resource"]): int(row["n"]) for row in self._session.rows(wanted)}

    def due_ids(self, now: Instant, *, resource: str, alone: str) -> builtins.list[LeaseId]:
        wanted = select(leases.c.id).where(
            *_due(now), leases.c.resource == resource, ~leases.c.last_error.startswith(alone, autoescape=True)
        )
        return [LeaseId(row["id"]) for row in self._session.rows(wanted.order_by(leases.c.closing_at, leases.c.id))]

    def closed_ids(self, *, but: str) -> builtins.list[tuple[LeaseId, str]]:
        answered = leases.c.proof.contains(codec.dump(but), autoescape=True)
        wanted = select(leases.c.id, leases.c.resource).where(leases.c.state == LeaseState.CLOSED.value, ~answered)
        return [(LeaseId(row["id"]), str(row["resource"])) for row in self._session.rows(wanted)]

    def count_live(
        self,
        *,
        task: TaskId | None = None,
        sponsor: HumanId | None = None,
        resource: str | None = None,
        delivery: Delivery | None = None,
    ) -> int:
        """Leases in a state of ``UNENDED``: one that is closing and not proven still counts."""
        row = self._session.first(*_live("count", task, sponsor, resource, delivery))
        return int(row["found"]) if row else 0

    def rights(self, sponsor: HumanId, machine: str, *, since: Instant) -> dict[str, Instant]:
        values = {"sponsor": sponsor, "machine": machine, "since": since, "first": first_id("lse", since)}
        return {row["digest"]: row["first"] for row in self._session.rows(_RIGHTS, values)}

    def next_end(self, *, task: TaskId | None = None, sponsor: HumanId | None = None) -> Instant | None:
        row = self._session.first(*_live("soonest end", task, sponsor))
        return row["found"] if row else None


def _due(now: Instant) -> tuple[ColumnElement[bool], ...]:
    return leases.c.state == LeaseState.CLOSING.value, or_(leases.c.retry_at.is_(None), leases.c.retry_at <= now)
