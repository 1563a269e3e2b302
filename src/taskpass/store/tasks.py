"""Tasks in the store. See ``store.base.Tasks`` for the contract."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select

from taskpass.core.clock import Instant
from taskpass.core.ids import HumanId, RunId, TaskId, first_id
from taskpass.core.task import TASK_TABLE, Task, TaskEvent, TaskState
from taskpass.store import codec, rows
from taskpass.store.session import Session
from taskpass.store.tables import tasks


class SqlTasks:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, task: Task) -> None:
        rows.add(self._session, tasks, codec.task_row(task))

    def get(self, task_id: TaskId) -> Task:
        return codec.task_of(rows.get(self._session, tasks, task_id, "task"))

    def advance(self, task_id: TaskId, event: TaskEvent, at: Instant, *, reason: str) -> Task:
        changes: dict[str, Any] = {"ended_at": at, "reason": reason}
        task = codec.task_of(rows.get_to_move(self._session, tasks, task_id, "task"))
        state = rows.advance(self._session, tasks, task_id, task.state, TASK_TABLE, event, changes, "task")
        return replace(task, state=state, ended_at=at, reason=reason)

    def list(
        self, *, state: TaskState | None = None, run: RunId | None = None, limit: int | None = None
    ) -> builtins.list[Task]:
        filters = {"state": state and state.value, "run": run}
        statement, values = rows.newest_first(tasks, tasks.c.opened_at, filters, limit)
        return [codec.task_of(row) for row in self._session.rows(statement, values)]

    def find_unattached(self, sponsor: HumanId, machine: str | None, repository: str) -> Task | None:
        there = () if machine is None else (tasks.c.machine == machine,)
        row = self._session.first(
            select(tasks).where(
                *there,
                tasks.c.state == TaskState.OPEN.value,
                tasks.c.run.is_(None),
                tasks.c.parents == "[]",
                tasks.c.sponsor == sponsor,
                tasks.c.repository == repository,
            )
        )
        return codec.task_of(row) if row else None

    def opened(self, sponsor: HumanId, machine: str, *, since: Instant) -> tuple[int, Instant | None]:
        # By id as well: ids sort by time and have an index.
        mine = (tasks.c.id >= first_id("tsk", since), tasks.c.sponsor == sponsor, tasks.c.machine == machine)
        counted = select(func.count().label("n"), func.min(tasks.c.opened_at).label("first"))
        row = self._session.first(counted.where(*mine, tasks.c.opened_at >= since))
        return (int(row["n"]), row["first"]) if row else (0, None)

    def sponsors(self) -> builtins.list[HumanId]:
        wanted = select(tasks.c.sponsor).where(tasks.c.state == TaskState.OPEN.value).distinct()
        return [HumanId(row["sponsor"]) for row in self._session.rows(wanted.order_by(tasks.c.sponsor))]

    def children(self, task_id: TaskId) -> builtins.list[Task]:
        wanted = (
            select(tasks)
            .where(
                tasks.c.state == TaskState.OPEN.value,
                tasks.c.parents != "[]",
                tasks.c.parents.contains(codec.dump(task_id), autoescape=True),
            )
            .order_by(tasks.c.id)
        )
        found = [codec.task_of(row) for row in self._session.rows(wanted)]
        # LIKE ignores case; the ids themselves decide.
        return [task for task in found if task_id in task.principal.parents]
