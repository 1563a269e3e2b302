"""The audit log in the store: appends are chained and signed in the unit of work that they belong to.

Not for: verifying (``taskpass.audit.verify``) and linking (``taskpass.audit.chain``).
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import bindparam, insert, select

from taskpass.audit.chain import extend
from taskpass.core.audit import GENESIS, Event, Record
from taskpass.core.clock import Instant
from taskpass.core.errors import Internal
from taskpass.keys.base import Signer
from taskpass.store.base import Installation
from taskpass.store.kept import Kept
from taskpass.store.session import Session
from taskpass.store.tables import audit, audit_subjects

_HEAD = Kept(select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1))
_INSERT = Kept(insert(audit))
_INSERT_SUBJECT = Kept(insert(audit_subjects))
_AFTER = select(audit).where(audit.c.seq > bindparam("after")).order_by(audit.c.seq).limit(bindparam("many"))
_ABOUT = (
    select(audit)
    .join(audit_subjects, audit.c.seq == audit_subjects.c.seq)
    .where(audit_subjects.c.subject == bindparam("about"))
    .order_by(audit.c.seq)
    .limit(bindparam("many"))
)
_LATEST = (
    select(audit)
    .join(audit_subjects, audit.c.seq == audit_subjects.c.seq)
    .where(audit_subjects.c.subject == bindparam("about"))
    .order_by(audit.c.seq.desc())
    .limit(1)
)


def _record(row: Mapping[str, Any]) -> Record:
    return Record(row["seq"], row["body"], row["prev"], row["hash"], row["signature"], row["key"])


class SqlAudit:
    def __init__(self, session: Session, installation: Callable[[], Installation], signer: Signer | None) -> None:
        self._session = session
        self._installation = installation
        self._signer = signer
        self.newest: Record | None = None
        """The last record appended in this unit of work."""

    def append(self, event: Event, at: Instant, *, above: int = 0, about: Iterable[str] = ()) -> Record:
        if self._signer is None:
            raise Internal("a reading unit of work was asked to write")
        # The write lock is held since the unit began, so nobody else can extend this head.
        head = (self.newest.seq, self.newest.hash) if self.newest else self.head()
        head = (max(head[0], above), head[1])
        record = extend(head, event, installation=self._installation(), at=at, signer=self._signer)
        row = {"seq": record.seq, "body": record.body, "prev": record.prev, "hash": record.hash}
        self._session.change(_INSERT, {**row, "signature": record.signature, "key": record.key})
        subjects = sorted({subject for subject in (*event.subject.values(), *about) if subject})
        if subjects:
            self._session.change(_INSERT_SUBJECT, [{"subject": name, "seq": record.seq} for name in subjects])
        self.newest = record
        return record

    def head(self) -> tuple[int, str]:
        row = self._session.first(_HEAD)
        return (row["seq"], row["hash"]) if row else (0, GENESIS)

    def records(self, *, after: int = 0, limit: int = 1000) -> builtins.list[Record]:
        return [_record(row) for row in self._session.rows(_AFTER, {"after": after, "many": limit})]

    def latest(self, subject_id: str) -> Record | None:
        row = self._session.first(_LATEST, {"about": subject_id})
        return None if row is None else _record(row)

    def about(self, subject_id: str, *, limit: int = 1000) -> builtins.list[Record]:
        return [_record(row) for row in self._session.rows(_ABOUT, {"about": subject_id, "many": limit})]
