"""What became of a database after a migration: looked at and clean, wider than before, accepted, or undone.

One for each migrate lease, recorded before the lease can log in. Anything but a good end blocks new leases there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from taskpass.core.clock import Instant
from taskpass.core.ids import LeaseId, TaskId
from taskpass.core.machine import Table
from taskpass.core.widening import Snapshot, Widening


class AftermathState(StrEnum):
    OPEN = "open"
    """Not looked at yet: the lease still lives, or the catalogue could not be read since."""
    CLEAN = "clean"
    WIDENED = "widened"
    ACCEPTED = "accepted"
    UNDONE = "undone"


class AftermathEvent(StrEnum):
    LOOKED = "looked"
    """Nothing is wider."""
    FOUND = "found"
    ACCEPT = "accept"
    UNDO = "undo"
    """A later look shows nothing of it any more."""


AFTERMATH_TABLE: Table[AftermathState, AftermathEvent] = {
    AftermathState.OPEN: {
        AftermathEvent.LOOKED: AftermathState.CLEAN,
        AftermathEvent.FOUND: AftermathState.WIDENED,
        # A person may take responsibility for what nobody can look at any more.
        AftermathEvent.ACCEPT: AftermathState.ACCEPTED,
    },
    AftermathState.WIDENED: {
        AftermathEvent.ACCEPT: AftermathState.ACCEPTED,
        AftermathEvent.UNDO: AftermathState.UNDONE,
    },
    AftermathState.CLEAN: {},
    AftermathState.ACCEPTED: {},
    AftermathState.UNDONE: {},
}

BLOCKING = frozenset({AftermathState.OPEN, AftermathState.WIDENED})


class Ran(StrEnum):
    """How the run of a file ended. ``UNKNOWN``: the connection was lost while the target was asked to commit."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    PARTLY = "partly"
    """Outside a transaction, what came before the failed statement stays."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """``cluster`` and ``database`` as in a manifest. ``before`` is kept until the database was looked at again.

    ``ran`` is how a file's run ended, None for hands-on and before the end. ``error`` says why it could not be looked
    at. ``decided_by`` and ``comment`` are the person's who accepted.
    """

    lease: LeaseId
    task: TaskId
    resource: str
    cluster: str
    database: int
    state: AftermathState
    before: Snapshot = field(repr=False, hash=False)
    opened_at: Instant
    ran: Ran | None = None
    widening: tuple[Widening, ...] = ()
    error: str = ""
    looked_at: Instant | None = None
    decided_at: Instant | None = None
    decided_by: str = ""
    comment: str = ""
