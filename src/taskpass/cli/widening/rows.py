"""Migrations of a task in a table, and what they left wider. Standard library only, for ``taskpass status``."""

from __future__ import annotations

from taskpass.cli.say import table

TYPE_CHECKING = False  # What typing.TYPE_CHECKING is, without importing typing: start-up is a feature.
if TYPE_CHECKING:
    from typing import Any


def print_migrations(migrations: list[dict[str, Any]]) -> None:
    if not migrations:
        return
    table(
        ("MIGRATION", "STATE", "RESOURCE", "ENDED", "WIDER BY"),
        [(m["lease"], m["state"], m["resource"], m["ran"] or "", _count(m)) for m in migrations],
    )
    wider = [(w["change"], w["kind"], w["name"]) for m in migrations if m["blocks"] for w in m["widening"]]
    if wider:
        table(("LEFT WIDER", "WHAT", "WHICH"), wider)


def _count(migration: dict[str, Any]) -> str:
    return str(len(migration["widening"]) + migration["more"])
