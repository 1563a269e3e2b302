"""One migration's widening on a terminal. Names in it were chosen by whoever wrote the migration."""

from __future__ import annotations

from typing import Any

from taskpass.cli.say import fields, show, table
from taskpass.cli.times import when
from taskpass.core.text import visible

_DETAIL = 200


def print_widening(view: dict[str, Any]) -> None:
    fields(
        {
            "migration": view["lease"],
            "task": view["task"],
            "resource": view["resource"],
            "state": f"{view['state']}{', blocks new leases' if view['blocks'] else ''}",
            "file": view["ran"] or "none ran to its end",
            "looked at": when(view["looked_at"]),
            "not readable": visible(view["error"]),
            "decided by": visible(view["decided_by"]),
            "comment": visible(view["comment"], limit=400),
        }
    )
    table(
        ("CHANGE", "WHAT", "WHICH", "WAS", "IS"),
        [
            (w["change"], w["kind"], w["name"], visible(w["before"], limit=_DETAIL), visible(w["after"], limit=_DETAIL))
            for w in view["widening"]
        ],
    )
    if view["more"]:
        show(f"and {view['more']} more")
