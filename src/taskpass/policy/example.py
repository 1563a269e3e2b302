"""A question written down as fields, for table tests and `taskpass policy explain`. Never for a real request.

Whoever writes only what matters gets the rest from ``DEFAULTS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import TypeVar, cast

from taskpass.core.clock import SECOND, Instant, after
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import HumanId, TaskId
from taskpass.core.manifest import Column, Kind, Manifest, Migration, ObjectRights
from taskpass.core.provenance import Fact, Provenance
from taskpass.core.scope import VERBS_OF_LEVEL, Level, pattern
from taskpass.core.script import Script
from taskpass.core.separation import Environment, Separation
from taskpass.core.task import Principal, Task, TaskState
from taskpass.policy.base import Question
from taskpass.policy.words import nearest, one_line

DEFAULTS: Mapping[str, object] = {
    "environment": "dev",
    "resource": "orders",
    "level": "read",
    "lifetime": 900,
    "separation": "sandbox",
    "sponsor": "sponsor@example",
    "tool": "agent",
    "machine": "laptop",
    "repository": "acme/orders",
    "branch": "main",
    "ticket": "",
    "tables": ["public.orders"],
    "hands_on": False,
    "claimed": {},
    "now": "2026-01-05T10:00:00Z",
}
"""Every field of an example with the value it has when left out. A fact is a text, which counts as claimed, or
``{value: …, provenance: …}``; ``tables`` are plain names without patterns; ``hands_on`` is for level migrate."""

E = TypeVar("E", bound=Enum)


def question(fields: Mapping[str, object]) -> Question:
    """The question that ``fields`` describe; raises ``InvalidInput`` naming the field that is wrong."""
    for name in fields:
        if name not in DEFAULTS:
            raise InvalidInput(f"there is no field {one_line(str(name), 40)}{nearest(str(name), DEFAULTS)}")
    given = dict(DEFAULTS) | dict(fields)
    level = _choice(given, "level", {item.value: item for item in Level})
    now = _instant(given)
    principal = Principal(
        spiffe_id=f"spiffe://example/agent/{_text(given, 'tool')}/1",
        sponsor=HumanId(_text(given, "sponsor")),
        machine=_text(given, "machine"),
        tool=_text(given, "tool"),
        separation=_choice(given, "separation", {item.word: item for item in Separation}),
    )
    task = Task(
        id=TaskId("tsk_" + "0" * 26),
        principal=principal,
        repository=_fact(given, "repository"),
        branch=_fact(given, "branch"),
        ticket=_fact(given, "ticket"),
        state=TaskState.OPEN,
        opened_at=now,
        expires_at=after(now, 8 * 3600),
    )
    return Question(
        task=task,
        resource=_text(given, "resource"),
        environment=_choice(given, "environment", {item.value: item for item in Environment}),
        level=level,
        manifest=_manifest(given, level),
        lifetime=_lifetime(given),
        now=now,
        claimed=_claimed(given),
    )


def _text(given: Mapping[str, object], name: str) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text")
    return value


def _choice(given: Mapping[str, object], name: str, known: Mapping[str, E]) -> E:
    word = _text(given, name)
    if word not in known:
        raise InvalidInput(f"{name} has no value {one_line(word, 40)}{nearest(word, known)}")
    return known[word]


def _lifetime(given: Mapping[str, object]) -> int:
    value = given["lifetime"]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InvalidInput("lifetime must be a whole number of seconds")
    return value


def _instant(given: Mapping[str, object]) -> Instant:
    value = given["now"]
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidInput("now must be a time like 2026-01-05T10:00:00Z") from None
    if moment.tzinfo is None:
        raise InvalidInput("now needs a time zone, for example Z at its end")
    return Instant(int(moment.timestamp()) * SECOND)


def _fact(given: Mapping[str, object], name: str) -> Fact:
    value = given[name]
    if isinstance(value, str):
        return Fact(value, Provenance.CLAIMED)
    fields = cast("Mapping[str, object]", value if isinstance(value, Mapping) else {})
    if set(fields) != {"value", "provenance"}:
        raise InvalidInput(f"{name} must be text, or have the two fields value and provenance")
    try:
        return Fact(_text(fields, "value"), _choice(fields, "provenance", {item.word: item for item in Provenance}))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.message}") from None


def _claimed(given: Mapping[str, object]) -> Mapping[str, str]:
    value = given["claimed"]
    fields = cast("Mapping[object, object]", value) if isinstance(value, Mapping) else None
    if fields is None or not all(isinstance(item, str) for pair in fields.items() for item in pair):
        raise InvalidInput("claimed must map names to text")
    return {str(name): str(text) for name, text in fields.items()}


def _manifest(given: Mapping[str, object], level: Level) -> Manifest:
    if level is Level.MIGRATE:
        return Manifest("0", 1, "example", level, (), migration=Migration("owner", 1, _script(given)))
    names = _list(given["tables"])
    try:
        objects = [_object(number, pattern(name), level) for number, name in enumerate(names, start=1)]
    except InvalidInput as error:
        raise InvalidInput(f"tables: {error.message}", hint=error.hint) from None
    return Manifest("0", 1, "example", level, tuple(objects))


def _script(given: Mapping[str, object]) -> Script | None:
    if not isinstance(given["hands_on"], bool):
        raise InvalidInput("hands_on must be true or false")
    return None if given["hands_on"] else Script("sha256:" + "0" * 64, 1, True, ((1, "SELECT"),))


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise InvalidInput("tables must be a list of names like public.orders")
    return cast("list[object]", value)


def _object(number: int, name: str, level: Level) -> ObjectRights:
    schema, table = name.split(".", 1)
    columns = (Column(1, "id"),)
    return ObjectRights(number, Kind.TABLE, schema, table, "owner", columns, VERBS_OF_LEVEL[level])
