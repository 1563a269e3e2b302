"""Opens a store: creates it if asked, brings its schema up to date, and refuses one that is not ours to use.

Not for: deciding whether the store is the newest copy. The epoch in each target and the witness notice a restored one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, text

from taskpass.audit.witness import FILE_NAME, Witness
from taskpass.config.credentials import Credential
from taskpass.config.store import POSTGRES, address_of
from taskpass.core.clock import Clock, Entropy
from taskpass.core.errors import ConfigInvalid, Conflict, StoreUnavailable
from taskpass.core.ids import new_installation_id
from taskpass.keys.base import Signer
from taskpass.store import sqlite
from taskpass.store.database import Database, translated
from taskpass.store.seal import sealed_for
from taskpass.store.tables import audit, audit_keys, installation
from taskpass.store.unit import SqlStore

VERSIONS = ("0001", "0002_migrations", "0003_owners")
"""Schema versions that this code knows, oldest first; a test holds them to the migrations."""


WAIT_SECONDS = sqlite.BUSY_SECONDS


@dataclass(frozen=True, slots=True)
class Access:
    """How a PostgreSQL store is entered. ``authority`` is ``system``, the file of a certificate authority, or empty."""

    credential: Callable[[], Credential]
    authority: str = ""


@dataclass(frozen=True, slots=True)
class Create:
    """Wish to set up a new installation where there is none. ``demo`` cannot be changed later.

    ``unused`` demands that nothing was ever recorded there: another installation's store is not taken over.
    """

    demo: bool = False
    unused: bool = False


def open_store(
    url: str,
    *,
    clock: Clock,
    entropy: Entropy,
    audit_key: Signer,
    create: Create | None = None,
    access: Access | None = None,
    witness: Path | None = None,
    timeout: float = WAIT_SECONDS,
) -> SqlStore:
    """Open for reading and writing.

    ``create`` sets up an installation if there is none and is otherwise satisfied if the demo flag agrees (``Conflict``
    if not). ``access`` is how a PostgreSQL store is entered. ``witness`` is the file for the newest head; a SQLite
    store has it beside itself by default, another has none. ``timeout`` in seconds is how long a unit of work waits for
    others. Raises ``ConfigInvalid`` for the address and ``StoreUnavailable`` with one of the codes store_missing,
    store_unsafe, store_unfit, store_newer, store_locked, store_full, store_readonly, store_corrupt, store_down,
    store_login, store_connections.
    """
    database = database_of(url, access, timeout=timeout)
    if witness is None and isinstance(database, sqlite.SqliteDatabase):
        witness = database.path.parent / FILE_NAME
    seen = Witness(witness) if witness else None
    try:
        with database.opening(create=create is not None):
            bring_up(database, create)
            _set_up(database, clock, entropy, audit_key, create)
        store = SqlStore(database, signer=audit_key, witness=seen, timeout=timeout)
        if seen:
            seen.compare(store.hash_at)
    except BaseException:
        database.close()
        raise
    return store


def open_reader(url: str, *, access: Access | None = None, timeout: float = WAIT_SECONDS) -> SqlStore:
    """Open for reading only: no broker, no lock, no write access needed. Changes nothing, not even the schema."""
    database = database_of(url, access, timeout=timeout, reading=True)
    try:
        with translated(database), database.engine.connect() as connection:
            if version_of(connection) is None:
                raise _never_set_up()
    except BaseException:
        database.close()
        raise
    return SqlStore(database, signer=None, witness=None, timeout=timeout)


def database_of(url: str, access: Access | None, *, timeout: float, reading: bool = False) -> Database:
    """The database that ``url`` names, not opened yet. Raises ``ConfigInvalid``, and ``store_missing`` for no file."""
    if not url.startswith(POSTGRES):
        path = sqlite.path_of(url)
        if reading and not path.exists():
            raise StoreUnavailable("there is no store", hint="check its address", code="store_missing")
        return sqlite.SqliteDatabase(path, timeout=timeout, reading=reading)
    # The driver is slow to import, and a laptop has no use for it here.
    from taskpass.store.postgres import PostgresDatabase

    if access is None:
        raise ConfigInvalid("the store's login is missing", hint='store_login = { file = "…" } in [broker]')
    return PostgresDatabase(
        address_of(url), access.credential, authority=access.authority, timeout=timeout, reading=reading
    )


@contextmanager
def _writing(database: Database) -> Generator[Connection]:
    """One committed, durable transaction under the write lock."""
    with translated(database), database.begin(writes=True) as connection:
        yield connection
        database.commit(connection)
        database.settle(connection)


def bring_up(database: Database, create: Create | None = None, *, sealed_too: bool = False) -> None:
    """Migrate in one transaction under the write lock, so that a second process finds it done or undone.

    A store that was moved is refused, unless ``sealed_too``: to finish a move that was cut off.
    """
    with translated(database), database.engine.connect() as connection:
        database.check(connection)
    with _writing(database) as connection:
        place = sealed_for(connection)
        if place and not sealed_too:
            raise StoreUnavailable(
                f"this store was moved to {place}",
                hint="that is the one to use; a move that was cut off is finished by the same taskpass store move",
                code="store_moved",
            )
        version = version_of(connection)
        if version is None and create is None:
            raise _never_set_up()
        if version != VERSIONS[-1]:
            # Alembic is slow to import and rarely needed.
            from taskpass.store.migrations import upgrade

            upgrade(connection, VERSIONS[-1])
        database.install_rules(connection, sealed=bool(place))


def version_of(connection: Connection) -> str | None:
    """The schema's version, or None for an empty database. Raises ``store_newer`` for one that is not known."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found not in VERSIONS:
        raise StoreUnavailable(
            "the store was written by a newer version of Taskpass",
            hint="use that version; a store is not taken back to an older one",
            code="store_newer",
        )
    return str(found)


def schema_version(store: SqlStore) -> str:
    """The schema's version; "" if there is none."""
    with translated(store.database), store.database.engine.connect() as connection:
        return version_of(connection) or ""


def _never_set_up() -> StoreUnavailable:
    return StoreUnavailable("the store was never set up", hint="run taskpass init", code="store_missing")


def _set_up(database: Database, clock: Clock, entropy: Entropy, key: Signer, create: Create | None) -> None:
    with _writing(database) as connection:
        demo = connection.execute(select(installation.c.demo)).scalar()
        if demo is None and create is None:
            raise _never_set_up()
        if demo is not None and create is not None and bool(demo) != create.demo:
            raise Conflict("there is a store already, and only one of the two is a demo", code="store_exists")
        if create is not None and create.unused and connection.execute(select(audit.c.seq).limit(1)).first():
            raise Conflict(
                "there is another installation's store in that database",
                hint="use another database; a second broker is no new installation",
                code="store_exists",
            )
        if demo is None and create is not None:
            now = clock.now()
            identity = {"only": 1, "id": new_installation_id(entropy), "epoch": 1, "demo": create.demo}
            connection.execute(insert(installation), {**identity, "created_at": now, "latest_seen": now})
        known = select(audit_keys.c.id).where(audit_keys.c.id == key.key_id)
        if connection.execute(known).first() is None:
            connection.execute(insert(audit_keys), {"id": key.key_id, "public": key.public})
