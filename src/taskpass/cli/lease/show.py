"""``taskpass lease show``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.manifest import print_manifest
from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.release import taken_back
from taskpass.cli.say import fields, show, show_json
from taskpass.cli.times import when


@click.command("show")
@click.argument("lease")
@directory_option
@json_option
def command(lease: str, directory: Path, as_json: bool) -> None:
    """Show one lease: its rights, its life, and the proof of its end."""
    view = call(directory, "show_lease", {"lease": lease})
    if as_json:
        show_json(view)
        return
    fields(
        {
            "lease": view["lease"],
            "state": f"{view['state']} {view['reason']}".strip(),
            "task": view["task"],
            "resource": f"{view['resource']} ({view['environment']}) at {view['address']}",
            "role": view["role"],
            "delivery": view["delivery"],
            "made": when(view["created_at"]),
            "ends": when(view["expires_at"]),
            "closed": when(view["closed_at"]),
            "renewals": view["renewals"],
            "connections": view["connections"],
            "attempts": view["attempts"],
            "last error": view["last_error"],
            "incidents": view["incidents"],
        }
    )
    if view.get("proof"):
        show(taken_back(view))
    print_manifest(view["manifest"], {})
