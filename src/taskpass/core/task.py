"""A task: one piece of work of one agent run, the unit that access is bound to and ends with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from taskpass.core.clock import Instant
from taskpass.core.ids import HumanId, RunId, TaskId
from taskpass.core.machine import Table
from taskpass.core.provenance import Fact
from taskpass.core.separation import Separation


class TaskState(StrEnum):
    OPEN = "open"
    COMPLETED = "completed"


class TaskEvent(StrEnum):
    COMPLETE = "complete"


TASK_TABLE: Table[TaskState, TaskEvent] = {
    TaskState.OPEN: {TaskEvent.COMPLETE: TaskState.COMPLETED},
    TaskState.COMPLETED: {},
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts, for whom, where.

    ``spiffe_id`` is the workload's own identity (``spiffe://<trust domain>/agent/<tool>/<instance>``); ``sponsor`` the
    human it works for; ``machine`` names the host. Limits, debt and deny history hold for a whole party
    (``core.budgets.same_party``), never for the instance, which an agent can choose anew. ``parents`` are the ids of
    the tasks this one was opened inside.
    """

    spiffe_id: str
    sponsor: HumanId
    machine: str
    tool: str
    separation: Separation
    run: RunId | None = None
    parents: tuple[TaskId, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "spiffe_id": self.spiffe_id,
            "sponsor": self.sponsor,
            "machine": self.machine,
            "tool": self.tool,
            "separation": self.separation.word,
            "run": self.run,
            "parents": list(self.parents),
        }


@dataclass(frozen=True, slots=True)
class Task:
    """``expires_at`` is the absolute end; ``run`` None means the unattached task of a sponsor and repository."""

    id: TaskId
    principal: Principal
    repository: Fact
    branch: Fact
    ticket: Fact
    state: TaskState
    opened_at: Instant
    expires_at: Instant
    ended_at: Instant | None = None
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """The part that digests cover: identity and job facts, no state."""
        return {
            "id": self.id,
            "principal": self.principal.to_json(),
            "repository": self.repository.to_json(),
            "branch": self.branch.to_json(),
            "ticket": self.ticket.to_json(),
        }
