"""The rules as triggers of SQLite; ``install`` replaces what differs."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from taskpass.store.rules import MARK, Rule, rules, seals

_KEYS = {
    "installation": "only = NEW.only",
    "runs": "id = NEW.id",
    "tasks": "id = NEW.id",
    "requests": "id = NEW.id",
    "approvals": "id = NEW.id OR (request = NEW.request AND approver = NEW.approver)",
    "approval_uses": "approval = NEW.approval",
    "grants": "id = NEW.id OR request = NEW.request",
    "leases": "id = NEW.id OR role = NEW.role",
    "brokers": "id = NEW.id",
    "owners": "subject = NEW.subject",
    "aftermaths": "id = NEW.id",
    "scripts": "id = NEW.id",
    # Not the audit: a record of it must follow the newest one, so it cannot stand in place of another.
    "audit_subjects": "subject = NEW.subject AND seq = NEW.seq",
    "audit_keys": "id = NEW.id",
}
"""What a new row may not share with an old one: an INSERT OR REPLACE would delete the old one without a trigger."""


def wanted(*, sealed: bool = False) -> Mapping[str, str]:
    """Name and text of every trigger; ``sealed``: of a store that was moved elsewhere."""
    further = seals() if sealed else ()
    return {rule.name: _trigger(rule) for rule in (*rules(), *further, *(_unique(table) for table in _KEYS))}


def _unique(table: str) -> Rule:
    clash = f"EXISTS (SELECT 1 FROM {table} WHERE {_KEYS[table]})"  # noqa: S608 - constants of this module
    return Rule(f"{table}_unique", "INSERT", table, clash, f"{MARK}{table} has that row already")


def _trigger(rule: Rule) -> str:
    names = ", ".join(f'"{column}"' for column in rule.columns)
    when = f"{rule.event} OF {names}" if names else rule.event
    guard = f" WHEN {rule.condition}" if rule.condition else ""
    body = f"SELECT RAISE(ABORT, '{rule.message}');"
    return f"CREATE TRIGGER {rule.name} BEFORE {when} ON {rule.table}{guard} BEGIN {body} END"


def install(connection: Connection, *, sealed: bool) -> None:
    """Create, replace and remove triggers until the database has exactly those that are ``wanted``."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").all()
    present = {str(name): str(sql) for name, sql in rows}
    texts = wanted(sealed=sealed)
    for name in present.keys() - texts.keys():
        quoted = name.replace('"', '""')
        connection.exec_driver_sql(f'DROP TRIGGER "{quoted}"')
    for name, sql in texts.items():
        if present.get(name) != sql:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
            connection.exec_driver_sql(sql)
