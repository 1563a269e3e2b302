"""``taskpass task ls``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.say import show, show_json, table
from taskpass.cli.times import when


@click.command("ls")
@click.option("--all", "every", is_flag=True, help="Also those that have ended.")
@directory_option
@json_option
def command(every: bool, directory: Path, as_json: bool) -> None:
    """List open tasks."""
    view = call(directory, "tasks", {"all": every})
    if as_json:
        show_json(view)
        return
    if not view["tasks"]:
        show("no task is open")
    table(
        ("TASK", "STATE", "TOOL", "REPOSITORY", "TICKET", "SEPARATION", "OPENED"),
        [
            (
                x["task"],
                x["state"],
                x["tool"],
                x["repository"]["value"],
                x["ticket"]["value"],
                x["separation"],
                when(x["opened_at"]),
            )
            for x in view["tasks"]
        ],
    )
