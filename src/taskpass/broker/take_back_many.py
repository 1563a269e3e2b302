"""Taking back and closing many leases at once: the steps of ``take_back`` with one record for each bulk of them.

For thousands of leases that end together. The rules are those of ``take_back``: record, cut, close with proof, confirm.
A record of a bulk names every lease in it. Whatever is not the ordinary case (a store that cannot be written, a lease
that needs more than the bulk does) is left to ``take_back``, which knows how.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from taskpass.broker.context import Broker
from taskpass.broker.take_back import (
    REFUSED_WORDS,
    backoff,
    confirm,
    take_back,
    with_reserve,
)
from taskpass.core.audit import Event
from taskpass.core.clock import after
from taskpass.core.errors import Internal, StoreUnavailable, TaskpassError
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.issuers.base import CLOSE_ALONE, Issuer, Taken
from taskpass.store.base import Unit

MANY = 32
"""From here on leases of one target are taken back and closed in bulks."""

STEP = 250
"""Leases in one unit of work and one record: others wait for the store no longer than for a few requests."""

T = TypeVar("T")
K = TypeVar("K")


def take_back_many(
    broker: Broker, lease_ids: Sequence[LeaseId], *, reason: str, actor: str, writable: bool = True
) -> list[LeaseId]:
    """``take_back``, in bulks if there are many; those that were not closing before."""
    if len(lease_ids) < MANY or not writable:
        return [x.id for x in take_back(broker, lease_ids, reason=reason, actor=actor, writable=writable)]
    taken: list[LeaseId] = []
    for part in _steps(lease_ids):
        try:
            taken += with_reserve(broker, lambda part=part: _record_begin(broker, part, reason, actor))
        except TaskpassError:
            taken += [x.id for x in take_back(broker, part, reason=reason, actor=actor)]
        cut_many(broker, part)
    return taken


def cut_many(broker: Broker, lease_ids: Sequence[LeaseId]) -> None:
    """End the endpoints. What cannot be ended now is tried again with each close."""
    with contextlib.suppress(TaskpassError):
        broker.endpoints.close_many(lease_ids, message=REFUSED_WORDS)
    for lease_id in lease_ids:
        broker.holders.forget_lease(lease_id)
        broker.owners.serves_no_more(lease_id)


def _record_begin(broker: Broker, lease_ids: Sequence[LeaseId], reason: str, actor: str) -> list[LeaseId]:
    with broker.store.write() as unit:
        now = broker.now(unit)
        open_ones = {
            lease.id: lease
            for lease in unit.leases.get_many(lease_ids)
            if lease.state in (LeaseState.INTENDED, LeaseState.ACTIVE)
        }
        moved = unit.leases.advance_many(list(open_ones), LeaseEvent.TAKE_BACK, now, reason=reason, closing_at=now)
        for lease_id in moved:
            broker.owners.take(unit, lease_id)
        _append(broker, "lease.closing", actor, [open_ones[x] for x in moved], {"reason": reason}, unit=unit)
        return moved


def _append(broker: Broker, name: str, actor: str, leases: list[Lease], data: dict[str, object], *, unit: Unit) -> None:
    """One record for each resource among ``leases``."""
    for resource, mine in _grouped(leases, lambda lease: lease.target.resource):
        listed = [{"lease": lease.id, "task": lease.task} for lease in mine]
        about = [each.id for each in mine] + [each.task for each in mine]
        event = Event(name, actor, {}, {**data, "resource": resource, "leases": listed})
        unit.audit.append(event, broker.now(unit), about=about)


def close_many(broker: Broker, lease_ids: Sequence[LeaseId]) -> int:
    """Close what is closing, a bulk for each target; how many were proven. What was not is noted, and tried again."""
    with contextlib.ExitStack() as turns:
        for lease_id in sorted(lease_ids):
            turns.enter_context(broker.closing.hold(lease_id))
        ours = _claimed(broker, lease_ids)
        with broker.store.read() as unit:
            found = [x for x in unit.leases.get_many(ours) if x.state is LeaseState.CLOSING]
            seq, hash_ = unit.audit.head()
        found = [lease for lease in found if not broker.late.is_closing(lease.id)]
        cut_many(broker, [lease.id for lease in found])
        return sum(
            _close_one_target(broker, mine, f"{seq}:{hash_}")
            for _, mine in _grouped(found, lambda lease: repr(lease.target.to_json()))
        )


def _claimed(broker: Broker, lease_ids: Sequence[LeaseId]) -> list[LeaseId]:
    """Those that no other broker works on; what the dead had is taken over."""
    if not broker.owners.shared:
        return list(lease_ids)
    with broker.store.write() as unit:
        return [lease_id for lease_id in lease_ids if broker.owners.claim(unit, lease_id)]


def _close_one_target(broker: Broker, leases: list[Lease], head: str) -> int:
    answers: dict[str, Taken | TaskpassError]
    try:
        issuer = broker.issuer_of(leases[0].target)
        answers = {**issuer.close_many([lease.role for lease in leases], audit_head=head)}
    except TaskpassError as error:
        answers = {lease.role: error for lease in leases}
    except Exception as error:  # noqa: BLE001 - a defect in one issuer must pace and show like any other failure.
        answers = {lease.role: Internal(f"a defect while closing: {type(error).__name__}") for lease in leases}
    proofs = {lease.id: answer for lease in leases if isinstance(answer := answers.get(lease.role), Taken)}
    for part in _steps([lease for lease in leases if lease.id in proofs]):
        _confirm(broker, part, proofs)
    for part in _steps([lease for lease in leases if lease.id not in proofs]):
        _note_unproven(broker, part, answers)
    return len(proofs)


def _confirm(broker: Broker, leases: list[Lease], proofs: dict[LeaseId, Taken]) -> None:
    try:
        with_reserve(broker, lambda: _record_closed(broker, leases, proofs))
        for lease in leases:
            broker.remembered.forget(lease.id)
    except TaskpassError:
        for lease in leases:
            confirm(broker, lease, proofs[lease.id])


def _record_closed(broker: Broker, leases: list[Lease], proofs: dict[LeaseId, Taken]) -> list[LeaseId]:
    with broker.store.write() as unit:
        ours = set(broker.owners.mine(unit, [lease.id for lease in leases]))
        by_id = {lease.id: lease for lease in leases if lease.id in ours}
        moved = unit.leases.advance_many(
            list(by_id),
            LeaseEvent.PROVEN,
            broker.now(unit),
            proofs={lease_id: proofs[lease_id].to_json() for lease_id in by_id},
            retry_at=None,
            last_error="",
        )
        alike = _grouped([by_id[x] for x in moved], lambda lease: (lease.reason, proofs[lease.id].answer))
        for (reason, _), mine in alike:
            ended = {lease.id: proofs[lease.id].ended for lease in mine if proofs[lease.id].ended}
            one = {**proofs[mine[0].id].to_json(), "ended": sum(ended.values())}
            data: dict[str, object] = {"reason": reason, "proof": one, "ended_of": ended}
            _append(broker, "lease.closed", "broker", mine, data, unit=unit)
        return moved


def _note_unproven(broker: Broker, leases: list[Lease], answers: dict[str, Taken | TaskpassError]) -> None:
    unanswered = Internal("the issuer did not say what became of it")
    with contextlib.suppress(StoreUnavailable), broker.store.write() as unit:
        now = broker.now(unit)
        fresh: dict[tuple[str, str], list[Lease]] = {}
        for lease in leases:
            answer = answers.get(lease.role, unanswered)
            error = answer if isinstance(answer, TaskpassError) else unanswered
            words = f"{error.code}: {error.message}"
            if error.code == CLOSE_ALONE:  # nothing has failed yet
                unit.leases.note(lease.id, retry_at=now, last_error=words)
                continue
            attempts = lease.attempts + 1
            unit.leases.note(lease.id, attempts=attempts, retry_at=after(now, backoff(attempts)), last_error=words)
            if attempts == 1:
                fresh.setdefault((error.code, error.message), []).append(lease)
        for (code, message), mine in fresh.items():
            _append(broker, "lease.close_unproven", "broker", mine, {"code": code, "message": message}, unit=unit)


def clean_many(broker: Broker, lease_ids: Sequence[LeaseId]) -> list[LeaseId]:
    """Remove closed leases from their targets; those that ``clean_lease`` has to look at instead.

    The late sweep comes first: a session found is an incident, which is dealt with one at a time.
    """
    with broker.store.read() as unit:
        ours = set(broker.owners.mine(unit, lease_ids))
        found = [x for x in unit.leases.get_many(list(ours)) if x.state is LeaseState.CLOSED]
    cut_many(broker, [lease.id for lease in found])
    left = [lease_id for lease_id in lease_ids if lease_id not in ours]
    for _, mine in _grouped(found, lambda lease: repr(lease.target.to_json())):
        cleaned = _clean_one_target(broker.issuer_of(mine[0].target), mine)
        left += [lease.id for lease in mine if lease.id not in cleaned]
        for part in _steps([lease for lease in mine if lease.id in cleaned]):
            with broker.store.write() as unit:
                unit.leases.advance_many([x.id for x in part], LeaseEvent.CLEANED, broker.now(unit))
                _append(broker, "lease.cleaned", "broker", part, {}, unit=unit)
    return left


def _clean_one_target(issuer: Issuer, leases: list[Lease]) -> set[LeaseId]:
    found = issuer.sweep_many([lease.role for lease in leases])
    quiet = {lease.role: lease.id for lease in leases if not found.get(lease.role)}
    return {quiet[role] for role in issuer.clean_many(list(quiet))} if quiet else set()


def _steps(items: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), STEP):
        yield list(items[start : start + STEP])


def _grouped(leases: Iterable[Lease], key: Callable[[Lease], K]) -> Iterator[tuple[K, list[Lease]]]:
    groups: dict[K, list[Lease]] = {}
    for lease in leases:
        groups.setdefault(key(lease), []).append(lease)
    yield from groups.items()
