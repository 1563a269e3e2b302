"""``taskpass revoke``: pull the plug at any level."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import View, call, directory_option, json_option
from taskpass.cli.release import taken_back
from taskpass.cli.say import show, show_json, table
from taskpass.core.errors import InvalidInput

TIMEOUT = 300


@click.command("revoke")
@click.option("--agent", metavar="AGENT", help="Everything of an agent: its SPIFFE id, or the name of a tool.")
@click.option("--task", metavar="TASK", help="Everything of a task and the tasks inside it.")
@click.option("--ticket", metavar="TICKET", help="Everything that names this ticket.")
@click.option("--resource", metavar="NAME", help="Everything on a resource.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.option("--dry-run", is_flag=True, help="Only show what would be taken back.")
@directory_option
@json_option
def command(
    *,
    agent: str | None,
    task: str | None,
    ticket: str | None,
    resource: str | None,
    everything: bool,
    reason: str,
    dry_run: bool,
    directory: Path,
    as_json: bool,
) -> int:
    """Take back access: of an agent, a task, a ticket, a resource, or all of it."""
    given = {"agent": agent, "task": task, "ticket": ticket, "resource": resource}
    chosen = [(level, value) for level, value in given.items() if value is not None]
    if everything:
        chosen.append(("all", ""))
    if len(chosen) != 1:
        raise InvalidInput("exactly one of --agent, --task, --ticket, --resource and --all is needed", code="usage")
    level, value = chosen[0]
    return revoke(directory, level, value, reason=reason, dry_run=dry_run, as_json=as_json)


def revoke(directory: Path, level: str, value: str, *, reason: str, dry_run: bool, as_json: bool) -> int:
    """Revoke or show; exit code 1 if something is not proven closed yet."""
    params: View = {"level": level, "value": value, "reason": reason, "dry_run": dry_run}
    view = call(directory, "revoke", params, timeout=TIMEOUT)
    if as_json:
        show_json(view)
    elif not view["leases"]:
        show("nothing there to take back")
    elif dry_run:
        table(
            ("WOULD END", "STATE", "RESOURCE", "ROLE"),
            [(x["lease"], x["state"], x["resource"], x["role"]) for x in view["leases"]],
        )
    else:
        for lease in view["leases"]:
            show(taken_back(lease))
    proven = all(lease["state"] in ("closed", "cleaned") for lease in view["leases"])
    return 0 if dry_run or proven else 1
