"""Laws of combining evaluations and of the floor, over every value they can take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.example import question
from taskpass.policy.starter import write_shipped

obligations = st.builds(
    Obligations,
    max_ttl=st.integers(1, ABSOLUTE_MAX_TTL),
    quorum=st.integers(0, 9),
    approvers=st.frozensets(st.sampled_from(["dba", "sre", "owners"])),
    read_only=st.booleans(),
    delivery=st.sampled_from(Delivery),
)
evaluations = st.builds(
    Evaluation,
    allowed=st.booleans(),
    policies=st.lists(st.sampled_from("abcd"), max_size=3).map(tuple),
    obligations=obligations,
    errors=st.lists(st.just("it failed"), max_size=1).map(tuple),
)
decisions = st.builds(combine, evaluations, evaluations)
environments = st.sampled_from(Environment)


def no_looser(strict: Obligations, loose: Obligations) -> bool:
    return (
        strict.max_ttl <= loose.max_ttl
        and strict.quorum >= loose.quorum
        and strict.approvers >= loose.approvers
        and strict.read_only >= loose.read_only
        and (strict.delivery is Delivery.ENDPOINT or loose.delivery is Delivery.BEARER)
    )


@given(obligations, obligations, obligations)
def test_obligations_are_a_semilattice(a, b, c):
    assert a.stricter(a) == a
    assert a.stricter(b) == b.stricter(a)
    assert a.stricter(b.stricter(c)) == a.stricter(b).stricter(c)


@given(obligations, obligations)
def test_together_is_no_looser_than_either(a, b):
    assert no_looser(a.stricter(b), a)
    assert no_looser(a.stricter(b), b)


@given(st.lists(obligations, min_size=1, max_size=4), obligations)
def test_one_more_policy_never_loosens_a_duty(some, more):
    assert no_looser(strictest([*some, more]), strictest(some))


@given(obligations)
def test_obligations_survive_json(a):
    assert Obligations.from_json(a.to_json()) == a


@given(evaluations, evaluations)
def test_the_outcome_follows_the_table_of_the_design(first, second):
    decision = combine(first, second)
    if first.errors or second.errors:
        expected = (Outcome.DENY, "policy_error")
    elif not second.allowed:
        expected = (Outcome.DENY, "policy_denied")
    elif first.allowed:
        expected = (Outcome.PERMIT, "permitted")
    else:
        expected = (Outcome.NEEDS_APPROVAL, "needs_approval")
    assert (decision.outcome, decision.code) == expected


@given(evaluations, evaluations, evaluations)
def test_a_forbid_in_either_evaluation_never_raises_the_outcome(first, second, forbid):
    """What a forbid does to an evaluation: not allowed any more, and its duties on top."""

    def forbidden(evaluation):
        return replace(evaluation, allowed=False, obligations=evaluation.obligations.stricter(forbid.obligations))

    before = combine(first, second)
    for after in (combine(forbidden(first), second), combine(first, forbidden(second))):
        assert after.outcome <= before.outcome
        assert no_looser(after.obligations, before.obligations)


@given(evaluations, evaluations)
def test_an_error_in_either_evaluation_is_a_deny(first, second):
    failed = ("it failed",)
    assert combine(replace(first, errors=failed), second).outcome is Outcome.DENY
    assert combine(first, replace(second, errors=failed)).outcome is Outcome.DENY


@given(evaluations, evaluations)
def test_every_policy_that_had_a_say_is_named_once(first, second):
    assert sorted(combine(first, second).policies) == sorted({*first.policies, *second.policies})


@given(decisions, environments, st.booleans())
def test_the_floor_never_loosens(decision, environment, writes):
    floored = floor(decision, environment, writes=writes)
    assert floored.outcome <= decision.outcome
    assert no_looser(floored.obligations, decision.obligations)


@given(decisions, environments, st.booleans())
def test_the_floor_is_applied_once_and_for_all(decision, environment, writes):
    floored = floor(decision, environment, writes=writes)
    assert floor(floored, environment, writes=writes) == floored


@given(decisions, environments, st.booleans())
def test_after_the_floor_a_permit_asks_nobody_and_a_question_has_somebody_to_ask(decision, environment, writes):
    floored = floor(decision, environment, writes=writes)
    if floored.outcome is Outcome.PERMIT:
        assert (floored.obligations.quorum, floored.obligations.approvers) == (0, frozenset())
    if floored.outcome is Outcome.NEEDS_APPROVAL:
        assert floored.obligations.quorum >= 1
        assert floored.obligations.approvers
    assert floored.obligations.max_ttl <= ABSOLUTE_MAX_TTL


@given(decisions, st.booleans())
def test_production_is_never_a_permit(decision, writes):
    floored = floor(decision, Environment.PRODUCTION, writes=writes)
    assert floored.outcome is not Outcome.PERMIT
    assert floored.obligations.max_ttl <= PRODUCTION_TTL


@given(decisions)
def test_a_write_in_staging_is_never_a_permit(decision):
    assert floor(decision, Environment.STAGING, writes=True).outcome is not Outcome.PERMIT


@given(decisions, environments, st.booleans())
def test_the_floor_keeps_a_deny_with_its_code(decision, environment, writes):
    if decision.outcome is Outcome.DENY:
        floored = floor(decision, environment, writes=writes)
        assert (floored.outcome, floored.code) == (Outcome.DENY, decision.code)


@given(decisions)
def test_a_permit_on_a_disposable_target_stays_one_if_no_policy_asks(decision):
    plain = Obligations(max_ttl=decision.obligations.max_ttl)
    permit = replace(decision, outcome=Outcome.PERMIT, code="permitted", obligations=plain)
    assert floor(permit, Environment.DEV, writes=True) == permit


# The engine itself, over sets of small policies.

CONDITIONS = [
    "",
    'when { resource.env == Taskpass::Environment::"dev" }',
    'when { resource.env == Taskpass::Environment::"production" }',
    "unless { context.approved }",
    "when { context.approved }",
    "when { context.task has ticket }",
    "when { context.ttl_s > 600 }",
    'when { resource has schema && resource.schema == "hr" }',
    'unless { resource in Taskpass::Schema::"orders/public" }',
    'when { resource in Taskpass::Database::"orders" }',
    "when { context.ttl_s + 9223372036854775807 > 0 }",
]
ANNOTATIONS = ["", '@max_ttl("300")', '@approvers("dba")', '@approvers("sre") @quorum("2")', "@read_only"]
GROUPS = {"dba": frozenset({"dba-1@example"}), "sre": frozenset({"sre-1@example", "sre-2@example"})}

bodies = st.tuples(st.sampled_from(["permit", "forbid"]), st.sampled_from(CONDITIONS), st.sampled_from(ANNOTATIONS))
questions = st.fixed_dictionaries(
    {
        "environment": st.sampled_from([item.value for item in Environment]),
        "separation": st.sampled_from(["none", "sandbox", "host"]),
        "ticket": st.sampled_from(["", "OPS-1"]),
        "lifetime": st.sampled_from([60, 900]),
        "tables": st.lists(st.sampled_from(["public.a", "public.b", "hr.a"]), unique=True, max_size=3),
        "claimed": st.dictionaries(st.sampled_from(["approved", "reason", "env"]), st.text(max_size=5)),
    }
)


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    """Gives the engine over ``bodies``; the directory is written anew each time."""
    path = tmp_path_factory.mktemp("properties") / "policy"
    write_shipped(path)
    for file in path.glob("*.cedar"):
        file.unlink()
    place = path / "case.cedar"

    def make(bodies):
        lines = [
            f'@id("p{n}") {duty} {effect} (principal, action, resource) {when};' for n, (effect, when, duty) in bodies
        ]
        place.write_text("\n".join(['@id("base") permit (principal, action, resource) when { false };', *lines]))
        place.chmod(0o600)
        return CedarPolicy.load(path, groups=GROUPS)

    return make


@settings(max_examples=40, deadline=None)
@given(rules=st.lists(bodies, max_size=5), forbid=bodies, fields=questions)
def test_one_more_forbid_never_raises_an_answer(engine_of, rules, forbid, fields):
    """Permits that hold only while nothing is approved are left out: a guard hides them, and their duties with them."""
    numbered = [(n, rule) for n, rule in enumerate(rules) if rule[:2] != ("permit", "unless { context.approved }")]
    before = engine_of(numbered).decide(question(fields))
    after = engine_of([*numbered, (99, ("forbid", *forbid[1:]))]).decide(question(fields))
    assert after.outcome <= before.outcome
    if after.outcome is not Outcome.DENY:
        assert no_looser(after.obligations, before.obligations)


@settings(max_examples=40, deadline=None)
@given(rules=st.lists(bodies, max_size=5), permit=bodies, fields=questions)
def test_one_more_permit_never_removes_a_question_or_a_duty(engine_of, rules, permit, fields):
    """A permit may turn a deny into something; it never turns a question that a guard asks into a permit."""
    guard = ("forbid", "unless { context.approved }", '@approvers("dba")')
    numbered = [*enumerate(rules), (98, guard)]
    before = engine_of(numbered).decide(question(fields))
    after = engine_of([*numbered, (99, ("permit", *permit[1:]))]).decide(question(fields))
    assert after.outcome is not Outcome.PERMIT
    if Outcome.DENY not in (before.outcome, after.outcome):
        assert no_looser(after.obligations, before.obligations)


@settings(max_examples=40, deadline=None)
@given(rules=st.lists(bodies, max_size=5), fields=questions)
def test_a_whole_is_as_strict_as_its_parts_together(engine_of, rules, fields):
    engine = engine_of(list(enumerate(rules)))
    whole = engine.decide(question(fields))
    alone = [engine.decide(question(fields | {"tables": [name]})) for name in fields["tables"]]
    assert whole.outcome is min((answer.outcome for answer in alone), default=Outcome.DENY)
    for answer in alone:
        assert no_looser(whole.obligations, answer.obligations)


@settings(max_examples=40, deadline=None)
@given(rules=st.lists(bodies, max_size=5), fields=questions)
def test_deciding_by_schema_answers_like_deciding_by_table(engine_of, rules, fields):
    by_schema = engine_of(list(enumerate(rules)))
    assert not by_schema.bundle.tells_tables_apart
    as_if = {name: replace(rule, tables=True) for name, rule in by_schema.bundle.rules.items()}
    by_table = CedarPolicy(replace(by_schema.bundle, rules=as_if), GROUPS)
    first, second = by_schema.decide(question(fields)), by_table.decide(question(fields))
    assert (first.outcome, first.code, first.obligations) == (second.outcome, second.code, second.obligations)
    assert set(first.policies) == set(second.policies)


@settings(max_examples=30, deadline=None)
@given(rules=st.lists(bodies, max_size=5), fields=questions)
def test_decisions_are_deterministic(engine_of, rules, fields):
    numbered = list(enumerate(rules))
    first, second = engine_of(numbered), engine_of(numbered)
    assert first.snapshot == second.snapshot
    assert first.decide(question(fields)) == second.decide(question(fields)) == first.decide(question(fields))


def test_a_decision_says_everything_in_json():
    decision = Decision(
        Outcome.DENY, "policy_denied", Obligations(), ("a",), ("e",), "cedar", "sha256:0", ("public.a",)
    )
    assert set(decision.to_json()) == set(Decision.__dataclass_fields__)
