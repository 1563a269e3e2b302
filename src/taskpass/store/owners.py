"""Which broker serves what, with fencing tokens, and which brokers live. See ``store.base.Owners`` for the contract.

No SKIP LOCKED: one unit of work writes at a time, so what is owned never changes between reading and writing it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Executable, insert, literal_column, select, update

from taskpass.store.base import Owner
from taskpass.store.session import Session
from taskpass.store.tables import brokers, owners

_CLOCK = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
}
_CHUNK = 500


class SqlOwners:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._now: ColumnElement[int] = literal_column(_CLOCK[session.dialect])

    def beat(self, broker: str, machine: str) -> None:
        values = {"machine": machine, "seen_at": self._now}
        if self._session.change(update(brokers).where(brokers.c.id == broker).values(**values)) == 0:
            self._session.change(insert(brokers).values(id=broker, **values))

    def end(self, broker: str) -> None:
        self._session.change(update(brokers).where(brokers.c.id == broker).values(seen_at=0))

    def alive(self, seconds: int) -> frozenset[str]:
        return frozenset(self.machines(seconds))

    def machines(self, seconds: int) -> dict[str, str]:
        wanted = select(brokers.c.id, brokers.c.machine).where(brokers.c.seen_at > self._now - seconds * 1000)
        return {row["id"]: row["machine"] for row in self._session.rows(wanted.order_by(brokers.c.id))}

    def give(self, subject: str, broker: str) -> int:
        moved = update(owners).where(owners.c.subject == subject)
        if self._session.change(moved.values(broker=broker, token=owners.c.token + 1)) == 0:
            self._session.change(insert(owners).values(subject=subject, broker=broker, token=1))
        found = self.of([subject])[subject]
        return found.token

    def of(self, subjects: Iterable[str]) -> dict[str, Owner]:
        wanted, found = list(subjects), dict[str, Owner]()
        for start in range(0, len(wanted), _CHUNK):
            for row in self._session.rows(_of(wanted[start : start + _CHUNK])):
                found[row["subject"]] = Owner(row["broker"], row["token"])
        return found


def _of(subjects: list[str]) -> Executable:
    return select(owners.c.subject, owners.c.broker, owners.c.token).where(owners.c.subject.in_(subjects))
