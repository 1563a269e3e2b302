"""Access requests in the store. See ``store.base.Requests`` for the contract."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, case, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Integer

from taskpass.core.budgets import RECORDS_OF_REQUEST, Used
from taskpass.core.clock import Instant
from taskpass.core.ids import HumanId, RequestId, TaskId, first_id
from taskpass.core.request import REQUEST_TABLE, AccessRequest, RequestEvent, RequestState
from taskpass.store import codec, rows
from taskpass.store.kept import Kept
from taskpass.store.session import Session
from taskpass.store.tables import requests, tasks

_DECIDING = frozenset({RequestEvent.APPROVE, RequestEvent.DENY})
_WAITING = (RequestState.PENDING.value, RequestState.APPROVED.value)


# Stored decisions are canonical JSON, where a quotation mark inside a text is escaped: nobody can imitate this.
_ASKS_PEOPLE = requests.c.decision.contains('"outcome":"needs_approval"', autoescape=True)


class octets(GenericFunction[int]):  # noqa: N801 - the name of a function in SQL.
    """Bytes of a text, which ``length`` counts in characters."""

    type = Integer()
    inherit_cache = True


@compiles(octets)
def _octets(element: octets, compiler: Any, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


@compiles(octets, "sqlite")
def _octets_of_sqlite(element: octets, compiler: Any, **options: Any) -> str:
    # Its own octet_length came with 3.43.
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


def _party() -> tuple[ColumnElement[bool], ...]:
    return tasks.c.sponsor == bindparam("sponsor"), tasks.c.machine == bindparam("machine")


def _used() -> Select[*tuple[Any, ...]]:
    texts = octets(requests.c.scope) + octets(requests.c.manifest) + octets(requests.c.decision)
    wanted = select(
        func.count().label("requests"),
        func.sum(case((_ASKS_PEOPLE, 1), else_=0)).label("prompts"),
        func.sum(octets(requests.c.reason)).label("text_bytes"),
        func.sum(texts + octets(requests.c.reason) + RECORDS_OF_REQUEST).label("record_bytes"),
        func.min(requests.c.created_at).label("oldest"),
    ).select_from(requests.join(tasks, requests.c.task == tasks.c.id))
    # By id as well: ids sort by time and have an index.
    return wanted.where(requests.c.id >= bindparam("first"), requests.c.created_at >= bindparam("since"), *_party())


_USED = Kept(_used())


class SqlRequests:
    def __init__(self, session: Session) -> None:
        self._session = session
        # Nobody else sees what this unit of work added, so these need not be read again.
        self._added: dict[RequestId, AccessRequest] = {}

    def add(self, request: AccessRequest) -> None:
        rows.add(self._session, requests, codec.request_row(request))
        self._added[request.id] = request

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
        request = self._added.get(request_id) or self._get_to_move(request_id)
        state = rows.advance(
            self._session, requests, request_id, request.state, REQUEST_TABLE, event, changes, "request"
        )
        moved = replace(request, state=state, **changes)
        if request_id in self._added:
            self._added[request_id] = moved
        return moved

    def _get_to_move(self, request_id: RequestId) -> AccessRequest:
        return codec.request_of(rows.get_to_move(self._session, requests, request_id, "request"))

    def list(
        self, *, state: RequestState | None = None, task: TaskId | None = None, limit: int | None = None
    ) -> builtins.list[AccessRequest]:
        """Newest first."""
        filters = {"state": state and state.value, "task": task}
        statement, values = rows.newest_first(requests, requests.c.created_at, filters, limit)
        return [codec.request_of(row) for row in self._session.rows(statement, values)]

    def lapsing(self, now: Instant) -> builtins.list[AccessRequest]:
        waiting = select(requests).where(requests.c.state.in_(_WAITING), requests.c.lapses_at <= now)
        return [codec.request_of(row) for row in self._session.rows(waiting.order_by(requests.c.lapses_at))]

    def used(self, sponsor: HumanId, machine: str, *, since: Instant) -> Used:
        values = {"sponsor": sponsor, "machine": machine, "since": since, "first": first_id("req", since)}
        row = self._session.first(_USED, values)
        if row is None or not row["requests"]:
            return Used()
        return Used(
            row["requests"], int(row["prompts"]), int(row["text_bytes"]), int(row["record_bytes"]), row["oldest"]
        )

    def find_same(self, task: TaskId, digest: str, *, since: Instant) -> AccessRequest | None:
        pending = requests.c.state == RequestState.PENDING.value
        denied = (requests.c.state == RequestState.DENIED.value) & (requests.c.created_at >= since)
        wanted = select(requests).where(requests.c.task == task, requests.c.digest == digest, pending | denied)
        row = self._session.first(wanted.order_by(requests.c.id.desc()).limit(1))
        return codec.request_of(row) if row else None

    def denied_by_people(
        self, sponsor: HumanId, machine: str, resource: str, *, since: Instant
    ) -> builtins.list[AccessRequest]:
        denied = select(requests).select_from(requests.join(tasks, requests.c.task == tasks.c.id))
        # A question is answered before it lapses, so this bound follows from the other one, and it has an index.
        late = (requests.c.state == RequestState.DENIED.value, requests.c.lapses_at >= since)
        mine = (requests.c.resource == resource, tasks.c.sponsor == sponsor, tasks.c.machine == machine)
        found = denied.where(*late, *mine, requests.c.decided_at >= since, _ASKS_PEOPLE)
        return [codec.request_of(row) for row in self._session.rows(found)]

    def count_pending(self, sponsor: HumanId) -> int:
        joined = select(func.count().label("n")).select_from(requests.join(tasks, requests.c.task == tasks.c.id))
        pending = joined.where(requests.c.state == RequestState.PENDING.value, tasks.c.sponsor == sponsor)
        row = self._session.first(pending)
        return int(row["n"]) if row else 0
