"""What a person leaves of a request, from the words they typed. Pure.

The only direction is down: a name that is not in the manifest is an error, so a typing mistake never leaves more than
was meant.
"""

from __future__ import annotations

from collections.abc import Iterable

from taskpass.core.errors import InvalidInput
from taskpass.core.manifest import Keep, Manifest, ObjectRights


def keeps(manifest: Manifest, *, only: Iterable[str], drop: Iterable[str], drop_columns: Iterable[str]) -> list[Keep]:
    """The ``Keep`` of each object that stays.

    ``only`` and ``drop`` are ``schema.table``; ``drop_columns`` are ``schema.table.column``. Names are exact. Raises
    ``InvalidInput`` for a name that the manifest does not have.
    """
    objects = {f"{item.schema}.{item.name}": item for item in manifest.objects}
    wanted = {_known(objects, name) for name in only} or set(objects)
    wanted -= {_known(objects, name) for name in drop}
    left = {name: {column.number for column in objects[name].columns} for name in objects if name in wanted}
    for name in drop_columns:
        table, number = _column(objects, name)
        left.get(table, set()).discard(number)
    return [
        Keep(objects[name].oid, frozenset(numbers), objects[name].verbs) for name, numbers in left.items() if numbers
    ]


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
