"""The pages about policy name every annotation, field, code and test field, and no other; their examples work."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
import yaml

from taskpass.core.decision import ABSOLUTE_MAX_TTL, PRODUCTION_TTL
from taskpass.core.provenance import Provenance
from taskpass.core.separation import Environment, Separation
from taskpass.policy import tables
from taskpass.policy.base import MAX_OBJECTS
from taskpass.policy.bundle import parse_bundle
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.example import DEFAULTS
from taskpass.policy.obligations import ANNOTATIONS, CORE_CODES
from taskpass.policy.starter import shipped

DOCS = Path(__file__).parents[3] / "docs"
REFERENCE = (DOCS / "reference/policy.md").read_text()
HOW_TO = (DOCS / "how-to/write-policies.md").read_text()


def section(title: str) -> str:
    return REFERENCE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(text: str, pattern: str) -> list[str]:
    return re.findall(rf"^\| `{pattern}` *\|", text, re.MULTILINE)


def schema_fields() -> set[str]:
    """Every path of the shipped schema, read from the schema itself."""
    text = re.sub(r"//.*", "", shipped()["schema.cedarschema"].decode())
    found = {"principal", "action", "resource"}
    for entity, prefix in (("Agent", "principal"), ("Schema", "resource"), ("Table", "resource")):
        body = re.search(rf"entity {entity}\b[^{{;]*\{{(.*?)\}}", text, re.DOTALL)
        assert body
        found |= {f"{prefix}.{name}" for name in re.findall(r"(\w+)\??:", body[1])}
    ask = text[text.index("type Ask") : text.index("action read")]
    for inner in ("task", "claimed"):
        body = re.search(rf"{inner}: \{{(.*?)\}}", ask, re.DOTALL)
        assert body
        found |= {f"context.{inner}.{name}" for name in re.findall(r"(\w+)\??:", body[1])}
        ask = ask.replace(body[0], "")
    return found | {f"context.{name}" for name in re.findall(r"(\w+)\??:", ask)}


def test_every_annotation_is_on_the_page_and_no_other() -> None:
    assert first_column(section("Annotations"), r"@(\w+)[^`]*") == list(ANNOTATIONS)


def test_every_field_of_the_schema_is_on_the_page_and_no_other() -> None:
    assert set(first_column(section("Fields"), r"([\w.]+)")) == schema_fields()


def test_every_code_is_on_the_page_and_no_other() -> None:
    assert set(first_column(section("Outcome"), r"(\w+)")) == CORE_CODES


def test_every_field_of_a_table_test_is_on_the_page_with_its_usual_value() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section("Table tests"), re.MULTILINE)
    assert [name for name, _ in rows] == list(DEFAULTS)
    for name, value in rows:
        said = "" if value == "none" else yaml.safe_load(f"[{value.strip('`')}]")[0]
        assert str(said) == str(DEFAULTS[name]) or name == "now"
    for name in tables.EXPECTED:
        assert f"`{name}`" in section("Table tests")


def test_numbers_on_the_page_are_those_of_the_code() -> None:
    assert f"1 to {ABSOLUTE_MAX_TTL} |" in section("Annotations")
    assert ABSOLUTE_MAX_TTL == 8 * 3600
    assert PRODUCTION_TTL == 10 * 60
    assert f"more than {MAX_OBJECTS} are a deny" in section("Outcome")
    for scale in (Separation, Provenance):
        assert ", ".join(f"{item.value} {item.word}" for item in scale) in section("Fields")
    assert all(f"`{item.value}`" in section("Fields") for item in Environment)


def test_the_annotations_of_the_page_are_accepted() -> None:
    written = first_column(section("Annotations"), r"(@\w+[^`]*)")
    values = {"@title": '@title("x")', "@owner": '@owner("x")'}
    lines = [values.get(text.split("(")[0], text) for text in written]
    files = {name: data for name, data in shipped().items() if name.endswith("schema")}
    files["page.cedar"] = "\n".join([*lines, "forbid (principal, action, resource);"]).encode()
    [rule] = parse_bundle(files).rules.values()
    assert (rule.id, rule.terms.reason_code) == ("orders-read", "ticket_needed")


@pytest.mark.parametrize("number", range(4))
def test_the_policies_of_the_how_to_are_accepted(number: int) -> None:
    text = re.findall(r"```cedar\n(.*?)```", HOW_TO, re.DOTALL)[number]
    bundle = parse_bundle(shipped() | {"page.cedar": text.encode()})
    names = {group for rule in bundle.rules.values() for group in rule.terms.duties.approvers}
    assert CedarPolicy(bundle, {name: frozenset({f"{name}@example"}) for name in names}).snapshot
    assert sum(rule.file == "page.cedar" for rule in bundle.rules.values()) == 1


def test_there_is_no_further_policy_in_the_how_to() -> None:
    assert HOW_TO.count("```cedar") == 4


def test_the_rows_on_the_pages_are_rows() -> None:
    bundle = parse_bundle(shipped())
    policy = CedarPolicy(bundle, tables.invented_groups(bundle))
    for page in (REFERENCE, HOW_TO):
        for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
            [result] = tables.run_rows(policy, {"tests/page.yaml": textwrap.dedent(block).encode()})
            # The page shows this very failure.
            assert result.passed or str(result).replace("page.yaml", "mine.yaml") in HOW_TO


def test_messages_that_the_how_to_explains_exist() -> None:
    source = "".join(
        path.read_text()
        for folder in ("policy", "config")
        for path in (DOCS.parent / "src/taskpass" / folder).glob("*.py")
    )
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", HOW_TO.split("## When a bundle is refused")[1], re.MULTILINE)
    messages = [row for row in rows if row.strip() not in ("Message", "---")]
    assert len(messages) == 5
    for message in messages:
        for piece in message.split("…"):
            assert piece.strip(" ,") in source, json.dumps(piece)
