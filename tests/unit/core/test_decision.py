"""Combining and the floor by example; the laws are in tests/properties/test_decision.py."""

from __future__ import annotations

import pytest

from taskpass.core.decision import (
    ABSOLUTE_MAX_TTL,
    PRODUCTION_TTL,
    Decision,
    Delivery,
    Evaluation,
    Obligations,
    Outcome,
    combine,
    floor,
    strictest,
)
from taskpass.core.separation import Environment

DBA = frozenset({"dba"})


def evaluation(allowed, *policies, errors=(), **duties):
    return Evaluation(allowed, policies, Obligations(**duties), errors)


@pytest.mark.parametrize(
    ("first", "second", "outcome", "code"),
    [
        (False, False, Outcome.DENY, "policy_denied"),
        (True, False, Outcome.DENY, "policy_denied"),
        (False, True, Outcome.NEEDS_APPROVAL, "needs_approval"),
        (True, True, Outcome.PERMIT, "permitted"),
    ],
)
@pytest.mark.parametrize("errors", [((), ()), (("e",), ()), ((), ("e",)), (("e",), ("e",))])
def test_two_evaluations_come_to_one_of_three_outcomes(first, second, outcome, code, errors):
    decision = combine(evaluation(first, errors=errors[0]), evaluation(second, errors=errors[1]))
    expected = (Outcome.DENY, "policy_error") if any(errors) else (outcome, code)
    assert (decision.outcome, decision.code) == expected


def test_the_duties_of_guard_and_permit_meet():
    """The guard determines only the first evaluation, the permit only the second."""
    guard = evaluation(False, "guard", approvers=DBA, quorum=2)
    permit = evaluation(True, "permit", max_ttl=60, read_only=True)
    decision = combine(guard, permit, engine="e", snapshot="s")
    assert decision.obligations == Obligations(60, 2, DBA, True, Delivery.ENDPOINT)
    assert (decision.policies, decision.engine, decision.snapshot) == (("guard", "permit"), "e", "s")


def test_without_policies_there_is_no_duty_beyond_the_maximum():
    assert strictest([]) == Obligations(max_ttl=ABSOLUTE_MAX_TTL)


def test_the_groups_of_all_policies_are_wanted():
    both = Obligations(approvers=DBA).stricter(Obligations(approvers=frozenset({"sre"})))
    assert both.approvers == {"dba", "sre"}


def test_an_endpoint_is_stricter_than_a_bearer_secret():
    bearer = Obligations(delivery=Delivery.BEARER)
    assert bearer.stricter(bearer).delivery is Delivery.BEARER
    assert bearer.stricter(Obligations()).delivery is Delivery.ENDPOINT


def permit(**duties):
    return Decision(Outcome.PERMIT, "permitted", Obligations(**duties), ("p",))


@pytest.mark.parametrize(
    ("environment", "writes", "asks"),
    [
        (Environment.PREVIEW, True, False),
        (Environment.DEV, True, False),
        (Environment.STAGING, False, False),
        (Environment.STAGING, True, True),
        (Environment.PRODUCTION, False, True),
        (Environment.PRODUCTION, True, True),
    ],
)
def test_the_floor_asks_in_production_and_for_writes_in_staging(environment, writes, asks):
    """A lenient permit that names no approver cannot be answered by anybody there, so it is a deny."""
    decision = floor(permit(), environment, writes=writes)
    assert (decision.outcome, decision.code) == (
        (Outcome.DENY, "no_approvers") if asks else (Outcome.PERMIT, "permitted")
    )


@pytest.mark.parametrize("environment", Environment)
@pytest.mark.parametrize("duties", [{"approvers": DBA}, {"approvers": DBA, "quorum": 2}])
def test_a_permit_with_approvers_asks_them_everywhere(environment, duties):
    decision = floor(permit(**duties), environment, writes=False)
    assert decision.outcome is Outcome.NEEDS_APPROVAL
    assert decision.obligations.quorum == max(1, duties.get("quorum", 0))


def test_a_quorum_without_approvers_cannot_be_met():
    assert floor(permit(quorum=1), Environment.DEV, writes=False).code == "no_approvers"


def test_production_lives_ten_minutes_at_most():
    asked = permit(approvers=DBA, max_ttl=ABSOLUTE_MAX_TTL)
    assert floor(asked, Environment.PRODUCTION, writes=False).obligations.max_ttl == PRODUCTION_TTL
    shorter = permit(approvers=DBA, max_ttl=30)
    assert floor(shorter, Environment.PRODUCTION, writes=False).obligations.max_ttl == 30


def test_no_lease_lives_longer_than_the_absolute_maximum():
    asked = permit(max_ttl=10**9)
    assert floor(asked, Environment.DEV, writes=False).obligations.max_ttl == ABSOLUTE_MAX_TTL


def test_the_floor_keeps_who_decided():
    decision = Decision(Outcome.DENY, "policy_denied", Obligations(), ("p",), ("e",), "engine", "snapshot", ("part",))
    assert floor(decision, Environment.DEV, writes=False) == decision


def test_outcomes_are_ordered():
    assert Outcome.DENY < Outcome.NEEDS_APPROVAL < Outcome.PERMIT
    assert [outcome.word for outcome in Outcome] == ["deny", "needs_approval", "permit"]
