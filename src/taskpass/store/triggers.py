"""Triggers that make the database itself refuse what the rules refuse, also to a hand-written UPDATE. SQLite's dialect.

The texts are generated from the transition tables of ``core``, so the two cannot drift apart; ``install`` replaces what
differs. Not for: keeping out somebody who owns the file, who can drop a trigger. That is what the chain is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from taskpass.core import machine
from taskpass.core.lease import LEASE_TABLE, LeaseState
from taskpass.core.request import REQUEST_TABLE, RequestState
from taskpass.core.task import TASK_TABLE, TaskState

MARK = "taskpass: "
"""Every message of ours starts with this, so that the error translation can tell them from others."""

ILLEGAL = MARK + "illegal transition"

_FIXED: dict[str, tuple[str, ...]] = {
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
    "installation": ("only", "id", "demo", "created_at"),
}
"""Columns that never change after the insert, for tables of which something else may change."""

_APPEND_ONLY = ("approvals", "approval_uses", "grants", "audit", "audit_subjects", "audit_keys")

_KEYS = {
    "installation": "only = NEW.only",
    "runs": "id = NEW.id",
    "tasks": "id = NEW.id",
    "requests": "id = NEW.id",
    "approvals": "id = NEW.id OR (request = NEW.request AND approver = NEW.approver)",
    "approval_uses": "approval = NEW.approval",
    "grants": "id = NEW.id OR request = NEW.request",
    "leases": "id = NEW.id OR role = NEW.role",
    # A record of the log must follow the newest one, so it cannot stand in place of another: see ``audit_chained``.
    "audit": "",
    "audit_subjects": "subject = NEW.subject AND seq = NEW.seq",
    "audit_keys": "id = NEW.id",
}
"""What a new row may not share with an old one: an INSERT OR REPLACE would delete the old one without a trigger."""


def _trigger(name: str, when: str, table: str, condition: str, message: str) -> tuple[str, str]:
    guard = f" WHEN {condition}" if condition else ""
    body = f"SELECT RAISE(ABORT, '{message}');"
    return name, f"CREATE TRIGGER {name} BEFORE {when} ON {table}{guard} BEGIN {body} END"


def _steps(table: str, initial: str, pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    listed = " OR ".join(f"(OLD.state = '{old}' AND NEW.state = '{new}')" for old, new in sorted(pairs)) or "0"
    yield _trigger(f"{table}_step", "UPDATE OF state", table, f"NOT ({listed})", ILLEGAL)
    yield _trigger(f"{table}_start", "INSERT", table, f"NEW.state IS NOT '{initial}'", ILLEGAL)


def wanted() -> Mapping[str, str]:
    """Name and text of every trigger."""
    found: list[tuple[str, str]] = [
        *_steps("tasks", TaskState.OPEN, machine.pairs(TASK_TABLE)),
        *_steps("requests", RequestState.PENDING, machine.pairs(REQUEST_TABLE)),
        *_steps("leases", LeaseState.INTENDED, machine.pairs(LEASE_TABLE)),
    ]
    for table, key in _KEYS.items():
        found.append(_trigger(f"{table}_keep", "DELETE", table, "", f"{MARK}a row of {table} is never deleted"))
        if not key:
            continue
        clash = f"EXISTS (SELECT 1 FROM {table} WHERE {key})"  # noqa: S608 - constants of this module
        found.append(_trigger(f"{table}_unique", "INSERT", table, clash, f"{MARK}{table} has that row already"))
    found += [_trigger(f"{t}_fixed", "UPDATE", t, "", f"{MARK}a row of {t} never changes") for t in _APPEND_ONLY]
    for table, columns in _FIXED.items():
        names = ", ".join(f'"{column}"' for column in columns)
        message = f"{MARK}that field of {table} never changes"
        found.append(_trigger(f"{table}_fixed", f"UPDATE OF {names}", table, "", message))
    found += _particular()
    return dict(found)


def _particular() -> Iterable[tuple[str, str]]:
    yield _trigger(
        "installation_forward",
        "UPDATE",
        "installation",
        "NEW.latest_seen < OLD.latest_seen OR NEW.epoch < OLD.epoch",
        f"{MARK}the epoch and the latest time seen never go back",
    )
    yield _trigger(
        "runs_bound_once",
        "UPDATE OF namespace, separation",
        "runs",
        "OLD.namespace <> '' OR OLD.ended_at IS NOT NULL",
        f"{MARK}a run is bound once",
    )
    yield _trigger(
        "runs_ended_once", "UPDATE OF ended_at", "runs", "OLD.ended_at IS NOT NULL", f"{MARK}a run ends once"
    )
    yield _trigger(
        "leases_proof",
        "UPDATE OF state",
        "leases",
        "NEW.state = 'closed' AND NEW.proof = '{}'",
        f"{MARK}a lease is closed with a proof only",
    )
    yield _trigger(
        "audit_chained",
        "INSERT",
        "audit",
        "NEW.seq <> COALESCE((SELECT MAX(seq) FROM audit), 0) + 1"
        " OR (NEW.seq > 1 AND NEW.prev IS NOT (SELECT hash FROM audit WHERE seq = NEW.seq - 1))",
        f"{MARK}an audit record follows the newest one",
    )


def install(connection: Connection) -> None:
    """Create, replace and remove triggers until the database has exactly ``wanted()``."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").all()
    present = {str(name): str(sql) for name, sql in rows}
    texts = wanted()
    for name in present.keys() - texts.keys():
        quoted = name.replace('"', '""')
        connection.exec_driver_sql(f'DROP TRIGGER "{quoted}"')
    for name, sql in texts.items():
        if present.get(name) != sql:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
            connection.exec_driver_sql(sql)
