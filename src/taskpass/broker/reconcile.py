"""Compare what the store knows with what stands in the targets, and mend the difference towards less access.

At start: whatever was on its way or served by an earlier process is taken back (its secret died with that process).
On a timer: roles of this installation that no live lease explains are closed; roles of others are reported and never
touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taskpass.broker.context import Broker
from taskpass.broker.take_back import WRITTEN_OFF, take_back
from taskpass.core.audit import Event
from taskpass.core.errors import Conflict, NotFound, TaskpassError
from taskpass.core.ids import RoleName
from taskpass.core.lease import UNENDED, Lease, LeaseEvent, LeaseState, Target
from taskpass.issuers.base import FoundRole, Inventory, Issuer


@dataclass(frozen=True, slots=True)
class Reconciled:
    """``orphans`` were closed; ``foreign`` only reported; ``unreachable`` maps a resource to a safe error."""

    orphans: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    unreachable: dict[str, str] = field(default_factory=dict[str, str])


def take_back_unserved(broker: Broker) -> int:
    """At start, before anything is served: no endpoint of an earlier process exists any more."""
    with broker.store.read() as unit:
        left = [x.id for x in unit.leases.list(states=[LeaseState.INTENDED, LeaseState.ACTIVE])]
    return len(take_back(broker, left, reason="broker_restarted", actor="broker"))


def reconcile(broker: Broker) -> Reconciled:
    """One pass over every configured target and every target that an unfinished lease remembers."""
    orphans: list[str] = []
    foreign: list[str] = []
    unreachable: dict[str, str] = {}
    for issuer in _issuers(broker):
        try:
            inventory = issuer.inventory()
            demand_known_store(broker, issuer, inventory)
            foreign.extend(inventory.foreign)
        except TaskpassError as error:
            unreachable[issuer.target.resource] = f"{error.code}: {error.message}"
            continue
        for role in inventory.own:
            try:
                if _close_if_unexplained(broker, issuer, role):
                    orphans.append(role.name)
            except TaskpassError as error:  # one role that does not end must not shield the others
                unreachable[issuer.target.resource] = f"{error.code}: {error.message}"
    return Reconciled(tuple(orphans), tuple(foreign), unreachable)


def _issuers(broker: Broker) -> list[Issuer]:
    with broker.store.read() as unit:
        unfinished = unit.leases.list(states=[*UNENDED, LeaseState.CLOSED])
    targets: dict[str, Target] = {lease.target.address: lease.target for lease in unfinished}
    known = {issuer.target.address for issuer in broker.issuers.values()}
    extra = [broker.issuer_of(target) for address, target in targets.items() if address not in known]
    return [*broker.issuers.values(), *extra]


def demand_known_store(broker: Broker, issuer: Issuer, inventory: Inventory) -> None:
    """A target that is ahead of the store means a store restored from an older copy: nothing is issued from it.

    The witness beside the store is asked first: a copy that goes on writing overtakes the target's memory after a
    while.
    """
    if broker.store_is_copy():
        raise Conflict(
            "the store is not the one that was here before: a restored or changed copy",
            hint="nothing is issued; revoking works; an operator looks at taskpass doctor",
            code="store_restored",
        )
    with broker.store.read() as unit:
        epoch, (seq, _) = unit.installation.epoch, unit.audit.head()
    if inventory.epoch > epoch or inventory.audit_seq > seq:
        raise Conflict(
            f"{issuer.target.resource} has seen a later state of this store, so this is a restored copy",
            hint="nothing is issued; revoking works; an operator decides about the store",
            code="store_restored",
        )
    if inventory.epoch < epoch:
        issuer.set_epoch(epoch)


def _close_if_unexplained(broker: Broker, issuer: Issuer, role: FoundRole) -> bool:
    """A role of ours that no unfinished lease explains, or that is open although its lease is closed: a promotion of an
    older copy, a hand-made change, a target that was written off and came back. Taken away like any other, recorded.
    """
    if not _is_unexplained(_lease_of(broker, role), role):
        return False
    with broker.closing.hold(role.lease or role.name):
        lease = _lease_of(broker, role)
        if not _is_unexplained(lease, role):
            return False
        subject = {"task": lease.task, "lease": lease.id} if lease else ({"lease": role.lease} if role.lease else {})
        with broker.store.write() as unit:
            if lease and lease.state is LeaseState.CLOSED:
                unit.leases.note(lease.id, incidents=lease.incidents + 1)
            record = unit.audit.append(
                Event(
                    "orphan.found",
                    "broker",
                    subject,
                    {
                        "role": role.name,
                        "resource": issuer.target.resource,
                        "could_login": role.can_login,
                        "sessions": role.sessions,
                        "lease_state": lease.state.value if lease else "unknown",
                    },
                ),
                broker.now(unit),
            )
        proof = issuer.close(RoleName(role.name), audit_head=f"{record.seq}:{record.hash}")
        cleaned = issuer.clean(RoleName(role.name))
        with broker.store.write() as unit:
            now = broker.now(unit)
            if lease and lease.state is LeaseState.CLOSED and cleaned:
                unit.leases.advance(lease.id, LeaseEvent.CLEANED, now)
            event = {"role": role.name, "proof": proof.to_json(), "cleaned": cleaned}
            unit.audit.append(Event("orphan.closed", "broker", subject, event), now)
    return True


def _is_unexplained(lease: Lease | None, role: FoundRole) -> bool:
    if lease is None:
        return True
    if lease.state is LeaseState.CLOSED:
        return role.can_login or role.sessions > 0 or lease.proof.get("answer") == WRITTEN_OFF
    return lease.state is LeaseState.CLEANED


def _lease_of(broker: Broker, role: FoundRole) -> Lease | None:
    if role.lease is None:
        return None
    try:
        with broker.store.read() as unit:
            return unit.leases.get(role.lease)
    except NotFound:
        return None
