"""``taskpass lease write-off``: a person says that a target is gone for good, so that its closing cannot be proven."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.release import taken_back
from taskpass.cli.say import show, show_json


@click.command("write-off")
@click.argument("lease")
@click.option("--reason", required=True, metavar="TEXT", help="Why the target is gone; kept in the record.")
@directory_option
@json_option
def command(lease: str, reason: str, directory: Path, as_json: bool) -> None:
    """Close a lease whose target is gone, without proof. The record says so."""
    view = call(directory, "write_off", {"lease": lease, "reason": reason})
    if as_json:
        show_json(view)
    else:
        show(taken_back(view))
