"""``taskpass store adopt``: a person accepts a store that was restored from an older copy.

Nothing here decides: the broker shows what the copy does not know, the person types the installation's id, and the
broker refuses if the targets do not stand as they were shown any more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from taskpass.cli.operator import View, call, directory_option, json_option
from taskpass.cli.say import fields, show, show_json, style, table, talk
from taskpass.core.errors import InvalidInput
from taskpass.core.text import visible

_LOOKING = 120
"""Seconds: every target is asked, and one that does not answer takes its time."""
_ADOPTING = 300


@click.command("adopt")
@click.option("--yes", "typed", metavar="INSTALLATION", help="Do not ask: the installation's id, typed out.")
@click.option("--without", multiple=True, metavar="RESOURCE", help="Go on without this target (may be repeated).")
@directory_option
@json_option
def command(typed: str | None, without: tuple[str, ...], directory: Path, as_json: bool) -> int:
    """Accept a store that was restored from a backup: nothing issued before stays alive, then issuing works again.

    Shows what the backup does not know: lost audit numbers, roles in the databases that it never heard of, leases that
    it believes open. The broker has to run.
    """
    found = call(directory, "survey_store", timeout=_LOOKING)
    if not found["restored"]:
        raise InvalidInput("nothing stands against this store, so there is nothing to adopt", code="store_not_restored")
    if not as_json:
        _print(found)
    if not _confirmed(found, typed):
        talk("taskpass: nothing was done")
        return 1
    done = call(directory, "adopt_store", {"mark": found["mark"], "without": list(without)}, timeout=_ADOPTING)
    if as_json:
        show_json({"survey": found, "adopted": done})
    else:
        _print_done(done)
    return 3 if done["left"] else 0


def _print(found: View) -> None:
    lost = found["lost"]
    numbers = f"{found['seq'] + 1} to {found['highest']} are lost" if lost else "none is known to be lost"
    fields(
        {
            "installation": found["installation"],
            "epoch": found["epoch"],
            "audit": f"this store ends with record {found['seq']}; {numbers}",
            "file beside it": _witness(found),
            "leases": f"{len(found['leases'])} that this store believes usable: all are taken back",
            "requests": f"{found['requests']} open: all are cancelled",
        }
    )
    show()
    table(
        ("RESOURCE", "EPOCH", "HAS SEEN RECORD", "ROLES NOT KNOWN HERE", "OF THEM USABLE", "LEASES NOT THERE", "ERROR"),
        [
            (x["resource"], x["epoch"], x["audit_seq"], len(x["unknown"]), x["usable"], len(x["gone"]), x["error"])
            for x in found["targets"]
        ],
    )
    for target in found["targets"]:
        for role in target["unknown"]:
            show(f"  {visible(target['resource'])}: {visible(role)} is closed, with proof")


def _witness(found: View) -> str:
    if not found["witness"]:
        return "there is none"
    return f"record {found['witness']}, {'of another history' if found['contradicted'] else 'agrees'}"


def _confirmed(found: View, typed: str | None) -> bool:
    if typed is None:
        if not sys.stdin.isatty():
            raise InvalidInput(
                "there is no terminal to confirm on",
                hint="look first, then: taskpass store adopt --yes and the installation's id",
                code="not_confirmed",
            )
        typed = str(click.prompt("type the installation's id to adopt this store", default="", err=True))
    if typed and typed != found["installation"]:
        raise InvalidInput("that is not this installation's id", hint="it is shown above", code="not_confirmed")
    return bool(typed)


def _print_done(done: View) -> None:
    show(style(f"adopted with record {done['seq']}; epoch {done['epoch']}", "green"))
    show(f"taken back: {done['leases']} leases; closed: {len(done['closed'])} roles that were not known here")
    for left in done["left"]:
        show(style(f"not proven closed yet, tried again: {visible(left)}", "yellow"))
