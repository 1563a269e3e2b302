"""``taskpass audit export``: the record as a file that can be verified elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from taskpass.cli.operator import directory_option
from taskpass.cli.say import talk


@click.command("export")
@directory_option
def command(directory: Path) -> None:
    """Write the whole record to stdout, one JSON object per line. There is no secret in it."""
    from taskpass.audit.export import write_export
    from taskpass.cli.audit.source import open_source

    with open_source(directory, None) as source:
        count = write_export(sys.stdout.buffer, source.records, installation=source.installation, keys=source.keys)
    talk(f"taskpass: {count} records; verify them with: taskpass audit verify --file FILE --trust KEY")
