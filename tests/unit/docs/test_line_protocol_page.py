"""The page about the line protocol names exactly the methods that are served."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskpass.server.agent_methods import AgentMethods
from taskpass.server.people_methods import PeopleMethods

PAGE = Path(__file__).parents[3] / "docs/reference/line-protocol.md"


@pytest.mark.parametrize(("heading", "methods"), [("agents", AgentMethods), ("people", PeopleMethods)])
def test_every_method_is_on_the_page_and_no_other(heading: str, methods: type) -> None:
    section = PAGE.read_text().split(f"## Methods for {heading}")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    served = methods.__new__(methods)
    methods.__init__(served, None, **_rest(methods))  # type: ignore[misc]
    assert documented == set(served._methods)


def _rest(methods: type) -> dict[str, object]:
    return {"changed": None} | ({"health": dict} if methods is PeopleMethods else {})
