"""One unit of work, and the store that hands them out. See ``store.base`` for the contract."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sqlalchemy import Connection, bindparam, select, update

from taskpass.audit.witness import Witness
from taskpass.core.audit import Record
from taskpass.core.clock import Instant
from taskpass.core.errors import Internal, StoreUnavailable, TaskpassError
from taskpass.core.ids import InstallationId
from taskpass.keys.base import Signer
from taskpass.store.aftermaths import SqlAftermaths, SqlScripts
from taskpass.store.approvals import SqlApprovals, SqlChallenges
from taskpass.store.audit import SqlAudit
from taskpass.store.base import Installation
from taskpass.store.database import Database, translated
from taskpass.store.grants import SqlGrants
from taskpass.store.kept import Kept
from taskpass.store.leases import SqlLeases
from taskpass.store.owners import SqlOwners
from taskpass.store.requests import SqlRequests
from taskpass.store.runs import SqlRuns
from taskpass.store.session import Session
from taskpass.store.tables import audit_keys, installation
from taskpass.store.tasks import SqlTasks
from taskpass.store.turn import Turn, is_reserved

_BATCH = 1000
RESERVED = 8
"""Connections of a bounded pool that only threads of the reserved lane take."""


_INSTALLATION = Kept(select(installation))
_SEE_TIME = Kept(
    update(installation).where(installation.c.latest_seen < bindparam("now")).values(latest_seen=bindparam("now"))
)


class SqlUnit:
    def __init__(self, session: Session, signer: Signer | None) -> None:
        self._session = session
        self._installation: Installation | None = None
        self._time: Instant | None = None
        self.runs = SqlRuns(session)
        self.tasks = SqlTasks(session)
        self.requests = SqlRequests(session)
        self.approvals = SqlApprovals(session)
        self.challenges = SqlChallenges(session)
        self.grants = SqlGrants(session)
        self.leases = SqlLeases(session)
        self.aftermaths = SqlAftermaths(session)
        self.scripts = SqlScripts(session)
        self.owners = SqlOwners(session)
        self.audit = SqlAudit(session, lambda: self.installation, signer)

    @property
    def installation(self) -> Installation:
        if self._installation is None:
            row = self._session.first(_INSTALLATION)
            if row is None:
                raise StoreUnavailable("the store was never set up", hint="run taskpass init", code="store_missing")
            self._installation = Installation(
                id=InstallationId(row["id"]),
                epoch=row["epoch"],
                demo=bool(row["demo"]),
                created_at=row["created_at"],
                latest_seen=row["latest_seen"],
            )
        return self._installation

    def see_time(self, now: Instant) -> Instant:
        """One unit of work happens at one time: the first call settles it."""
        if self._time is None:
            self._time = self._settle(now)
        return self._time

    def _settle(self, now: Instant) -> Instant:
        seen = self.installation.latest_seen
        if now <= seen:
            return seen
        self._session.change(_SEE_TIME, {"now": now})
        # The write lock is held since the unit began, so nobody else has changed the row.
        self._installation = replace(self.installation, latest_seen=now)
        return now

    def raise_epoch(self, above: int) -> Installation:
        """Set the epoch above both ``above`` and its present value: what adopting a restored store does."""
        self._session.change(update(installation).values(epoch=max(above, self.installation.epoch) + 1))
        self._installation = None
        return self.installation

    def audit_keys(self) -> dict[str, str]:
        """Key id to printable line of every key that ever signed here: for a self-check, no root of trust."""
        return {row["id"]: row["public"] for row in self._session.rows(select(audit_keys))}


class SqlStore:
    """A store in one database. ``signer`` None makes it a reader. ``witness`` is told the newest head after a commit.

    ``timeout`` in seconds is how long a unit of work waits for others in this process.
    """

    def __init__(self, database: Database, *, signer: Signer | None, witness: Witness | None, timeout: float) -> None:
        self.database = database
        self.witness = witness
        self._signer = signer
        self._timeout = timeout
        # Waiting here is fair and immediate; SQLite's own waiting polls with growing pauses, and PostgreSQL's needs a
        # connection for each who waits. Only an optimisation: other processes are kept out by the database.
        self._turn = Turn()
        most = database.connections
        self._unreserved = threading.BoundedSemaphore(max(1, most - RESERVED)) if most else None
        self._holder = 0
        self._witnessing = threading.Lock()
        self._witnessed = 0

    @contextmanager
    def write(self) -> Generator[SqlUnit]:
        if self._signer is None:
            raise StoreUnavailable(
                "the store was opened for reading only", hint="this command changes nothing", code="store_readonly"
            )
        if self._holder == threading.get_ident():
            raise Internal("a unit of work was opened inside another one")
        with self._borrow() as held:
            with self._in_turn(), self._unit(held, self._signer) as unit:
                yield unit
            # The turn is over: the next writer works while this one waits for the disk.
            with translated(self.database):
                self.database.settle(held.taken)
            held.usable = True
        if unit.audit.newest is not None:
            self._tell_witness(unit.audit.newest)

    @contextmanager
    def read(self) -> Generator[SqlUnit]:
        with self._borrow() as held:
            with self._unit(held, None) as unit:
                yield unit
            held.usable = True

    @contextmanager
    def _in_turn(self) -> Generator[None]:
        if not self._turn.acquire(self._timeout):
            raise StoreUnavailable("the store is busy", hint="try again", code="store_locked")
        try:
            self._holder = threading.get_ident()
            yield
        finally:
            self._holder = 0
            self._turn.release()

    @contextmanager
    def _borrow(self) -> Generator[_Held]:
        """A place for the connection of one unit of work, which goes back to the pool at the end of the block."""
        held = _Held()
        with self._connection_allowed():
            try:
                yield held
            finally:
                if held.connection is not None:
                    self._let_go(held.connection, usable=held.usable)

    @contextmanager
    def _connection_allowed(self) -> Generator[None]:
        """Agents' threads leave ``RESERVED`` connections to those that take back and to people."""
        if self._unreserved is None or is_reserved():
            yield
        elif self._unreserved.acquire(timeout=self._timeout):
            try:
                yield
            finally:
                self._unreserved.release()
        else:
            raise StoreUnavailable("the store is busy", hint="try again", code="store_locked")

    @contextmanager
    def _unit(self, held: _Held, signer: Signer | None) -> Generator[SqlUnit]:
        with translated(self.database):
            held.connection = connection = self.database.begin(writes=signer is not None)
        session = Session(connection, self.database, writable=signer is not None)
        usable = False
        try:
            try:
                yield SqlUnit(session, signer)
            except BaseException:
                usable = not session.spent
                raise
            if session.spent:
                raise Internal("a unit of work failed and was used on")
            session.close()
            with translated(self.database):
                self.database.commit(connection)
        except BaseException:
            # At once, while it is still this unit's turn: the transaction may hold the write lock.
            held.connection = None
            self._let_go(connection, usable=usable)
            raise
        finally:
            session.close()

    def _let_go(self, connection: Connection, *, usable: bool) -> None:
        """Give the connection back.

        After an error of the driver, above all in a commit, nobody knows whether the transaction is still open: such a
        connection is thrown away, and the database rolls back what it held.
        """
        try:
            with translated(self.database):
                if not usable:
                    connection.invalidate()
                connection.close()
        except TaskpassError:
            connection.invalidate()

    def _tell_witness(self, newest: Record) -> None:
        """Commits become durable in any order within a moment; the witness only ever goes forward."""
        with self._witnessing:
            if self.witness is not None and newest.seq > self._witnessed:
                self.witness.record(newest)
                self._witnessed = newest.seq

    def iterate_audit(self, *, after: int = 0) -> Iterator[Record]:
        batch = _BATCH
        while True:
            try:
                with self.read() as unit:
                    records = unit.audit.records(after=after, limit=batch)
            except StoreUnavailable as error:
                if error.code != "store_corrupt" or batch == 1:
                    raise
                batch = 1  # so that everything before the damaged record is still read
                continue
            yield from records
            if not records:
                return
            after = records[-1].seq

    def hash_at(self, seq: int) -> str | None:
        """The hash of one record, or None if there is none of that number."""
        with self.read() as unit:
            found = unit.audit.records(after=seq - 1, limit=1)
        return found[0].hash if found and found[0].seq == seq else None

    def listen(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` soon after another broker changed something; a help only, see ``Database.listen``."""
        self.database.listen(wake)

    def close(self) -> None:
        self.database.close()


@dataclass
class _Held:
    """``usable``: the connection can be used again."""

    connection: Connection | None = None
    usable: bool = False

    @property
    def taken(self) -> Connection:
        if self.connection is None:
            raise Internal("a unit of work has no connection")
        return self.connection
