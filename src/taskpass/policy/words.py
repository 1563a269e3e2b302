"""Two small helps for messages about files that people write: the nearest known word, and one safe line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from taskpass.core.text import visible


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` with the nearest of ``known``, or nothing if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def one_line(text: str, limit: int = 300) -> str:
    """``text`` on one line without effective control characters, cut visibly at ``limit`` characters."""
    return visible(" ".join(text.split()), limit=limit)
