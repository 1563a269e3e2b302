"""Explanations for operators, the check of a bundle, and the starter set."""

from __future__ import annotations

import json
import stat

import pytest

from taskpass.core.clock import Instant
from taskpass.core.errors import Conflict
from taskpass.policy.example import question
from taskpass.policy.explain import Mark, check, explain
from taskpass.policy.starter import shipped as shipped_files
from taskpass.policy.starter import write_shipped

GROUPS = {"dba": frozenset({"dba-1@example", "dba-2@example"})}
LENIENT = '@id("lenient") permit (principal, action, resource);\n'


def ids(reasons):
    return [reason.policy for reason in reasons]


def test_it_names_the_policies_of_each_evaluation(shipped):
    found = explain(shipped.engine(), question({"environment": "production", "ticket": "OPS-1"}))
    assert ids(found.unapproved) == ["production-needs-approval"]
    assert ids(found.approved) == ["production-read"]
    assert found.decision.obligations.quorum == 1
    [reason] = found.change
    assert (reason.policy, reason.fields) == ("production-needs-approval", ("context.approved", "resource.env"))


def test_it_names_the_fields_that_would_have_to_change(shipped):
    found = explain(shipped.engine(), question({"environment": "production"}))
    [reason] = found.change
    assert (reason.policy, reason.effect, reason.file) == ("production-needs-ticket", "forbid", "guards.cedar")
    assert reason.fields == ("context.task.ticket", "resource.env")


def test_when_nothing_permits_it_names_the_permits_that_could(shipped):
    shipped.write(
        "staging.cedar",
        """@id("s") permit (principal, action, resource)
        when { context.ttl_s < 60 && resource.env == Taskpass::Environment::"staging" };""",
    )
    found = explain(shipped.engine(), question({"environment": "staging"}))
    assert found.decision.code == "policy_denied"
    assert [(r.policy, r.fields) for r in found.change] == [("s", ("context.ttl_s", "resource.env"))]


def test_a_permit_needs_no_change(shipped):
    assert explain(shipped.engine(), question({})).change == ()


def test_the_strict_parts_come_first_and_are_bounded(directory):
    directory.write(
        "case.cedar",
        LENIENT + '@id("no") forbid (principal, action, resource is Taskpass::Table) when { resource.table == "z" };',
    )
    found = explain(directory.engine(), question({"tables": [*(f"a.t{n}" for n in range(40)), "a.z"]}))
    assert len(found.parts) == 20
    assert found.parts[0].name == "a.z"


def test_it_is_json(shipped):
    found = explain(shipped.engine(), question({"environment": "production"})).to_json()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"decision", "unapproved", "approved", "change", "parts"}


def test_check_finds_the_shipped_set_in_order(shipped):
    found = check(shipped.path, GROUPS, now=Instant(0))
    assert [item.mark for item in found] == [Mark.OK, Mark.OK]
    assert shipped.engine(GROUPS).snapshot in found[0].what


def test_check_reports_a_refused_bundle_as_an_error(shipped):
    [found] = check(shipped.path, {})
    assert found.mark is Mark.ERROR
    assert "dba" in found.what
    assert found.hint


def test_check_reports_a_failing_table(shipped):
    shipped.write("tests/mine.yaml", "tests: [{name: wrong, expect: {outcome: deny}}]")
    assert [item.mark for item in check(shipped.path, GROUPS)] == [Mark.OK, Mark.ERROR]


def test_check_warns_of_missing_tables_of_old_reviews_lonely_groups_and_rules_about_tables(directory):
    directory.path.joinpath("tests", "shipped.yaml").unlink()
    directory.write(
        "case.cedar",
        LENIENT
        + '@id("t") @review_by("2026-01-01") forbid (principal, action, resource is Taskpass::Table)'
        + ' when { resource.table == "x" };'
        + '@id("a") @approvers("dba") forbid (principal, action, resource) unless { context.approved };',
    )
    one = {"dba": frozenset({"dba-1@example"})}
    new_year = 1767225600000
    warnings = [item.what for item in check(directory.path, one, now=Instant(new_year)) if item.mark is Mark.WARNING]
    assert len(warnings) == 4
    assert "no tests" in warnings[0]
    assert "policy t was to be reviewed by 2026-01-01" in warnings[1]
    assert "group dba has one member" in warnings[2]
    assert "policy t tells tables apart" in warnings[3]
    before = check(directory.path, one, now=Instant(new_year - 1))
    assert not any("reviewed" in item.what for item in before)


def test_the_starter_set_is_written_for_its_owner_only(tmp_path):
    written = write_shipped(tmp_path / "a" / "policy")
    assert {path.name for path in written} >= {"schema.cedarschema", "guards.cedar", "shipped.yaml"}
    assert len(written) == len(shipped_files())
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_starter_set_never_replaces_a_policy(shipped):
    mine = shipped.write("dev.cedar", "mine")
    with pytest.raises(Conflict):
        write_shipped(shipped.path)
    assert mine.read_text() == "mine"
