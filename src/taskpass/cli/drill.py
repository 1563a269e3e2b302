"""``taskpass drill``: show today, on the real database, that an access ends.

Exit code 0: it does; 3: it does not; 4: it could not be played.
"""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import View, call, directory_option, json_option
from taskpass.cli.say import show, show_json, style, table, talk
from taskpass.core.text import visible

SECONDS = 120
"""A drill takes less than one second; a target that hangs is given up by the broker long before this."""

NOT_PLAYED = frozenset({"fit", "issue", "control", "open"})
"""Steps that come before anything is taken back: if one fails, nothing was shown, for good or ill."""


@click.command("drill")
@click.argument("resource")
@directory_option
@json_option
def command(resource: str, directory: Path, as_json: bool) -> int:
    """Play an access to RESOURCE: issue, use, revoke, prove; clients of every kind judge whether it ended.

    Nobody is asked, and no row is read: the account can do nothing, or reads no row of one table where policy permits
    that to the tool taskpass-drill. The result is recorded; drill_every in taskpass.toml plays it by itself.
    """
    view = call(directory, "drill", {"resource": resource}, timeout=SECONDS)
    if as_json:
        show_json(view)
    else:
        _print(view)
    return verdict(view)


def verdict(view: View) -> int:
    if view["passed"]:
        return 0
    failed = {step["step"] for step in view["steps"] if not step["passed"]}
    return 4 if failed <= NOT_PLAYED else 3


def _print(view: View) -> None:
    show(f"drill of {visible(view['resource'])}: {_result(view)}, in {view['took_ms']} ms")
    show()
    steps = view["steps"]
    table(
        ("step", "result", "ms", ""),
        [(each["step"], "ok" if each["passed"] else "FAILED", each["took_ms"], each["said"]) for each in steps],
    )
    if view["clients"]:
        show()
        table(
            ("client", "ended by", "ms after the order"),
            [(each["kind"], each["ended"] or "STILL WORKS", each["after_ms"]) for each in view["clients"]],
        )
    show()
    show(f"recorded: taskpass audit show {view['task']}")
    if not view["passed"]:
        talk(f"taskpass: {visible(view['message'])} [{visible(view['code'])}]")
        if view["hint"]:
            talk(f"next: {visible(view['hint'])}")


def _result(view: View) -> str:
    if view["passed"]:
        return style(f"passed, proven {view['revoke_ms']} ms after the order", "green", "bold")
    return style("FAILED", "red", "bold")
