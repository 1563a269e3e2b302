"""What a drill's access is and how it is recorded: task, request, grant and lease, as every access has them.

Not for playing it: that is ``broker.drill``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from taskpass.broker.context import Broker
from taskpass.broker.intend_lease import Terms, intend_lease
from taskpass.broker.request_access import decide, digest_of
from taskpass.config.model import Resource
from taskpass.core.clock import Instant, after
from taskpass.core.decision import Decision, Delivery, Obligations, Outcome
from taskpass.core.grant import Grant
from taskpass.core.ids import GrantId, HumanId, RequestId, TaskId
from taskpass.core.lease import Lease
from taskpass.core.limits import Limits
from taskpass.core.manifest import Kind, Manifest
from taskpass.core.provenance import Fact, Provenance
from taskpass.core.request import AccessRequest, RequestEvent, RequestState
from taskpass.core.scope import Level, Scope
from taskpass.core.secret import Secret
from taskpass.core.separation import Separation
from taskpass.core.spiffe import agent_id
from taskpass.core.task import Principal, Task, TaskState
from taskpass.issuers.base import Order
from taskpass.store.base import Unit
from taskpass.wire.postgres.address import parse_address

TOOL = "taskpass-drill"
"""The tool's name in identities: what a policy can permit or forbid a drill to read."""

SPONSOR = HumanId("taskpass:drill")
"""Nobody's agent. No person can have this name, so limits and debts of drills are nobody else's."""

SECONDS = 60
TASK_SECONDS = 180
"""A drill that was killed stands in the way of the next one for so long at most."""

SESSIONS = 10

_NOTHING = Decision(Outcome.PERMIT, "drill", Obligations(max_ttl=SECONDS), engine="drill")
"""Why an account without a right on anything may be made: there is nothing that policy could have a say about."""


def task_of(broker: Broker, task_id: TaskId, resource: str, now: Instant) -> Task:
    nothing = Fact("", Provenance.CLAIMED)
    return Task(
        id=task_id,
        principal=Principal(
            spiffe_id=str(agent_id(broker.config.broker.trust_domain, TOOL, task_id)),
            sponsor=SPONSOR,
            machine=broker.machine,
            tool=TOOL,
            separation=Separation.UID,
        ),
        # The store allows one open task for each sponsor, machine and repository: one drill of a resource at a time.
        repository=Fact(resource, Provenance.VERIFIED),
        branch=nothing,
        ticket=nothing,
        state=TaskState.OPEN,
        opened_at=now,
        expires_at=after(now, TASK_SECONDS),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What the drill's access is to be. ``asked`` is the digest of what the scope means; ``reads`` an oid, or None."""

    scope: Scope
    manifest: Manifest
    decision: Decision
    reads: int | None

    @property
    def table(self) -> str:
        return "".join(f"{item.schema}.{item.name}" for item in self.manifest.objects)


def plan_of(broker: Broker, offered: Resource, task: Task) -> Plan:
    """A read of one table where policy permits that at once; else an account that can do nothing."""
    reading = _reading(broker, offered, task)
    if reading is not None:
        return reading
    target = broker.issuer(offered.name).target
    manifest = Manifest(
        cluster=target.cluster,
        database=target.database,
        database_name=parse_address(target.address).database,
        level=Level.READ,
        objects=(),
    )
    decision = replace(_NOTHING, snapshot=broker.policy.snapshot)
    # A pattern that no table has: whoever resolves the scope of this lease again finds nothing, as was granted.
    return Plan(Scope(offered.name, TOOL, Level.READ, (f"{TOOL}.none",)), manifest, decision, None)


def _reading(broker: Broker, offered: Resource, task: Task) -> Plan | None:
    """None if nothing may be read, or only what leads to more than it names."""
    access = next((each for each in offered.access.values() if each.level is Level.READ), None)
    if access is None:
        return None
    issuer = broker.issuer(offered.name)
    whole = issuer.resolve(offered.scope(access.name))
    # One table alone: a view or a partitioned one would lead to more than it names.
    plain = [item for item in whole.objects if item.kind is Kind.TABLE and not item.reach]
    if not plain:
        return None
    scope = offered.scope(access.name, (f"{plain[0].schema}.{plain[0].name}",))
    manifest = issuer.resolve(scope)
    if [item.oid for item in manifest.objects] != [plain[0].oid]:
        return None
    decision = decide(broker, task, offered, manifest, SECONDS, "a drill")
    if decision.outcome is not Outcome.PERMIT:
        return None
    return Plan(scope, manifest, decision, plain[0].oid)


def order_of(lease: Lease, plan: Plan, secret: Secret, head: str) -> Order:
    return Order(
        lease=lease.id,
        role=lease.role,
        scope=plan.scope,
        asked=plan.manifest.digest(),
        manifest=plan.manifest,
        lifetime=SECONDS,
        secret=secret,
        audit_head=head,
        limits=Limits(connections=SESSIONS),
    )


def intend(broker: Broker, task: Task, plan: Plan) -> tuple[Lease, str]:
    """The lease, recorded before it exists, with the request and the grant that every lease has; the audit head."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        request = _request(broker, unit, task, plan, now)
        unit.requests.add(request)
        unit.requests.advance(request.id, RequestEvent.APPROVE, now, lapses_at=after(now, SECONDS))
        unit.requests.advance(request.id, RequestEvent.FULFIL, now)
        grant = _grant(broker, request, now)
        unit.grants.add(grant)
        return intend_lease(
            broker, unit, grant, task, Terms(plan.decision, Delivery.ENDPOINT, grant.ends_at, drill=True)
        )


def _request(broker: Broker, unit: Unit, task: Task, plan: Plan, now: Instant) -> AccessRequest:
    environment = broker.resource(plan.scope.resource).environment
    digest = digest_of(
        unit,
        task,
        plan.scope.resource,
        environment,
        plan.manifest,
        SECONDS,
        Delivery.ENDPOINT,
        broker.policy.snapshot,
    )
    return AccessRequest(
        id=RequestId(broker.new_id("req")),
        task=task.id,
        scope=plan.scope,
        environment=environment,
        manifest=plan.manifest,
        lifetime=SECONDS,
        reason="a drill",
        decision=plan.decision,
        digest=digest,
        separation=task.principal.separation,
        state=RequestState.PENDING,
        created_at=now,
        lapses_at=after(now, SECONDS),
    )


def _grant(broker: Broker, request: AccessRequest, now: Instant) -> Grant:
    return Grant(
        id=GrantId(broker.new_id("grt")),
        request=request.id,
        task=request.task,
        resource=request.scope.resource,
        asked=request.manifest.digest(),
        manifest=request.manifest,
        digest=request.digest,
        approvals=(),
        renewable=False,
        created_at=now,
        ends_at=after(now, SECONDS),
    )
