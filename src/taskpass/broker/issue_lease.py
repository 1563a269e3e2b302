"""Issue a lease: decide again, record the intent, create disabled, record active, enable, serve.

No credential exists that the store did not announce first, and none can log in before the audit record of its being
active is durable. Whatever fails after the intent ends in ``closing`` (design: architecture.md, *Order of work*).
"""

from __future__ import annotations

import contextlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from taskpass.broker.aftermath import begin, demand_closed_doors, migrator
from taskpass.broker.context import Broker
from taskpass.broker.debt import owed, refuse_debtors
from taskpass.broker.disk import demand_disk
from taskpass.broker.intend_lease import Terms, intend_lease
from taskpass.broker.refusals import budget_refusals, refuse
from taskpass.broker.request_access import decide, digest_of, own_request
from taskpass.broker.review_request import accepted_by_anybody, count_votes
from taskpass.broker.run_script import run_script
from taskpass.broker.take_back import close_lease, take_back
from taskpass.core.approval import Tally
from taskpass.core.audit import Event
from taskpass.core.bearer import Bearer
from taskpass.core.budgets import wait_for_room, window_start
from taskpass.core.clock import SECOND, Instant, after, seconds_between
from taskpass.core.decision import Decision, Delivery, Outcome, as_asked
from taskpass.core.errors import (
    Conflict,
    Denied,
    Expired,
    IllegalTransition,
    ObligationUnmet,
    OverBudget,
    Pending,
    TaskpassError,
)
from taskpass.core.grant import Grant
from taskpass.core.guard import demand_sane_clock, effective_now
from taskpass.core.ids import GrantId, HumanId, LeaseId, RequestId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.request import AccessRequest, RequestEvent, RequestState
from taskpass.core.scope import Level
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.core.task import Task, TaskState
from taskpass.gateways.base import Endpoint, EndpointOrder
from taskpass.identity.base import Caller
from taskpass.issuers.base import Order
from taskpass.store.base import Run, Unit
from taskpass.wire.postgres.address import parse_address

SECRET_BYTES = 32
"""256 random bits: a SCRAM verifier with one iteration is then as good as one with many."""


@dataclass(frozen=True, slots=True)
class Issued:
    """``endpoint`` or ``bearer`` is set, by the lease's delivery; neither for a file, which the broker runs."""

    lease: Lease
    endpoint: Endpoint | None
    bearer: Bearer | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A lease that is recorded, at ``at``, and not yet in the target. ``head`` is the audit head with its record."""

    lease: Lease
    grant: Grant
    request: AccessRequest
    task: Task
    head: str
    at: Instant


def issue_lease(broker: Broker, caller: Caller, request_id: RequestId, *, until_process_ends: bool) -> Issued:
    """A fresh lease for an approved request: its endpoint, or the secret where that was asked for and is permitted.

    ``until_process_ends`` ties the lease to the calling process as well as to the task. Raises ``Pending``, ``Denied``,
    ``Expired``, ``ManifestChanged``, ``ObligationUnmet``, ``TargetUnavailable``, ``TargetUnfit`` or
    ``StoreUnavailable``; after any of them nothing usable exists.
    """
    return finish(broker, caller, _record_intent(broker, caller, request_id), until_process_ends=until_process_ends)


def finish(broker: Broker, caller: Caller, intent: Intent, *, until_process_ends: bool) -> Issued:
    """Carry a recorded intent out; whatever fails, nothing usable is left. Raises as ``issue_lease``."""
    secret = Secret(urlsafe_b64encode(broker.entropy.bytes(SECRET_BYTES)).decode())
    broker.remembered.keep(intent.lease, intent.task, intent.head)
    try:
        with broker.closing.hold(intent.lease.id):
            lease, run = _make(broker, caller, intent, secret)
        migration = intent.grant.manifest.migration
        runs = migration is not None and not migration.hands_on
        bearer = _bearer(lease, secret) if lease.delivery is Delivery.BEARER else None
        endpoint = None
        if not (bearer or runs):
            order = _endpoint_order(broker, caller, run, lease, secret, intent)
            endpoint = broker.endpoints.open(order)
        broker.owners.serves(lease.id)
        if until_process_ends:
            broker.holders.watch_lease(lease.id, caller)
        # A revocation that came before the endpoint was open found nothing to cut.
        lease = _demand_active(broker, lease.id)
        if migration is not None and runs:
            broker.progress.open(lease.id)
            broker.start_work(partial(run_script, broker, lease, migration, secret))
    except BaseException as error:
        _undo(broker, intent, error)
        raise
    return Issued(lease, endpoint, bearer)


def _record_intent(broker: Broker, caller: Caller, request_id: RequestId) -> Intent:
    demand_disk(broker)
    with broker.store.read() as unit:
        request, task = own_request(broker, unit, caller, request_id)
        now = effective_now(broker.clock.now(), unit.installation.latest_seen)
        debt = owed(unit)
        most = accepted_by_anybody(unit, request)
    _demand_usable(request, now)
    refuse_debtors(debt, task, request.scope.resource)
    resource = broker.resource(request.scope.resource)
    broker.fitness.demand(resource.name)
    # Policy was asked without what is held back; what approvers accepted besides is for it to decide too.
    decision = decide(broker, task, resource, most, request.lifetime, request.reason)
    decision = as_asked(decision, request.decision.obligations.delivery)
    _demand_not_denied(broker, request, task, decision)
    with budget_refusals(broker, task, request.scope.resource), broker.store.write() as unit:
        request = unit.requests.get(request_id)
        _demand_usable(request, broker.now(unit))
        _demand_unchanged(unit, request, task)
        return intend(broker, unit, request, task, decision)


def _demand_usable(request: AccessRequest, now: Instant) -> None:
    if request.state is RequestState.APPROVED and now < request.lapses_at:
        return
    if request.state is RequestState.PENDING:
        raise Pending("a person has not decided yet", hint=f"taskpass wait {request.id}")
    if request.state is RequestState.DENIED:
        raise Denied("the request was denied", hint="ask for less, or ask a person why", code=request.decision.code)
    if request.state is RequestState.FULFILLED:
        raise Conflict("this request has been used", hint="ask again for another lease", code="already_used")
    raise Expired("the request has ended", hint="ask again")


def _demand_not_denied(broker: Broker, request: AccessRequest, task: Task, decision: Decision) -> None:
    if decision.outcome is not Outcome.DENY:
        return
    subject: dict[str, str] = {"task": request.task, "request": request.id}
    refuse(broker, task, Event("lease.refused", "broker", subject, {"decision": decision.to_json()}), request.id)
    raise Denied("policy does not permit this any more", hint="ask again, or ask for less", code=decision.code)


def intend(broker: Broker, unit: Unit, request: AccessRequest, task: Task, decision: Decision) -> Intent:
    """Record that a lease will be made, with the grant it is made under, using the request and its votes up.

    The caller has just recorded ``request`` in this unit of work, or has shown that it is unchanged.
    """
    now = broker.now(unit)
    demand_sane_clock(broker.clock.now(), unit.installation.latest_seen)
    _demand_budget(broker, unit, request, task, now)
    demand_closed_doors(unit, request.manifest)
    manifest, lifetime, counted = request.manifest, request.lifetime, None
    if Outcome.NEEDS_APPROVAL in (decision.outcome, request.decision.outcome):
        counted = _demand_votes(broker, unit, request, task, decision)
        manifest, lifetime = counted.manifest, counted.lifetime
    _demand_deliverable(request, decision)
    lifetime = min(lifetime, decision.obligations.max_ttl)
    started = (request.decided_at or now) if counted else now
    ends_at = min(after(started, lifetime), task.expires_at)
    if seconds_between(now, ends_at) < 1:
        raise Expired("the grant has run out before it was used", hint="ask again")
    # A secret may have been copied: it does not live longer than what was decided when it was handed out.
    endpoint = decision.obligations.delivery is Delivery.ENDPOINT
    renewable = counted is None and task.principal.run is not None and endpoint
    grant = Grant(
        id=GrantId(broker.new_id("grt")),
        request=request.id,
        task=task.id,
        resource=request.scope.resource,
        asked=request.manifest.digest(),
        manifest=manifest,
        digest=request.digest,
        approvals=tuple(vote.id for vote in counted.counted) if counted else (),
        renewable=renewable,
        created_at=now,
        ends_at=task.expires_at if renewable else ends_at,
    )
    unit.grants.add(grant)
    unit.approvals.consume(grant.approvals, grant.id)
    request = unit.requests.advance(request.id, RequestEvent.FULFIL, now)
    approvers = [vote.approver for vote in counted.counted] if counted else []
    terms = Terms(decision, request.decision.obligations.delivery, ends_at, approvers)
    lease, head = intend_lease(broker, unit, grant, task, terms)
    return Intent(lease, grant, request, task, head, now)


def _demand_unchanged(unit: Unit, request: AccessRequest, task: Task) -> None:
    """The row must still be what was decided: its digest is computed again from its parts and the present epoch."""
    if unit.tasks.get(task.id).state is not TaskState.OPEN:
        raise Expired("the task has ended", hint="open a new one")
    scope, snapshot = request.scope, request.decision.snapshot
    expected = digest_of(
        unit,
        task,
        scope.resource,
        request.environment,
        request.manifest,
        request.lifetime,
        request.decision.obligations.delivery,
        snapshot,
    )
    if expected != request.digest:
        raise Conflict("the request is not what was decided any more", hint="ask again", code="request_void")


def _demand_budget(broker: Broker, unit: Unit, request: AccessRequest, task: Task, now: Instant) -> None:
    """Leases that may be usable count, those that are not proven closed included."""
    limits, sponsor = broker.config.budgets, task.principal.sponsor
    if unit.leases.count_live(task=task.id) >= limits.leases_of_task:
        raise OverBudget(
            "this task has enough open accesses",
            hint="release one first",
            code="too_many_leases",
            retry_after=1 + seconds_between(now, unit.leases.next_end(task=task.id) or now),
        )
    if unit.leases.count_live(sponsor=sponsor) >= limits.leases:
        raise OverBudget(
            "your tasks have enough open accesses",
            hint="release one first",
            code="too_many_leases",
            retry_after=1 + seconds_between(now, unit.leases.next_end(sponsor=sponsor) or now),
        )
    if request.decision.obligations.delivery is Delivery.BEARER:
        _demand_connections(broker, unit, request, sponsor, now)
    used = unit.leases.rights(sponsor, task.principal.machine, since=window_start(now))
    if len(used) >= limits.rights and request.manifest.digest() not in used:
        raise OverBudget(
            "your tasks used too many different sets of rights lately",
            hint="ask for what was asked for before",
            code="too_many_rights",
            retry_after=wait_for_room(min(used.values(), default=None), now),
        )


def _demand_connections(broker: Broker, unit: Unit, request: AccessRequest, sponsor: HumanId, now: Instant) -> None:
    """A secret is used past every endpoint, so all that its account may open counts as open."""
    handed_out = 1 + unit.leases.count_live(sponsor=sponsor, delivery=Delivery.BEARER)
    if handed_out * broker.limits_of(request.scope).connections > broker.config.budgets.connections:
        raise OverBudget(
            "the secrets that your tasks hold may open enough connections",
            hint="release one first, or leave --deliver out",
            code="too_many_connections",
            retry_after=1 + seconds_between(now, unit.leases.next_end(sponsor=sponsor) or now),
        )


def _demand_votes(broker: Broker, unit: Unit, request: AccessRequest, task: Task, decision: Decision) -> Tally:
    """By the stricter of the duties at the time of the question and of those now."""
    duties = request.decision.obligations.stricter(decision.obligations)
    counted = count_votes(broker, unit, request, task, duties)
    if not counted.sufficient:
        raise Denied(
            "the approval does not hold for what would be issued now",
            hint="ask again: policy, people or rights have changed since",
            code="approval_void",
        )
    return counted


def _demand_deliverable(request: AccessRequest, decision: Decision) -> None:
    """What was asked for is what is permitted now. Production never hands a secret out, and nobody gets an owner's,
    whatever was decided.
    """
    asked, permitted = request.decision.obligations.delivery, decision.obligations.delivery
    if asked is not permitted:
        raise ObligationUnmet("policy does not permit this delivery any more", hint="ask again without --deliver")
    if asked is not Delivery.ENDPOINT and request.environment is Environment.PRODUCTION:
        raise ObligationUnmet(
            "production hands no secret out", hint="leave --deliver out: an endpoint works", code="bearer_in_production"
        )
    if asked is not Delivery.ENDPOINT and request.scope.level is Level.MIGRATE:
        raise ObligationUnmet(
            "the owner's login is never handed out", hint="leave --deliver out", code="bearer_for_migration"
        )


def _make(broker: Broker, caller: Caller, intent: Intent, secret: Secret) -> tuple[Lease, Run | None]:
    """Create, record, enable, in turn with every close of this lease. The active lease, and the caller's run.

    Nothing is enabled that was taken back before its activation was recorded, and what is taken back later is closed
    after it was enabled. Each step lasts no longer than what is left by the latest time seen: a clock set back on the
    way prolongs nothing.
    """
    lease, issuer = intent.lease, broker.issuer(intent.grant.resource)
    migrates = intent.grant.manifest.migration is not None
    before = migrator(issuer).snapshot() if migrates else None
    issuer.create(
        Order(
            lease=lease.id,
            role=lease.role,
            scope=intent.request.scope,
            asked=intent.grant.asked,
            manifest=intent.grant.manifest,
            lifetime=_left(broker, lease, intent.at),
            secret=secret,
            delivery=lease.delivery,
            audit_head=intent.head,
            limits=broker.limits_of(intent.request.scope),
        )
    )
    with broker.store.write() as unit:
        now = broker.now(unit)
        lease = _activate(broker, unit, lease.id, now)
        if before is not None:
            begin(unit, lease, intent.grant.manifest, before, now)
        record = unit.audit.append(
            Event("lease.activated", "broker", {"task": lease.task, "lease": lease.id}, {"role": lease.role}), now
        )
        run = unit.runs.get(caller.run) if caller.run is not None else None
    issuer.enable(lease.role, lifetime=_left(broker, lease, now), audit_head=f"{record.seq}:{record.hash}")
    return lease, run


def _activate(broker: Broker, unit: Unit, lease_id: LeaseId, now: Instant) -> Lease:
    try:
        # The book is asked inside the unit of work, because what it holds is recorded in one.
        if not broker.late.is_closing(lease_id):
            return unit.leases.advance(lease_id, LeaseEvent.CREATED, now)
    except IllegalTransition:
        pass
    raise _taken_back()


def _demand_active(broker: Broker, lease_id: LeaseId) -> Lease:
    """The lease as it is now; raises if it was taken back or has run out."""
    with broker.store.read() as unit:
        lease, seen = unit.leases.get(lease_id), unit.installation.latest_seen
    if lease.state is not LeaseState.ACTIVE or broker.late.is_closing(lease.id):
        raise _taken_back()
    _left(broker, lease, seen)
    return lease


def _taken_back() -> Conflict:
    return Conflict("the access was taken back while it was being made", hint="ask again", code="taken_back")


def _left(broker: Broker, lease: Lease, seen: Instant) -> int:
    """The whole seconds left of ``lease``, by the later of the clock and ``seen``; raises if there are none."""
    left = seconds_between(effective_now(broker.clock.now(), seen), lease.expires_at)
    if left < 1:
        raise Expired("the lease ran out while it was being made", hint="ask again")
    return left


def _bearer(lease: Lease, secret: Secret) -> Bearer:
    address = parse_address(lease.target.address)
    return Bearer(
        address.host, address.port, address.database, lease.role, lease.target.tls.get("ca", ""), password=secret
    )


def _endpoint_order(
    broker: Broker, caller: Caller, run: Run | None, lease: Lease, secret: Secret, intent: Intent
) -> EndpointOrder:
    base = run.directory if run else broker.runtime_directory
    return EndpointOrder(
        lease=lease.id,
        role=lease.role,
        target=lease.target,
        directory=f"{base}/{lease.id[-12:]}",
        uid=run.uid if run else caller.uid,
        namespace=run.namespace if run else "",
        run=run.id if run else None,
        secret=secret,
        ca=lease.target.tls.get("ca"),
        seconds=max(0, lease.expires_at - broker.clock.now()) / SECOND,
        settings=_settings(broker, intent),
        party=intent.task.principal.sponsor,
        connections=broker.config.budgets.connections,
    )


def _settings(broker: Broker, intent: Intent) -> Mapping[str, str]:
    migration = intent.grant.manifest.migration
    return {} if migration is None else migrator(broker.issuer(intent.grant.resource)).session_settings(migration)


def _undo(broker: Broker, intent: Intent, error: BaseException) -> None:
    """Nothing usable is left: the lease goes to ``closing`` and is closed now or by the sweeper."""
    code = error.code if isinstance(error, TaskpassError) else "internal"
    with contextlib.suppress(TaskpassError):
        take_back(broker, [intent.lease.id], reason=f"issue_failed:{code}", actor="broker")
        close_lease(broker, intent.lease.id)
