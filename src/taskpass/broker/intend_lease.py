"""Recording that a lease will be made, before it is: the same lines for what an agent asked for and for a drill.

Not for whether it may be made, and under which grant: the callers decide that in the same unit of work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskpass.broker.context import Broker
from taskpass.core.audit import Event
from taskpass.core.clock import Instant
from taskpass.core.decision import Decision, Delivery
from taskpass.core.grant import Grant
from taskpass.core.ids import HumanId, LeaseId, role_name
from taskpass.core.lease import Lease, LeaseState
from taskpass.core.task import Task
from taskpass.store.base import Unit


@dataclass(frozen=True, slots=True)
class Terms:
    """How a lease under a grant is to be: how its secret travels, until when, by whose yes; ``drill`` marks drills."""

    decision: Decision
    delivery: Delivery
    expires_at: Instant
    approvers: Sequence[HumanId] = ()
    drill: bool = False


def intend_lease(broker: Broker, unit: Unit, grant: Grant, task: Task, terms: Terms) -> tuple[Lease, str]:
    """Add the lease of ``grant`` and its record, and own it; the lease and the audit head that names the record."""
    lease_id = LeaseId(broker.new_id("lse"))
    lease = Lease(
        id=lease_id,
        grant=grant.id,
        task=grant.task,
        role=role_name(unit.installation.id, lease_id),
        target=broker.issuer(grant.resource).target,
        manifest_digest=grant.manifest.digest(),
        delivery=terms.delivery,
        state=LeaseState.INTENDED,
        created_at=broker.now(unit),
        expires_at=terms.expires_at,
    )
    unit.leases.add(lease)
    broker.owners.take(unit, lease.id)
    record = unit.audit.append(_intended(lease, grant, task, terms), lease.created_at)
    return lease, f"{record.seq}:{record.hash}"


def _intended(lease: Lease, grant: Grant, task: Task, terms: Terms) -> Event:
    return Event(
        "lease.intended",
        task.principal.spiffe_id,
        {"task": task.id, "request": grant.request, "grant": grant.id, "lease": lease.id},
        {
            "resource": grant.resource,
            "environment": lease.target.environment.value,
            "role": lease.role,
            "delivery": lease.delivery.value,
            "manifest_digest": lease.manifest_digest,
            "digest": grant.digest,
            "approvals": list(grant.approvals),
            "approvers": list(terms.approvers),
            "accepted": list(grant.manifest.accepted),
            "expires_at": lease.expires_at,
            "separation": task.principal.separation.word,
            "decision": terms.decision.to_json(),
            **({"drill": True} if terms.drill else {}),
        },
    )
