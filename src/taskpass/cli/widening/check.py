"""``taskpass widening check``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.say import show_json
from taskpass.cli.widening.print import print_widening


@click.command("check")
@click.argument("migration")
@directory_option
@json_option
def command(*, migration: str, directory: Path, as_json: bool) -> int:
    """Look at the database again now: what was undone blocks no more. Exit code 3 while it blocks."""
    view = call(directory, "check_widening", {"lease": migration})
    if as_json:
        show_json(view)
    else:
        print_widening(view)
    return 3 if view["blocks"] else 0
