"""Take access back, and prove it.

``take_back`` decides and records, cuts the endpoint at once and returns; ``close_lease`` does the work in the target
and confirms. A close that is not proven is retried for ever with capped backoff. If the store cannot be written,
access is taken back all the same and recorded later, marked *late*: the one exception to record-first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from taskpass.broker.aftermath import settle
from taskpass.broker.context import Broker
from taskpass.broker.late import CLOSED, CLOSING, LateEntry
from taskpass.core.audit import Event
from taskpass.core.clock import Instant, after
from taskpass.core.errors import (
    Conflict,
    Denied,
    Internal,
    StoreUnavailable,
    TaskpassError,
)
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.separation import Environment
from taskpass.issuers.base import Taken
from taskpass.store.base import Owner, Unit

BACKOFF_CAP = 60
"""Seconds between two attempts at most; a target that comes back is closed within one of them."""

WRITTEN_OFF = "target gone, not proven"

REFUSED_WORDS = "access of this coding task has ended"

T = TypeVar("T")


def take_back(
    broker: Broker, lease_ids: Iterable[LeaseId], *, reason: str, actor: str, writable: bool = True
) -> list[Lease]:
    """Move the leases to ``closing`` with ``reason`` and cut their endpoints; those that were not closing before.

    Idempotent. Nothing here waits for a target. A lease whose record cannot be written is returned all the same. What
    fails for one lease is raised after all of them: it keeps no other lease open, and not its own endpoint either. Nor
    does each wait for a store that was found locked by the first, or before: then ``writable`` is False.
    """
    taken: list[Lease] = []
    failed: TaskpassError | None = None
    for lease_id in lease_ids:
        try:
            lease, writable = _begin(broker, lease_id, reason, actor, writable=writable)
            taken += [lease] if lease else []
        except TaskpassError as error:
            failed = failed or error
        _cut(broker, lease_id)
    if failed:
        raise failed
    return taken


def _cut(broker: Broker, lease_id: LeaseId) -> None:
    """End the endpoint. One that cannot be ended now is tried again with each close; the target ends its sessions."""
    with contextlib.suppress(TaskpassError):
        broker.endpoints.close(lease_id, message=REFUSED_WORDS)
    broker.holders.forget_lease(lease_id)
    broker.owners.serves_no_more(lease_id)


def cut_elsewhere_taken_back(broker: Broker) -> int:
    """End the endpoints of leases that another broker has taken back; how many."""
    with broker.store.read() as unit:
        ended = broker.owners.served_in_vain(unit)
    for lease_id in ended:
        _cut(broker, lease_id)
    return len(ended)


def _claim(broker: Broker, lease_id: LeaseId) -> Owner | None:
    """What confirms work on this lease; None while another broker that lives has it. Written only to take over.

    What is closed while the store is away cannot be confirmed with it, and is closed again or recorded late.
    """
    try:
        with broker.store.read() as unit:
            if not broker.owners.free(unit, [lease_id]):
                return None
            held = broker.owners.held(unit, lease_id)
        if held:
            return held
        with broker.store.write() as unit:
            return broker.owners.claim(unit, lease_id)
    except StoreUnavailable:
        return broker.owners.unconfirmable


def _begin(broker: Broker, lease_id: LeaseId, reason: str, actor: str, *, writable: bool) -> tuple[Lease | None, bool]:
    """The lease if it was not closing before, and whether the store could be written."""
    if broker.late.is_closing(lease_id):
        return None, writable
    if writable:
        try:
            return with_reserve(broker, lambda: _record_begin(broker, lease_id, reason, actor)), True
        except StoreUnavailable:
            pass
    return _begin_unrecorded(broker, lease_id, reason, actor), False


def with_reserve(broker: Broker, attempt: Callable[[], T]) -> T:
    """``attempt``, once more with the space kept for this if the disk is full."""
    try:
        return attempt()
    except StoreUnavailable as error:
        if error.code != "store_full" or not broker.release_reserve():
            raise
        return attempt()


def is_usable(lease: Lease) -> bool:
    """Whether nobody has begun to take ``lease`` back."""
    return lease.state in (LeaseState.INTENDED, LeaseState.ACTIVE)


def _record_begin(broker: Broker, lease_id: LeaseId, reason: str, actor: str) -> Lease | None:
    with broker.store.write() as unit:
        now = broker.now(unit)
        lease = unit.leases.get(lease_id)
        if not is_usable(lease):
            return None
        taken = unit.leases.advance(lease_id, LeaseEvent.TAKE_BACK, now, reason=reason, closing_at=now)
        broker.owners.take(unit, lease_id)
        unit.audit.append(_closing_event(lease, reason, actor), now)
    broker.remembered.closing(lease_id, reason)
    return taken


def _closing_event(lease: Lease, reason: str, actor: str) -> Event:
    return Event(
        "lease.closing",
        actor,
        {"task": lease.task, "grant": lease.grant, "lease": lease.id},
        {"reason": reason, "was": lease.state.value, "role": lease.role, "resource": lease.target.resource},
    )


def _begin_unrecorded(broker: Broker, lease_id: LeaseId, reason: str, actor: str) -> Lease | None:
    lease = _as_known(broker, lease_id)
    if not is_usable(lease):
        return None
    entry = LateEntry(lease_id, reason, _closing_event(lease, reason, actor), broker.clock.now())
    added = broker.late.add(entry)
    broker.remembered.closing(lease_id, reason)
    return replace(lease, state=LeaseState.CLOSING, reason=reason) if added else None


def _as_known(broker: Broker, lease_id: LeaseId) -> Lease:
    """The lease as the store has it, or, while the store cannot be read, as this process remembers it."""
    try:
        with broker.store.read() as unit:
            return unit.leases.get(lease_id)
    except StoreUnavailable:
        lease = broker.remembered.lease(lease_id)
        if lease is None:
            raise
        return lease


def close_lease(broker: Broker, lease_id: LeaseId) -> Taken | None:
    """Take the access away in the target and confirm; None if it is not proven yet (noted, retried later).

    Idempotent: a lease that is closed already, or was not taken back, is left alone. Two callers in this process take
    turns, because a second close would replace the password that the first one's proof needs; so do closing and
    enabling, because what is enabled after its close would be open for good.
    """
    with broker.closing.hold(lease_id):
        return _close(broker, lease_id)


def _close(broker: Broker, lease_id: LeaseId) -> Taken | None:
    try:
        with broker.store.read() as unit:
            lease = unit.leases.get(lease_id)
            head = "{}:{}".format(*unit.audit.head())
    except StoreUnavailable:
        lease, head = _as_known(broker, lease_id), broker.remembered.head
    if lease.state is not LeaseState.CLOSING and not broker.late.is_closing(lease_id):
        return None
    if broker.late.is_closed(lease_id):
        return None
    held = _claim(broker, lease_id)
    if held is None:
        return None
    _cut(broker, lease_id)
    try:
        proof = broker.issuer_of(lease.target).close(lease.role, audit_head=head)
    except TaskpassError as error:
        _note_unproven(broker, lease, error)
        return None
    except Exception as error:  # noqa: BLE001 - a defect in one issuer must pace and show like any other failure.
        _note_unproven(broker, lease, Internal(f"a defect while closing: {type(error).__name__}"))
        return None
    confirm(broker, lease, proof, held)
    with contextlib.suppress(TaskpassError):
        # What cannot be looked at now blocks, and the sweeper tries again.
        settle(broker, lease_id)
    return proof


def is_unproven(broker: Broker, lease_id: LeaseId) -> bool:
    """Whether the lease was taken back and its target has not proven that nothing works any more."""
    if broker.late.is_closed(lease_id):
        return False
    return _as_known(broker, lease_id).state is LeaseState.CLOSING or lease_id in broker.late.unclosed()


def as_it_stands(broker: Broker, lease_id: LeaseId) -> Lease:
    """The lease for whoever asked for its end, also of a store that cannot be told or asked."""
    lease = _as_known(broker, lease_id)
    closed = broker.late.is_closed(lease_id)
    return replace(lease, state=LeaseState.CLOSED) if closed else lease


def backoff(attempts: int) -> int:
    """Seconds until the next attempt after so many failed ones."""
    return min(BACKOFF_CAP, 2 ** min(attempts - 1, 6))


def _note_unproven(broker: Broker, lease: Lease, error: TaskpassError) -> None:
    attempts = lease.attempts + 1
    try:
        with broker.store.write() as unit:
            now = broker.now(unit)
            unit.leases.note(
                lease.id,
                attempts=attempts,
                retry_at=after(now, backoff(attempts)),
                last_error=f"{error.code}: {error.message}",
            )
            if attempts == 1:
                unit.audit.append(
                    Event(
                        "lease.close_unproven",
                        "broker",
                        {"task": lease.task, "lease": lease.id},
                        {"code": error.code, "message": error.message, "resource": lease.target.resource},
                    ),
                    now,
                )
    except StoreUnavailable:
        return


def confirm(broker: Broker, lease: Lease, proof: Taken, held: Owner | None = None) -> None:
    """Record the proof, now or late; not if another broker has taken the lease over (since ``held`` was given)."""
    if broker.late.is_closing(lease.id):
        broker.late.add(LateEntry(lease.id, lease.reason, _closed_event(lease, proof), broker.clock.now()))
        return
    try:
        with_reserve(broker, lambda: _record_closed(broker, lease.id, proof, held))
        broker.remembered.forget(lease.id)
    except StoreUnavailable:
        broker.late.add(LateEntry(lease.id, lease.reason, _closed_event(lease, proof), broker.clock.now()))
    except Conflict:
        return


def _record_closed(broker: Broker, lease_id: LeaseId, proof: Taken, held: Owner | None) -> Lease | None:
    with broker.store.write() as unit:
        now = broker.now(unit)
        lease = unit.leases.get(lease_id)
        if lease.state is not LeaseState.CLOSING:
            return None
        broker.owners.demand(unit, lease_id, held)
        closed = unit.leases.advance(
            lease_id, LeaseEvent.PROVEN, now, closed_at=now, proof=proof.to_json(), retry_at=None, last_error=""
        )
        unit.audit.append(_closed_event(lease, proof), now)
        return closed


def _closed_event(lease: Lease, proof: Taken) -> Event:
    """The proof is *stated by the broker*; what the target's answer was is in it."""
    return Event(
        "lease.closed",
        "broker",
        {"task": lease.task, "grant": lease.grant, "lease": lease.id},
        {"proof": proof.to_json(), "role": lease.role, "resource": lease.target.resource, "reason": lease.reason},
    )


def record_late(broker: Broker, entry: LateEntry) -> None:
    """Bring the store up to what was done while it could not be written."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        if entry.lease is not None:
            _catch_up(unit, entry, unit.leases.get(entry.lease), now)
        unit.audit.append(entry.event, now)
    if entry.lease is not None and entry.event.name == CLOSED:
        broker.remembered.forget(entry.lease)


def _catch_up(unit: Unit, entry: LateEntry, lease: Lease, now: Instant) -> None:
    if entry.event.name == CLOSING and is_usable(lease):
        unit.leases.advance(lease.id, LeaseEvent.TAKE_BACK, now, reason=entry.reason, closing_at=entry.at)
    if entry.event.name == CLOSED and lease.state is LeaseState.CLOSING:
        proof = entry.event.data["proof"]
        unit.leases.advance(lease.id, LeaseEvent.PROVEN, now, closed_at=entry.at, proof=proof, retry_at=None)
    if entry.event.name == "lease.incident":
        unit.leases.note(lease.id, incidents=lease.incidents + 1)


def sweep_again(broker: Broker, lease_id: LeaseId) -> int:
    """The late sweep: sessions found after ``closed`` are ended and recorded as an incident,
    never cleaned up silently.
    """
    with broker.store.read() as unit:
        lease = unit.leases.get(lease_id)
    issuer = broker.issuer_of(lease.target)
    found = issuer.sweep(lease.role)
    if found:
        issuer.close(lease.role, audit_head=_record_incident(broker, lease, {"sessions_after_closed": found}))
    return found


def _record_incident(broker: Broker, lease: Lease, what: dict[str, object]) -> str:
    """The audit head that holds it. What was found is gone from the target by now, so it must not be lost here."""
    event = Event("lease.incident", "broker", {"task": lease.task, "lease": lease.id}, {**what, "role": lease.role})
    try:
        with broker.store.write() as unit:
            now = broker.now(unit)
            unit.leases.note(lease.id, incidents=lease.incidents + 1)
            record = unit.audit.append(event, now)
        return f"{record.seq}:{record.hash}"
    except StoreUnavailable:
        broker.late.add(LateEntry(lease.id, lease.reason, event, broker.clock.now()))
        with broker.store.read() as unit:
            seq, hash_ = unit.audit.head()
        return f"{seq}:{hash_}"


def clean_lease(broker: Broker, lease_id: LeaseId) -> bool:
    """Remove what is left of a closed lease in its target. False if it must be tried again later."""
    with broker.store.read() as unit:
        lease = unit.leases.get(lease_id)
    if lease.state is not LeaseState.CLOSED:
        return lease.state is LeaseState.CLEANED
    held = _claim(broker, lease_id)
    if held is None:
        return False
    _cut(broker, lease_id)
    sweep_again(broker, lease_id)
    if not broker.issuer_of(lease.target).clean(lease.role):
        return False
    with broker.store.write() as unit:
        now = broker.now(unit)
        broker.owners.demand(unit, lease_id, held)
        unit.leases.advance(lease_id, LeaseEvent.CLEANED, now)
        unit.audit.append(
            Event("lease.cleaned", "broker", {"task": lease.task, "lease": lease.id}, {"role": lease.role}), now
        )
    return True


def write_off(broker: Broker, lease_id: LeaseId, *, actor: str, reason: str) -> Lease:
    """A person retires a lease whose target is gone for good. The proof then says so: *not proven*.

    Production needs two people, which this version cannot ask for, so it is refused there.
    """
    with broker.store.write() as unit:
        now: Instant = broker.now(unit)
        lease = unit.leases.get(lease_id)
        if lease.target.environment is Environment.PRODUCTION:
            raise Denied("writing off a production lease needs two people", code="needs_two_people")
        if lease.state is LeaseState.CLOSING and lease.attempts == 0:
            raise Conflict("this lease is being closed and nothing has failed yet", hint="look again in a minute")
        proof: dict[str, object] = {"answer": WRITTEN_OFF, "by": actor, "reason": reason}
        gone = unit.leases.advance(lease_id, LeaseEvent.WRITE_OFF, now, closed_at=now, proof=proof, retry_at=None)
        unit.audit.append(
            Event("lease.written_off", actor, {"task": lease.task, "lease": lease.id}, {"proof": proof}), now
        )
        return gone
