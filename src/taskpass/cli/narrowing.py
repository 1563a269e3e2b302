"""What a person leaves of a request, from the words they typed. Pure.

The only direction is down: a name that is not in the manifest is an error, so a typing mistake never leaves more than
was meant.
"""

from __future__ import annotations

from collections.abc import Iterable

from taskpass.core.errors import InvalidInput
from taskpass.core.manifest import Keep, Manifest, ObjectRights
from taskpass.core.scope import Verb


def keeps(
    manifest: Manifest,
    *,
    only: Iterable[str],
    drop: Iterable[str],
    drop_columns: Iterable[str],
    drop_verbs: Iterable[str] = (),
) -> list[Keep]:
    """The ``Keep`` of each object that stays.

    ``only`` and ``drop`` are ``schema.table``; ``drop_columns`` are ``schema.table.column``, and what is computed from
    such a column goes with it; ``drop_verbs`` are ``VERB`` or ``schema.table:VERB``. Names are exact. Raises
    ``InvalidInput`` for a name that the manifest does not have.
    """
    objects = {f"{item.schema}.{item.name}": item for item in manifest.objects}
    wanted = {_known(objects, name) for name in only} or set(objects)
    wanted -= {_known(objects, name) for name in drop}
    left = {name: {column.number for column in objects[name].columns} for name in objects if name in wanted}
    for name in drop_columns:
        table, number = _column(objects, name)
        left.get(table, set()).discard(number)
        _discard_computed(objects[table], left.get(table, set()), number)
    verbs = {name: set(item.verbs) for name, item in objects.items()}
    for text in drop_verbs:
        for name, verb in _verbs(objects, text):
            verbs[name].discard(verb)
    return [
        Keep(objects[name].oid, frozenset(numbers), frozenset(verbs[name]))
        for name, numbers in left.items()
        if numbers and Verb.SELECT in verbs[name]
    ]


def _discard_computed(item: ObjectRights, numbers: set[int], gone: int) -> None:
    # A computed column cannot be computed from another computed one, so one step is all.
    numbers -= {column.number for column in item.columns if gone in column.origins}


def _verbs(objects: dict[str, ObjectRights], text: str) -> list[tuple[str, Verb]]:
    table, _, word = text.rpartition(":")
    found = [
        (name, verb)
        for name, item in objects.items()
        for verb in item.verbs
        if verb.value == word and table in ("", name)
    ]
    if not found:
        raise InvalidInput("the request has no such verb there", hint="DELETE, or schema.table:DELETE, as shown")
    return found


def _known(objects: dict[str, ObjectRights], name: str) -> str:
    if name not in objects:
        raise InvalidInput("the request has no table of that name", hint="schema.table, exactly as shown")
    return name


def _column(objects: dict[str, ObjectRights], name: str) -> tuple[str, int]:
    for table, item in objects.items():
        for column in item.columns:
            if f"{table}.{column.name}" == name:
                return table, column.number
    raise InvalidInput("the request has no column of that name", hint="schema.table.column, exactly as shown")
