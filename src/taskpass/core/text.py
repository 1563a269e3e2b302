"""Text that somebody else wrote, made safe to show to a person.

Ticket titles, branches, table names and reasons come from the requesting side or from the target. They may hold control
characters, terminal escapes or bidirectional overrides that repaint what an approver reads. ``visible`` makes each such
character readable instead of effective; ``accept`` bounds what is stored. Not for SQL: names are quoted by the server.
"""

from __future__ import annotations

import unicodedata

from taskpass.core.errors import InvalidInput

REASON_BYTES = 2000
NAME_BYTES = 255

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_BLANK = frozenset(
    [
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    ]
)
"""Letters and marks that show nothing: with one of them, two different names look alike."""


def visible(text: str, *, limit: int | None = None) -> str:
    """``text`` with every control, format, bidi, blank and unassigned character written as ``\\u{…}``.

    With ``limit`` the result is cut to that many characters and says how many are not shown, so nothing is ever
    truncated silently.
    """
    shown = "".join(_show(character) for character in text)
    if limit is not None and len(shown) > limit:
        return f"{shown[:limit]} […{len(shown) - limit} more characters]"
    return shown


def _show(character: str) -> str:
    if unicodedata.category(character) in _HIDDEN or ord(character) in _BLANK:
        return f"\\u{{{ord(character):x}}}"
    return "\u0020" if character != " " and unicodedata.category(character) == "Zs" else character


def accept(text: object, *, what: str, limit: int = NAME_BYTES, empty: bool = False) -> str:
    """``text`` if it is a string of at most ``limit`` UTF-8 bytes without NUL or lone surrogates, else
    ``InvalidInput``.

    Other odd characters are stored as they are: they are the caller's claim, and ``visible`` shows them.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"{what} must be text")
    if "\0" in text:
        raise InvalidInput(f"{what} must not contain a NUL character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid Unicode") from None
    if size > limit:
        raise InvalidInput(f"{what} is too long: {size} bytes, at most {limit}")
    if not empty and not text.strip():
        raise InvalidInput(f"{what} must not be empty")
    return text
