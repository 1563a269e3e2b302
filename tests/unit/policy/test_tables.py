"""Table tests beside the policies: they pass on the shipped set, and a wrong row is noticed."""

from __future__ import annotations

import pytest

from taskpass.core.errors import InvalidInput, PolicyInvalid
from taskpass.policy import tables
from taskpass.policy.example import DEFAULTS, question


def test_the_shipped_policies_pass_their_tables(shipped):
    results = tables.run(shipped.path)
    assert len(results) >= 12
    assert [str(result) for result in results if not result.passed] == []


def test_every_shipped_policy_has_a_say_in_some_row(shipped):
    spoken = {policy for result in tables.run(shipped.path) for policy in result.decision.policies}
    assert spoken == set(shipped.engine().bundle.rules)


def test_a_row_that_expects_something_else_fails_and_says_what(shipped):
    shipped.write(
        "tests/mine.yaml",
        "tests: [{name: wrong, ask: {environment: dev},"
        " expect: {outcome: deny, max_ttl: 60, approvers: [dba], read_only: true}}]",
    )
    [result] = [item for item in tables.run(shipped.path) if item.file == "mine.yaml"]
    assert not result.passed
    assert str(result) == (
        "FAIL mine.yaml: wrong: outcome is permit, expected deny; max_ttl is 28800, expected 60; "
        "approvers is [], expected [dba]; read_only is false, expected true"
    )
    assert result.to_json()["passed"] is False


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tests: []", "no rows"),
        ("{}", "no rows"),
        ("- x", "must be a mapping"),
        ("tests: [x]", "row 1 must be a mapping"),
        ("test: []", "did you mean tests?"),
        ("tests: [{nam: x}]", "did you mean name?"),
        ("tests: [{expect: {outcome: deny}}]", "has no name"),
        ("tests: [{name: x}]", "expect must be a mapping"),
        ("tests: [{name: x, expect: {}}]", "needs an outcome"),
        ("tests: [{name: x, expect: {outcome: maybe}}]", "needs an outcome"),
        ("tests: [{name: x, expect: {outcome: deny, maxttl: 1}}]", "did you mean max_ttl?"),
        ("tests: [{name: x, ask: {enviroment: dev}, expect: {outcome: deny}}]", "did you mean environment?"),
        ("tests: [{name: x, ask: {environment: prod}, expect: {outcome: deny}}]", "environment has no value prod"),
        ("tests: [{name: x, ask: {lifetime: -1}, expect: {outcome: deny}}]", "lifetime"),
        ("tests: [{name: x, expect: {outcome: deny, outcome: permit}}]", "stands twice"),
        ("tests: [", "not valid YAML"),
        ("tests: !!python/object/apply:os.system [x]", "not valid YAML"),
    ],
)
def test_a_malformed_table_is_refused(shipped, text, words):
    shipped.write("tests/mine.yaml", text)
    with pytest.raises(PolicyInvalid) as caught:
        tables.run(shipped.path)
    assert words in caught.value.message
    assert caught.value.message.startswith("mine.yaml")
    assert "\n" not in caught.value.message


def test_another_kind_of_file_among_the_tables_is_refused(shipped):
    shipped.write("tests/notes.txt", "x")
    with pytest.raises(PolicyInvalid, match=r"notes\.txt"):
        tables.run(shipped.path)


def test_without_tables_there_are_no_results(directory):
    directory.write("good.cedar", '@id("good") permit (principal, action, resource);')
    for path in directory.path.joinpath("tests").iterdir():
        path.unlink()
    directory.path.joinpath("tests").rmdir()
    assert tables.run(directory.path) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("environment", 3),
        ("separation", "partly"),
        ("lifetime", True),
        ("lifetime", "900"),
        ("lifetime", 0),
        ("ticket", 7),
        ("ticket", {"value": "x"}),
        ("ticket", {"value": "x", "provenance": "sworn"}),
        ("tables", "public.orders"),
        ("tables", ["orders"]),
        ("tables", [7]),
        ("claimed", "x"),
        ("claimed", {"reason": 7}),
        ("now", "yesterday"),
        ("now", "2026-01-05T10:00:00"),
        ("level", "writes"),
        ("unknown", "x"),
    ],
)
def test_an_example_with_a_wrong_field_is_refused_by_name(field, value):
    with pytest.raises(InvalidInput, match=field):
        question({field: value})


def test_every_field_of_an_example_has_a_usual_value():
    assert question({}) == question(DEFAULTS)
