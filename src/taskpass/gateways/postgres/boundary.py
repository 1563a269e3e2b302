"""Where the messages of a server's stream begin, counted without keeping or copying anything.

It lets an endpoint that must end tell its client so between two messages, where every client reads it, instead of in
the middle of a row. Not for reading messages: only the length in each header is looked at.
"""

from __future__ import annotations

import struct

_LENGTH = struct.Struct("!xI").unpack_from
_HEADER = 5


class Boundary:
    """Follows one stream from its first byte. A server that sends a wrong length only loses us the place."""

    __slots__ = ("_ahead", "_head")

    def __init__(self) -> None:
        self._ahead: int = 0
        self._head: bytes = b""

    @property
    def reached(self) -> bool:
        """Whether the next byte begins a message."""
        return not self._ahead and not self._head

    def follow(self, data: bytes) -> None:
        """Takes the next bytes of the stream."""
        if self._head:
            data = self._head + data
            self._head = b""
        size = len(data)
        position = self._ahead
        while position + _HEADER <= size:
            position += 1 + int(_LENGTH(data, position)[0])
        if position < size:
            self._head = data[position:]
            self._ahead = 0
        else:
            self._ahead = position - size

    def next_in(self, data: bytes) -> int | None:
        """How many of the next bytes complete the message that is under way; None if they do not. Takes nothing."""
        if self._head:
            whole = self._head + data
            if len(whole) < _HEADER:
                return None
            needed = 1 + int(_LENGTH(whole, 0)[0]) - len(self._head)
        else:
            needed = self._ahead
        return needed if 0 <= needed <= len(data) else None
