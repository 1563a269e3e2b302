"""Renewal: inside a run, a lease under an unchanged manifest and a policy permit goes on;
each time a recorded decision.
"""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.request_access import decide
from taskpass.broker.take_back_many import take_back_many
from taskpass.core.audit import Event
from taskpass.core.clock import SECOND, Instant, after, seconds_between
from taskpass.core.decision import Decision, Outcome
from taskpass.core.errors import ManifestChanged, TargetUnavailable, TaskpassError
from taskpass.core.grant import Grant
from taskpass.core.guard import demand_sane_clock
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.manifest import accept, is_within, keep_all, narrow
from taskpass.core.request import AccessRequest
from taskpass.core.scope import Scope
from taskpass.core.task import Task, TaskState
from taskpass.store.base import Unit

NOT_TOLD = "renewed, but the target was not told yet"


def due_for_renewal(lease: Lease, grant: Grant, request: AccessRequest, now: Instant) -> bool:
    """In the last third of its life, and with something left of the grant; or recorded, but not told to the target."""
    if not grant.renewable or lease.state is not LeaseState.ACTIVE:
        return False
    if lease.last_error == NOT_TOLD:
        return True
    if lease.expires_at >= grant.ends_at:
        return False
    return 3 * (lease.expires_at - now) <= request.lifetime * SECOND


def renew_leases(broker: Broker) -> int:
    """Renew what is due; the number renewed. What is not permitted any more simply runs out.

    A target that does not answer is asked once in each pass, so that it delays no other one for long.
    """
    with broker.store.read() as unit:
        now = broker.clock.now()
        due = [lease for lease in unit.leases.renewable(now, noted=NOT_TOLD) if _is_due(unit, lease, now)]
        mine = set(broker.owners.mine(unit, [lease.id for lease in due]))
    renewed, away = 0, set[str]()
    for lease in due:
        if lease.id in mine and lease.target.address not in away:
            try:
                renewed += _renew(broker, lease)
            except TargetUnavailable:
                away.add(lease.target.address)
    return renewed


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
        if decision.outcome is not Outcome.PERMIT:
            return _refuse(broker, lease, decision.code)
        with broker.closing.hold(lease.id):
            return _extend(broker, lease, request, grant, decision)
    except TaskpassError as error:
        _refuse(broker, lease, error.code)
        if isinstance(error, TargetUnavailable):
            raise
        return False


def _decide(broker: Broker, task: Task, request: AccessRequest, grant: Grant) -> Decision:
    """Policy on the manifest as it is now, which must be the one granted, in a target that may be issued from."""
    resource = broker.resource(grant.resource)
    broker.fitness.demand(grant.resource)
    manifest = broker.issuer(grant.resource).resolve(request.scope)
    if manifest.digest() != grant.asked:
        raise ManifestChanged("the rights behind this lease have changed")
    return decide(broker, task, resource, manifest, request.lifetime, request.reason)


def _extend(broker: Broker, lease: Lease, request: AccessRequest, grant: Grant, decision: Decision) -> bool:
    """Record, then tell the target. In turn with closing: a role that was closed must not be enabled again."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        demand_sane_clock(broker.clock.now(), unit.installation.latest_seen)
        present = unit.leases.get(lease.id)
        life = min(request.lifetime, decision.obligations.max_ttl)
        end = min(after(now, life), grant.ends_at)
        if present.state is not LeaseState.ACTIVE or broker.late.is_closing(lease.id):
            return False
        if (
            now >= present.expires_at
            or end < present.expires_at
            or unit.tasks.get(lease.task).state is not TaskState.OPEN
        ):
            return False
        if present.last_error != NOT_TOLD and 3 * (present.expires_at - now) > life * SECOND:
            return False  # policy allows shorter lives by now than when this was asked for: not due yet by those
        unit.leases.advance(lease.id, LeaseEvent.RENEW, now, expires_at=end, renewals=present.renewals + 1)
        unit.leases.note(lease.id, last_error=NOT_TOLD)
        record = unit.audit.append(
            Event(
                "lease.renewed",
                "broker",
                {"task": lease.task, "grant": grant.id, "lease": lease.id},
                {"expires_at": end, "renewals": present.renewals + 1, "decision": decision.to_json()},
            ),
            now,
        )
    broker.remembered.prolong(lease.id, end)
    left = seconds_between(max(now, broker.clock.now()), end)
    if left < 1:
        return False
    broker.issuer_of(lease.target).enable(lease.role, lifetime=left, audit_head=f"{record.seq}:{record.hash}")
    broker.endpoints.extend(lease.id, left)
    with broker.store.write() as unit:
        unit.leases.note(lease.id, last_error="")
    return True


def _refuse(broker: Broker, lease: Lease, code: str) -> bool:
    """Recorded once for each new reason. A renewal that the target was not told of is told again at the next pass."""
    why = f"not_renewed:{code}"
    with broker.store.write() as unit:
        held = unit.leases.get(lease.id).last_error
        if held in (why, NOT_TOLD):
            return False
        unit.leases.note(lease.id, last_error=why)
        unit.audit.append(
            Event("lease.renewal_refused", "broker", {"task": lease.task, "lease": lease.id}, {"code": code}),
            broker.now(unit),
        )
    return False


def end_wider_leases(broker: Broker) -> int:
    """Recompute the manifests of live leases; one that has become wider than what was granted is taken back.

    Leases of equal target, scope and manifest are one question to the target. A target that cannot be read now is left
    for the next pass and keeps no other one from being looked at.
    """
    with broker.store.read() as unit:
        alike = unit.leases.alike()
    away: set[str] = set()
    wider: list[LeaseId] = []
    for group in alike:
        with broker.store.read() as unit:
            lease = unit.leases.get(group[0])
            grant = unit.grants.get(lease.grant)
            scope = unit.requests.get(grant.request).scope
        if lease.target.address in away:
            continue
        try:
            if _is_wider(broker, lease, grant, scope):
                wider += group
        except TargetUnavailable:
            away.add(lease.target.address)
        except TaskpassError:
            wider += group
    return len(take_back_many(broker, wider, reason="wider_than_manifest", actor="broker"))


def _is_wider(broker: Broker, lease: Lease, grant: Grant, scope: Scope) -> bool:
    """Also if a granted object is no part of the scope any more: it was renamed, or leads to an excluded one by now.

    An object that is gone altogether took the right with it; it is treated the same, because nothing here can tell.
    """
    meant = broker.issuer_of(lease.target).resolve(scope)
    present = {item.oid for item in meant.objects}
    if any(item.oid not in present for item in grant.manifest.objects):
        return True
    meant = accept(meant, grant.manifest.accepted)
    return not is_within(narrow(meant, keep_all(grant.manifest)), grant.manifest)
