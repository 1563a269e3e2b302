"""``taskpass widening ls``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.say import show, show_json, table
from taskpass.cli.times import when


@click.command("ls")
@click.option("--all", "every", is_flag=True, help="Also what is clean, accepted or undone.")
@directory_option
@json_option
def command(*, every: bool, directory: Path, as_json: bool) -> None:
    """List migrations that block new leases on their database."""
    view = call(directory, "widenings", {"all": every})
    if as_json:
        show_json(view)
        return
    if not view["migrations"]:
        show("nothing blocks" if not every else "there was no migration")
    table(
        ("MIGRATION", "STATE", "RESOURCE", "ENDED", "WIDER BY", "SINCE"),
        [
            (
                m["lease"],
                m["state"],
                m["resource"],
                m["ran"] or "",
                len(m["widening"]) + m["more"],
                when(m["opened_at"]),
            )
            for m in view["migrations"]
        ],
    )
