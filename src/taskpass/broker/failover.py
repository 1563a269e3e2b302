"""What a failover loses, found from both sides: the target may have forgotten what was done, or be an older one.

A standby that is promoted without the last commits has roles again that were proven closed (``reconcile`` takes those
back), lacks some that are served (ended here), and remembers an audit number behind the store's (recorded here). A
former primary that comes back at the same address shows by its timeline: nothing is done or proven there.

What is known of a target stands in the audit record, under its cluster and database, so it survives a restart.
"""

from __future__ import annotations

import json
from typing import Any

from taskpass.broker.context import Broker
from taskpass.broker.take_back import WRITTEN_OFF, take_back
from taskpass.core.audit import Event, Record
from taskpass.core.clock import seconds_between
from taskpass.core.lease import Lease, LeaseState, Target
from taskpass.issuers.base import Inventory, Issuer
from taskpass.store.base import Unit

SEEN = "target.seen"
BEHIND = "target.behind"
LOST = "lease.lost"

LOOKED_AT = 5
"""So many of the target's newest leases tell what it must remember at least."""

SETTLED_SECONDS = 60
"""A live lease that cannot log in after this long was enabled in a target that has forgotten it."""


def recall(broker: Broker, issuer: Issuer) -> None:
    """Tell the issuer on which timeline its target was seen last, before anything is done there."""
    with broker.store.read() as unit:
        issuer.expect(_known(unit, issuer.target)["timeline"])


def live_on(broker: Broker, target: Target) -> list[Lease]:
    """To be taken before the inventory that ``end_lost`` compares with: what is made in between is in neither."""
    with broker.store.read() as unit:
        active = unit.leases.list(states=[LeaseState.ACTIVE], resource=target.resource)
    return [lease for lease in active if lease.target.address == target.address]


def note_standing(broker: Broker, issuer: Issuer, inventory: Inventory) -> None:
    """Record a new timeline, and a target that remembers less than it was told. Each once."""
    target = issuer.target
    with broker.store.read() as unit:
        known = _known(unit, target)
        told = _told(unit, target)
    forgot = inventory.audit_seq < told and (inventory.audit_seq, told) != (known["audit_seq"], known["told"])
    if inventory.timeline <= known["timeline"] and not forgot:
        return
    data: dict[str, object] = {
        "resource": target.resource,
        "timeline": max(inventory.timeline, known["timeline"]),
        "was": known["timeline"],
        "audit_seq": inventory.audit_seq,
        "told": told,
    }
    with broker.store.write() as unit:
        subject = {"target": _name(target)}
        unit.audit.append(Event(BEHIND if forgot else SEEN, "broker", subject, data), broker.now(unit))


def end_lost(broker: Broker, inventory: Inventory, live: list[Lease]) -> int:
    """Take back the leases of ``live`` that the target does not know, or knows as closed. Each is an incident."""
    roles = {role.name: role for role in inventory.own}
    lost: list[Lease] = []
    for lease in live:
        found = roles.get(lease.role)
        settled = seconds_between(lease.created_at, broker.clock.now()) > SETTLED_SECONDS
        if found is None or (settled and not found.can_login):
            lost.append(lease)
    for lease in lost:
        with broker.store.write() as unit:
            now = unit.leases.get(lease.id)
            if now.state is not LeaseState.ACTIVE:
                continue
            unit.leases.note(lease.id, incidents=now.incidents + 1)
            what = {"role": lease.role, "resource": lease.target.resource, "present": lease.role in roles}
            unit.audit.append(
                Event(LOST, "broker", {"task": lease.task, "lease": lease.id}, {**what}), broker.now(unit)
            )
    return len(take_back(broker, [lease.id for lease in lost], reason="lost_in_target", actor="broker"))


def _known(unit: Unit, target: Target) -> dict[str, int]:
    record = unit.audit.latest(_name(target))
    data: dict[str, Any] = _body(record)["data"] if record else {}
    return {name: int(data.get(name, 0)) for name in ("timeline", "audit_seq", "told")}


def _name(target: Target) -> str:
    return f"{target.cluster}/{target.database}"


def _told(unit: Unit, target: Target) -> int:
    """The highest audit number of which the store knows that it came to the target with a finished effect."""
    states = [LeaseState.ACTIVE, LeaseState.CLOSED, LeaseState.CLEANED]
    told = 0
    for lease in unit.leases.list(states=states, resource=target.resource, limit=LOOKED_AT):
        if (lease.target.cluster, lease.target.database) != (target.cluster, target.database):
            continue
        if lease.proof.get("answer") == WRITTEN_OFF:
            continue
        # Creating sent the record of the intent at least, and closing the record of the order to close.
        sent = "lease.intended" if lease.state is LeaseState.ACTIVE else "lease.closing"
        for record in unit.audit.about(lease.id):
            body = _body(record)
            if body["event"] == sent and not body.get("late"):
                told = max(told, record.seq)
    return told


def _body(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.body)
    return found
