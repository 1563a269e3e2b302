"""A policy bundle: the schema and policy files of one directory, validated as a whole, with a digest.

A bundle is good or refused; there is no half-loaded one. Cedar's strict validation finds rules that could fail while
deciding, which matters because Cedar skips a rule that fails, and a skipped forbid lets through. What Cedar does not
check is checked here: that every policy has an ``@id`` of its own, and that annotations mean something.

Not for deciding (``policy.cedar``). Policy text is never built from input.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cedarpy

from taskpass.core import digest
from taskpass.core.errors import PolicyInvalid
from taskpass.core.ids import HumanId
from taskpass.policy.files import Files, read_directory, text_of
from taskpass.policy.obligations import Terms, parse
from taskpass.policy.words import one_line

SCHEMA = "schema.cedarschema"
TESTS = "tests/"

ENGINE = "cedar/cedarpy-" + importlib.metadata.version("cedarpy")
RULES = 1
"""Number of the rules that turn two evaluations into an answer. It counts up when they change."""

_POLICY_FILE = re.compile(r"[a-z0-9][a-z0-9._-]*\.cedar")
_IGNORED = frozenset({"README", "README.md"})

Groups = Mapping[str, frozenset[HumanId]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy: its terms, and what it looks at.

    ``fields`` are the paths it reads, ``environments`` those it names; ``tables`` is True if it can tell tables of one
    schema apart.
    """

    terms: Terms
    file: str
    forbids: bool
    fields: frozenset[str]
    environments: frozenset[str]
    tables: bool

    @property
    def id(self) -> str:
        return self.terms.id


@dataclass(frozen=True, slots=True)
class Bundle:
    """Schema and policies as text, the rules by id, and the digest of each file."""

    schema: str
    policies: str
    rules: Mapping[str, Rule]
    files: Mapping[str, str]

    def snapshot(self, groups: Groups) -> str:
        """Digest over everything that can change an answer: files, groups, engine, and our own rules."""
        return digest.digest(
            digest.SNAPSHOT,
            {
                "engine": ENGINE,
                "rules": RULES,
                "files": dict(self.files),
                "groups": {name: sorted(members) for name, members in groups.items()},
            },
        )

    @property
    def tells_tables_apart(self) -> bool:
        return any(rule.tables for rule in self.rules.values())


def load(directory: Path) -> Bundle:
    """The bundle of ``directory``; raises ``PolicyInvalid`` if it cannot be trusted or is not valid."""
    return parse_bundle(read_directory(directory))


def parse_bundle(files: Files) -> Bundle:
    """The bundle that ``files`` hold; raises ``PolicyInvalid``, in one line that names file and policy."""
    names = _policy_files(files)
    texts = {name: text_of(files, name) for name in (SCHEMA, *names)}
    schema = _schema(texts[SCHEMA])
    rules: dict[str, Rule] = {}
    for name in names:
        for rule in _rules(name, texts[name]):
            if rule.id in rules:
                raise PolicyInvalid(f"{name}: policy {rule.id} exists already in {rules[rule.id].file}")
            rules[rule.id] = rule
        _validate(name, texts[name], schema)
    if not rules:
        raise PolicyInvalid("the policy directory holds no policy", hint="taskpass init writes a set to start from")
    return Bundle(
        schema=texts[SCHEMA],
        policies="\n".join(texts[name] for name in names),
        rules=rules,
        files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    )


def demand_groups(bundle: Bundle, groups: Groups) -> None:
    """Raise ``PolicyInvalid`` for an approver group that does not exist or has no member."""
    for rule in bundle.rules.values():
        for group in sorted(rule.terms.duties.approvers):
            if not groups.get(group):
                raise PolicyInvalid(
                    f"{rule.file}: policy {rule.id} wants approvers of the group {group}, which has no members",
                    hint="list its members in taskpass.toml under [people.groups]",
                )


def _policy_files(files: Files) -> list[str]:
    """The names of the policy files. A name that means nothing is refused: its author thought that it does."""
    for name in files:
        known = name == SCHEMA or name in _IGNORED or name.startswith(TESTS) or _POLICY_FILE.fullmatch(name)
        if not known:
            raise PolicyInvalid(
                f"{one_line(name, 80)} does not belong into the policy directory",
                hint=f"it may hold {SCHEMA}, files named *.cedar, {TESTS} and README.md",
            )
    if SCHEMA not in files:
        raise PolicyInvalid(f"the policy directory has no {SCHEMA}", hint="taskpass init writes a set to start from")
    return sorted(name for name in files if _POLICY_FILE.fullmatch(name))


def _schema(text: str) -> cedarpy.Schema:
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise PolicyInvalid(f"{SCHEMA}: {one_line(str(error))}") from None


def _validate(name: str, text: str, schema: cedarpy.Schema) -> None:
    result = cedarpy.validate_policies(text, schema)  # pyright: ignore[reportUnknownMemberType]
    if not result.validation_passed:
        first = result.errors[0] if result.errors else None
        ids = cast("dict[str, str]", result.id_annotations_by_policy_id)  # pyright: ignore[reportUnknownMemberType]
        policy = ids.get(first.policy_id, "") if first else ""
        raise PolicyInvalid(f"{name}: policy {policy}: {one_line(str(first.error) if first else 'it is not valid')}")


def _rules(name: str, text: str) -> Iterator[Rule]:
    try:
        parsed = cast("dict[str, dict[str, dict[str, object]]]", json.loads(cedarpy.policies_to_json_str(text)))
        if parsed["templates"]:
            raise PolicyInvalid(f"{name}: templates (?principal, ?resource) are not used here")
        yield from [_rule(name, policy) for policy in parsed["staticPolicies"].values()]
    except ValueError as error:
        raise PolicyInvalid(f"{name}: {one_line(str(error))}") from None
    except RecursionError:
        raise PolicyInvalid(f"{name}: a condition is nested too deeply", hint="split the policy in two") from None


def _rule(name: str, policy: dict[str, object]) -> Rule:
    annotations = cast("dict[str, str | None]", policy.get("annotations") or {})
    forbids = policy["effect"] == "forbid"
    try:
        terms = parse(annotations, forbids=forbids)
    except PolicyInvalid as error:
        which = f"policy {one_line(annotations.get('id') or '(without @id)', 80)}"
        raise PolicyInvalid(f"{name}: {which}: {error.message}", hint=error.hint) from None
    fields, environments, tables = (
        frozenset(_paths(policy)),
        frozenset(_ids(policy, ENVIRONMENT)),
        _tells_tables(policy),
    )
    return Rule(terms, name, forbids, fields, environments, tables)


ENVIRONMENT = "Taskpass::Environment"
TABLE = "Taskpass::Table"
SCHEMA_TYPE = "Taskpass::Schema"


def _walk(node: object) -> Iterator[object]:
    yield node
    if isinstance(node, dict):
        for item in cast("dict[str, object]", node).values():
            yield from _walk(item)
    elif isinstance(node, list):
        for item in cast("list[object]", node):
            yield from _walk(item)


def _ids(policy: object, kind: str) -> Iterator[str]:
    """The ids of all entities of ``kind`` that the policy names."""
    for node in _walk(policy):
        if isinstance(node, dict):
            entity = cast("dict[str, object]", node)
            if entity.get("type") == kind and isinstance(entity.get("id"), str):
                yield str(entity["id"])


def _tells_tables(node: object, *, behind_in: bool = False) -> bool:
    """Whether a policy can answer differently for two tables of one schema, or for a table and its schema.

    It may say yes too often, never too seldom: the mere word suffices, except for a schema written right of an ``in``.
    """
    if isinstance(node, str):
        return node in (TABLE, "table") or (node == SCHEMA_TYPE and not behind_in)
    if isinstance(node, list):
        return any(_tells_tables(item, behind_in=behind_in) for item in cast("list[object]", node))
    if not isinstance(node, dict):
        return False
    inside = cast("dict[str, object]", node)
    starts = inside.get("op") == "in"
    return any(
        _tells_tables(item, behind_in=starts or key == "in" or (behind_in and key in _PLAIN))
        for key, item in inside.items()
    )


_PLAIN = frozenset({"right", "entity", "Value", "__entity", "Set", "type"})
"""Keys that lead from an ``in`` to the entity written there, and through nothing that could compare."""


def _paths(policy: object) -> Iterator[str]:
    """Paths like ``context.task.ticket`` that the policy reads, each in full length only."""
    found = {path for node in _walk(policy) if (path := _path(node))}
    return (path for path in found if not any(other.startswith(path + ".") for other in found))


def _path(node: object) -> str:
    if not isinstance(node, dict):
        return ""
    expression = cast("dict[str, object]", node)
    access = expression.get(".") or expression.get("has")
    if not isinstance(access, dict):
        return ""
    parts = cast("dict[str, object]", access)
    left = parts.get("left")
    variable = cast("dict[str, object]", left).get("Var") if isinstance(left, dict) else None
    before = str(variable) if variable else _path(cast("object", left))
    return f"{before}.{parts.get('attr')}" if before else ""
