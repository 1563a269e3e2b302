"""Table tests: what the policies of a directory must answer, written beside them in ``tests/*.yaml``.

A file holds ``tests``, a list of rows: ``name``, ``ask`` (fields of ``policy.example``) and ``expect`` (``outcome``,
and whatever else of ``EXPECTED`` matters). Not for deciding: the engine never reads these files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from taskpass.core.decision import Decision, Outcome
from taskpass.core.errors import InvalidInput, PolicyInvalid
from taskpass.core.ids import HumanId
from taskpass.policy.base import Question
from taskpass.policy.bundle import TESTS, Bundle, parse_bundle
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.example import question
from taskpass.policy.files import Files, read_directory, text_of
from taskpass.policy.words import nearest, one_line

EXPECTED: Mapping[str, str] = {
    "outcome": "permit, needs_approval or deny",
    "code": "the code that the agent is told",
    "max_ttl": "seconds",
    "quorum": "number of people",
    "approvers": "list of groups",
    "read_only": "true or false",
    "delivery": "endpoint or bearer",
    "policies": "list of the ids of all policies that had a say",
}


@dataclass(frozen=True, slots=True)
class Row:
    file: str
    name: str
    question: Question
    expect: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Result:
    """``differences`` in words, empty if the answer is the expected one."""

    file: str
    name: str
    differences: tuple[str, ...]
    decision: Decision

    @property
    def passed(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        wrong = f": {'; '.join(self.differences)}" if self.differences else ""
        return f"{verdict} {self.file}: {one_line(self.name, 120)}{wrong}"

    def to_json(self) -> dict[str, object]:
        return {
            "file": self.file,
            "name": self.name,
            "passed": self.passed,
            "differences": list(self.differences),
            "decision": self.decision.to_json(),
        }


def run(directory: Path, *, groups: Mapping[str, frozenset[HumanId]] | None = None) -> list[Result]:
    """The results of all rows under ``directory/tests``, in order; raises ``PolicyInvalid`` for a malformed row.

    Without ``groups`` each group that a policy names gets two invented members, so that tables run anywhere.
    """
    files = read_directory(directory)
    bundle = parse_bundle(files)
    policy = CedarPolicy(bundle, invented_groups(bundle) if groups is None else groups)
    return run_rows(policy, files)


def run_rows(policy: CedarPolicy, files: Files) -> list[Result]:
    """As ``run``, over files that are read already."""
    return [_run(policy, row) for row in rows(files)]


def invented_groups(bundle: Bundle) -> dict[str, frozenset[HumanId]]:
    names = {name for rule in bundle.rules.values() for name in rule.terms.duties.approvers}
    return {name: frozenset({HumanId(f"{name}-1@example"), HumanId(f"{name}-2@example")}) for name in names}


def rows(files: Files) -> Iterator[Row]:
    """All rows of ``tests/*.yaml``; none if there are no such files."""
    for path in sorted(name for name in files if name.startswith(TESTS)):
        name = path.removeprefix(TESTS)
        if not name.endswith(".yaml") or "/" in name:
            raise PolicyInvalid(f"{one_line(path, 80)} is not a table of tests", hint="tables are files named *.yaml")
        document = _mapping(_parsed(name, text_of(files, path)), name, known=("tests",))
        tests = document.get("tests")
        if not isinstance(tests, list) or not tests:
            raise PolicyInvalid(f"{name} has no rows", hint="list them under tests:")
        for number, item in enumerate(cast("list[object]", tests), start=1):
            yield _row(name, number, item)


def _run(policy: CedarPolicy, row: Row) -> Result:
    decision = policy.decide(row.question)
    found: dict[str, object] = decision.to_json() | decision.obligations.to_json()
    found["policies"] = sorted(decision.policies)
    wanted = {name: sorted(cast("list[str]", v)) if isinstance(v, list) else v for name, v in row.expect.items()}
    wrong = (f"{name} is {_word(found[name])}, expected {_word(v)}" for name, v in wanted.items() if found[name] != v)
    return Result(row.file, row.name, tuple(wrong), decision)


def _word(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(str(item) for item in cast("list[object]", value)) + "]"
    return str(value).lower() if isinstance(value, bool) else one_line(str(value), 80)


def _row(file: str, number: int, item: object) -> Row:
    where = f"{file}, row {number}"
    fields = _mapping(item, where, known=("name", "ask", "expect"))
    name = fields.get("name")
    if not isinstance(name, str) or not name.strip():
        raise PolicyInvalid(f"{where} has no name")
    expect = _mapping(fields.get("expect"), f"{where}, expect", known=EXPECTED)
    if expect.get("outcome") not in {outcome.word for outcome in Outcome}:
        raise PolicyInvalid(f"{where}: expect needs an outcome: {EXPECTED['outcome']}")
    ask = fields.get("ask", {})
    try:
        return Row(file, name, question(_mapping(ask, f"{where}, ask")), expect)
    except InvalidInput as error:
        raise PolicyInvalid(f"{where}, ask: {error.message}", hint=error.hint) from None


def _mapping(value: object, where: str, *, known: Mapping[str, str] | tuple[str, ...] = ()) -> dict[str, object]:
    if not isinstance(value, dict):
        raise PolicyInvalid(f"{where} must be a mapping of names to values")
    found = cast("dict[object, object]", value)
    for key in found:
        if not isinstance(key, str) or (known and key not in known):
            word = one_line(str(key), 40)
            raise PolicyInvalid(f"{where} has an unknown key {word}{nearest(word, known)}")
    return cast("dict[str, object]", found)


def _parsed(name: str, text: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  A SafeLoader that also refuses double keys.
    except yaml.YAMLError as error:
        raise PolicyInvalid(f"{name} is not valid YAML: {one_line(str(error))}") from None


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys, which would drop half of an expectation unseen."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
        if len({repr(key) for key in keys}) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice in one mapping", node.start_mark)
        return super().construct_mapping(node, deep)
