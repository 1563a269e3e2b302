"""Move a store to another database without losing a record: copy, compare, and leave the old one sealed.

The copy is one transaction in the new database: it is there whole or not at all. The old store is sealed before, so
that nothing can be written to it behind the copy's back, also by a broker that has it open; ``open_store`` refuses a
sealed one and says where it went.
Killed anywhere, the same move finishes it. Not for a store that a broker serves: the caller holds the broker's lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, text

from taskpass.core.audit import GENESIS, Event, Record, verify_chain
from taskpass.core.clock import Clock
from taskpass.core.errors import Conflict, StoreUnavailable
from taskpass.core.ids import InstallationId
from taskpass.store.database import Database, translated
from taskpass.store.open import VERSIONS, version_of
from taskpass.store.seal import sealed_for, seals
from taskpass.store.tables import audit, installation, metadata
from taskpass.store.unit import SqlStore

MOVED = "store.moved"
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Moved:
    """``rows`` by table; ``seq`` and ``head`` are the newest audit record that was copied."""

    place: str
    rows: dict[str, int]
    seq: int
    head: str

    def to_json(self) -> dict[str, object]:
        return {"place": self.place, "rows": dict(self.rows), "seq": self.seq, "head": self.head}


def move(old: Database, new: Database) -> Moved:
    """Copy everything from ``old`` to ``new`` and seal ``old``; idempotent.

    ``old`` has the newest schema. Raises ``Conflict`` with code store_moved if ``old`` was moved elsewhere, or
    store_exists if ``new`` holds another installation or another history, and ``StoreUnavailable``.
    """
    with new.opening(create=True):
        _demand_room(old, new)
        fresh = not _seal(old, new.place)
        with translated(old), old.begin(writes=True) as source:
            _waiting(source)
            try:
                moved = _copy(source, old, new)
            except BaseException:
                if fresh and _is_empty(new):
                    _unseal(source, old)
                raise
            source.rollback()
    return moved


def record(store: SqlStore, moved: Moved, came_from: str, actor: str, clock: Clock) -> None:
    """The move in the record of the new ``store``, once."""
    with store.write() as unit:
        about = unit.audit.about(unit.installation.id)
        if any(each.seq == moved.seq + 1 and f'"event":"{MOVED}"' in each.body for each in about):
            return
        what: dict[str, object] = {"from": came_from, "to": moved.place, "last": moved.seq, "rows": dict(moved.rows)}
        unit.audit.append(Event(MOVED, actor, {"store": unit.installation.id}, what), unit.see_time(clock.now()))


def _demand_room(old: Database, new: Database) -> None:
    """Before anything is sealed: a store of others at the new place is no reason to leave the old one."""
    with translated(new), new.begin(writes=False) as target:
        if version_of(target) is None:
            return
        with translated(old), old.begin(writes=False) as source:
            _demand_same(source, target, new.place)


def _seal(old: Database, place: str) -> bool:
    """Whether it was sealed for this place before."""
    with translated(old), old.begin(writes=True) as connection:
        went = sealed_for(connection)
        if went == place:
            return True
        if went:
            raise Conflict(f"this store was moved to {went}", hint="that is the one to use", code="store_moved")
        seals.create(connection)
        connection.execute(insert(seals), {"place": place})
        old.install_rules(connection, sealed=True)
        old.commit(connection)
        old.settle(connection)
    return False


def _unseal(connection: Connection, old: Database) -> None:
    """Nothing was copied, so the old store is the only one still."""
    seals.drop(connection)
    old.install_rules(connection)
    old.commit(connection)
    old.settle(connection)


def _is_empty(new: Database) -> bool:
    """False also if nobody can say: then the seal stays, and the same move can be tried again."""
    try:
        with translated(new), new.begin(writes=False) as connection:
            return version_of(connection) is None
    except (Conflict, StoreUnavailable):
        return False


def _copy(source: Connection, old: Database, new: Database) -> Moved:
    # Alembic is slow to import and rarely needed.
    from taskpass.store.migrations import upgrade

    with translated(new), new.begin(writes=True) as target:
        _waiting(target)
        if version_of(target) is not None:
            return _demand_same(source, target, new.place)
        upgrade(target, VERSIONS[-1])
        for table in metadata.sorted_tables:
            for rows in _batches(source, table):
                target.execute(insert(table), rows)
        moved = _compared(source, target, new.place)
        new.install_rules(target)
        new.commit(target)
        new.settle(target)
    return moved


def _waiting(connection: Connection) -> None:
    """While one side is read through the other waits, which a server would take for a broker that was paused."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def _batches(source: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    order = list(table.primary_key.columns)
    result = source.execute(select(table).order_by(*order), execution_options={"yield_per": _BATCH})
    for rows in result.mappings().partitions():
        yield [dict(row) for row in rows]


def _compared(source: Connection, target: Connection, place: str) -> Moved:
    """Raise unless every table has as many rows, and the chain is whole and ends with the same record."""
    rows = {table.name: _count(target, table) for table in metadata.sorted_tables}
    for table in metadata.sorted_tables:
        if _count(source, table) != rows[table.name]:
            raise StoreUnavailable(f"not every row of {table.name} arrived", hint="try again", code="store_corrupt")
    seq, head, fault = _walk(target)
    if fault or (seq, head) != _walk(source)[:2]:
        raise StoreUnavailable(
            "the audit record did not arrive whole", hint="taskpass store check", code="store_corrupt"
        )
    return Moved(place, rows, seq, head)


def _walk(connection: Connection) -> tuple[int, str, object]:
    records = (Record(row.seq, row.body, row.prev, row.hash, row.signature, row.key) for row in _audit(connection))
    owner = InstallationId(str(connection.execute(select(installation.c.id)).scalar()))
    return verify_chain(records, installation=owner, verify_signature=_unasked)


def _unasked(key: str, data: bytes, signature: str) -> bool:
    """Hashes show that nothing changed on the way; who signed it is the verifier's question."""
    return True


def _audit(connection: Connection) -> Iterator[Any]:
    yield from connection.execute(select(audit).order_by(audit.c.seq), execution_options={"yield_per": _BATCH})


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar() or 0)


def _demand_same(source: Connection, target: Connection, place: str) -> Moved:
    """What is there already must be this store, at this record or later: then the copy was made before."""
    seq, head = _head(source)
    same = select(installation.c.id)
    if source.execute(same).scalar() != target.execute(same).scalar():
        raise Conflict("another installation's store is there", hint="name an empty database", code="store_exists")
    if seq and target.execute(select(audit.c.hash).where(audit.c.seq == seq)).scalar() != head:
        raise Conflict("another history of this store is there", hint="name an empty database", code="store_exists")
    return Moved(place, {table.name: _count(target, table) for table in metadata.sorted_tables}, seq, head)


def _head(connection: Connection) -> tuple[int, str]:
    row = connection.execute(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).first()
    return (row.seq, row.hash) if row else (0, GENESIS)
