"""What every aggregate does with its table: insert, find by id, and advance its state in one compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import BindParameter, Column, Select, Table, bindparam, insert, select, update

from taskpass.core import machine
from taskpass.core.errors import Conflict, InvalidInput, NotFound
from taskpass.store.kept import Kept
from taskpass.store.session import Row, Session

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def add(session: Session, table: Table, row: Mapping[str, Any]) -> None:
    session.change(_insert(table), row)


def get(session: Session, table: Table, key: str, what: str) -> Row:
    """The row; raises ``NotFound``."""
    row = session.first(_by_id(table), {"key": key})
    if row is None:
        raise NotFound(f"no such {what}")
    return row


@cache
def _insert(table: Table) -> Kept:
    """The caller gives all columns, always the same."""
    return Kept(insert(table))


@cache
def _by_id(table: Table) -> Kept:
    return Kept(_select(table))


def _select(table: Table) -> Select[Any]:
    return select(table).where(table.c.id == bindparam("key"))


ALL = 2**62
"""More rows than there are: a limit that is none, in a statement that has a place for one."""


def newest_first(
    table: Table, age: Column[Any], filters: Mapping[str, object], limit: int | None
) -> tuple[Select[Any] | Kept, dict[str, Any]]:
    """A statement for the rows whose columns equal ``filters`` (None: any; a list: one of them), and its values."""
    values = {name: _single(value) for name, value in filters.items() if value is not None}
    shape = tuple(sorted((name, isinstance(value, list)) for name, value in values.items()))
    return _newest_first(table, age.name, shape), {**values, "many": ALL if limit is None else limit}


def _single(value: object) -> object:
    """A list of one is that one: the library writes a list into the statement anew each time."""
    if isinstance(value, list) and len(several := cast("list[object]", value)) == 1:
        return several[0]
    return cast(object, value)


@cache
def _newest_first(table: Table, age: str, shape: tuple[tuple[str, bool], ...]) -> Select[Any] | Kept:
    """Kept, because building a statement takes longer than running it."""
    wanted = select(table).order_by(table.c[age].desc(), table.c.id.desc()).limit(bindparam("many"))
    for name, several in shape:
        column: Column[Any] = table.c[name]
        value: BindParameter[Any] = bindparam(name, expanding=several)
        wanted = wanted.where(column.in_(value) if several else column == value)
    return wanted if any(several for _, several in shape) else Kept(wanted)


@cache
def _for_update(table: Table) -> Kept:
    """FOR UPDATE is no word of SQLite, where the whole database is locked already; other engines lock the row."""
    return Kept(_select(table).with_for_update())


def get_to_move(session: Session, table: Table, key: str, what: str) -> Row:
    """As ``get``, for ``advance`` in the same unit of work: nobody else changes the row until that is over."""
    row = session.first(_for_update(table), {"key": key})
    if row is None:
        raise NotFound(f"no such {what}")
    return row


def advance(
    session: Session,
    table: Table,
    key: str,
    before: S,
    rules: machine.Table[S, E],
    event: E,
    changes: Mapping[str, Any],
    what: str,
) -> S:
    """Apply ``event`` by ``rules`` to the row that is in ``before``, together with ``changes``; the state after.

    ``before`` comes from ``get_to_move``, or from a row that this unit of work added. Raises ``IllegalTransition``, or
    ``Conflict`` if the row moved all the same.
    """
    after = machine.advance(rules, before, event)
    values = {f"new_{name}": value for name, value in changes.items()}
    values |= {"new_state": after.value, "old_id": key, "old_state": before.value}
    if session.change(_move(table, tuple(sorted(changes))), values) != 1:
        raise Conflict(f"the {what} changed meanwhile")
    return after


def advance_many(
    session: Session,
    table: Table,
    keys: Sequence[str],
    rules: machine.Table[S, E],
    event: E,
    changes: Mapping[str, Mapping[str, Any]],
    what: str,
) -> list[str]:
    """``advance`` for all rows of ``keys`` that ``event`` is legal for; the keys of those that moved.

    ``changes`` names the same fields for every key.
    """
    states = type(next(iter(rules)))
    found = session.rows(_states(table), {"keys": list(keys)})
    before = {str(row["id"]): states(row["state"]) for row in found}
    moving = [key for key in keys if key in before and event in rules[before[key]]]
    if not moving:
        return []
    values = [
        {f"new_{name}": value for name, value in changes[key].items()}
        | {"new_state": rules[before[key]][event].value, "old_id": key, "old_state": before[key].value}
        for key in moving
    ]
    if session.change(_move(table, tuple(sorted(changes[moving[0]]))), values) != len(moving):
        raise Conflict(f"a {what} changed meanwhile")
    return moving


@cache
def _states(table: Table) -> Select[*tuple[Any, ...]]:
    chosen = table.c.id.in_(bindparam("keys", expanding=True))
    return select(table.c.id, table.c.state).where(chosen).with_for_update()


@cache
def _move(table: Table, fields: tuple[str, ...]) -> Kept:
    """The compare-and-set that sets ``state`` and ``fields``. Kept,
    because building it takes longer than running it.
    """
    unmoved = update(table).where(table.c.id == bindparam("old_id"), table.c.state == bindparam("old_state"))
    return Kept(unmoved.values({name: bindparam(f"new_{name}") for name in ("state", *fields)}))


def allowed(changes: Mapping[str, Any], fields: frozenset[str], what: str) -> None:
    """Raise ``InvalidInput`` for a field that may not be changed in this way."""
    if not changes.keys() <= fields:
        raise InvalidInput(f"a {what} does not let that field be changed")
