"""How every aggregate changes state: one table, one function, no other way.

A table maps state -> event -> next state. A terminal state is listed with an empty row. An absent pair raises: an
assertion would vanish under ``python -O``. Reasons are fields of the record, never states.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from taskpass.core.errors import IllegalTransition

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)

Table = Mapping[S, Mapping[E, S]]


def advance(table: Mapping[S, Mapping[E, S]], state: S, event: E) -> S:
    """The state after ``event``; raises ``IllegalTransition`` for a pair that the table does not have."""
    row = table.get(state, {})
    if event not in row:
        raise IllegalTransition(f"a {type(state).__name__} that is {state} cannot {event}")
    return row[event]


def pairs(table: Mapping[S, Mapping[E, S]]) -> frozenset[tuple[str, str]]:
    """All (from, to) pairs, so that the store can enforce the same table."""
    return frozenset((str(state), str(target)) for state, row in table.items() for target in row.values())


def terminal(table: Mapping[S, Mapping[E, S]]) -> frozenset[S]:
    """The states that nothing leaves."""
    return frozenset(state for state, row in table.items() if not row)
