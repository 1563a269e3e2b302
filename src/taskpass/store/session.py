"""Statements inside one unit of work: runs them, translates errors, and lets a unit that failed do nothing more.

SQLite rolls a whole transaction back on some errors (full disk) and then runs the next statement outside any; other
engines refuse everything after an error. So after the first error of the driver a unit is spent on every engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Executable

from taskpass.core.errors import Internal, InvalidInput
from taskpass.store.database import Database
from taskpass.store.kept import Kept, Values

Row = Mapping[str, Any]


class Session:
    """Not for other threads than the one that opened the unit of work."""

    __slots__ = ("_connection", "_database", "_spent", "_writable")

    def __init__(self, connection: Connection, database: Database, *, writable: bool) -> None:
        self._connection = connection
        self._database = database
        self._writable = writable
        self._spent = False

    @property
    def dialect(self) -> str:
        """The kind of database, as SQLAlchemy names it."""
        return self._connection.dialect.name

    @property
    def spent(self) -> bool:
        return self._spent

    def close(self) -> None:
        """After this the unit of work is over and its methods raise."""
        self._spent = True

    def rows(self, statement: Executable | Kept, values: Values | None = None) -> Sequence[Row]:
        return self._run(statement, values)[1]

    def first(self, statement: Executable | Kept, values: Values | None = None) -> Row | None:
        found = self._run(statement, values)[1]
        return found[0] if found else None

    def change(self, statement: Executable | Kept, values: Values | None = None) -> int:
        """Run a writing statement; the number of rows it changed."""
        if not self._writable:
            raise Internal("a reading unit of work was asked to write")
        return self._run(statement, values)[0]

    def _run(self, statement: Executable | Kept, values: Values | None) -> tuple[int, Sequence[Row]]:
        """How many rows there are or were changed, and those that come back."""
        if self._spent:
            raise Internal("a unit of work was used after it ended or failed")
        try:
            if isinstance(statement, Kept):
                return statement.run(self._connection, values)
            return _through_the_library(self._connection, statement, values)
        except self._database.errors as error:
            self._spent = True
            raise self._database.meaning(error) from None
        except (UnicodeEncodeError, OverflowError):
            self._spent = True
            raise InvalidInput("a value cannot be stored") from None


def _through_the_library(
    connection: Connection, statement: Executable, values: Values | None
) -> tuple[int, Sequence[Row]]:
    result = cast("CursorResult[Any]", connection.execute(statement, values))
    # Rows are fetched here too: SQLite finds a damaged page while it reads.
    return result.rowcount, cast("Sequence[Row]", result.mappings().all()) if result.returns_rows else []
