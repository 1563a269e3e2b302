"""The answer of policy: three values, and the duties that come with them.

``deny < needs_approval < permit``. A policy engine answers with two values; the third comes from asking twice
(design: interfaces.md, *Policy outcome*). ``combine`` holds that rule, ``floor`` the minimum that no policy can undo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from functools import reduce

from taskpass.core.separation import Environment

ABSOLUTE_MAX_TTL = 8 * 3600
"""Seconds. No lease lives longer, whatever a policy says (threats.md, section 5, line 3)."""

DEFAULT_TTL = 15 * 60
PRODUCTION_TTL = 10 * 60


class Outcome(IntEnum):
    DENY = 0
    NEEDS_APPROVAL = 1
    PERMIT = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class Delivery(StrEnum):
    """How the access reaches the tool: a socket without a secret in it, or a password that works for whoever has it."""

    ENDPOINT = "endpoint"
    BEARER = "bearer"


@dataclass(frozen=True, slots=True)
class Obligations:
    """Duties of a permit. Combined, the most restrictive wins for each.

    ``max_ttl`` in seconds; ``quorum`` the number of distinct humans; ``approvers`` groups of which *each* must be
    represented among the votes. ``delivery`` is the most that may be handed out; in the decision of a request it is
    what was asked for within that (see ``as_asked``).
    """

    max_ttl: int = ABSOLUTE_MAX_TTL
    quorum: int = 0
    approvers: frozenset[str] = frozenset()
    read_only: bool = False
    delivery: Delivery = Delivery.ENDPOINT

    def stricter(self, other: Obligations) -> Obligations:
        return Obligations(
            max_ttl=min(self.max_ttl, other.max_ttl),
            quorum=max(self.quorum, other.quorum),
            approvers=self.approvers | other.approvers,
            read_only=self.read_only or other.read_only,
            delivery=Delivery.ENDPOINT if Delivery.ENDPOINT in (self.delivery, other.delivery) else Delivery.BEARER,
        )

    def to_json(self) -> dict[str, object]:
        return {
            "max_ttl": self.max_ttl,
            "quorum": self.quorum,
            "approvers": sorted(self.approvers),
            "read_only": self.read_only,
            "delivery": self.delivery.value,
        }

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Obligations:
        groups = data["approvers"]
        assert isinstance(groups, list)
        return cls(
            max_ttl=int(str(data["max_ttl"])),
            quorum=int(str(data["quorum"])),
            approvers=frozenset(str(group) for group in groups),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            read_only=bool(data["read_only"]),
            delivery=Delivery(str(data["delivery"])),
        )


def strictest(obligations: Iterable[Obligations]) -> Obligations:
    """All of them together; without any, the absolute maximum, no approver and no secret."""
    found = list(obligations)
    return reduce(Obligations.stricter, found) if found else Obligations()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One run of the policy engine.

    ``allowed`` is True only for the engine's exact *Allow*; ``policies`` are the ids of the determining policies;
    ``errors`` are safe texts and make the outcome a deny whatever else was said.
    """

    allowed: bool
    policies: tuple[str, ...] = ()
    obligations: Obligations = field(default_factory=Obligations)
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, from which policy snapshot, and by which rules. Part of every request and audit record.

    ``code`` is stable and the only reason an agent is told; ``policies``, ``errors`` and ``parts`` are for operators.
    ``parts`` names the objects that made the whole as strict as it is, if not all of them did.
    """

    outcome: Outcome
    code: str
    obligations: Obligations
    policies: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    engine: str = ""
    snapshot: str = ""
    parts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "outcome": self.outcome.word,
            "code": self.code,
            "obligations": self.obligations.to_json(),
            "policies": list(self.policies),
            "errors": list(self.errors),
            "engine": self.engine,
            "snapshot": self.snapshot,
            "parts": list(self.parts),
        }


def combine(unapproved: Evaluation, approved: Evaluation, *, engine: str = "", snapshot: str = "") -> Decision:
    """The outcome of the same policies asked with ``context.approved`` false and then true.

    Any error: deny. Second not Allow: deny. First Allow: permit. Otherwise: needs approval. The obligations of all
    determining policies of *both* evaluations apply together, because the guard that demands approval determines only
    the first and the permits only the second (feasibility.md, C10). An approval that nobody could give is a deny.
    """
    errors = unapproved.errors + approved.errors
    policies = tuple(dict.fromkeys(unapproved.policies + approved.policies))
    # An evaluation that no policy determined says nothing: it must neither add a duty nor take a permission away.
    said = [each.obligations for each in (unapproved, approved) if each.policies or each.obligations != Obligations()]
    duties = strictest(said)

    def decide(outcome: Outcome, code: str) -> Decision:
        return Decision(outcome, code, duties, policies, errors, engine, snapshot)

    if errors:
        return decide(Outcome.DENY, "policy_error")
    if not approved.allowed:
        return decide(Outcome.DENY, "policy_denied")
    if unapproved.allowed:
        return decide(Outcome.PERMIT, "permitted")
    return decide(Outcome.NEEDS_APPROVAL, "needs_approval")


def floor(decision: Decision, environment: Environment, *, writes: bool, hands_on: bool = False) -> Decision:
    """What holds in code whatever the policies say: production always asks, writes in staging ask, nobody writes
    under a duty to read only, and nobody works hands-on as an owner in production, approved or not.

    Also: a permit that comes with approvers or a quorum asks them, because a permit cannot carry that duty; lifetimes
    never exceed the absolute maximum; production hands no secret out; and an approval needs at least one approver of a
    named group.
    """
    outcome, code, duties = decision.outcome, decision.code, decision.obligations
    if hands_on and environment is Environment.PRODUCTION and outcome is not Outcome.DENY:
        outcome, code = Outcome.DENY, "hands_on_refused"
    if writes and duties.read_only and outcome is not Outcome.DENY:
        outcome, code = Outcome.DENY, "read_only"
    asks = environment is Environment.PRODUCTION or (environment is Environment.STAGING and writes)
    asks = asks or duties.quorum > 0 or bool(duties.approvers)
    if outcome is Outcome.PERMIT and asks:
        outcome, code = Outcome.NEEDS_APPROVAL, "needs_approval"
    production = environment is Environment.PRODUCTION
    duties = replace(
        duties,
        max_ttl=min(duties.max_ttl, PRODUCTION_TTL if production else ABSOLUTE_MAX_TTL),
        delivery=Delivery.ENDPOINT if production else duties.delivery,
    )
    if outcome is Outcome.NEEDS_APPROVAL:
        duties = replace(duties, quorum=max(duties.quorum, 1))
        if not duties.approvers:
            outcome, code = Outcome.DENY, "no_approvers"
    return replace(decision, outcome=outcome, code=code, obligations=duties)


def as_asked(decision: Decision, delivery: Delivery) -> Decision:
    """``decision`` for the delivery that was asked for: an endpoint for whoever asks for one, also where policy would
    hand out more; a deny (``endpoint_only``) for whoever asks for a secret that policy does not permit.
    """
    if delivery is Delivery.ENDPOINT:
        return replace(decision, obligations=replace(decision.obligations, delivery=Delivery.ENDPOINT))
    if decision.outcome is Outcome.DENY or decision.obligations.delivery is delivery:
        return decision
    return replace(decision, outcome=Outcome.DENY, code="endpoint_only")
