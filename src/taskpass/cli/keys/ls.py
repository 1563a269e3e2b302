"""``taskpass keys ls``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import fields, show_json
from taskpass.cli.times import when


@click.command("ls")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> None:
    """List the broker's keys: purpose, id, age, and the public part to keep elsewhere for audit verify."""
    from taskpass.keys import files

    key = files.load(directory / "keys", files.AUDIT)
    row = {"purpose": files.AUDIT, "key_id": key.key_id, "created_at": key.created_at, "public": key.public}
    if as_json:
        show_json({"keys": [row]})
    else:
        fields({**row, "created_at": when(key.created_at)})
