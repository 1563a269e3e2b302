"""People decide: what they are shown, the challenge they sign, and the vote that is recorded.

Only the people's plane calls this module; no agent surface has a way here. A state column is never evidence: the vote
carries a signature by the person's own key over exactly the rights that are then granted, and issuing verifies it
again.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from taskpass.broker.context import Broker
from taskpass.broker.request_access import digest_of
from taskpass.core import manifest as rights
from taskpass.core.approval import (
    CHALLENGE_SECONDS,
    Approval,
    Method,
    Tally,
    Verdict,
    challenge,
    counts_for,
    tally,
)
from taskpass.core.audit import Event
from taskpass.core.clock import after
from taskpass.core.decision import Obligations
from taskpass.core.errors import Conflict, Denied, Expired, InvalidInput
from taskpass.core.ids import ApprovalId, HumanId, RequestId
from taskpass.core.manifest import Keep, Manifest, keep_all, narrow
from taskpass.core.request import APPROVED_SECONDS, AccessRequest, RequestEvent, RequestState
from taskpass.core.separation import Separation
from taskpass.core.task import Task
from taskpass.core.text import REASON_BYTES, accept
from taskpass.store.base import Unit


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a person is about to say: the verdict, and for a yes what they leave of the request.

    ``accept`` are the names that may be changed although they are excluded; without them a held verb stays held.
    """

    verdict: Verdict
    keeps: tuple[Keep, ...] | None = None
    lifetime: int | None = None
    comment: str = ""
    accept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A challenge to sign: ``data`` are the exact bytes; ``manifest`` and ``lifetime`` what they cover."""

    nonce: str
    digest: str
    data: bytes
    manifest: Manifest
    lifetime: int
    method: Method


def prepare_vote(broker: Broker, human: HumanId, request_id: RequestId, ballot: Ballot) -> Prepared:
    """Narrow, digest and remember a fresh nonce; raises if this person's vote could not count."""
    with broker.store.write() as unit:
        request, task = _open_question(broker, unit, request_id)
        method = _method(broker, unit, human, request, task)
        manifest, lifetime, digest = _left(broker, unit, request, task, ballot)
        nonce = b64encode(broker.entropy.bytes(24)).decode()
        now = broker.now(unit)
        unit.challenges.add(
            nonce, verb=ballot.verdict.value, subject=digest, human=human, expires_at=after(now, CHALLENGE_SECONDS)
        )
        data = challenge(verb=ballot.verdict.value, digest_=digest, approver=human, nonce=nonce, comment=ballot.comment)
        return Prepared(nonce, digest, data, manifest, lifetime, method)


def vote(
    broker: Broker, human: HumanId, request_id: RequestId, ballot: Ballot, *, nonce: str, signature: str
) -> tuple[AccessRequest, Tally]:
    """Record a signed vote; the request advances when the votes suffice or one person says no."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        request, task = _open_question(broker, unit, request_id)
        method = _method(broker, unit, human, request, task)
        manifest, lifetime, digest = _left(broker, unit, request, task, ballot)
        unit.challenges.take(nonce, verb=ballot.verdict.value, subject=digest, human=human, now=now)
        data = challenge(verb=ballot.verdict.value, digest_=digest, approver=human, nonce=nonce, comment=ballot.comment)
        key = broker.human(human).reviewer_key
        if not key or not broker.verify_signature(key, data, signature):
            raise Denied(
                "the signature is not by this person's key", hint="check the reviewer secret", code="bad_signature"
            )
        approval = Approval(
            id=ApprovalId(broker.new_id("apr")),
            request=request.id,
            approver=human,
            method=method,
            verdict=ballot.verdict,
            manifest=manifest,
            lifetime=lifetime,
            digest=digest,
            nonce=nonce,
            signature=signature,
            key=key,
            created_at=now,
            expires_at=after(now, APPROVED_SECONDS),
            comment=ballot.comment,
        )
        unit.approvals.add(approval)
        unit.audit.append(_recorded(approval, request), now)
        return _advance(broker, unit, request, task, ballot)


def _open_question(broker: Broker, unit: Unit, request_id: RequestId) -> tuple[AccessRequest, Task]:
    request = unit.requests.get(request_id)
    if request.state is RequestState.PENDING and broker.now(unit) >= request.lapses_at:
        raise Expired("nobody decided this request in time", hint="the agent can ask again", code="request_lapsed")
    if request.state is not RequestState.PENDING:
        raise Conflict(f"this request is {request.state} and cannot be decided any more", code="already_decided")
    return request, unit.tasks.get(request.task)


def _method(broker: Broker, unit: Unit, human: HumanId, request: AccessRequest, task: Task) -> Method:
    """How this person's yes would be named; raises ``Denied`` where it would not count at all."""
    if human == task.principal.sponsor:
        method = Method.SELF_CONFIRMATION
        if not request.environment.disposable:
            raise Denied(
                "the sponsor of a task cannot approve it",
                hint=f"another person decides about {request.environment}",
                code="self_approval",
            )
    else:
        method = Method.REVIEWER_SECRET
        groups = broker.config.people.groups
        if not any(human in groups.get(g, frozenset()) for g in request.decision.obligations.approvers):
            raise Denied("this person is in none of the groups that may decide this", code="not_an_approver")
    if not counts_for(method, request.environment, demo=unit.installation.demo):
        raise Denied(
            f"a {method} does not count for {request.environment}",
            hint="production needs a passkey, which this version does not have yet",
            code="method_too_weak",
        )
    return method


def _left(broker: Broker, unit: Unit, request: AccessRequest, task: Task, ballot: Ballot) -> tuple[Manifest, int, str]:
    accept(ballot.comment, what="the comment", limit=REASON_BYTES, empty=True)
    lifetime = request.lifetime if ballot.lifetime is None else ballot.lifetime
    if not 1 <= lifetime <= request.lifetime:
        raise InvalidInput(f"a lifetime can only be shortened: 1 to {request.lifetime} seconds", code="bad_ttl")
    if not rights.held_back(request.manifest) >= set(ballot.accept):
        raise InvalidInput(
            "nothing of the request is held back for that name", hint="exactly as shown", code="nothing_held"
        )
    asked = rights.accept(request.manifest, ballot.accept)
    manifest = narrow(asked, keep_all(asked) if ballot.keeps is None else ballot.keeps)
    if ballot.verdict is Verdict.APPROVE and manifest.empty:
        raise InvalidInput("nothing would be left of the request", hint="deny it instead", code="nothing_left")
    digest = digest_of(
        unit,
        task,
        request.scope.resource,
        request.environment,
        manifest,
        lifetime,
        request.decision.obligations.delivery,
        request.decision.snapshot,
    )
    return manifest, lifetime, digest


def _recorded(approval: Approval, request: AccessRequest) -> Event:
    """Carries everything that ``audit verify`` needs to check the signature again, offline."""
    return Event(
        "approval.recorded",
        f"human:{approval.approver}",
        {"task": request.task, "request": request.id, "approval": approval.id},
        {
            "verb": approval.verdict.value,
            "method": approval.method.value,
            "digest": approval.digest,
            "approver": approval.approver,
            "nonce": approval.nonce,
            "signature": approval.signature,
            "public_key": approval.key,
            "comment": approval.comment,
            "lifetime": approval.lifetime,
            "manifest": approval.manifest.to_json(),
            "accepted": list(approval.manifest.accepted),
            "unseparated": request.separation is Separation.NONE,
        },
    )


def accepted_by_anybody(unit: Unit, request: AccessRequest) -> Manifest:
    """``request``'s manifest with every name that some approver accepted: at least as much as will be granted."""
    votes = unit.approvals.of_request(request.id)
    names = {name for vote in votes if vote.verdict is Verdict.APPROVE for name in vote.manifest.accepted}
    return rights.accept(request.manifest, names)


def count_votes(broker: Broker, unit: Unit, request: AccessRequest, task: Task, duties: Obligations) -> Tally:
    """The votes on ``request`` whose signatures verify now, counted by ``duties``."""
    now = broker.now(unit)
    valid = [
        vote for vote in unit.approvals.of_request(request.id) if signature_holds(broker, unit, vote, request, task)
    ]
    return tally(
        valid,
        asked=request.manifest,
        lifetime=request.lifetime,
        duties=duties,
        groups=broker.config.people.groups,
        barred=frozenset({task.principal.sponsor}),
        environment=request.environment,
        demo=unit.installation.demo,
        now=now,
    )


def signature_holds(broker: Broker, unit: Unit, vote: Approval, request: AccessRequest, task: Task) -> bool:
    """Whether the stored vote is a signature by a *present* key of that person over these rights under these rules."""
    human = broker.config.people.humans.get(vote.approver)
    if human is None or not human.reviewer_key or human.reviewer_key != vote.key:
        return False
    expected = digest_of(
        unit,
        task,
        request.scope.resource,
        request.environment,
        vote.manifest,
        vote.lifetime,
        request.decision.obligations.delivery,
        broker.policy.snapshot,
    )
    data = challenge(
        verb=vote.verdict.value, digest_=expected, approver=vote.approver, nonce=vote.nonce, comment=vote.comment
    )
    return vote.digest == expected and broker.verify_signature(vote.key, data, vote.signature)


def _advance(
    broker: Broker, unit: Unit, request: AccessRequest, task: Task, ballot: Ballot
) -> tuple[AccessRequest, Tally]:
    now = broker.now(unit)
    counted = count_votes(broker, unit, request, task, request.decision.obligations)
    if ballot.verdict is Verdict.DENY:
        request = unit.requests.advance(request.id, RequestEvent.DENY, now, comment=ballot.comment)
    elif counted.sufficient:
        request = unit.requests.advance(
            request.id, RequestEvent.APPROVE, now, comment=ballot.comment, lapses_at=after(now, APPROVED_SECONDS)
        )
    if request.state is not RequestState.PENDING:
        unit.audit.append(
            Event(
                f"request.{request.state}",
                "broker",
                {"task": request.task, "request": request.id},
                {"approvals": [vote.id for vote in counted.counted]},
            ),
            now,
        )
    return request, counted
