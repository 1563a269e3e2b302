"""``taskpass policy test``: the tables beside the policies."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import show, show_json


@click.command("test")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> int:
    """Run the table tests in policy/tests. Exit code 1 if one fails, or if there is none."""
    from taskpass.policy import tables

    results = tables.run(directory / "policy")
    if as_json:
        show_json([result.to_json() for result in results])
    else:
        for result in results:
            show(str(result))
        show(f"{sum(result.passed for result in results)} of {len(results)} pass")
    return 0 if results and all(result.passed for result in results) else 1
