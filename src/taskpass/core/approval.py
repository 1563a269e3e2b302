"""A person's verdict on a request: signed over exactly the rights that are then granted, single use, short-lived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from taskpass.core import digest
from taskpass.core.clock import Instant
from taskpass.core.decision import Obligations
from taskpass.core.ids import ApprovalId, HumanId, RequestId
from taskpass.core.manifest import Manifest, accept, held_back, meet
from taskpass.core.separation import Environment

CHALLENGE_SECONDS = 60
"""A challenge must be signed within this; it is single use (threats.md, item 9)."""

ACCEPT_WIDENING = "accept_widening"
"""The verb of a challenge for what a migration left: its signature is no verdict, and a verdict's is none of these."""


class Verdict(StrEnum):
    APPROVE = "approve"
    DENY = "deny"


class Method(StrEnum):
    """How the person proved to be that person. The tier of a method bounds where its yes counts."""

    REVIEWER_SECRET = "reviewer-secret"  # noqa: S105
    """A signature with a key derived from the secret made at ``init``: the dev tier."""
    SELF_CONFIRMATION = "self-confirmation"
    """The sponsor's own yes. Not an approval by somebody else, and never called one."""


def counts_for(method: Method, environment: Environment, *, demo: bool) -> bool:
    """Where a yes by ``method`` counts.

    Self-confirmation serves dev and preview only; the reviewer secret serves production only inside the demo.
    """
    if method is Method.SELF_CONFIRMATION:
        return environment.disposable
    return environment is not Environment.PRODUCTION or demo


@dataclass(frozen=True, slots=True)
class Approval:
    """One vote. ``manifest`` and ``lifetime`` are what this approver leaves; ``digest`` covers both.

    ``signature`` is over ``challenge(...)`` with ``nonce``; it is verified again in the issuing transaction and by
    ``audit verify``. ``consumed`` is only bookkeeping: the store's unique constraint makes the use single.
    """

    id: ApprovalId
    request: RequestId
    approver: HumanId
    method: Method
    verdict: Verdict
    manifest: Manifest
    lifetime: int
    digest: str
    nonce: str
    signature: str
    key: str
    created_at: Instant
    expires_at: Instant
    comment: str = ""


def challenge(*, verb: str, digest_: str, approver: HumanId, nonce: str, comment: str = "") -> bytes:
    """The bytes that a person's key signs: label, verb, digest, approver and the server's nonce."""
    return digest.canonical(
        {
            "label": digest.CHALLENGE,
            "verb": verb,
            "digest": digest_,
            "approver": approver,
            "nonce": nonce,
            "comment": comment,
        }
    )


@dataclass(frozen=True, slots=True)
class Tally:
    """Whether the votes suffice, and what they leave: within every counted vote, for no longer than the shortest."""

    sufficient: bool
    missing: str
    manifest: Manifest
    lifetime: int
    counted: tuple[Approval, ...]


def tally(
    votes: Iterable[Approval],
    *,
    asked: Manifest,
    lifetime: int,
    duties: Obligations,
    groups: Mapping[str, frozenset[HumanId]],
    barred: frozenset[HumanId],
    environment: Environment,
    demo: bool,
    now: Instant,
) -> Tally:
    """Count ``votes`` whose signatures the caller has verified.

    One human counts once. ``barred`` (sponsor and requester) count only as self-confirmation, where that serves. A vote
    that has expired, by somebody in none of the groups, or by a method that does not count here is left out.
    """
    counted: dict[HumanId, Approval] = {}
    for vote in votes:
        mine = vote.method is Method.SELF_CONFIRMATION
        if (
            vote.verdict is Verdict.APPROVE
            and now < vote.expires_at
            and counts_for(vote.method, environment, demo=demo)
            and (vote.approver in barred) == mine
            and (mine or _in_any(vote.approver, duties.approvers, groups))
        ):
            counted.setdefault(vote.approver, vote)
    # What is held back is granted only if every counted vote accepted it: the most that could be is where it starts.
    left = accept(asked, held_back(asked)) if counted else asked
    shortest = lifetime
    for vote in counted.values():
        left, shortest = meet(left, vote.manifest), min(shortest, vote.lifetime)
    missing = _missing(counted, duties, groups)
    if not missing and left.empty:
        missing = "the approvers left nothing that all of them agreed on"
    return Tally(not missing, missing, left, shortest, tuple(counted.values()))


def _in_any(human: HumanId, wanted: frozenset[str], groups: Mapping[str, frozenset[HumanId]]) -> bool:
    return any(human in groups.get(group, frozenset()) for group in wanted)


def _missing(counted: Mapping[HumanId, Approval], duties: Obligations, groups: Mapping[str, frozenset[HumanId]]) -> str:
    if len(counted) < max(1, duties.quorum):
        return f"{max(1, duties.quorum) - len(counted)} more approval(s)"
    alone = all(vote.method is Method.SELF_CONFIRMATION for vote in counted.values())
    for group in sorted(duties.approvers):
        if not alone and not groups.get(group, frozenset()) & counted.keys():
            return f"an approval by a member of {group}"
    return ""
