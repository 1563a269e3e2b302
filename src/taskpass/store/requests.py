"""Access requests in the store. See ``store.base.Requests`` for the contract."""

from __future__ import annotations

import builtins
from typing import Any

from sqlalchemy import func, select

from taskpass.core.clock import Instant
from taskpass.core.ids import HumanId, RequestId, TaskId
from taskpass.core.request import REQUEST_TABLE, AccessRequest, RequestEvent, RequestState
from taskpass.store import codec, rows
from taskpass.store.session import Session
from taskpass.store.tables import requests, tasks

_DECIDING = frozenset({RequestEvent.APPROVE, RequestEvent.DENY})
_WAITING = (RequestState.PENDING.value, RequestState.APPROVED.value)


class SqlRequests:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, request: AccessRequest) -> None:
        rows.add(self._session, requests, codec.request_row(request))

    def get(self, request_id: RequestId) -> AccessRequest:
        return codec.request_of(rows.get(self._session, requests, request_id, "request"))

    def advance(
        self,
        request_id: RequestId,
        event: RequestEvent,
        at: Instant,
        *,
        comment: str = "",
        lapses_at: Instant | None = None,
    ) -> AccessRequest:
        changes: dict[str, Any] = {}
        if event in _DECIDING:
            changes["decided_at"] = at
        if comment:
            changes["comment"] = comment
        if lapses_at is not None:
            changes["lapses_at"] = lapses_at
        rows.advance(self._session, requests, request_id, REQUEST_TABLE, event, changes, "request")
        return self.get(request_id)

    def list(
        self, *, state: RequestState | None = None, task: TaskId | None = None, limit: int | None = None
    ) -> builtins.list[AccessRequest]:
        """Newest first."""
        wanted = select(requests).order_by(requests.c.created_at.desc(), requests.c.id.desc()).limit(limit)
        if state is not None:
            wanted = wanted.where(requests.c.state == state.value)
        if task is not None:
            wanted = wanted.where(requests.c.task == task)
        return [codec.request_of(row) for row in self._session.rows(wanted)]

    def lapsing(self, now: Instant) -> builtins.list[AccessRequest]:
        waiting = select(requests).where(requests.c.state.in_(_WAITING), requests.c.lapses_at <= now)
        return [codec.request_of(row) for row in self._session.rows(waiting.order_by(requests.c.lapses_at))]

    def count_pending(self, sponsor: HumanId) -> int:
        joined = select(func.count().label("n")).select_from(requests.join(tasks, requests.c.task == tasks.c.id))
        pending = joined.where(requests.c.state == RequestState.PENDING.value, tasks.c.sponsor == sponsor)
        row = self._session.first(pending)
        return int(row["n"]) if row else 0
