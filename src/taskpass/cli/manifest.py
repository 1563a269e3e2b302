"""A rights manifest as a table for people: what is granted, what is reachable through it, what was left out and why.

Names in it come from the target, where anybody may have chosen them, so none may look official.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskpass.cli.say import show, table
from taskpass.core.text import visible

_WHY = {
    "excluded": "excluded by the operator",
    "reaches_excluded": "would reach {because}",
    "not_a_table": "not a table: name it one by one",
}
_NAME = 60


def print_manifest(manifest: Mapping[str, Any], estimates: Mapping[str, int]) -> None:
    """The whole manifest; nothing is left out without saying how much."""
    objects, dropped = manifest["objects"], manifest["dropped"]
    show(f"rights in database {quoted(manifest['database_name'])}: {len(objects)} object(s)")
    table(
        ("TABLE", "KIND", "VERBS", "ROWS (ABOUT)", "COLUMNS"),
        [
            (
                visible(f"{item['schema']}.{item['name']}", limit=_NAME),
                item["kind"],
                ", ".join(item["verbs"]),
                _rows(estimates, item["oid"]),
                ", ".join(_column(column) for column in item["columns"]),
            )
            for item in objects
        ],
    )
    reach = [(item, found) for item in objects for found in item["reach"]]
    if reach:
        show(f"reachable through these: {len(reach)}")
        table(
            ("TABLE", "REACHES", "KIND", "THROUGH"),
            [(f"{o['schema']}.{o['name']}", f"{r[2]}.{r[3]}", r[1], r[4]) for o, r in reach],
        )
    if dropped:
        show(f"left out: {len(dropped)}")
        table(("OBJECT", "KIND", "WHY"), [_dropped(item) for item in dropped])
    _ambient(manifest["ambient"])


_ROWS = ("ROW SECURITY ", "ROWS OF TENANT ")


def _ambient(words: Sequence[str]) -> None:
    limited = [word for word in words if word.startswith(_ROWS)]
    others = [word for word in words if not word.startswith(_ROWS)]
    if limited:
        show(f"rows are limited by the database: {visible(', '.join(limited))}")
    if others:
        show(f"every login there can also: {visible(', '.join(others))}")


def quoted(text: object) -> str:
    """Somebody else's words: in quotes, made visible, of limited length."""
    return f'"{visible(str(text), limit=400)}"'


def _column(column: Sequence[Any]) -> str:
    """A generated column is marked: what it shows is computed from others."""
    return f"{column[1]} (computed)" if len(column) > 2 else str(column[1])


def _rows(estimates: Mapping[str, int], oid: int) -> str:
    return f"{estimates[str(oid)]:,}" if str(oid) in estimates else "?"


def _dropped(item: Sequence[Any]) -> tuple[str, str, str]:
    _, kind, schema, name, reason, because = item
    return f"{schema}.{name}", kind, _WHY.get(str(reason), str(reason)).format(because=because)
