"""A migration file as it is approved: the digest of its bytes, and what a person must know about it before reading.

Approval binds the bytes: one changed byte is another script, and asks again. Not for splitting or running: the issuer
does that, with the grammar of its database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskpass.core.errors import InvalidInput

MAX_SCRIPT_BYTES = 128 * 1024
"""A file travels in one line of at most 1 MiB, in which a byte may take six."""

MAX_STATEMENTS = 1000


@dataclass(frozen=True, slots=True)
class Script:
    """``digest`` is ``sha256:`` and what ``sha256sum`` prints; ``size`` in bytes; ``statements`` are (line, kind).

    ``one_transaction`` False: each statement is committed by itself, because the file says so in its first line.
    """

    digest: str
    size: int
    one_transaction: bool
    statements: tuple[tuple[int, str], ...]

    def to_json(self) -> dict[str, object]:
        return {
            "digest": self.digest,
            "size": self.size,
            "one_transaction": self.one_transaction,
            "statements": [list(statement) for statement in self.statements],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Script:
        statements = tuple((int(line), str(kind)) for line, kind in data["statements"])
        return cls(str(data["digest"]), int(data["size"]), bool(data["one_transaction"]), statements)


def script_digest(text: str) -> str:
    """The digest of a file's bytes; raises ``InvalidInput`` for what no file may hold or be."""
    data = text.encode("utf-8", "surrogatepass")
    if not data.strip():
        raise InvalidInput("the file is empty", code="script_refused")
    if len(data) > MAX_SCRIPT_BYTES:
        raise InvalidInput(
            f"the file has {len(data)} bytes, at most {MAX_SCRIPT_BYTES}",
            hint="split it; load data by other means than a migration",
            code="script_refused",
        )
    return "sha256:" + hashlib.sha256(data).hexdigest()
