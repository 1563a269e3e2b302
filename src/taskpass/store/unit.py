"""One unit of work, and the store that hands them out. See ``store.base`` for the contract."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection, Engine, bindparam, select, update

from taskpass.audit.witness import Witness
from taskpass.core.audit import Record
from taskpass.core.clock import Instant
from taskpass.core.errors import Internal, StoreUnavailable, TaskpassError
from taskpass.core.ids import InstallationId
from taskpass.keys.base import Signer
from taskpass.store import sqlite
from taskpass.store.approvals import SqlApprovals, SqlChallenges
from taskpass.store.audit import SqlAudit
from taskpass.store.base import Installation
from taskpass.store.grants import SqlGrants
from taskpass.store.leases import SqlLeases
from taskpass.store.requests import SqlRequests
from taskpass.store.runs import SqlRuns
from taskpass.store.session import Session
from taskpass.store.tables import audit_keys, installation
from taskpass.store.tasks import SqlTasks

_BATCH = 1000


_INSTALLATION = select(installation)
_SEE_TIME = (
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
    """A store on one engine. ``signer`` None makes it a reader. ``witness`` is told the newest head after a commit."""

    def __init__(
        self,
        engine: Engine,
        *,
        path: Path,
        signer: Signer | None,
        witness: Witness | None,
        timeout: float,
    ) -> None:
        self.path = path
        self.witness = witness
        self._engine = engine
        self._writing = engine.execution_options(**{sqlite.WRITES: True})
        self._signer = signer
        self._timeout = timeout
        # Waiting here is fair and immediate; SQLite's own waiting polls with growing pauses. Only an optimisation:
        # other processes are kept out by the database.
        self._turn = threading.Lock()
        self._holder = 0

    @contextmanager
    def write(self) -> Generator[SqlUnit]:
        if self._signer is None:
            raise StoreUnavailable(
                "the store was opened for reading only", hint="this command changes nothing", code="store_readonly"
            )
        if self._holder == threading.get_ident():
            raise Internal("a unit of work was opened inside another one")
        if not self._turn.acquire(timeout=self._timeout):
            raise StoreUnavailable("the store is busy", hint="try again", code="store_locked")
        try:
            self._holder = threading.get_ident()
            with self._unit(self._writing, self._signer) as unit:
                yield unit
            if unit.audit.newest is not None and self.witness is not None:
                self.witness.record(unit.audit.newest)
        finally:
            self._holder = 0
            self._turn.release()

    @contextmanager
    def read(self) -> Generator[SqlUnit]:
        with self._unit(self._engine, None) as unit:
            yield unit

    @contextmanager
    def _unit(self, engine: Engine, signer: Signer | None) -> Generator[SqlUnit]:
        with sqlite.translated():
            connection = engine.connect()
        session = Session(connection, writable=signer is not None)
        sound = False
        try:
            with sqlite.translated():
                connection.begin()
            try:
                yield SqlUnit(session, signer)
            except BaseException:
                sound = not session.spent
                raise
            if session.spent:
                raise Internal("a unit of work failed and was used on")
            session.close()
            with sqlite.translated():
                connection.commit()
            sound = True
        finally:
            session.close()
            _let_go(connection, sound=sound)

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

    def close(self) -> None:
        self._engine.dispose()


def _let_go(connection: Connection, *, sound: bool) -> None:
    """Roll back what was not committed and give the connection back.

    After an error of the driver, above all in a commit, nobody knows whether the transaction is still open: such a
    connection is thrown away, and SQLite rolls back what it held.
    """
    try:
        with sqlite.translated():
            if not sound:
                connection.invalidate()
            connection.close()
    except TaskpassError:
        connection.invalidate()
