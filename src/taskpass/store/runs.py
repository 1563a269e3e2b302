"""Runs in the store. See ``store.base.Runs`` for the contract."""

from __future__ import annotations

import builtins

from sqlalchemy import select, update

from taskpass.core.clock import Instant
from taskpass.core.errors import Conflict
from taskpass.core.ids import RunId
from taskpass.store import codec, rows
from taskpass.store.base import Run
from taskpass.store.session import Session
from taskpass.store.tables import runs


class SqlRuns:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, run: Run) -> None:
        rows.add(self._session, runs, codec.run_row(run))

    def get(self, run_id: RunId) -> Run:
        return codec.run_of(rows.get(self._session, runs, run_id, "run"))

    def bind(self, run_id: RunId, *, namespace: str, separation: str) -> None:
        self.get(run_id)
        unbound = update(runs).where(runs.c.id == run_id, runs.c.namespace == "", runs.c.ended_at.is_(None))
        if self._session.change(unbound.values(namespace=namespace, separation=separation)) != 1:
            raise Conflict("that run is bound or over already")

    def end(self, run_id: RunId, at: Instant) -> None:
        self.get(run_id)
        self._session.change(update(runs).where(runs.c.id == run_id, runs.c.ended_at.is_(None)).values(ended_at=at))

    def unended(self) -> builtins.list[Run]:
        found = self._session.rows(select(runs).where(runs.c.ended_at.is_(None)).order_by(runs.c.id))
        return [codec.run_of(row) for row in found]
