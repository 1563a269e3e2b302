"""``taskpass version``."""

from __future__ import annotations

import platform

import click

from taskpass import __version__
from taskpass.cli.operator import json_option
from taskpass.cli.say import show, show_json


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        show_json({"version": __version__, "python": platform.python_version(), "platform": platform.system().lower()})
    else:
        show(f"taskpass {__version__}")
