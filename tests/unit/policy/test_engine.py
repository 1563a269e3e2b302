"""The Cedar engine over whole requests: many objects, people, failures, determinism."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cedarpy
import pytest

from taskpass.core.decision import Outcome
from taskpass.core.manifest import Kind, Reach, Through
from taskpass.policy.base import MAX_OBJECTS
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.example import question

LENIENT = '@id("lenient") permit (principal, action, resource);\n'
NO_SECRETS = """
@id("no-secrets") @reason_code("table_is_closed")
forbid (principal, action, resource is Taskpass::Table) when { resource.table == "secrets" };
"""
ASK_PAYMENTS = """
@id("ask-payments") @approvers("dba") @max_ttl("300")
forbid (principal, action, resource is Taskpass::Table)
when { resource.table == "payments" }
unless { context.approved };
"""
NO_HR = '@id("no-hr") forbid (principal, action, resource in Taskpass::Schema::"orders/hr");\n'


def many(count, schema="public"):
    return [f"{schema}.t{number}" for number in range(count)]


def test_a_request_is_as_strict_as_its_strictest_part(directory):
    directory.write("case.cedar", LENIENT + ASK_PAYMENTS)
    answer = directory.engine().decide(question({"tables": ["public.orders", "public.payments", "public.items"]}))
    assert answer.outcome is Outcome.NEEDS_APPROVAL
    assert answer.parts == ("public.payments",)
    assert answer.obligations.max_ttl == 300


def test_one_denied_part_denies_the_whole(directory):
    directory.write("case.cedar", LENIENT + ASK_PAYMENTS + NO_SECRETS)
    answer = directory.engine().decide(question({"tables": ["public.payments", "public.secrets", "public.orders"]}))
    assert (answer.outcome, answer.code, answer.parts) == (Outcome.DENY, "table_is_closed", ("public.secrets",))


def test_parts_are_not_named_when_all_are_alike(directory):
    directory.write("case.cedar", LENIENT)
    assert directory.engine().decide(question({"tables": many(3)})).parts == ()


def test_only_so_many_parts_are_named(directory):
    directory.write("case.cedar", LENIENT + NO_HR + NO_SECRETS)
    answer = directory.engine().decide(question({"tables": [*many(30, "hr"), "public.orders"]}))
    assert len(answer.parts) == 21
    assert answer.parts[-1] == "and 10 more"


def test_what_is_reachable_through_a_table_has_a_say(directory):
    directory.write("case.cedar", LENIENT + NO_SECRETS)
    asked = question({"tables": ["public.orders"]})
    reach = (Reach(77, Kind.TABLE, "public", "secrets", Through.PARTITION),)
    objects = (replace(asked.manifest.objects[0], reach=reach),)
    answer = directory.engine().decide(replace(asked, manifest=replace(asked.manifest, objects=objects)))
    assert answer.outcome is Outcome.DENY
    assert answer.parts == ("public.secrets",)


def test_five_hundred_tables_are_decided_by_their_schemas(directory):
    directory.write("case.cedar", LENIENT + NO_HR)
    engine = directory.engine()
    answer, parts = engine.judge(question({"tables": many(500)}))
    assert answer.outcome is Outcome.PERMIT
    assert [part.name for part in parts] == ["public.*"]
    answer = engine.decide(question({"tables": [*many(499), "hr.people"]}))
    assert (answer.outcome, answer.parts) == (Outcome.DENY, ("hr.*",))


def test_the_limit_itself_is_still_decided_by_tables(directory):
    directory.write("case.cedar", LENIENT + NO_SECRETS)
    engine = directory.engine()
    answer, parts = engine.judge(question({"tables": many(MAX_OBJECTS)}))
    assert answer.outcome is Outcome.PERMIT
    assert len(parts) == MAX_OBJECTS
    assert engine.decide(question({"tables": many(MAX_OBJECTS + 1)})).code == "too_many_objects"


def test_more_schemas_than_are_decided_are_denied(directory):
    directory.write("case.cedar", LENIENT)
    schemas = [f"s{number}.t" for number in range(MAX_OBJECTS + 1)]
    assert directory.engine().decide(question({"tables": schemas})).code == "too_many_objects"


@pytest.mark.parametrize(
    "rule",
    [
        NO_SECRETS,
        '@id("x") forbid (principal, action, resource) when { resource has table && resource.table == "secrets" };',
        '@id("x") forbid (principal, action, resource) unless { resource is Taskpass::Schema };',
        '@id("x") forbid (principal, action, resource) when { resource == Taskpass::Table::"orders/1" };',
        '@id("x") forbid (principal, action, resource) unless { resource == Taskpass::Schema::"orders/public" };',
        """@id("x") forbid (principal, action, resource) unless { resource in
        (if resource == Taskpass::Schema::"orders/public" then Taskpass::Schema::"a" else Taskpass::Schema::"b") };""",
    ],
)
def test_more_objects_than_are_decided_do_not_evade_a_rule_about_tables(directory, rule):
    directory.write("case.cedar", LENIENT + rule)
    answer = directory.engine().decide(question({"tables": [*many(MAX_OBJECTS), "public.secrets"]}))
    assert (answer.outcome, answer.code) == (Outcome.DENY, "too_many_objects")


@pytest.mark.parametrize(
    "rule",
    [
        NO_HR,
        '@id("x") forbid (principal, action, resource) when { resource in Taskpass::Schema::"orders/hr" };',
        """@id("x") forbid (principal, action, resource)
        when { resource in [Taskpass::Schema::"orders/hr", Taskpass::Schema::"orders/pay"] };""",
        '@id("x") forbid (principal, action, resource) when { resource has schema && resource.schema == "hr" };',
    ],
)
def test_a_rule_about_schemas_counts_for_few_and_for_many(directory, rule):
    directory.write("case.cedar", LENIENT + rule)
    engine = directory.engine()
    for tables in (many(2, "hr"), many(500, "hr")):
        assert engine.decide(question({"tables": tables})).code == "policy_denied"
    for tables in (many(2), many(500)):
        assert engine.decide(question({"tables": tables})).outcome is Outcome.PERMIT


@pytest.mark.parametrize("reserved", ["approved", "env", "environment", "separation", "ticket", "ttl_s", "task", "now"])
def test_a_reserved_field_from_the_caller_has_no_effect(shipped, reserved):
    engine = shipped.engine()
    for value in ("true", "dev", "3", "OPS-1", ""):
        plain = {"environment": "production"}
        assert engine.decide(question(plain | {"claimed": {reserved: value}})) == engine.decide(question(plain))


def test_a_policy_can_demand_that_a_reason_was_given(directory):
    directory.write(
        "case.cedar",
        LENIENT + '@id("why") forbid (principal, action, resource) unless { context.claimed has reason };',
    )
    engine = directory.engine()
    assert engine.decide(question({})).outcome is Outcome.DENY
    assert engine.decide(question({"claimed": {"reason": " "}})).outcome is Outcome.DENY
    assert engine.decide(question({"claimed": {"reason": "a test fails"}})).outcome is Outcome.PERMIT


def test_a_policy_can_demand_provenance(directory):
    directory.write(
        "case.cedar",
        LENIENT
        + '@id("seen") forbid (principal, action, resource)'
        + " unless { context.task has branch && context.task.branch.provenance >= 1 };",
    )
    engine = directory.engine()
    for word, outcome in (("claimed", Outcome.DENY), ("observed", Outcome.PERMIT), ("verified", Outcome.PERMIT)):
        asked = question({"branch": {"value": "main", "provenance": word}})
        assert engine.decide(asked).outcome is outcome
    assert engine.decide(question({"branch": ""})).outcome is Outcome.DENY


def test_a_policy_can_speak_of_the_sponsor_and_the_groups_of_the_sponsor(directory):
    directory.write(
        "case.cedar",
        '@id("own") permit (principal, action, resource) when { principal.sponsor in Taskpass::Group::"sre" };',
    )
    engine = directory.engine()
    assert engine.decide(question({"sponsor": "sre-1@example"})).outcome is Outcome.PERMIT
    assert engine.decide(question({"sponsor": "dba-1@example"})).outcome is Outcome.DENY


def test_a_policy_can_speak_of_time(directory):
    directory.write(
        "case.cedar",
        '@id("day") permit (principal, action, resource) when { context.now.toTime() < duration("18h") };',
    )
    engine = directory.engine()
    assert engine.decide(question({"now": "2026-01-05T17:59:59Z"})).outcome is Outcome.PERMIT
    assert engine.decide(question({"now": "2026-01-05T18:00:00Z"})).outcome is Outcome.DENY


def test_an_approval_that_only_the_sponsor_could_give_is_a_deny(shipped):
    asked = {"environment": "production", "ticket": "OPS-1", "sponsor": "dba-1@example"}
    alone = shipped.engine({"dba": frozenset({"dba-1@example"})})
    assert alone.decide(question(asked)).code == "no_approvers"
    two = shipped.engine({"dba": frozenset({"dba-1@example", "dba-2@example"})})
    assert two.decide(question(asked)).outcome is Outcome.NEEDS_APPROVAL


def test_a_quorum_above_the_number_of_approvers_is_a_deny(shipped):
    shipped.write("two.cedar", '@id("three") @quorum("3") permit (principal, action, resource);')
    asked = question({"environment": "production", "ticket": "OPS-1"})
    assert shipped.engine().decide(asked).code == "too_few_approvers"
    three = {"dba": frozenset({"dba-1@example", "dba-2@example", "dba-3@example"})}
    assert shipped.engine(three).decide(asked).outcome is Outcome.NEEDS_APPROVAL


def test_on_a_disposable_target_the_sponsor_can_confirm_alone(directory):
    directory.write(
        "case.cedar",
        LENIENT + '@id("ask") @approvers("dba") forbid (principal, action, resource) unless { context.approved };',
    )
    engine = directory.engine({"dba": frozenset({"me@example"})})
    for environment, outcome in (("dev", Outcome.NEEDS_APPROVAL), ("staging", Outcome.DENY)):
        asked = question({"environment": environment, "sponsor": "me@example"})
        assert engine.decide(asked).outcome is outcome


@pytest.mark.parametrize(
    "change",
    [
        {"resource": "a/b"},
        {"resource": ""},
        {"lifetime": 2**70},
        {"claimed": {"reason": 7}},
        {"claimed": None},
        {"manifest": None},
        {"now": 10**30},
    ],
)
def test_a_question_that_cannot_be_put_is_a_deny_and_no_exception(shipped, change):
    answer = shipped.engine().decide(replace(question({}), **change))
    assert (answer.outcome, answer.code) == (Outcome.DENY, "policy_error")
    assert answer.errors


class Panic(BaseException):
    """Stands for a panic of the Rust side, which is not an ``Exception``."""


@pytest.mark.parametrize("error", [ValueError("secret-canary"), KeyError("x"), Panic("x"), MemoryError()])
def test_whatever_the_engine_raises_is_a_deny_without_its_words(shipped, monkeypatch, error):
    def fail(*_, **__):
        raise error

    engine = shipped.engine()
    monkeypatch.setattr(cedarpy, "is_authorized_batch", fail)
    answer = engine.decide(question({}))
    assert (answer.outcome, answer.code) == (Outcome.DENY, "policy_error")
    assert "secret-canary" not in str(answer)


def answers(decision, reasons=(), annotations=None, errors=()):
    return {
        "decision": decision,
        "diagnostics": {
            "reason": list(reasons),
            "id_annotations_by_reason": annotations or {},
            "errors": list(errors),
        },
    }


@pytest.mark.parametrize(
    "raw",
    [
        answers("NoDecision"),
        answers("Allow"),
        answers("Allow", ["policy99"], {}),
        answers("Allow", ["policy0"], {"policy0": "not-in-the-bundle"}),
        answers("Allow", ["policy0"], {"policy0": "dev-read"}, ["policy1 failed"]),
        answers("Maybe"),
    ],
    ids=["no decision", "allowed by none", "nameless policy", "foreign policy", "an error beside it", "unknown word"],
)
def test_an_answer_that_is_not_a_plain_allow_by_known_policies_is_a_deny(shipped, monkeypatch, raw):
    engine = shipped.engine()
    monkeypatch.setattr(cedarpy, "is_authorized_batch", lambda requests, *_: [cedarpy.AuthzResult(raw)] * len(requests))
    answer = engine.decide(question({}))
    assert (answer.outcome, answer.code) == (Outcome.DENY, "policy_error")


def test_an_answer_to_another_number_of_requests_is_a_deny(shipped, monkeypatch):
    engine = shipped.engine()
    good = cedarpy.AuthzResult(answers("Allow", ["policy0"], {"policy0": "dev-read"}))
    monkeypatch.setattr(cedarpy, "is_authorized_batch", lambda *_: [good])
    assert engine.decide(question({})).code == "policy_error"


def test_the_snapshot_changes_with_every_byte_and_with_the_groups(shipped):
    groups = {"dba": frozenset({"a@example"})}
    seen = {shipped.engine(groups).snapshot}
    for path in (*shipped.path.glob("*.cedar"), shipped.path / "schema.cedarschema"):
        path.write_text(path.read_text() + "\n")
        seen.add(shipped.engine(groups).snapshot)
    shipped.path.joinpath("dev.cedar").rename(shipped.path / "dev2.cedar")
    seen.add(shipped.engine(groups).snapshot)
    seen.add(shipped.engine({"dba": frozenset({"b@example"})}).snapshot)
    seen.add(shipped.engine(groups | {"other": frozenset()}).snapshot)
    assert len(seen) == 6 + 4


def test_tests_and_readme_do_not_change_the_snapshot(shipped):
    before = shipped.engine().snapshot
    shipped.write("README.md", "words")
    shipped.write("tests/more.yaml", "tests: []")
    assert shipped.engine().snapshot == before


def test_an_engine_does_not_notice_later_changes(shipped):
    groups = {"dba": frozenset({"sponsor@example"})}
    engine = CedarPolicy.load(shipped.path, groups=groups)
    before = engine.snapshot
    groups["dba"] = frozenset({"sponsor@example", "agent@example"})
    shipped.write("zz.cedar", LENIENT)
    assert engine.snapshot == before
    assert engine.decide(question({"environment": "staging", "separation": "none"})).outcome is Outcome.DENY
    assert engine.decide(question({"environment": "production", "ticket": "OPS-1"})).code == "no_approvers"


def test_threads_share_an_engine(shipped):
    engine = shipped.engine()
    asked = [question({"environment": e, "ticket": "OPS-1"}) for e in ("dev", "staging", "production")] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(engine.decide, asked)) == [engine.decide(item) for item in asked]


def test_hostile_names_are_data(shipped):
    engine = shipped.engine()
    for name in ['x" || true || "', "\\", "a\nb", "\u202e", "{}", "__entity", "Taskpass::Table"]:
        asked = {"tables": [f"{name}.{name}"], "branch": name, "ticket": name, "repository": name, "sponsor": name}
        assert engine.decide(question(asked)).outcome is Outcome.PERMIT
        assert engine.decide(question(asked | {"environment": "production"})).outcome is Outcome.NEEDS_APPROVAL


def test_a_task_inside_another_is_found_by_policy(directory):
    directory.write(
        "case.cedar",
        LENIENT
        + '@id("no") forbid (principal, action, resource) when { context.task.id in Taskpass::Task::"tsk_parent" };',
    )
    asked = question({})
    principal = replace(asked.task.principal, parents=("tsk_parent",))
    inside = replace(asked, task=replace(asked.task, principal=principal))
    engine = directory.engine()
    assert engine.decide(asked).outcome is Outcome.PERMIT
    assert engine.decide(inside).outcome is Outcome.DENY
