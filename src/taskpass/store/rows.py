"""What every aggregate does with its table: insert, find by id, and advance its state in one compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Insert, Select, Table, Update, bindparam, insert, select, update

from taskpass.core import machine
from taskpass.core.errors import Conflict, InvalidInput, NotFound
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
def _insert(table: Table) -> Insert:
    return insert(table)


@cache
def _by_id(table: Table) -> Select[Any]:
    return select(table).where(table.c.id == bindparam("key"))


@cache
def _state_for_update(table: Table) -> Select[Any]:
    """FOR UPDATE is no word of SQLite, where the whole database is locked already; other engines lock the row."""
    return select(table.c.state).where(table.c.id == bindparam("key")).with_for_update()


def advance(
    session: Session,
    table: Table,
    key: str,
    rules: machine.Table[S, E],
    event: E,
    changes: Mapping[str, Any],
    what: str,
) -> tuple[S, S]:
    """Apply ``event`` by ``rules`` together with ``changes``; the state before and after.

    Raises ``NotFound``, ``IllegalTransition``, or ``Conflict`` if the row moved between reading and writing.
    """
    states = type(next(iter(rules)))
    row = session.first(_state_for_update(table), {"key": key})
    if row is None:
        raise NotFound(f"no such {what}")
    before = states(row["state"])
    after = machine.advance(rules, before, event)
    values = {f"new_{name}": value for name, value in changes.items()}
    values |= {"new_state": after.value, "old_id": key, "old_state": before.value}
    if session.change(_move(table, tuple(sorted(changes))), values) != 1:
        raise Conflict(f"the {what} changed meanwhile")
    return before, after


@cache
def _move(table: Table, fields: tuple[str, ...]) -> Update:
    """The compare-and-set that sets ``state`` and ``fields``. Kept,
    because building it takes longer than running it.
    """
    unmoved = update(table).where(table.c.id == bindparam("old_id"), table.c.state == bindparam("old_state"))
    return unmoved.values({name: bindparam(f"new_{name}") for name in ("state", *fields)})


def allowed(changes: Mapping[str, Any], fields: frozenset[str], what: str) -> None:
    """Raise ``InvalidInput`` for a field that may not be changed in this way."""
    if not changes.keys() <= fields:
        raise InvalidInput(f"a {what} does not let that field be changed")
