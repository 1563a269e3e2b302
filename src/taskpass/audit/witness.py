"""The newest head, kept in a small file outside the database: it notices a store that was cut off or put back.

Best effort and never in the way of the work: a witness that is behind is only weaker. One that the store contradicts is
left as it is, because it is the evidence, until a person adopts the store. Not for: somebody who can write both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskpass.core.audit import Record, head_bytes
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import InstallationId
from taskpass.keys.base import Verifier

FILE_NAME = "audit-head"
_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Head:
    """A signed head as the witness file holds it."""

    seq: int
    hash: str
    signature: str
    key: str

    def signed_by(self, verifier: Verifier, installation: InstallationId) -> bool:
        return verifier.verify(self.key, head_bytes(installation, self.seq, self.hash), self.signature)


def read(path: Path) -> Head | None:
    """The head in the file, or None if there is none. Raises ``InvalidInput`` if the file is damaged."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_BLOCK_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInput(f"the head kept outside the database cannot be read: {error.strerror}") from None
    try:
        content: Any = json.loads(data)
        return Head(int(content["seq"]), str(content["hash"]), str(content["signature"]), str(content["key"]))
    except (KeyError, TypeError, ValueError):
        raise InvalidInput("the head kept outside the database is damaged") from None


class Witness:
    """Keeps the file up to date. ``contradicted`` is True while it must not be touched."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.contradicted = False

    def compare(self, hash_at: Callable[[int], str | None]) -> bool:
        """Whether the store agrees, asked for the hash that it has at the witness's sequence number."""
        try:
            head = read(self._path)
        except InvalidInput:
            head = None
        self.contradicted = head is not None and head.seq > 0 and hash_at(head.seq) != head.hash
        return not self.contradicted

    def seen(self) -> int | None:
        """The sequence number in the file, or None if there is none that can be read."""
        try:
            head = read(self._path)
        except InvalidInput:
            return None
        return head.seq if head else None

    def adopt(self, record: Record) -> None:
        """A person has accepted the store as it is with ``record``, which replaces the witness."""
        self.contradicted = False
        self.record(record)

    def record(self, record: Record) -> None:
        """Write the head over the one before: one padded block in one call, not synced.

        Renaming a fresh file over the old one makes ext4 flush it, which would double the cost of every change; a torn
        block after a power cut is noticed as unreadable and costs this one comparison.
        """
        if self.contradicted:
            return
        content = {"seq": record.seq, "hash": record.hash, "signature": record.signature, "key": record.key}
        line = json.dumps(content).encode().ljust(_BLOCK_BYTES - 1) + b"\n"
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.pwrite(file, line, 0)
        except OSError:
            return
        finally:
            os.close(file)
