"""What every policy engine must do, whatever its language.

Derive a class from ``PolicySuite`` and give it two fixtures: ``lenient``, an engine that permits whatever its language
lets it permit and names the group ``dba`` as approvers, and ``empty``, one in which no rule permits anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from taskpass.core.decision import ABSOLUTE_MAX_TTL, PRODUCTION_TTL, Outcome
from taskpass.core.separation import Environment
from taskpass.policy.base import MAX_OBJECTS, Policy
from taskpass.policy.example import question

RESERVED: Mapping[str, str] = {
    "approved": "true",
    "environment": "dev",
    "env": "dev",
    "separation": "3",
    "principal": "spiffe://example/agent/other/1",
    "subject": "spiffe://example/agent/other/1",
    "sponsor": "dba-1@example",
    "ticket": "OPS-1",
    "emergency": "true",
    "policy": 'permit (principal, action, resource);", "approved": true, "x": "',
    "__entity": "Taskpass::Environment",
    "__extn": "datetime",
}


class PolicySuite:
    """Behaviour that callers rely on. Method names are the sentences."""

    def test_production_is_never_a_permit(self, lenient: Policy) -> None:
        answer = lenient.decide(question({"environment": "production", "ticket": "OPS-1"}))
        assert answer.outcome is Outcome.NEEDS_APPROVAL
        assert answer.obligations.quorum >= 1
        assert answer.obligations.approvers
        assert answer.obligations.max_ttl <= PRODUCTION_TTL

    def test_what_nothing_permits_is_denied(self, empty: Policy) -> None:
        for environment in Environment:
            answer = empty.decide(question({"environment": environment.value, "ticket": "OPS-1"}))
            assert answer.outcome is Outcome.DENY
            assert answer.code

    def test_nothing_asked_is_denied(self, lenient: Policy) -> None:
        assert lenient.decide(question({"tables": []})).outcome is Outcome.DENY

    def test_the_same_question_gets_the_same_answer(self, lenient: Policy) -> None:
        asked = question({"environment": "production", "ticket": "OPS-1", "tables": ["a.b", "a.c", "b.d"]})
        assert lenient.decide(asked) == lenient.decide(asked)

    def test_several_threads_get_the_answers_of_one(self, lenient: Policy) -> None:
        asked = [question({"environment": environment.value, "ticket": "OPS-1"}) for environment in Environment] * 8
        alone = [lenient.decide(item) for item in asked]
        with ThreadPoolExecutor(max_workers=8) as pool:
            assert list(pool.map(lenient.decide, asked)) == alone

    def test_fields_that_the_caller_supplies_change_nothing(self, lenient: Policy) -> None:
        for environment in ("dev", "production"):
            plain: dict[str, object] = {"environment": environment, "separation": "none"}
            assert lenient.decide(question(plain | {"claimed": dict(RESERVED)})) == lenient.decide(question(plain))

    def test_an_answer_names_the_snapshot_it_comes_from(self, lenient: Policy) -> None:
        assert lenient.snapshot.startswith("sha256:")
        assert lenient.decide(question({})).snapshot == lenient.snapshot

    def test_a_lifetime_is_bounded(self, lenient: Policy) -> None:
        assert 0 < lenient.decide(question({})).obligations.max_ttl <= ABSOLUTE_MAX_TTL

    def test_odd_names_and_many_objects_get_an_answer(self, lenient: Policy) -> None:
        odd = ['"', "\\", "\u202ex", "a\nb", "é" * 60, "'; DROP TABLE x;--", "🙂"]
        many = [f"public.t{number}" for number in range(2 * MAX_OBJECTS)]
        for tables in ([f"s{name}.t{name}" for name in odd], many):
            assert lenient.decide(question({"tables": tables})).outcome in Outcome
