"""Heads of the chain that stand outside the broker: in the log of a PostgreSQL server that it issued on.

The target kit writes ``taskpass: … head=<seq>:<hash>`` with ``RAISE LOG``. Such a line proves that the record existed
with that hash when it was written. It is not signed: whoever may log on the target can write one like it, which can
raise a false alarm but cannot hide a change. So compare the user in the line's prefix before acting on an alarm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SEVERITY = re.compile(
    r"\b(?:DEBUG\d?|INFO|NOTICE|WARNING|ERROR|LOG|FATAL|PANIC|DETAIL|HINT|QUERY|CONTEXT|LOCATION|STATEMENT): {2}(.*)$"
)
_HEAD = re.compile(r"taskpass: (?:.* )?head=([1-9][0-9]{0,15}):(sha256:[0-9a-f]{64})(?: .*)?")


@dataclass(frozen=True, slots=True)
class Anchor:
    """``where`` says in words where it was found, for instance ``line 12 of the server's log``."""

    seq: int
    hash: str
    where: str


def parse_server_log(text: str) -> list[Anchor]:
    """The anchors in a PostgreSQL log (stderr format), in their order.

    Only the message of a line counts: a statement that is logged contains what an agent wrote, and its further lines
    begin with a tab.
    """
    found = (_anchor(line, number) for number, line in enumerate(text.split("\n"), start=1))
    return [anchor for anchor in found if anchor]


def _anchor(line: str, number: int) -> Anchor | None:
    if line.startswith(("\t", " ")):
        return None
    message = _SEVERITY.search(line)
    head = _HEAD.fullmatch(message[1].rstrip("\r")) if message else None
    return Anchor(int(head[1]), head[2], f"line {number} of the server's log") if head else None


def by_seq(anchors: Iterable[Anchor]) -> dict[int, list[Anchor]]:
    """Anchors under their sequence numbers; more than one may name the same record."""
    result: dict[int, list[Anchor]] = {}
    for anchor in anchors:
        result.setdefault(anchor.seq, []).append(anchor)
    return result
