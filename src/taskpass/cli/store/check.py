"""``taskpass store check``: is this store whole, and the one that everything outside remembers?

Exit code 0: whole; 1: not whole; 4: something could not be looked at, which counts as no.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from taskpass.cli.doctor import Row, State, print_rows
from taskpass.cli.operator import View, call, directory_option, json_option
from taskpass.cli.say import show_json
from taskpass.core.errors import TaskpassError

_LOOKING = 120
_SHOWN = 100
"""Disagreements shown one by one; the rest is counted."""
_ADOPT = "restore the right store, or: taskpass store adopt"


@click.command("check")
@click.option("--trust", metavar="KEY", help="The key that you kept from elsewhere, or a file with it.")
@directory_option
@json_option
def command(trust: str | None, directory: Path, as_json: bool) -> int:
    """Say whether the store is whole: schema, audit chain, every lease against its record, and every target's memory.

    Changes nothing. Without a running broker the targets are not looked at.
    """
    rows = list(look(directory, trust))
    if as_json:
        show_json([asdict(row) for row in rows])
    else:
        print_rows(rows)
    states = {row.state for row in rows}
    return 1 if State.WEAKER in states else 4 if State.UNKNOWN in states else 0


def look(directory: Path, trust: str | None) -> Iterator[Row]:
    """Every row: of the store itself, then of what stands outside it."""
    try:
        yield from _inside(directory)
        yield _chain(directory, trust)
    except TaskpassError as error:
        yield Row("store", State.WEAKER, f"{error.message} [{error.code}]", error.hint)
        return
    try:
        survey = call(directory, "survey_store", timeout=_LOOKING)
    except TaskpassError as error:
        yield Row("targets", State.UNKNOWN, f"not looked at: {error.message} [{error.code}]", error.hint)
        return
    yield from rows_of_survey(survey)


def _inside(directory: Path) -> Iterator[Row]:
    from taskpass.cli.audit.source import open_records
    from taskpass.store.check import check
    from taskpass.store.open import schema_version

    store = open_records(directory)
    try:
        yield Row("schema", State.OK, f"version {schema_version(store)}, in {store.database.place}")
        found = check(store)
    finally:
        store.close()
    counted = f"{found.tasks} tasks, {found.requests} requests, {found.grants} grants, {found.leases} leases"
    if not found.problems:
        yield Row("records", State.OK, f"{counted}: each agrees with the audit record")
    for problem in found.problems[:_SHOWN]:
        yield Row("records", State.WEAKER, problem, "this was written past the broker: see taskpass audit verify")
    if len(found.problems) > _SHOWN:
        yield Row("records", State.WEAKER, f"and {len(found.problems) - _SHOWN} more")


def _chain(directory: Path, trust: str | None) -> Row:
    from taskpass.audit.verify import verify
    from taskpass.cli.audit.source import open_source
    from taskpass.keys.ed25519 import PublicKeys
    from taskpass.keys.files import trust as read_trust

    trusted = read_trust(trust) if trust else None
    with open_source(directory, None) as source:
        report = verify(
            source.records,
            source.installation,
            trusted,
            own_keys=PublicKeys(source.keys) if source.keys else None,
            witness=source.witness,
            reviewers=source.reviewers,
            start=source.start,
        )
    if report.fault:
        broken = f"broken at record {report.fault.seq}: {report.fault.what}"
        return Row("audit", State.WEAKER, broken, _ADOPT if "missing" in report.fault.what else "")
    by = "by the trusted key" if report.trusted else "self-check only"
    return Row("audit", State.OK, f"{report.seq} is the newest record, head {report.head}; the chain holds ({by})")


def rows_of_survey(survey: View) -> Iterator[Row]:
    """What stands outside, against what the store says."""
    witness, seq = survey["witness"], survey["seq"]
    if survey["contradicted"]:
        yield Row("witness", State.WEAKER, f"the file beside the store has record {witness} of another history", _ADOPT)
    else:
        yield Row("witness", State.OK, f"the file beside the store has record {witness}, which the store has too")
    for resource in survey["doubted"]:
        named = f"for {resource}" if resource else "for every resource"
        yield Row("store", State.WEAKER, f"found to be a restored copy {named}: nothing is issued", _ADOPT)
    for target in survey["targets"]:
        yield from _target(target, survey["epoch"], seq)


def _target(target: View, epoch: int, seq: int) -> Iterator[Row]:
    name = f"resource {target['resource']}"
    if target["error"]:
        yield Row(name, State.UNKNOWN, f"not looked at: {target['error']}")
        return
    if target["epoch"] > epoch or target["audit_seq"] > seq:
        seen = f"it has seen epoch {target['epoch']} and record {target['audit_seq']}"
        yield Row(name, State.WEAKER, f"{seen}; the store is at epoch {epoch}, record {seq}", _ADOPT)
    else:
        yield Row(name, State.OK, f"has seen record {target['audit_seq']} of {seq}, epoch {target['epoch']}")
    for role in target["unknown"]:
        yield Row(name, State.WEAKER, f"{role} stands there and no lease of the store explains it", _ADOPT)
    for lease in target["gone"]:
        yield Row(name, State.WEAKER, f"{lease} is active in the store and has no role there", "taskpass lease show")
