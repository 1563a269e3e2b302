"""Migration files of targets in memory: each line that is not empty is a statement, and nothing is a language.

A backslash begins what is no statement, as in psql. Not for what a statement does: that is the target's.
"""

from __future__ import annotations

from taskpass.core.errors import InvalidInput
from taskpass.core.script import Script, script_digest


def read(text: str) -> Script:
    """``text`` as a file to approve. Raises ``InvalidInput`` (``script_refused``)."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, line in lines:
        if line.startswith("\\"):
            raise InvalidInput(f"line {number}: that is not a statement", code="script_refused")
    return Script(script_digest(text), len(text.encode()), True, tuple((number, "STATEMENT") for number, _ in lines))
