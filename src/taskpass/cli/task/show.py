"""``taskpass task show``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import call, directory_option, json_option
from taskpass.cli.say import fields, show_json, table
from taskpass.cli.times import when
from taskpass.cli.widening.rows import print_migrations


@click.command("show")
@click.argument("task")
@directory_option
@json_option
def command(task: str, directory: Path, as_json: bool) -> None:
    """Show one task with its requests and leases."""
    view = call(directory, "show_task", {"task": task})
    if as_json:
        show_json(view)
        return
    facts = {
        name: f'"{view[name]["value"]}" ({view[name]["provenance"]})' for name in ("repository", "branch", "ticket")
    }
    fields(
        {
            "task": view["task"],
            "state": f"{view['state']} {view['reason']}".strip(),
            "principal": view["principal"],
            "separation": view["separation"],
            **facts,
            "opened": when(view["opened_at"]),
            "ends": when(view["expires_at"]),
            "ended": when(view["ended_at"]),
        }
    )
    table(
        ("REQUEST", "STATE", "RESOURCE", "ACCESS", "CODE"),
        [(r["request"], r["state"], r["resource"], r["access"], r["code"]) for r in view["requests"]],
    )
    table(
        ("LEASE", "STATE", "RESOURCE", "ROLE", "ENDS"),
        [(x["lease"], x["state"], x["resource"], x["role"], when(x["expires_at"])) for x in view["leases"]],
    )
    print_migrations(view["migrations"])
