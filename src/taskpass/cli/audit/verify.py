"""``taskpass audit verify``: does the record hold? Exit code 0 only if it does."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import show, show_json, style
from taskpass.core.text import visible


@click.command("verify")
@click.option("--trust", metavar="KEY", help="The key that you kept from elsewhere, or a file with it.")
@click.option("--server-log", multiple=True, type=click.Path(path_type=Path), help="A target's log with anchors in it.")
@click.option("--file", "export", type=click.Path(path_type=Path), help="An export instead of the broker's store.")
@directory_option
@json_option
def command(
    trust: str | None, server_log: tuple[Path, ...], export: Path | None, directory: Path, as_json: bool
) -> int:
    """Walk the whole record: chain, signatures, signatures of people, anchors. Exit code 1 names the first bad one."""
    from taskpass.audit.anchors import parse_server_log
    from taskpass.audit.verify import verify
    from taskpass.cli.audit.source import open_source
    from taskpass.keys.ed25519 import PublicKeys
    from taskpass.keys.files import trust as read_trust

    trusted = read_trust(trust) if trust else None
    anchors = [anchor for path in server_log for anchor in parse_server_log(_text(path))]
    with open_source(directory, export) as source:
        report = verify(
            source.records,
            source.installation,
            trusted,
            anchors,
            own_keys=PublicKeys(source.keys) if source.keys else None,
            witness=source.witness,
            reviewers=source.reviewers,
            start=source.start,
        )
    if as_json:
        show_json(report.to_json())
    elif report.fault:
        show(style(f"BROKEN at record {report.fault.seq}: {visible(report.fault.what)}", "red", "bold"))
        show(f"the {report.seq} records before it hold")
    else:
        kind = "holds, by the trusted key" if report.trusted else "is consistent (self-check only)"
        show(style(f"the record {kind}: {report.seq} records, head {report.head}", "green"))
        show(
            f"{report.approvals} signatures by people verified, {report.anchored} anchored, {report.late} written late"
        )
    if not as_json:
        for note in report.notes:
            show(f"note: {visible(note)}")
    return 0 if report.ok else 1


def _text(path: Path) -> str:
    from taskpass.core.errors import InvalidInput

    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInput(f"the server's log cannot be read: {error.strerror}") from None
