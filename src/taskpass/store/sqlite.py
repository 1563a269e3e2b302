"""Everything that is particular to SQLite: the file, its pragmas, how a transaction begins, and what its errors mean.

Not for: tables and statements, which are the same for every engine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from taskpass.core.errors import ConfigInvalid, Conflict, IllegalTransition, Internal, StoreUnavailable, TaskpassError
from taskpass.store import rules, triggers
from taskpass.store.seal import moved

BUSY_SECONDS = 5.0
QUICK_CHECK_BYTES = 16 * 2**20
"""Above this size the check at open is left out: it reads the whole file."""

_PRAGMAS = (
    # In WAL mode FULL is what makes a commit survive a power cut; NORMAL could lose the last ones.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA recursive_triggers = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA journal_size_limit = 4194304",
)


def path_of(url: str) -> Path:
    """The absolute path that a ``sqlite:////…`` address names; raises ``ConfigInvalid`` for anything else."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigInvalid("the store's address is not valid", hint='write "sqlite:////absolute/path"') from None
    if parsed.get_backend_name() != "sqlite":
        raise ConfigInvalid("this version stores in SQLite only", hint='write "sqlite:////absolute/path"')
    if not parsed.database or not parsed.database.startswith("/") or parsed.query:
        raise ConfigInvalid(
            "the store's address must be an absolute path and nothing else", hint='"sqlite:////…" with four slashes'
        )
    return Path(parsed.database)


def prepare(path: Path, *, create: bool) -> None:
    """Make the file (0600, in a directory 0700) if ``create``, and refuse one that others could have changed.

    Raises ``StoreUnavailable`` with code ``store_missing`` or ``store_unsafe``.
    """
    try:
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        _check(path.parent, stat.S_ISDIR, "the store's directory")
        _check(path, stat.S_ISREG, "the store")
    except FileNotFoundError:
        raise StoreUnavailable("there is no store yet", hint="run taskpass init", code="store_missing") from None
    except OSError as error:
        raise StoreUnavailable(
            f"the store's file cannot be used: {error.strerror}", hint="check its owner, mode and disk"
        ) from None


def _check(path: Path, kind: Callable[[int], bool], what: str) -> None:
    found = path.lstat()
    if not kind(found.st_mode):
        raise StoreUnavailable(f"{what} is of the wrong kind (a link?)", code="store_unsafe")
    if found.st_uid != os.geteuid():
        raise StoreUnavailable(f"{what} belongs to another user", hint="chown it to the broker", code="store_unsafe")
    if found.st_mode & 0o022:
        raise StoreUnavailable(f"{what} is writable by others", hint="chmod go-w it", code="store_unsafe")


class SqliteDatabase:
    """The file at ``path``. ``timeout`` in seconds is how long a transaction waits for others.

    ``reading`` never writes, also not the schema or a file beside the store, and works for a user who may not.
    """

    kind = "SQLite"
    connections = 0
    errors: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error)

    def __init__(self, path: Path, *, timeout: float = BUSY_SECONDS, reading: bool = False) -> None:
        self.path = path
        self.place = str(path)
        self._timeout = timeout
        self.engine = _engine(partial(_open_reading if reading else _open_writing, path, timeout))

    def meaning(self, error: Exception) -> TaskpassError:
        return translate(error)

    @contextmanager
    def opening(self, *, create: bool) -> Generator[None]:
        """The kernel releases the lock (a file beside the store) on a crash."""
        prepare(self.path, create=create)
        try:
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            readonly = "store_readonly" if isinstance(error, PermissionError) or error.errno == errno.EROFS else None
            raise StoreUnavailable(f"the store cannot be locked: {error.strerror}", code=readonly) from None
        try:
            _flock(lock, time.monotonic() + self._timeout)
            yield
        finally:
            os.close(lock)

    def check(self, connection: Connection) -> None:
        if self.path.stat().st_size <= QUICK_CHECK_BYTES:
            answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if answer != "ok":
                raise _unavailable("store_corrupt")

    def install_rules(self, connection: Connection, *, sealed: bool = False) -> None:
        triggers.install(connection, sealed=sealed)

    def begin(self, *, writes: bool) -> Connection:
        connection = self.engine.connect()
        try:
            connection.begin()
            # Said to the driver and not by an event of the library, which would slow every statement down.
            driver = cast(sqlite3.Connection, connection.connection.driver_connection)
            driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        except BaseException:
            connection.close()
            raise
        return connection

    def commit(self, connection: Connection) -> None:
        connection.commit()

    def settle(self, connection: Connection) -> None:
        """A commit in WAL mode with ``synchronous = FULL`` is durable when it returns."""

    def listen(self, wake: Callable[[], None]) -> None:
        """SQLite announces nothing; its one broker tells its own threads."""

    def close(self) -> None:
        self.engine.dispose()


def _flock(lock: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _unavailable("store_locked") from None
            time.sleep(0.005)


def _open_writing(path: Path, timeout: float) -> sqlite3.Connection:
    made = _connect(path, "mode=rw", timeout)
    try:
        if made.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StoreUnavailable("the store's file system cannot hold it", hint="use a local disk")
        for pragma in _PRAGMAS:
            made.execute(pragma)
    except BaseException:
        made.close()
        raise
    return made


def _open_reading(path: Path, timeout: float) -> sqlite3.Connection:
    made = _connect(path, "mode=ro", timeout)
    try:
        made.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        made.close()
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        # Without a -wal file nothing is outside the main file, and SQLite need not create one to read it.
        made = _connect(path, "mode=ro&immutable=1", timeout)
    made.execute("PRAGMA query_only = ON")
    return made


def _connect(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?{mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,  # the driver begins nothing by itself; ``SqliteDatabase.begin`` does
        check_same_thread=False,
    )


def _engine(connect: Callable[[], sqlite3.Connection]) -> Engine:
    return create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=8, max_overflow=-1, hide_parameters=True
    )


_MEANING: dict[str, tuple[str, str]] = {
    "store_locked": (
        "the store is locked by another process",
        "another broker or command is writing for long; find it with fuser on the store",
    ),
    "store_full": ("the disk that holds the store is full", "free space; revoking uses the reserve meanwhile"),
    "store_readonly": ("the store cannot be written", "check the file's mode and that the disk is mounted writable"),
    "store_corrupt": ("the store is damaged", "stop the broker and restore a backup; it takes back and issues nothing"),
    "store_unavailable": ("the store cannot be used", "check the file, its directory and its disk"),
}

_PRIMARY = {
    sqlite3.SQLITE_BUSY: "store_locked",
    sqlite3.SQLITE_LOCKED: "store_locked",
    sqlite3.SQLITE_PROTOCOL: "store_locked",
    sqlite3.SQLITE_FULL: "store_full",
    sqlite3.SQLITE_READONLY: "store_readonly",
    sqlite3.SQLITE_CORRUPT: "store_corrupt",
    sqlite3.SQLITE_NOTADB: "store_corrupt",
}


def _unavailable(code: str) -> StoreUnavailable:
    message, hint = _MEANING[code]
    return StoreUnavailable(message, hint=hint, code=code)


def translate(error: Exception) -> TaskpassError:
    """What an error of the driver or of SQLAlchemy means. The result says nothing of statements or values."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    if not isinstance(code, int):
        # The driver has no code for a text that is not UTF-8; nothing of ours writes such a text.
        undecodable = isinstance(cause, sqlite3.Error) and "decode" in str(cause).lower()
        return _unavailable("store_corrupt" if undecodable else "store_unavailable")
    if code & 0xFF == sqlite3.SQLITE_CONSTRAINT:
        return _constraint(code, str(cause))
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return _unavailable("store_full")
    return _unavailable(_PRIMARY.get(code & 0xFF, "store_unavailable"))


def _constraint(code: int, message: str) -> TaskpassError:
    if message == rules.ILLEGAL:
        return IllegalTransition("the record is not in a state that allows this")
    if message == rules.SEALED:
        return moved()
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        return Conflict(message.removeprefix(rules.MARK))
    if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
        return Conflict("there is such a record already")
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return Conflict("a record that this one refers to does not exist")
    return Internal("a record is not complete")
