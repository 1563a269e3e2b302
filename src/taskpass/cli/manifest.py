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
_READ = 5
"""Parts of what can be read through an object; what a write does has its verbs and a version besides."""


def print_manifest(manifest: Mapping[str, Any], estimates: Mapping[str, int]) -> None:
    """The whole manifest; nothing is left out without saying how much."""
    if manifest.get("migration"):
        owner = quoted(manifest["migration"]["owner"])
        show(
            f"rights in database {quoted(manifest['database_name'])}: everything that {owner} owns, and what it may do"
        )
        return
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
    read, written = [pair for pair in reach if len(pair[1]) == _READ], [p for p in reach if len(p[1]) > _READ]
    if read:
        show(f"reachable through these: {len(read)}")
        table(
            ("TABLE", "REACHES", "KIND", "THROUGH"),
            [(f"{o['schema']}.{o['name']}", f"{r[2]}.{r[3]}", r[1], r[4]) for o, r in read],
        )
    if written:
        show(f"a write there also changes or calls: {len(written)}")
        table(("TABLE", "VERBS", "CHANGES OR CALLS", "KIND", "BY"), [_written(o, r) for o, r in written])
    held = [(item, found) for item in objects for found in item.get("held", [])]
    if held:
        show(f"held back because of what is excluded: {len(held)}")
        table(("TABLE", "VERB", "WOULD CHANGE", "BY", "STATE"), [_held(o, h, manifest) for o, h in held])
    sequences = [f"{o['schema']}.{s[1]}" for o in objects for s in o.get("sequences", []) if _advances(o)]
    if sequences:
        show(f"USAGE of the sequences of these columns: {visible(', '.join(sequences))}")
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


def _written(item: Mapping[str, Any], found: Sequence[Any]) -> tuple[str, ...]:
    _, kind, schema, name, through, verbs, _ = found
    called = f"{schema}.{name}()" if kind == "routine" else f"{schema}.{name}"
    granted = [verb if verb in item["verbs"] else f"{verb} (held back)" for verb in verbs]
    return f"{item['schema']}.{item['name']}", ", ".join(granted), called, kind, through


def _held(item: Mapping[str, Any], held: Sequence[Any], manifest: Mapping[str, Any]) -> tuple[str, ...]:
    verb, name, through = held
    state = "accepted" if name in manifest.get("accepted", []) else f"refused, unless: --accept {name}"
    return f"{item['schema']}.{item['name']}", verb, name, through, state


def _advances(item: Mapping[str, Any]) -> bool:
    return bool({"INSERT", "UPDATE"} & set(item["verbs"]))


def _column(column: Sequence[Any]) -> str:
    """A generated column is marked: what it shows is computed from others."""
    return f"{column[1]} (computed)" if len(column) > 2 else str(column[1])


def _rows(estimates: Mapping[str, int], oid: int) -> str:
    return f"{estimates[str(oid)]:,}" if str(oid) in estimates else "?"


def _dropped(item: Sequence[Any]) -> tuple[str, str, str]:
    _, kind, schema, name, reason, because = item
    return f"{schema}.{name}", kind, _WHY.get(str(reason), str(reason)).format(because=because)
