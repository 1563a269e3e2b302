"""Renewal: inside a run, a lease under an unchanged manifest and a policy permit goes on;
each time a recorded decision.
"""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.request_access import question
from taskpass.broker.take_back import take_back
from taskpass.core.audit import Event
from taskpass.core.clock import SECOND, Instant, after, seconds_between
from taskpass.core.decision import Decision, Outcome
from taskpass.core.errors import ManifestChanged, TaskpassError
from taskpass.core.grant import Grant
from taskpass.core.ids import GrantId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.manifest import is_within, keep_all, narrow
from taskpass.core.request import AccessRequest
from taskpass.core.scope import Scope
from taskpass.core.task import Task, TaskState
from taskpass.store.base import Unit


def due_for_renewal(lease: Lease, grant: Grant, request: AccessRequest, now: Instant) -> bool:
    """In the last third of its life, and with something left of the grant."""
    if not grant.renewable or lease.state is not LeaseState.ACTIVE or lease.expires_at >= grant.ends_at:
        return False
    return 3 * (lease.expires_at - now) <= request.lifetime * SECOND


def renew_leases(broker: Broker) -> int:
    """Renew what is due; the number renewed. What is not permitted any more simply runs out."""
    with broker.store.read() as unit:
        now = broker.clock.now()
        due = [lease for lease in unit.leases.list(states=[LeaseState.ACTIVE]) if _is_due(unit, lease, now)]
    return sum(_renew(broker, lease) for lease in due)


def _is_due(unit: Unit, lease: Lease, now: Instant) -> bool:
    grant = unit.grants.get(lease.grant)
    return due_for_renewal(lease, grant, unit.requests.get(grant.request), now)


def _renew(broker: Broker, lease: Lease) -> bool:
    with broker.store.read() as unit:
        grant = unit.grants.get(lease.grant)
        request = unit.requests.get(grant.request)
        task = unit.tasks.get(lease.task)
    if task.state is not TaskState.OPEN:
        return False
    try:
        decision = _decide(broker, task, request, grant)
    except TaskpassError as error:
        return _refuse(broker, lease, error.code)
    if decision.outcome is not Outcome.PERMIT:
        return _refuse(broker, lease, decision.code)
    return _extend(broker, lease, request, grant, decision)


def _decide(broker: Broker, task: Task, request: AccessRequest, grant: Grant) -> Decision:
    """Policy on the manifest as it is now, which must be the one that was granted."""
    resource = broker.resource(grant.resource)
    manifest = broker.issuer(grant.resource).resolve(request.scope)
    if manifest.digest() != grant.asked:
        raise ManifestChanged("the rights behind this lease have changed")
    return broker.policy.decide(question(broker, task, resource, manifest, request.lifetime, request.reason))


def _extend(broker: Broker, lease: Lease, request: AccessRequest, grant: Grant, decision: Decision) -> bool:
    with broker.store.write() as unit:
        now = broker.now(unit)
        life = min(request.lifetime, decision.obligations.max_ttl)
        end = min(after(now, life), grant.ends_at)
        if unit.leases.get(lease.id).state is not LeaseState.ACTIVE or end <= lease.expires_at:
            return False
        unit.leases.advance(lease.id, LeaseEvent.RENEW, now, expires_at=end, renewals=lease.renewals + 1)
        record = unit.audit.append(
            Event(
                "lease.renewed",
                "broker",
                {"task": lease.task, "grant": grant.id, "lease": lease.id},
                {"expires_at": end, "renewals": lease.renewals + 1, "decision": decision.to_json()},
            ),
            now,
        )
    broker.issuer_of(lease.target).enable(
        lease.role, lifetime=max(1, seconds_between(now, end)), audit_head=f"{record.seq}:{record.hash}"
    )
    return True


def _refuse(broker: Broker, lease: Lease, code: str) -> bool:
    if lease.last_error == f"not_renewed:{code}":
        return False
    with broker.store.write() as unit:
        unit.leases.note(lease.id, last_error=f"not_renewed:{code}")
        unit.audit.append(
            Event("lease.renewal_refused", "broker", {"task": lease.task, "lease": lease.id}, {"code": code}),
            broker.now(unit),
        )
    return False


def end_wider_leases(broker: Broker) -> int:
    """Recompute the manifests of live leases; one that has become wider than what was granted is taken back."""
    with broker.store.read() as unit:
        live = [(lease, unit.grants.get(lease.grant)) for lease in unit.leases.list(states=[LeaseState.ACTIVE])]
        scopes = {grant.id: unit.requests.get(grant.request).scope for _, grant in live}
    wider = [lease.id for lease, grant in live if _is_wider(broker, lease, grant, scopes)]
    return len(take_back(broker, wider, reason="wider_than_manifest", actor="broker"))


def _is_wider(broker: Broker, lease: Lease, grant: Grant, scopes: dict[GrantId, Scope]) -> bool:
    manifest = broker.issuer_of(lease.target).resolve(scopes[grant.id])
    return not is_within(narrow(manifest, keep_all(grant.manifest)), grant.manifest)
