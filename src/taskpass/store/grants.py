"""Grants in the store. See ``store.base.Grants`` for the contract."""

from __future__ import annotations

import builtins

from sqlalchemy import select

from taskpass.core.grant import Grant
from taskpass.core.ids import GrantId, RequestId, TaskId
from taskpass.store import codec, rows
from taskpass.store.session import Session
from taskpass.store.tables import grants


class SqlGrants:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, grant: Grant) -> None:
        rows.add(self._session, grants, codec.grant_row(grant))

    def get(self, grant_id: GrantId) -> Grant:
        return codec.grant_of(rows.get(self._session, grants, grant_id, "grant"))

    def of_request(self, request_id: RequestId) -> Grant | None:
        row = self._session.first(select(grants).where(grants.c.request == request_id))
        return codec.grant_of(row) if row else None

    def list(self, *, task: TaskId | None = None, limit: int | None = None) -> builtins.list[Grant]:
        """Newest first."""
        statement, values = rows.newest_first(grants, grants.c.created_at, {"task": task}, limit)
        return [codec.grant_of(row) for row in self._session.rows(statement, values)]
