"""Compare what the store knows with what stands in the targets, and mend the difference towards less access.

At start: whatever was on its way or served by an earlier process is taken back (its secret died with that process).
On a timer: roles of this installation that no live lease explains are closed, leases that the target does not know are
ended; roles of others are reported and never touched.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from taskpass.broker.context import Broker
from taskpass.broker.failover import end_lost, live_on, note_standing, recall
from taskpass.broker.take_back import WRITTEN_OFF, is_usable, take_back
from taskpass.broker.take_back_many import take_back_many
from taskpass.core.audit import ADOPTED, Event
from taskpass.core.errors import Conflict, NotFound, StoreUnavailable, TaskpassError
from taskpass.core.ids import RoleName
from taskpass.core.lease import UNENDED, Lease, LeaseEvent, LeaseState
from taskpass.issuers.base import FoundRole, Inventory, Issuer
from taskpass.store.base import Unit

DOUBTED = "store.doubted"
"""This store was found to be a restored copy: for one target that remembers more, or, if it contradicts the witness,
for all of them. It stays one until ``store.adopted``, even if it overtakes that target by what it writes meanwhile.
"""
EVERYWHERE = ""

_RESTORED_HINT = "nothing is issued; revoking works; an operator looks at taskpass store check"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """``orphans`` were closed; ``foreign`` only reported; ``unreachable`` maps a resource to a safe error."""

    orphans: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    unreachable: dict[str, str] = field(default_factory=dict[str, str])


def take_back_unserved(broker: Broker) -> int:
    """At start, before anything is served: no endpoint of an earlier process exists any more. And when going down.

    What other brokers on the same store serve is theirs, unless they are dead.
    """
    try:
        for issuer in issuers_of_all(broker):
            recall(broker, issuer)
        with broker.store.read() as unit:
            left = broker.owners.free(unit, unit.leases.ids([LeaseState.INTENDED, LeaseState.ACTIVE]))
    except StoreUnavailable:
        left = [lease.id for lease, _ in broker.remembered.all() if is_usable(lease)]
        if not left:
            raise
    return len(take_back_many(broker, left, reason="broker_restarted", actor="broker"))


def reconcile(broker: Broker) -> Reconciled:
    """One pass over every configured target and every target that an unfinished lease remembers."""
    orphans: list[str] = []
    foreign: list[str] = []
    unreachable: dict[str, str] = {}
    for issuer in issuers_of_all(broker):
        try:
            recall(broker, issuer)
            live = live_on(broker, issuer.target)
            inventory = issuer.inventory()
            demand_known_store(broker, issuer, inventory)
            foreign.extend(inventory.foreign)
            note_standing(broker, issuer, inventory)
            end_lost(broker, inventory, live)
            _take_back_changed(broker, inventory)
        except TaskpassError as error:
            unreachable[issuer.target.resource] = f"{error.code}: {error.message}"
            continue
        for role in _maybe_unexplained(broker, inventory):
            try:
                if _close_if_unexplained(broker, issuer, role):
                    orphans.append(role.name)
            except TaskpassError as error:  # one role that does not end must not shield the others
                unreachable[issuer.target.resource] = f"{error.code}: {error.message}"
    return Reconciled(tuple(orphans), tuple(foreign), unreachable)


def _take_back_changed(broker: Broker, inventory: Inventory) -> None:
    """Leases whose account another hand changed in the target: not what was decided any more, so they end."""
    if not inventory.changed:
        return
    with broker.store.read() as unit:
        active = set(unit.leases.ids([LeaseState.ACTIVE]))
    for lease, why in inventory.changed:
        if lease in active:
            reason = "changed_in_target" if why in ("gone", "renamed") else "wider_than_manifest"
            take_back(broker, [lease], reason=reason, actor="broker")


def issuers_of_all(broker: Broker) -> list[Issuer]:
    """Of every configured resource, and of every target that an unfinished lease remembers."""
    with broker.store.read() as unit:
        targets = {target.address: target for target in unit.leases.targets([*UNENDED, LeaseState.CLOSED])}
    known = {issuer.target.address for issuer in broker.issuers.values()}
    extra = [broker.issuer_of(target) for address, target in targets.items() if address not in known]
    return [*broker.issuers.values(), *extra]


def demand_known_store(broker: Broker, issuer: Issuer, inventory: Inventory) -> None:
    """A target that is ahead of the store means a store restored from an older copy: nothing is issued from it.

    Other targets are not refused for it, because one target's administrator could make it look so.
    """
    resource = EVERYWHERE if broker.store_is_copy() else issuer.target.resource
    with broker.store.read() as unit:
        epoch, (seq, _), doubted = unit.installation.epoch, unit.audit.head(), doubts(unit)
    ahead = inventory.epoch > epoch or inventory.audit_seq > seq
    if (broker.store_is_copy() or ahead) and resource not in doubted:
        _record_doubt(broker, resource, inventory)
    if ahead:
        raise Conflict(
            f"{issuer.target.resource} has seen a later state of this store, so this is a restored copy",
            hint=_RESTORED_HINT,
            code="store_restored",
        )
    if broker.store_is_copy() or doubted & {EVERYWHERE, resource}:
        raise Conflict(
            "the store is not the one that was here before: a restored or changed copy",
            hint=_RESTORED_HINT,
            code="store_restored",
        )
    if inventory.epoch < epoch:
        issuer.set_epoch(epoch)


def doubts(unit: Unit) -> frozenset[str]:
    """The resources for which this store counts as a copy; ``EVERYWHERE`` is all.

    Those for which it was found to be one since it was adopted last, and those that were left out then.
    """
    found: set[str] = set()
    for record in unit.audit.about(unit.installation.id):
        body: dict[str, Any] = json.loads(record.body)
        if body["event"] == ADOPTED:
            found = set(body["data"]["without"])
        elif body["event"] == DOUBTED:
            found.add(body["data"]["resource"])
    return frozenset(found)


def _record_doubt(broker: Broker, resource: str, inventory: Inventory) -> None:
    """Best effort: what cannot be recorded now is found again at the next look."""
    with contextlib.suppress(StoreUnavailable), broker.store.write() as unit:
        if resource in doubts(unit):
            return
        found: dict[str, object] = {
            "resource": resource,
            "epoch": inventory.epoch,
            "audit_seq": inventory.audit_seq,
            "last": unit.audit.head()[0],
        }
        unit.audit.append(Event(DOUBTED, "broker", {"store": unit.installation.id}, found), broker.now(unit))


def _maybe_unexplained(broker: Broker, inventory: Inventory) -> list[FoundRole]:
    """What one look at the store does not explain; each of these is looked at again while nobody closes it."""
    try:
        with broker.store.read() as unit:
            known = {lease.id: lease for lease in unit.leases.get_many([x.lease for x in inventory.own if x.lease])}
    except StoreUnavailable:
        return list(inventory.own)  # each says so for itself
    return [role for role in inventory.own if _is_unexplained(known.get(role.lease) if role.lease else None, role)]


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
