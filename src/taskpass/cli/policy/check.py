"""``taskpass policy check``."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.findings import exit_code, print_findings
from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import show_json
from taskpass.issuers.base import Finding, Severity

_SEVERITIES = {"ok": Severity.OK, "warning": Severity.WARNING, "error": Severity.FATAL}


@click.command("check")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> int:
    """Say whether the policies would be loaded, and what an operator should know about them."""
    from taskpass.config.load import load
    from taskpass.policy import explain
    from taskpass.runtime.system import SystemClock

    config = load(directory)
    found = explain.check(config.policy_directory, config.people.groups, now=SystemClock().now())
    findings = [Finding("policy", _SEVERITIES[item.mark.value], item.what, item.hint) for item in found]
    if as_json:
        show_json([item.to_json() for item in found])
    else:
        print_findings(findings)
    return exit_code(findings)
