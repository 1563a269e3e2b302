"""``taskpass lease revoke``: one lease."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.revoke import revoke


@click.command("revoke")
@click.argument("lease")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Only show what would be taken back.")
@directory_option
@json_option
def command(lease: str, reason: str, dry_run: bool, directory: Path, as_json: bool) -> int:
    """Take back one lease."""
    return revoke(directory, "lease", lease, reason=reason, dry_run=dry_run, as_json=as_json)
