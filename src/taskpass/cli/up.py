"""``taskpass up``: the broker, in this process, until it is told to stop."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option


@click.command("up")
@directory_option
def command(directory: Path) -> int:
    """Run the broker. Stop it with Ctrl-C or SIGTERM: it closes what is open first."""
    from taskpass import wiring

    return wiring.run_broker(directory)
