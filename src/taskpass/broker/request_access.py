"""Ask for access: resolve the scope to a manifest, let policy decide, and record the answer with its reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace

from taskpass.broker.aftermath import demand_closed_doors, migrator
from taskpass.broker.context import Broker
from taskpass.broker.debt import owed, refuse_debtors
from taskpass.broker.disk import demand_disk
from taskpass.broker.open_task import own_task
from taskpass.broker.refusals import budget_refusals, refuse
from taskpass.config.model import Resource
from taskpass.core.audit import Event
from taskpass.core.budgets import COOL_DOWN, demand_room, is_cooling, same_party, window_start
from taskpass.core.clock import SECOND, Instant, after, seconds_between
from taskpass.core.decision import (
    ABSOLUTE_MAX_TTL,
    DEFAULT_TTL,
    PRODUCTION_TTL,
    Decision,
    Delivery,
    Obligations,
    Outcome,
    as_asked,
    strictest,
)
from taskpass.core.errors import Denied, Expired, InvalidInput, NotFound, ObligationUnmet, OverBudget
from taskpass.core.guard import demand_sane_clock
from taskpass.core.ids import RequestId
from taskpass.core.manifest import Manifest
from taskpass.core.request import (
    APPROVED_SECONDS,
    PENDING_SECONDS,
    AccessRequest,
    RequestEvent,
    RequestState,
    request_digest,
)
from taskpass.core.scope import Level, Scope
from taskpass.core.separation import Environment, Separation, serves
from taskpass.core.task import Task, TaskState
from taskpass.core.text import REASON_BYTES, accept
from taskpass.identity.base import Caller
from taskpass.policy.base import Question
from taskpass.store.base import Unit

_EVENT = {
    Outcome.PERMIT: RequestEvent.APPROVE,
    Outcome.DENY: RequestEvent.DENY,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks for, as it came: ``lifetime`` in seconds or None for the usual one;
    ``reason`` is its words. ``file`` is the text of a migration file, None for anything else.
    """

    resource: str
    access: str
    only: tuple[str, ...] = ()
    lifetime: int | None = None
    reason: str = ""
    task_id: str | None = None
    delivery: Delivery = Delivery.ENDPOINT
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A wish with what it means in the target now, and what policy says about that. Nothing is recorded yet."""

    task: Task
    resource: Resource
    scope: Scope
    manifest: Manifest
    lifetime: int
    reason: str
    decision: Decision
    file: str | None = None


def request_access(broker: Broker, caller: Caller, wish: Wish) -> AccessRequest:
    """The recorded request with its decision: ``approved`` (policy permits), ``pending`` (a person decides) or
    ``denied``. Raises as ``ask``.
    """
    asked = ask(broker, caller, wish)
    with budget_refusals(broker, asked.task, asked.resource.name), broker.store.write() as unit:
        return record(broker, unit, asked)


def ask(broker: Broker, caller: Caller, wish: Wish) -> Asked:
    """Resolve and decide.

    Raises ``Denied`` where there is nothing to record a manifest of (unknown resource, no separation, debt),
    ``InvalidInput`` for malformed input, ``StoreUnavailable`` while the store's disk is nearly full, and what the
    issuer raises when the target cannot be read.
    """
    demand_disk(broker)
    accept(wish.reason, what="the reason", limit=REASON_BYTES, empty=True)
    offered = broker.resource(wish.resource)
    script = None if wish.file is None else migrator(broker.issuer(offered.name)).read_script(wish.file)
    scope = offered.scope(wish.access, wish.only, script)
    with broker.store.read() as unit:
        task = own_task(broker, unit, caller, wish.task_id)
        debt = owed(unit)
    broker.refusals.demand_open(task, broker.clock.now())
    _demand_separation(broker, task, offered)
    if wish.delivery is not Delivery.ENDPOINT:
        _demand_of_use(task, offered, scope)
    refuse_debtors(debt, task, offered.name)
    broker.fitness.demand(offered.name)
    manifest = broker.issuer(offered.name).resolve(scope)
    if manifest.empty:
        nothing = Decision(Outcome.DENY, "nothing_to_grant", Obligations())
        return Asked(task, offered, scope, manifest, DEFAULT_TTL, wish.reason, nothing)
    if len(manifest.objects) > (most := broker.config.budgets.objects):
        raise InvalidInput(
            f"that is {len(manifest.objects)} tables at once, and {most} are the most",
            hint="name those that are needed: --only",
            code="too_many_objects",
        )
    lifetime = _wanted(wish.lifetime, offered.environment)
    decision = as_asked(decide(broker, task, offered, manifest, lifetime, wish.reason), wish.delivery)
    return Asked(task, offered, scope, manifest, lifetime, wish.reason, decision, wish.file)


def decide(broker: Broker, task: Task, resource: Resource, manifest: Manifest, lifetime: int, reason: str) -> Decision:
    """What policy says about this task *and* about each that it was opened inside: a child never gets more (I8).

    A sub-agent's name is its own claim, so a rule for that name must not open what the run's own agent is refused. The
    lowest outcome holds, under the duties of all.
    """
    if not task.principal.parents:
        return broker.policy.decide(question(broker, task, resource, manifest, lifetime, reason))
    with broker.store.read() as unit:
        chain = [task, *(unit.tasks.get(parent) for parent in task.principal.parents)]
    decisions = [broker.policy.decide(question(broker, each, resource, manifest, lifetime, reason)) for each in chain]
    lowest = min(decisions, key=lambda decision: decision.outcome)
    return replace(lowest, obligations=strictest(decision.obligations for decision in decisions))


def question(
    broker: Broker, task: Task, resource: Resource, manifest: Manifest, lifetime: int, reason: str
) -> Question:
    """The policy question; everything in it but ``claimed`` is the broker's own knowledge."""
    return Question(
        task=task,
        resource=resource.name,
        environment=resource.environment,
        level=manifest.level,
        manifest=manifest,
        lifetime=lifetime,
        now=broker.clock.now(),
        claimed={"reason": reason},
    )


def _wanted(lifetime: int | None, environment: Environment) -> int:
    if lifetime is None:
        return PRODUCTION_TTL if environment is Environment.PRODUCTION else DEFAULT_TTL
    if not 1 <= lifetime <= ABSOLUTE_MAX_TTL:
        raise InvalidInput(
            f"a lifetime is 1 to {ABSOLUTE_MAX_TTL} seconds", hint="leave --ttl out for the usual one", code="bad_ttl"
        )
    return lifetime


def _demand_separation(broker: Broker, task: Task, resource: Resource) -> None:
    if serves(task.principal.separation, resource.environment):
        return
    data = {"resource": resource.name, "code": "separation", "separation": task.principal.separation.word}
    event = Event("request.refused", task.principal.spiffe_id, {"task": task.id}, data)
    refuse(broker, task, event, "separation")
    raise Denied(
        f"nothing separates this process from the broker, so {resource.environment} is refused",
        hint="start the agent with: taskpass run -- <agent>",
        code="separation",
    )


def _demand_of_use(task: Task, resource: Resource, scope: Scope) -> None:
    """Refuse a secret that could not be used, would travel further than the caller's own socket, or is an owner's."""
    if scope.level is Level.MIGRATE:
        raise ObligationUnmet(
            "the owner's login is never handed out", hint="leave --deliver out", code="bearer_for_migration"
        )
    if task.principal.separation is Separation.SANDBOX and resource.address.startswith("/"):
        raise ObligationUnmet(
            "the sandbox does not see the socket of this database, so a secret for it would be of no use",
            hint="leave --deliver out: an endpoint works",
            code="bearer_unusable",
        )
    if task.principal.separation is Separation.HOST:
        raise ObligationUnmet("a secret is not handed to another machine", hint="leave --deliver out")


def record(broker: Broker, unit: Unit, asked: Asked) -> AccessRequest:
    """Write the request down with its decision, in the state that follows from it.

    The same question of the same task is one question: while it waits, and while a policy's "no" is fresh, the earlier
    request is the answer. Raises ``OverBudget``.
    """
    task, resource, manifest, decision = asked.task, asked.resource, asked.manifest, asked.decision
    now = broker.now(unit)
    demand_sane_clock(broker.clock.now(), unit.installation.latest_seen)
    if unit.tasks.get(task.id).state is not TaskState.OPEN:
        raise Expired("the task has ended", hint="open a new one")
    demand_closed_doors(unit, manifest)
    lifetime = max(1, min(asked.lifetime, decision.obligations.max_ttl, seconds_between(now, task.expires_at)))
    digest = digest_of(
        unit,
        task,
        resource.name,
        resource.environment,
        manifest,
        lifetime,
        decision.obligations.delivery,
        broker.policy.snapshot,
    )
    if earlier := _earlier(unit, task, digest, decision, now):
        return earlier
    _demand_budget(broker, unit, asked, now)
    request = AccessRequest(
        id=RequestId(broker.new_id("req")),
        task=task.id,
        scope=asked.scope,
        environment=resource.environment,
        manifest=manifest,
        lifetime=lifetime,
        reason=asked.reason,
        decision=decision,
        digest=digest,
        separation=task.principal.separation,
        state=RequestState.PENDING,
        created_at=now,
        lapses_at=after(now, PENDING_SECONDS),
    )
    unit.requests.add(request)
    if asked.file is not None and asked.scope.script is not None and decision.outcome is not Outcome.DENY:
        unit.scripts.add(asked.scope.script.digest, asked.file)
    unit.audit.append(_decided(task, request), now)
    event = _EVENT.get(decision.outcome)
    if event is None:
        return request
    lapses: Instant | None = after(now, APPROVED_SECONDS) if event is RequestEvent.APPROVE else None
    return unit.requests.advance(request.id, event, now, lapses_at=lapses)


def _earlier(unit: Unit, task: Task, digest: str, decision: Decision, now: Instant) -> AccessRequest | None:
    if decision.outcome is Outcome.PERMIT:
        return None  # Each permit is used up by one lease.
    found = unit.requests.find_same(task.id, digest, since=window_start(now))
    return found if found and found.decision.outcome is decision.outcome and _still_says_it(found) else None


def _still_says_it(request: AccessRequest) -> bool:
    return request.state is RequestState.PENDING or request.decision.outcome is Outcome.DENY


def _demand_budget(broker: Broker, unit: Unit, asked: Asked, now: Instant) -> None:
    budgets, who = broker.config.budgets, asked.task.principal
    prompt = asked.decision.outcome is Outcome.NEEDS_APPROVAL
    used = unit.requests.used(who.sponsor, who.machine, since=window_start(now))
    demand_room(budgets, used, now, prompt=prompt)
    if not prompt:
        return
    if unit.requests.count_pending(who.sponsor) >= budgets.pending:
        raise OverBudget(
            "too many questions are waiting for an answer already",
            hint="wait for one, cancel one",
            code="too_many_pending",
            retry_after=60,
        )
    for denied in unit.requests.denied_by_people(
        who.sponsor, who.machine, asked.resource.name, since=Instant(now - COOL_DOWN * SECOND)
    ):
        if is_cooling(denied.manifest, asked.manifest) and same_party(unit.tasks.get(denied.task), asked.task):
            raise OverBudget(
                "a person said no to this a short while ago",
                hint="ask for less",
                code="cooling_down",
                retry_after=1 + seconds_between(now, after(denied.decided_at or now, COOL_DOWN)),
            )


def digest_of(
    unit: Unit,
    task: Task,
    resource: str,
    environment: Environment,
    manifest: Manifest,
    lifetime: int,
    delivery: Delivery,
    snapshot: str,
) -> str:
    """``core.request.request_digest`` with this installation and epoch."""
    return request_digest(
        installation=unit.installation.id,
        epoch=unit.installation.epoch,
        task=task,
        resource=resource,
        environment=environment,
        manifest=manifest,
        lifetime=lifetime,
        delivery=delivery,
        snapshot=snapshot,
    )


def _decided(task: Task, request: AccessRequest) -> Event:
    return Event(
        "request.decided",
        task.principal.spiffe_id,
        {"task": task.id, "request": request.id},
        {
            "resource": request.scope.resource,
            "environment": request.environment.value,
            "scope": request.scope.to_json(),
            "manifest": request.manifest.to_json(),
            "manifest_digest": request.manifest.digest(),
            "digest": request.digest,
            "lifetime": request.lifetime,
            "claimed_reason": request.reason,
            "separation": request.separation.word,
            "decision": request.decision.to_json(),
        },
    )


def own_request(broker: Broker, unit: Unit, caller: Caller, request_id: RequestId) -> tuple[AccessRequest, Task]:
    """The caller's own request and its open task; one that is another's is reported exactly like one that is not."""
    try:
        request = unit.requests.get(request_id)
        return request, own_task(broker, unit, caller, request.task)
    except NotFound:
        raise NotFound("no such request of yours", hint="taskpass status lists your own") from None


def cancel_request(broker: Broker, caller: Caller, request_id: RequestId) -> AccessRequest:
    """Withdraw one's own question or unused approval."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        request, task = own_request(broker, unit, caller, request_id)
        event = RequestEvent.CANCEL if request.state is RequestState.PENDING else RequestEvent.WITHDRAW
        request = unit.requests.advance(request_id, event, now)
        unit.audit.append(
            Event("request.cancelled", task.principal.spiffe_id, {"task": task.id, "request": request_id}, {}), now
        )
        return replace(request)


def lapse_requests(broker: Broker) -> int:
    """Let questions and unused approvals end whose time has come; how many."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        lapsing = unit.requests.lapsing(now)
        for request in lapsing:
            unit.requests.advance(request.id, RequestEvent.LAPSE, now)
            unit.audit.append(
                Event(
                    "request.lapsed",
                    "broker",
                    {"task": request.task, "request": request.id},
                    {"was": request.state.value},
                ),
                now,
            )
        return len(lapsing)
