"""What the store needs of the database that it lives in, whatever its kind. ``sqlite`` and ``postgres`` fulfil it.

Not for: tables and statements, which are the same for every kind.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from sqlalchemy import Connection, Engine

from taskpass.core.errors import TaskpassError


class Database(Protocol):
    """One database, with a pool of connections to it. Each connection is used by one thread at a time.

    Contract
        * One writer at a time, over all threads, processes and machines: from ``begin(writes=True)`` to the end of the
          transaction nobody else writes, so what a unit of work has read stays true until it commits.
        * ``commit`` makes the transaction visible to others; it may be lost in a crash of the database until
          ``settle`` returned, together with everything that was committed after it and with nothing before it.
        * A transaction with ``writes=False`` sees one state from its beginning to its end, and waits for no writer.
        * ``meaning`` knows every exception of ``errors``. The result says nothing of statements or values.
    """

    @property
    def kind(self) -> str:
        """``SQLite`` or ``PostgreSQL``."""
        ...

    @property
    def connections(self) -> int:
        """How many there are at a time; 0 if there is one for each who needs one."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people: never with a password."""
        ...

    @property
    def engine(self) -> Engine: ...
    @property
    def errors(self) -> tuple[type[Exception], ...]: ...
    def meaning(self, error: Exception) -> TaskpassError: ...
    def opening(self, *, create: bool) -> AbstractContextManager[None]:
        """Held while one process creates or migrates. ``create`` makes what the schema needs to be put into.

        Raises ``StoreUnavailable`` for a database that is absent, not ours to use, or that others could have changed.
        """
        ...

    def check(self, connection: Connection) -> None:
        """Find gross damage before anything is decided from this database; raises ``StoreUnavailable``."""
        ...

    def install_rules(self, connection: Connection, *, sealed: bool = False) -> None:
        """Make the database itself refuse what ``core`` refuses, inside the transaction of ``connection``.

        ``sealed``: it was moved elsewhere, and refuses every change of what is recorded (store_moved).
        """
        ...

    def begin(self, *, writes: bool) -> Connection:
        """A connection in a fresh transaction. The caller ends it, and closes or invalidates the connection."""
        ...

    def commit(self, connection: Connection) -> None: ...
    def settle(self, connection: Connection) -> None:
        """Return when what ``connection`` committed last survives a crash. Other writers may go on meanwhile."""
        ...

    def listen(self, wake: Callable[[], None]) -> None:
        """Call ``wake``, from a thread of its own and until ``close``, soon after others changed something.

        A help only: a change may go unannounced, so whoever waits polls as well.
        """
        ...

    def close(self) -> None: ...


@contextmanager
def translated(database: Database) -> Generator[None]:
    """Turn what the driver raises into errors of ours."""
    try:
        yield
    except database.errors as error:
        raise database.meaning(error) from None
