"""What a command prints: data on stdout, talk on stderr, and nothing of anybody else's that could repaint the screen.

Standard library only. Every text that Taskpass did not write itself goes through ``core.text.visible``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

from taskpass.core.errors import TaskpassError
from taskpass.core.text import visible

TYPE_CHECKING = False  # What typing.TYPE_CHECKING is, without importing typing: start-up is a feature.
if TYPE_CHECKING:
    from typing import TextIO

_NEXT = {
    90: "Do not repeat the same request. Ask for less, or tell your person what you need.",
    91: "A person has to decide. Wait with: taskpass wait REQUEST",
    92: "Ask again: it has ended.",
    93: "Tell your person: the broker does not know this process, or does not run (taskpass up).",
    94: "Tell your person: the answer came with a duty that cannot be met here.",
}
"""What to do next, by exit code, where the error itself has no hint."""

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style(text: str, *names: str, stream: TextIO | None = None) -> str:
    """``text`` in these styles, if ``stream`` (stdout) is a terminal that wants colour."""
    if not names or not coloured(stream or sys.stdout):
        return text
    return f"\033[{';'.join(STYLES[name] for name in names)}m{text}\033[0m"


def talk(text: str) -> None:
    """One line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def show(text: str = "") -> None:
    """One line of data."""
    print(text)


def show_json(value: object) -> None:
    """``value`` as one JSON document; characters beyond ASCII are escaped, so nothing in it can repaint a terminal."""
    print(json.dumps(value, indent=2))


def fail(error: TaskpassError) -> int:
    """Print the error, one line, and what to do next, one line; return the exit code."""
    code = error.exit_code
    talk(f"taskpass: {visible(error.message)} [{visible(error.code)}]")
    hint = error.hint or _NEXT.get(code, "")
    if hint:
        talk(f"next: {visible(hint)}")
    return code


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under headings, each cell made visible. Without rows nothing is printed; callers say so in words."""
    shown = [[visible("" if cell is None else str(cell)) for cell in row] for row in rows]
    if not shown:
        return
    widths = [max(len(column), *(len(row[i]) for row in shown)) for i, column in enumerate(columns)]
    heading = "  ".join(f"{column:<{width}}" for column, width in zip(columns, widths, strict=True)).rstrip()
    show(style(heading, "bold"))
    for row in shown:
        show("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def fields(values: Mapping[str, object], *, indent: str = "") -> None:
    """Names and values below each other."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        show(f"{indent}{name:<{width}}  {visible('' if value is None else str(value))}")
