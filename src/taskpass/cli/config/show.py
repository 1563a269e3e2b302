"""``taskpass config show``: what lies in the broker's directory, by content."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import fields, show, show_json, table


@click.command("show")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Show the resources and the digest of every file. Logins are references; no secret is read."""
    from taskpass.config.load import load
    from taskpass.config.snapshot import take

    config, taken = load(directory), take(directory)
    rows = [
        {
            "resource": item.name,
            "environment": item.environment.value,
            "address": item.address,
            "login": next(iter(item.login)),
            "access": sorted(item.access),
            "cluster": item.cluster,
        }
        for item in config.resources.values()
    ]
    if as_json:
        show_json({"directory": str(directory), "digest": taken.digest, "files": dict(taken.files), "resources": rows})
        return
    fields({"directory": str(directory), "digest": taken.digest, "config": config.digest})
    show()
    table(
        ("RESOURCE", "ENVIRONMENT", "ADDRESS", "LOGIN BY", "ACCESS"),
        [(r["resource"], r["environment"], r["address"], r["login"], ", ".join(r["access"])) for r in rows],
    )
    show()
    table(("FILE", "DIGEST"), list(taken.files.items()))
