"""``taskpass widening show``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.say import show_json
from taskpass.cli.widening.print import print_widening


@click.command("show")
@click.argument("migration")
@directory_option
@json_option
def command(*, migration: str, directory: Path, as_json: bool) -> None:
    """Show what one migration (its lease) left in its database."""
    view = call(directory, "show_widening", {"lease": migration})
    if as_json:
        show_json(view)
    else:
        print_widening(view)
