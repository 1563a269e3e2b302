"""A migration file as a person sees it before deciding: every line numbered, every odd character made visible.

The file is the agent's words, behind ``>`` like all of them; what the broker knows of it stands above.
"""

from __future__ import annotations

import hashlib
from typing import Any

from taskpass.cli.say import show, table
from taskpass.core.errors import Denied
from taskpass.core.manifest import Migration
from taskpass.core.text import visible


def print_script(migration: dict[str, Any] | None, text: str | None) -> None:
    """Nothing for a request that is no migration."""
    if migration is None:
        return
    script = migration["script"]
    if script is None:
        show("hands-on: an endpoint as the owner; nothing of what is done there is known beforehand")
        return
    how = "in one transaction" if script["one_transaction"] else "each statement committed by itself"
    show(f"one file, {script['size']} bytes, {how}, {script['digest']}")
    table(("LINE", "STATEMENT"), [(str(line), kind) for line, kind in script["statements"]])
    show("The file, as the agent wrote it; exactly these bytes are run")
    for number, line in enumerate((text or "").split("\n"), start=1):
        # A tab is an ordinary character of a file and moves nothing out of sight.
        show(f"> {number:>5} | {visible(line.removesuffix(chr(13)).expandtabs(4))}")


def demand_shown(migration: Migration | None, text: str | None) -> None:
    """Refuse to sign for a file that is not the one that was shown."""
    if migration is None or migration.script is None:
        return
    shown = "sha256:" + hashlib.sha256((text or "").encode("utf-8", "surrogatepass")).hexdigest()
    if shown != migration.script.digest:
        raise Denied(
            "the file that was shown is not the one that would be approved",
            hint="sign nothing; tell whoever runs this machine",
            code="challenge_mismatch",
        )
