"""One question as Cedar reads it: principal, action, resources, entities and context.

The broker's record is the only source. What the caller said goes under ``context.claimed`` and nowhere else, and only
under the names listed in ``CLAIMED``. Not for deciding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from taskpass.core.clock import rfc3339
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import HumanId
from taskpass.core.manifest import Kind, Manifest
from taskpass.core.provenance import Fact
from taskpass.core.separation import Environment
from taskpass.policy.base import Question

CLAIMED = ("reason",)
"""The caller's words that a policy can read; the schema declares the same. No policy sees others."""

HANDS_ON = "migrate-hands-on"
"""An action of its own, so that no permit for files lets anybody work as the owner."""

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the request that is decided on its own. ``name`` is for operators, ``uid`` is Cedar's."""

    name: str
    uid: Json


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in Cedar's words. ``entities`` and ``contexts`` are JSON, the latter for approved false, then true."""

    principal: Json
    action: Json
    parts: tuple[Part, ...]
    entities: str
    contexts: tuple[str, str]

    def requests(self, *, approved: bool) -> list[Json]:
        context = self.contexts[1 if approved else 0]
        return [
            {"principal": self.principal, "action": self.action, "resource": part.uid, "context": context}
            for part in self.parts
        ]


@dataclass(frozen=True, slots=True, order=True)
class _Object:
    """What is granted, or reachable through what is granted: rows of both can be read or changed, so policy has a say
    on both. Routines are no tables; what one may reach of what is excluded is held back in the manifest.
    """

    oid: int
    schema: str
    name: str


def ask(question: Question, groups: Mapping[str, frozenset[HumanId]], *, by_schema: bool) -> Asked:
    """``question`` for Cedar: a part for each table, or with ``by_schema`` for each schema of those tables.

    Raises ``InvalidInput`` if the resource has a name that would make ids ambiguous.
    """
    if "/" in question.resource or not question.resource:
        raise InvalidInput("a resource's name must not be empty or hold a slash")
    if question.manifest.migration:
        return _ask_migration(question, groups)
    objects = _objects(question.manifest)
    schemas = sorted({item.schema for item in objects})
    parts = (
        tuple(Part(f"{name}.*", _schema_uid(question, name)) for name in schemas)
        if by_schema
        else tuple(Part(f"{item.schema}.{item.name}", _table_uid(question, item)) for item in objects)
    )
    entities = [*_people(question, groups), *_places(question, schemas, () if by_schema else objects)]
    return Asked(
        principal=_uid("Agent", question.task.principal.spiffe_id),
        action=_uid("Action", question.level.value),
        parts=parts,
        entities=json.dumps(entities),
        contexts=(json.dumps(_context(question, approved=False)), json.dumps(_context(question, approved=True))),
    )


def _ask_migration(question: Question, groups: Mapping[str, frozenset[HumanId]]) -> Asked:
    """A migration is decided on the database: an owner's rights know no list of tables."""
    database = _uid("Database", question.resource)
    entities = [*_people(question, groups), *_places(question, (), ())]
    return Asked(
        principal=_uid("Agent", question.task.principal.spiffe_id),
        action=_uid("Action", HANDS_ON if question.manifest.hands_on else question.level.value),
        parts=(Part(question.resource, database),),
        entities=json.dumps(entities),
        contexts=(json.dumps(_context(question, approved=False)), json.dumps(_context(question, approved=True))),
    )


def _objects(manifest: Manifest) -> tuple[_Object, ...]:
    granted = {item.oid: _Object(item.oid, item.schema, item.name) for item in manifest.objects}
    reached = {
        found.oid: _Object(found.oid, found.schema, found.name)
        for item in manifest.objects
        for found in item.reach
        # What only a verb reaches that is not granted is not reached.
        if found.kind is not Kind.ROUTINE and (not found.verbs or item.verbs & set(found.verbs))
    }
    return tuple(sorted((reached | granted).values()))


def _people(question: Question, groups: Mapping[str, frozenset[HumanId]]) -> Iterable[Json]:
    principal = question.task.principal
    theirs = sorted(name for name, members in groups.items() if principal.sponsor in members)
    yield _entity(
        _uid("Agent", principal.spiffe_id),
        {"sponsor": _ref(_uid("Human", principal.sponsor)), "machine": principal.machine, "tool": principal.tool},
    )
    yield _entity(_uid("Human", principal.sponsor), parents=[_uid("Group", name) for name in theirs])
    yield from (_entity(_uid("Group", name)) for name in theirs)
    parents = [_uid("Task", parent) for parent in principal.parents if parent != question.task.id]
    yield _entity(_uid("Task", question.task.id), parents=parents)
    yield from (_entity(uid) for uid in parents)


def _places(question: Question, schemas: Iterable[str], tables: Iterable[_Object]) -> Iterable[Json]:
    env: Json = {"env": _environment(question.environment)}
    database = _uid("Database", question.resource)
    yield _entity(database, env)
    for name in schemas:
        yield _entity(_schema_uid(question, name), env | {"schema": name}, [database])
    for item in tables:
        attributes = env | {"schema": item.schema, "table": item.name}
        yield _entity(_table_uid(question, item), attributes, [_schema_uid(question, item.schema)])


def _context(question: Question, *, approved: bool) -> Json:
    task = question.task
    record: Json = {"id": _ref(_uid("Task", task.id)), "separation": int(task.principal.separation)}
    for name, fact in (("repository", task.repository), ("branch", task.branch), ("ticket", task.ticket)):
        if fact.value.strip():
            record[name] = _fact(fact)
    return {
        "now": {"__extn": {"fn": "datetime", "arg": rfc3339(question.now)}},
        "approved": approved,
        "ttl_s": question.lifetime,
        "task": record,
        "claimed": {name: question.claimed[name] for name in CLAIMED if question.claimed.get(name, "").strip()},
    }


def _fact(fact: Fact) -> Json:
    return {"value": fact.value, "provenance": int(fact.provenance)}


def _environment(environment: Environment) -> Json:
    return _ref(_uid("Environment", environment.value))


def _schema_uid(question: Question, schema: str) -> Json:
    return _uid("Schema", f"{question.resource}/{schema}")


def _table_uid(question: Question, item: _Object) -> Json:
    return _uid("Table", f"{question.resource}/{item.oid}")


def _uid(kind: str, name: str) -> Json:
    return {"type": f"Taskpass::{kind}", "id": name}


def _ref(uid: Json) -> Json:
    return {"__entity": uid}


def _entity(uid: Json, attributes: Json | None = None, parents: Iterable[Json] = ()) -> Json:
    return {"uid": uid, "attrs": attributes or {}, "parents": list(parents)}
