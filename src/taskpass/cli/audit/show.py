"""``taskpass audit show``: the record as lines for people."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import show, show_json
from taskpass.core.audit import Record
from taskpass.core.text import visible

_WIDTH = 160


@click.command("show")
@click.argument("subject", required=False)
@click.option("--last", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, at most.")
@click.option("--file", "export", type=click.Path(path_type=Path), help="An export instead of the broker's store.")
@directory_option
@json_option
def command(subject: str | None, last: int, export: Path | None, directory: Path, as_json: bool) -> None:
    """Show the newest records, or those about SUBJECT: a task, request, lease, approval or run."""
    from taskpass.cli.audit.source import open_source

    with open_source(directory, export) as source:
        wanted = (record for record in source.records if subject is None or subject in _subjects(record))
        found = list(deque(wanted, maxlen=last))
    if as_json:
        show_json([_body(record) | {"hash": record.hash} for record in found])
        return
    if not found:
        show("no record")
    for record in found:
        body = _body(record)
        about = " ".join(str(value) for value in body["subject"].values())
        line = (
            f"{body['seq']:>6}  {body['at']}  {body['event']:<24} {body['actor']}  {about}  {json.dumps(body['data'])}"
        )
        show(visible(line, limit=_WIDTH))


def _body(record: Record) -> dict[str, Any]:
    """The record's content; one that was damaged is shown as such and not hidden."""
    try:
        body: Any = json.loads(record.body)
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("subject"), dict):  # pyright: ignore[reportUnknownMemberType]
        return body  # pyright: ignore[reportUnknownVariableType]
    return {"seq": record.seq, "at": "", "event": "(damaged)", "actor": "", "subject": {}, "data": record.body}


def _subjects(record: Record) -> list[str]:
    return [str(value) for value in _body(record)["subject"].values()]
