"""Statements that run again and again: the library writes their text once, and then they go straight to the driver.

What the library does around a statement takes several times as long as SQLite takes to run it, and an access is issued
in some thirty of them. Not for statements that are built per call, or that hold a list: the library keeps those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

from taskpass.core.errors import Internal

Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Kept:
    """A statement whose values have the same names at each run; only with types that drivers know by themselves."""

    __slots__ = ("_texts", "statement")

    def __init__(self, statement: ClauseElement) -> None:
        self.statement = statement
        self._texts: dict[str, _Text] = {}

    def run(self, connection: Connection, values: Values | None) -> tuple[int, list[dict[str, Any]]]:
        """How many rows there are or were changed, and those that come back. Raises what the driver raises."""
        text = self._texts.get(connection.dialect.name) or self._write(connection.dialect, values)
        cursor: Any = connection.connection.cursor()
        try:
            if values is None or isinstance(values, Mapping):
                cursor.execute(text.words, text.given(values or {}))
            else:
                cursor.executemany(text.words, [text.given(each) for each in values])
            names = [column[0] for column in cursor.description or ()]
            # Fetched to the end: SQLite finds a damaged page while it reads.
            return cursor.rowcount, [dict(zip(names, row, strict=True)) for row in cursor.fetchall()] if names else []
        finally:
            cursor.close()

    def _write(self, dialect: Dialect, values: Values | None) -> _Text:
        first: Mapping[str, Any] = values if isinstance(values, Mapping) else (values or ({},))[0]
        # Names of values are names of columns for an INSERT, and of nothing but places for everything else.
        written = self.statement.compile(dialect=dialect, column_keys=sorted(first) if self._inserts else None)
        if not isinstance(written, SQLCompiler) or written.literal_execute_params or written.post_compile_params:
            raise Internal("a statement with a list in it cannot be kept")
        positions = tuple(written.positiontup or ()) if written.positional else None
        known = {name: value for name, value in written.params.items() if name not in first}
        text = _Text(str(written), frozenset(first), known, positions)
        return self._texts.setdefault(dialect.name, text)

    @property
    def _inserts(self) -> bool:
        return bool(getattr(self.statement, "is_insert", False))


@dataclass(frozen=True, slots=True)
class _Text:
    """``names`` are those of the values, and ``known`` the values that the statement brings along itself; ``positions``
    is None for a driver that takes names.
    """

    words: str
    names: AbstractSet[str]
    known: Mapping[str, Any]
    positions: tuple[str, ...] | None

    def given(self, values: Mapping[str, Any]) -> Any:
        if values.keys() != self.names:
            raise Internal("a kept statement was given values of other names than before")
        all_values = {**self.known, **values} if self.known else values
        return all_values if self.positions is None else [all_values[name] for name in self.positions]
