"""``taskpass lease ls``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.say import show, show_json, table
from taskpass.cli.times import when


@click.command("ls")
@click.option("--all", "every", is_flag=True, help="Also those that are closed.")
@click.option("--debt", is_flag=True, help="Only those whose closing is not proven.")
@directory_option
@json_option
def command(every: bool, debt: bool, directory: Path, as_json: bool) -> None:
    """List leases that may still be usable."""
    view = call(directory, "leases", {"all": every, "debt": debt})
    if as_json:
        show_json(view)
        return
    if not view["leases"]:
        show("no debt" if debt else "no lease is open")
    table(
        ("LEASE", "STATE", "RESOURCE", "ENVIRONMENT", "TASK", "ENDS", "LAST ERROR"),
        [
            (x["lease"], x["state"], x["resource"], x["environment"], x["task"], when(x["expires_at"]), x["last_error"])
            for x in view["leases"]
        ],
    )
