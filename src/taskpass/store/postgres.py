"""Everything that is particular to PostgreSQL: how it is reached, how a transaction begins and ends, what errors mean.

One writer at a time, by an advisory lock that is taken when a unit of work begins, because limits (count, then add) and
notes (read, then set) rely on it. What is not done one after the other is waiting for the disk: a unit commits without
waiting, which lets the next writer in, and then waits until the log is on the disk up to its own commit. The server
does that for all who wait in one go. The log is sequential, so a crash loses the newest commits and no earlier one:
nobody who was told *recorded* loses a record, and the chain has no gap.

Not for: tables and statements, which are the same for every kind; rules, see ``postgres_rules``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import psycopg
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from taskpass.config.credentials import Credential
from taskpass.core.errors import ConfigInvalid, StoreUnavailable, TaskpassError
from taskpass.store import postgres_errors, postgres_rules
from taskpass.store.listen import Listener
from taskpass.store.patience import Patience
from taskpass.store.postgres_rules import SCHEMA
from taskpass.wire.postgres.address import Address

OLDEST = 15
WAIT_SECONDS = 5.0
CONNECT_SECONDS = 3
POOL = 24
"""Connections of one broker: readers, one writer, and those who wait for the disk."""

_WRITES = "taskpass_writes"
_WRITING_KEY = 0x7461736B70617373
_OPENING_KEY = _WRITING_KEY + 1
"""Advisory locks of one database: who writes, and who creates or migrates."""

_BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# READ COMMITTED, because a snapshot taken before the lock was had would be an old one.
_BEGIN_WRITING = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off;"
    f" SELECT pg_advisory_xact_lock({_WRITING_KEY})"
)
_COMMIT_WRITING = f"NOTIFY {SCHEMA}; COMMIT"
# Its own commit waits for the disk, up to a place in the log that is behind every commit made before it.
_SETTLE = "SELECT pg_logical_emit_message(true, 'taskpass', '')"

_SETTINGS = {
    "search_path": f"{SCHEMA},pg_temp",
    # Explicit, because a database or a role may have another default.
    "synchronous_commit": "on",
    "statement_timeout": "30s",
    # A broker that was paused in the middle of a unit of work must not keep the others from writing.
    "idle_in_transaction_session_timeout": "15s",
    "client_min_messages": "warning",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_ABOUT = f"""
SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'), pg_is_in_recovery(),
       to_regnamespace('{SCHEMA}') IS NOT NULL
"""
_WIDE = f"""
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_class c, aclexplode(c.relacl) a
   WHERE c.relnamespace = to_regnamespace('{SCHEMA}') AND a.grantee <> c.relowner AND a.privilege_type <> 'SELECT'
  UNION ALL
  SELECT FROM pg_catalog.pg_namespace n, aclexplode(n.nspacl) a
   WHERE n.nspname = '{SCHEMA}' AND a.grantee <> n.nspowner AND a.privilege_type <> 'USAGE')
"""  # noqa: S608 - a constant of ours


class PostgresDatabase:
    """The store in schema ``taskpass_store`` of the database at ``address``.

    ``credential`` is asked at each new connection, so that a changed password needs no restart. ``authority`` is
    ``system`` or the file of the certificate authority; only an address of this machine may go without. ``timeout`` in
    seconds is how long a transaction waits for others. ``reading`` never writes, also not the schema.
    """

    kind = "PostgreSQL"
    connections = POOL
    errors: tuple[type[Exception], ...] = (SQLAlchemyError, psycopg.Error)

    def __init__(
        self,
        address: Address,
        credential: Callable[[], Credential],
        *,
        authority: str = "",
        timeout: float = WAIT_SECONDS,
        reading: bool = False,
    ) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.place = f"postgresql://{host}:{address.port}/{address.database}"
        self._address, self._authority, self._credential = address, authority, credential
        self._connect = partial(_connect, address, credential, authority, timeout, reading)
        self._patience = Patience()
        self._listener: Listener | None = None
        self.engine = create_engine(
            "postgresql+psycopg://",
            creator=self._open,
            poolclass=QueuePool,
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=timeout,
            hide_parameters=True,
            use_native_hstore=False,
        )
        self._writing = self.engine.execution_options(**{_WRITES: True})
        event.listen(self.engine, "begin", _begin)
        self._patience.attach(self.engine)

    def _open(self) -> psycopg.Connection[Any]:
        if self._patience.resting():
            raise postgres_errors.unavailable("store_down")
        try:
            return self._patience.connecting(self._connect)
        except psycopg.OperationalError as error:
            # A server that hung is not asked once more.
            if error.sqlstate or self._patience.resting():
                raise
            code = postgres_errors.refused_login(self._address, self._authority, self._credential())
            raise postgres_errors.unavailable(code) from None

    def meaning(self, error: Exception) -> TaskpassError:
        return postgres_errors.meaning(error)

    @contextmanager
    def opening(self, *, create: bool) -> Generator[None]:
        """The server releases the lock when the connection ends, however it ends."""
        try:
            connection = self._open()
        except psycopg.Error as error:
            raise self.meaning(error) from None
        try:
            try:
                _demand_usable(connection, create=create)
            except psycopg.Error as error:
                raise self.meaning(error) from None
            with self._patience.suspended():
                yield
        finally:
            connection.close()

    def check(self, connection: Connection) -> None:
        """The server checks its own pages."""

    def install_rules(self, connection: Connection, *, sealed: bool = False) -> None:
        postgres_rules.install(connection, sealed=sealed)

    def begin(self, *, writes: bool) -> Connection:
        """A connection that died in the pool, as after a restart of the server, costs nobody a unit of work."""
        for _ in range(POOL):
            connection = (self._writing if writes else self.engine).connect()
            try:
                connection.begin()
            except BaseException as error:
                lost = isinstance(error, psycopg.OperationalError) and _driver(connection).closed
                connection.invalidate()
                connection.close()
                if not lost:
                    raise
            else:
                return connection
        raise postgres_errors.unavailable("store_down")

    def commit(self, connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITES):
            _say(connection, _COMMIT_WRITING)
        connection.commit()

    def settle(self, connection: Connection) -> None:
        _say(connection, _SETTLE)

    def listen(self, wake: Callable[[], None]) -> None:
        self._listener = Listener(self._open, SCHEMA, wake)
        self._listener.start()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.stop()
        self._patience.stop()
        self.engine.dispose()


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


def _say(connection: Connection, statements: str) -> None:
    """In one message, whatever their number; they are constants of this module."""
    _driver(connection).execute(statements.encode(), prepare=False)


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    _say(connection, _BEGIN_WRITING if writes else _BEGIN_READING)


def _demand_usable(connection: psycopg.Connection[Any], *, create: bool) -> None:
    """Raise unless the store can live there; with ``create``, make its schema."""
    version, encoding, standby, there = connection.execute(_ABOUT.encode()).fetchone() or (0, "", False, False)
    if version < OLDEST:
        raise StoreUnavailable(
            f"the store's server is PostgreSQL {version}", hint=f"use {OLDEST} or later", code="store_unfit"
        )
    if encoding != "UTF8":
        raise StoreUnavailable(
            f"the store's database has the encoding {encoding}, which cannot hold every text",
            hint="CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
            code="store_unfit",
        )
    if standby:
        raise StoreUnavailable(
            "the store's server is a standby",
            hint="name the primary; a standby cannot be written",
            code="store_readonly",
        )
    connection.execute("SELECT pg_advisory_lock(%s)", (_OPENING_KEY,))
    if not there and not create:
        raise StoreUnavailable("there is no store yet", hint="run taskpass init", code="store_missing")
    if not there:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}".encode())
    if (connection.execute(_WIDE.encode()).fetchone() or (True,))[0]:
        raise StoreUnavailable(
            "others than the store's owner may write in it",
            hint=f"REVOKE what they have on schema {SCHEMA} and its tables; SELECT may stay",
            code="store_unsafe",
        )


def _connect(
    address: Address, credential: Callable[[], Credential], authority: str, timeout: float, reading: bool
) -> psycopg.Connection[Any]:
    """Everything that libpq would otherwise take from the environment or from files of the user is given explicitly."""
    if not authority and not address.is_local:
        raise ConfigInvalid(
            "the store's server is on a network and broker.store_tls is missing",
            hint='store_tls = { ca = "system" }',
            code="tls_required",
        )
    login = credential()
    settings = _SETTINGS | {"lock_timeout": f"{max(1, int(timeout * 1000))}ms"}
    if reading:
        settings["default_transaction_read_only"] = "on"
    given: dict[str, Any] = {}
    if login.password is not None:
        given |= {"password": login.password.reveal(), "require_auth": "scram-sha-256"}
    if login.certificate:
        given |= {"sslcert": f"{login.certificate}.crt", "sslkey": f"{login.certificate}.key"}
    return psycopg.connect(
        host=address.host,
        port=address.port,
        dbname=address.database,
        user=login.user,
        application_name="taskpass store",
        options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        connect_timeout=CONNECT_SECONDS,
        client_encoding="utf8",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=5000,
        gssencmode="disable",
        passfile="/dev/null",
        sslmode="verify-full" if authority else "disable",
        sslrootcert=authority or None,
        autocommit=True,
        **given,
    )
