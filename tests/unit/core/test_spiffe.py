"""Names of workloads are refused, never cleaned."""

from __future__ import annotations

import pytest

from taskpass.core import spiffe
from taskpass.core.errors import InvalidInput


def test_an_agent_id_is_built_and_parsed_back():
    built = spiffe.agent_id("acme.example", "claude", "run_01j0000000000000000000000")
    assert str(built) == "spiffe://acme.example/agent/claude/run_01j0000000000000000000000"
    assert spiffe.parse(str(built)) == built


def test_outside_any_run_the_instance_is_the_uid():
    assert spiffe.instance(None, 1000) == "uid-1000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///agent/x",
        "spiffe://acme.example",
        "spiffe://acme.example/",
        "spiffe://acme.example/agent/",
        "spiffe://acme.example//agent",
        "spiffe://acme.example/agent/../admin",
        "spiffe://acme.example/agent/./x",
        "spiffe://Acme.example/agent/x",
        "SPIFFE://acme.example/agent/x",
        "spiffe://user@acme.example/agent/x",
        "spiffe://acme.example:443/agent/x",
        "spiffe://acme.example/agent/a%2fb",
        "spiffe://acme.example/agent/x?y",
        "spiffe://acme.example/agent/x#y",
        "spiffe://acme.example/agent/x\n",
        "spiffe://acme.example/agent/é",
        "spiffe://" + "a" * 256 + "/agent",
        "spiffe://acme.example/" + "a" * 2048,
    ],
)
def test_a_malformed_id_is_refused(text):
    with pytest.raises(InvalidInput):
        spiffe.parse(text)


@pytest.mark.parametrize("tool", ["", "Claude", "a" * 33, "a/b", "..", ".", "a b", "naïve", "x\n"])
def test_a_tool_name_that_does_not_fit_is_refused_and_not_cleaned(tool):
    with pytest.raises(InvalidInput):
        spiffe.agent_id("acme.example", tool, "i")


def test_an_id_is_not_matched_by_its_prefix():
    assert spiffe.parse("spiffe://d/agent/a") != spiffe.parse("spiffe://d/agent/ab")
