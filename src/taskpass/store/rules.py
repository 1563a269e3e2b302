"""What the database itself refuses, also to a hand-written statement, as one list for every kind of database.

Generated from the transition tables of ``core``, so the two cannot drift apart. ``triggers`` says it in SQLite's words
and ``postgres_rules`` in PostgreSQL's. Not for: keeping out somebody who owns the database, who can drop a trigger.
That is what the chain is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from taskpass.core import machine
from taskpass.core.aftermath import AFTERMATH_TABLE, AftermathState
from taskpass.core.audit import ADOPTED
from taskpass.core.lease import LEASE_TABLE, LeaseState
from taskpass.core.request import REQUEST_TABLE, RequestState
from taskpass.core.task import TASK_TABLE, TaskState

MARK = "taskpass: "
"""Every message of ours starts with this, so that the error translation can tell them from others."""

ILLEGAL = MARK + "illegal transition"
SEALED = MARK + "this store was moved"


@dataclass(frozen=True, slots=True)
class Rule:
    """Refuse ``event`` (INSERT, UPDATE, DELETE) on ``table`` with ``message`` for a row that meets ``condition``.

    ``columns`` limits an UPDATE to those that name one of them. ``condition`` is SQL that every kind understands and
    may speak of OLD and NEW; empty means always. ``looks_up`` says that it reads a table.
    """

    name: str
    event: str
    table: str
    condition: str
    message: str
    columns: tuple[str, ...] = ()
    looks_up: bool = False


FIXED: dict[str, tuple[str, ...]] = {
    "runs": ("id", "tool", "sponsor", "uid", "directory", "created_at"),
    "tasks": (
        *("id", "spiffe_id", "sponsor", "machine", "tool", "separation", "run", "parents", "repository"),
        *("repository_provenance", "branch", "branch_provenance", "ticket", "ticket_provenance", "opened_at"),
        "expires_at",
    ),
    "requests": (
        *("id", "task", "resource", "scope", "environment", "manifest", "lifetime", "reason", "decision", "digest"),
        *("separation", "created_at"),
    ),
    "leases": (*("id", "grant", "task", "role", "resource", "target", "manifest_digest", "delivery", "created_at"),),
    "brokers": ("id",),
    "owners": ("subject",),
    "aftermaths": ("id", "task", "resource", "cluster", "database", "opened_at"),
    "installation": ("only", "id", "demo", "created_at"),
}
"""Columns that never change after the insert, for tables of which something else may change."""

APPEND_ONLY = ("approvals", "approval_uses", "grants", "scripts", "audit", "audit_subjects", "audit_keys")

GUARDED = (*FIXED, *APPEND_ONLY)
"""Tables of which a row is never deleted: all but the challenges."""


def rules() -> Iterable[Rule]:
    yield from _steps("tasks", TaskState.OPEN, machine.pairs(TASK_TABLE))
    yield from _steps("requests", RequestState.PENDING, machine.pairs(REQUEST_TABLE))
    yield from _steps("leases", LeaseState.INTENDED, machine.pairs(LEASE_TABLE))
    yield from _steps("aftermaths", AftermathState.OPEN, machine.pairs(AFTERMATH_TABLE))
    for table in GUARDED:
        yield Rule(f"{table}_keep", "DELETE", table, "", f"{MARK}a row of {table} is never deleted")
    for table in APPEND_ONLY:
        yield Rule(f"{table}_fixed", "UPDATE", table, "", f"{MARK}a row of {table} never changes")
    for table, columns in FIXED.items():
        yield Rule(f"{table}_fixed", "UPDATE", table, "", f"{MARK}that field of {table} never changes", columns)
    yield from _particular()


def seals() -> Iterable[Rule]:
    """Besides, for a store that was moved elsewhere: also a broker that had it open changes nothing any more.

    Whatever is decided is recorded in the same step, and who cannot be seen is no broker.
    """
    yield Rule("audit_sealed", "INSERT", "audit", "", SEALED)
    yield Rule("brokers_sealed", "UPDATE", "brokers", "", SEALED)
    yield Rule("brokers_sealed_new", "INSERT", "brokers", "", SEALED)


def _steps(table: str, initial: str, pairs: Iterable[tuple[str, str]]) -> Iterable[Rule]:
    listed = " OR ".join(f"(OLD.state = '{old}' AND NEW.state = '{new}')" for old, new in sorted(pairs))
    yield Rule(f"{table}_step", "UPDATE", table, f"NOT ({listed})", ILLEGAL, ("state",))
    # A state that is absent is refused by the column itself.
    yield Rule(f"{table}_start", "INSERT", table, f"NEW.state <> '{initial}'", ILLEGAL)


def _particular() -> Iterable[Rule]:
    yield Rule(
        "installation_forward",
        "UPDATE",
        "installation",
        "NEW.latest_seen < OLD.latest_seen OR NEW.epoch < OLD.epoch",
        f"{MARK}the epoch and the latest time seen never go back",
    )
    yield Rule(
        "owners_forward",
        "UPDATE",
        "owners",
        "NEW.token <= OLD.token",
        f"{MARK}a token of an owner only rises",
        ("broker", "token"),
    )
    yield Rule(
        "runs_bound_once",
        "UPDATE",
        "runs",
        "OLD.namespace <> '' OR OLD.ended_at IS NOT NULL",
        f"{MARK}a run is bound once",
        ("namespace", "separation"),
    )
    yield Rule("runs_ended_once", "UPDATE", "runs", "OLD.ended_at IS NOT NULL", f"{MARK}a run ends once", ("ended_at",))
    yield Rule(
        "leases_proof",
        "UPDATE",
        "leases",
        "NEW.state = 'closed' AND NEW.proof = '{}'",
        f"{MARK}a lease is closed with a proof only",
        ("state",),
    )
    yield Rule(
        "audit_chained",
        "INSERT",
        "audit",
        "NEW.seq <= COALESCE((SELECT MAX(seq) FROM audit), 0)"  # noqa: S608 - constants of this module
        " OR (NEW.seq > COALESCE((SELECT MAX(seq) FROM audit), 0) + 1"
        f" AND REPLACE(NEW.body, '\"event\":\"{ADOPTED}\"', '') = NEW.body)"
        " OR NEW.prev <> COALESCE((SELECT hash FROM audit ORDER BY seq DESC LIMIT 1), NEW.prev)",
        f"{MARK}an audit record follows the newest one",
        looks_up=True,
    )
