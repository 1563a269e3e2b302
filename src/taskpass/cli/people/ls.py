"""``taskpass people ls``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import View, directory_option, json_option
from taskpass.cli.say import show, show_json, table


@click.command("ls")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> None:
    """List the people in the configuration, their accounts and groups."""
    from taskpass.config.load import load

    people = load(directory).people
    rows: list[View] = [
        {
            "human": human.id,
            "os_users": list(human.os_users),
            "can_review": bool(human.reviewer_key),
            "groups": sorted(name for name, members in people.groups.items() if human.id in members),
        }
        for human in people.humans.values()
    ]
    if as_json:
        show_json({"people": rows})
        return
    if not rows:
        show("nobody is in the configuration")
    table(
        ("PERSON", "ACCOUNTS HERE", "GROUPS", "CAN REVIEW"),
        [
            (r["human"], ", ".join(r["os_users"]), ", ".join(r["groups"]), "yes" if r["can_review"] else "no")
            for r in rows
        ],
    )
