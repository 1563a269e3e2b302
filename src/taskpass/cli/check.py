"""``taskpass check``: is the broker's directory fit to start from? Nothing is started and no database is reached."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.findings import exit_code, print_findings
from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import show_json


@click.command("check")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> int:
    """Validate configuration, policies and their tests without starting."""
    from taskpass.config.check import check

    findings = check(directory)
    if as_json:
        show_json([{"check": f.check, "severity": f.severity, "message": f.message, "fix": f.fix} for f in findings])
    else:
        print_findings(findings)
    return exit_code(findings)
