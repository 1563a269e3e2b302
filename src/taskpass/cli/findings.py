"""Findings of checks as lines that a person can act on."""

from __future__ import annotations

from collections.abc import Iterable

from taskpass.cli.say import show, style
from taskpass.core.text import visible
from taskpass.issuers.base import Finding, Severity

_MARKS = {
    Severity.OK: ("ok", ("green",)),
    Severity.NOTE: ("note", ()),
    Severity.WARNING: ("warning", ("yellow",)),
    Severity.FATAL: ("FATAL", ("red", "bold")),
}


def print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        word, styles = _MARKS[finding.severity]
        show(f"{style(f'{word:<8}', *styles)}{visible(finding.check)}: {visible(finding.message)}")
        for line in finding.fix.splitlines():
            show(f"        {visible(line)}")


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if anything is fatal, else 0."""
    return 2 if any(finding.severity is Severity.FATAL for finding in findings) else 0
