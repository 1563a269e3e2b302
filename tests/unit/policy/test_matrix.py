"""The two-evaluation rule over whole policies: permit, lenient permit, guard, hard forbid, erroring policy."""

from __future__ import annotations

import pytest

from taskpass.core.decision import Outcome
from taskpass.policy.example import question

PERMIT = """
@id("permit") @max_ttl("1800")
permit (principal, action, resource) when { resource.env == Taskpass::Environment::"dev" };
"""
PERMIT_APPROVED = """
@id("permit-approved") @max_ttl("900") @approvers("sre")
permit (principal, action, resource) when { context.approved };
"""
LENIENT = '@id("lenient") permit (principal, action, resource);'
GUARD = '@id("guard") @approvers("dba") @quorum("2") forbid (principal, action, resource) unless { context.approved };'
HARD = '@id("hard") @reason_code("closed_for_now") forbid (principal, action, resource);'
# Cedar's strict validation cannot know that an addition overflows, so this one loads and fails when it is asked.
FAILING_PERMIT = """
@id("failing-permit")
permit (principal, action, resource) when { context.ttl_s + 9223372036854775807 > 0 };
"""
FAILING_FORBID = """
@id("failing-forbid")
forbid (principal, action, resource) when { context.ttl_s + 9223372036854775807 > 0 };
"""
FAILS_UNAPPROVED = """
@id("fails-unapproved")
forbid (principal, action, resource) unless { context.approved || context.ttl_s + 9223372036854775807 > 0 };
"""
FAILS_APPROVED = """
@id("fails-approved")
forbid (principal, action, resource)
when { context.approved && context.ttl_s + 9223372036854775807 > 0 };
"""

MATRIX = [
    ([], "dev", "deny", "policy_denied"),
    ([PERMIT], "dev", "permit", "permitted"),
    ([PERMIT], "staging", "deny", "policy_denied"),
    ([LENIENT], "staging", "permit", "permitted"),
    ([PERMIT, LENIENT], "dev", "permit", "permitted"),
    ([GUARD], "dev", "deny", "policy_denied"),
    ([PERMIT, GUARD], "dev", "needs_approval", "needs_approval"),
    ([LENIENT, GUARD], "staging", "needs_approval", "needs_approval"),
    ([PERMIT, LENIENT, GUARD], "dev", "needs_approval", "needs_approval"),
    ([PERMIT_APPROVED], "dev", "needs_approval", "needs_approval"),
    # The duty of the stricter permit stays: a lenient one beside it must not take the question away.
    ([PERMIT_APPROVED, LENIENT], "dev", "needs_approval", "needs_approval"),
    ([HARD], "dev", "deny", "closed_for_now"),
    ([PERMIT, HARD], "dev", "deny", "closed_for_now"),
    ([LENIENT, GUARD, HARD], "dev", "deny", "closed_for_now"),
    ([FAILING_PERMIT], "dev", "deny", "policy_error"),
    ([LENIENT, FAILING_PERMIT], "dev", "deny", "policy_error"),
    ([LENIENT, FAILING_FORBID], "dev", "deny", "policy_error"),
    ([LENIENT, GUARD, FAILING_FORBID], "dev", "deny", "policy_error"),
    ([LENIENT, FAILS_UNAPPROVED], "dev", "deny", "policy_error"),
    ([LENIENT, FAILS_APPROVED], "dev", "deny", "policy_error"),
    ([HARD, FAILING_PERMIT], "dev", "deny", "policy_error"),
    ([LENIENT], "production", "deny", "no_approvers"),
    ([LENIENT, GUARD], "production", "needs_approval", "needs_approval"),
]


def names(case):
    return "+".join(text.split('"')[1] for text in case) or "nothing"


@pytest.mark.parametrize(
    ("texts", "environment", "outcome", "code"), MATRIX, ids=[f"{names(row[0])}-{row[1]}" for row in MATRIX]
)
def test_two_evaluations_come_to(directory, texts, environment, outcome, code):
    directory.write("never.cedar", '@id("never") permit (principal, action, resource) when { context.ttl_s < 0 };')
    directory.write("case.cedar", "\n".join(texts))

    answer = directory.engine().decide(question({"environment": environment}))

    assert (answer.outcome.word, answer.code) == (outcome, code)


@pytest.mark.parametrize("approved", [False, True])
@pytest.mark.parametrize(
    ("texts", "allowed"),
    [
        ([PERMIT], (True, True)),
        ([LENIENT], (True, True)),
        ([LENIENT, GUARD], (False, True)),
        ([LENIENT, HARD], (False, False)),
        ([LENIENT, FAILS_APPROVED], (True, True)),
    ],
    ids=["permit", "lenient", "guard", "hard", "erroring"],
)
def test_each_evaluation_is_made_on_its_own(directory, texts, allowed, approved):
    directory.write("case.cedar", "\n".join(texts))
    _, [part] = directory.engine().judge(question({}))
    assert (part.approved if approved else part.unapproved).allowed is allowed[approved]


def test_a_failing_policy_is_named_to_operators(directory):
    directory.write("case.cedar", LENIENT + FAILS_APPROVED)
    answer = directory.engine().decide(question({}))
    assert len(answer.errors) == 1
    assert "overflow" in answer.errors[0]
    assert "\n" not in answer.errors[0]


def test_the_duties_of_both_evaluations_apply_together(directory):
    directory.write("case.cedar", PERMIT + GUARD + '@id("extra") @read_only permit (principal, action, resource);')

    answer = directory.engine().decide(question({}))

    assert answer.policies == ("guard", "extra", "permit")
    assert answer.obligations.to_json() == {
        "max_ttl": 1800,
        "quorum": 2,
        "approvers": ["dba"],
        "read_only": True,
        "delivery": "endpoint",
    }


@pytest.mark.parametrize("separation", ["none", "sandbox", "uid", "host"])
@pytest.mark.parametrize("ticket", ["", "OPS-1"])
def test_a_lenient_permit_beside_the_shipped_set_turns_no_production_request_into_a_permit(shipped, separation, ticket):
    asked = question({"environment": "production", "separation": separation, "ticket": ticket})
    before = shipped.engine().decide(asked)
    shipped.write("zz-lenient.cedar", LENIENT)
    after = shipped.engine().decide(asked)
    assert after.outcome is before.outcome
    assert after.outcome is not Outcome.PERMIT
    assert after.code == before.code


def test_the_guards_hold_without_the_floor(shipped):
    """The floor in code and the shipped guard are two separate defences; this one looks at the guard alone."""
    shipped.write("zz-lenient.cedar", LENIENT)
    _, [part] = shipped.engine().judge(question({"environment": "production", "ticket": "OPS-1"}))
    assert not part.unapproved.allowed
    assert part.approved.allowed


def test_the_floor_holds_without_the_guards(shipped):
    shipped.clear()
    shipped.write("lenient.cedar", '@id("lenient") @approvers("dba") permit (principal, action, resource);')
    assert shipped.engine().decide(question({"environment": "production"})).outcome is Outcome.NEEDS_APPROVAL
