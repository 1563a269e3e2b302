"""What migrations left, and the files they ran, in the store. See ``store.base`` for the contracts."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any

from sqlalchemy import bindparam, or_, select, update

from taskpass.core.aftermath import AFTERMATH_TABLE, BLOCKING, Aftermath, AftermathEvent, AftermathState
from taskpass.core.errors import IllegalTransition, NotFound
from taskpass.core.ids import LeaseId, TaskId
from taskpass.store import codec, rows
from taskpass.store.kept import Kept
from taskpass.store.session import Session
from taskpass.store.tables import aftermaths, scripts

_NOTES = frozenset({"ran", "error", "looked_at"})
_CHANGES = _NOTES | {"widening", "decided_at", "decided_by", "comment"}


_BLOCKING = Kept(
    select(aftermaths)
    .where(
        or_(*(aftermaths.c.state == state for state in sorted(state.value for state in BLOCKING))),
        aftermaths.c.cluster == bindparam("cluster"),
        aftermaths.c.database == bindparam("database"),
    )
    .order_by(aftermaths.c.id)
)


class SqlAftermaths:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, aftermath: Aftermath) -> None:
        if aftermath.state is not AftermathState.OPEN:
            raise IllegalTransition("an aftermath begins as open")
        rows.add(self._session, aftermaths, codec.aftermath_row(aftermath))

    def get(self, lease_id: LeaseId) -> Aftermath:
        return codec.aftermath_of(rows.get(self._session, aftermaths, lease_id, "migration"))

    def advance(self, lease_id: LeaseId, event: AftermathEvent, **changes: Any) -> Aftermath:
        rows.allowed(changes, _CHANGES, "migration")
        values = codec.aftermath_changes(changes)
        # Nobody compares with it any more, and it is the largest thing in the row.
        values["before"] = "[]"
        before = codec.aftermath_of(rows.get_to_move(self._session, aftermaths, lease_id, "migration")).state
        rows.advance(self._session, aftermaths, lease_id, before, AFTERMATH_TABLE, event, values, "migration")
        return self.get(lease_id)

    def note(self, lease_id: LeaseId, **changes: Any) -> Aftermath:
        rows.allowed(changes, _NOTES, "migration")
        values = codec.aftermath_changes(changes)
        if self._session.change(update(aftermaths).where(aftermaths.c.id == lease_id).values(**values)) != 1:
            raise NotFound("no such migration")
        return self.get(lease_id)

    def list(
        self, *, states: Iterable[AftermathState] | None = None, task: TaskId | None = None, limit: int | None = None
    ) -> builtins.list[Aftermath]:
        wanted = select(aftermaths).order_by(aftermaths.c.opened_at.desc(), aftermaths.c.id.desc()).limit(limit)
        if states is not None:
            wanted = wanted.where(aftermaths.c.state.in_([state.value for state in states]))
        if task is not None:
            wanted = wanted.where(aftermaths.c.task == task)
        return [codec.aftermath_of(row) for row in self._session.rows(wanted)]

    def blocking(self, cluster: str, database: int) -> builtins.list[Aftermath]:
        found = self._session.rows(_BLOCKING, {"cluster": cluster, "database": database})
        return [codec.aftermath_of(row) for row in found]


class SqlScripts:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, digest: str, text: str) -> None:
        if self._session.first(select(scripts.c.id).where(scripts.c.id == digest)) is None:
            rows.add(self._session, scripts, {"id": digest, "text": text})

    def get(self, digest: str) -> str:
        return str(rows.get(self._session, scripts, digest, "file")["text"])
