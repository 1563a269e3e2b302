"""The log as a file that can be verified elsewhere: one JSON object per line, a header first, ASCII.

A record has one spelling only, so that no byte of its line can be changed without being noticed. What somebody else
wrote is in it; characters beyond ASCII are escaped, so that looking at the file repaints no terminal.

Not for: secrets, of which the log has none, and not for trust: the keys in the header serve a self-check only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

from taskpass.core.audit import GENESIS, Record
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import InstallationId

FORMAT = "taskpass-audit/1"
_LINE_BYTES = 16 * 2**20
_FIELDS: Mapping[str, type] = {"seq": int, "body": str, "prev": str, "hash": str, "signature": str, "key": str}


@dataclass(frozen=True, slots=True)
class Export:
    """``records`` can be read once. ``keys`` are printable public keys; ``start`` the head before the first record."""

    installation: InstallationId
    keys: tuple[str, ...]
    start: tuple[int, str]
    records: Iterator[Record]


def write_export(
    stream: IO[bytes],
    records: Iterable[Record],
    *,
    installation: InstallationId,
    keys: Iterable[str],
    start: tuple[int, str] = (0, GENESIS),
) -> int:
    """Write all; the number of records written."""
    header = {
        "format": FORMAT,
        "installation": installation,
        "keys": sorted(keys),
        "after": start[0],
        "prev": start[1],
    }
    stream.write(_spell(header))
    count = 0
    for record in records:
        stream.write(_spell(asdict(record)))
        count += 1
    return count


def read_export(stream: IO[bytes]) -> Export:
    """Open an export. Raises ``InvalidInput``; its ``records`` raise it for the first line that is not a record."""
    header = _object(stream.readline(_LINE_BYTES), 1)
    keys: Any = header.get("keys")
    if header.get("format") != FORMAT or not isinstance(keys, list):
        raise InvalidInput("not an export of an audit log", hint="taskpass audit export writes one")
    after, prev, installation = header.get("after"), header.get("prev"), header.get("installation")
    if type(after) is not int or not isinstance(prev, str) or not isinstance(installation, str):
        raise InvalidInput("the header of the export is damaged")
    lines = tuple(str(key) for key in keys)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return Export(InstallationId(installation), lines, (after, prev), _records(stream))


def _spell(data: Mapping[str, object]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _records(stream: IO[bytes]) -> Iterator[Record]:
    number = 1
    while line := stream.readline(_LINE_BYTES):
        number += 1
        yield _record(line, number)


def _record(line: bytes, number: int) -> Record:
    data = _object(line, number)
    if data.keys() != _FIELDS.keys() or any(type(data[name]) is not kind for name, kind in _FIELDS.items()):
        raise InvalidInput(f"line {number} of the export is not a record")
    record = Record(**data)
    if _spell(asdict(record)) != line or not all(_is_text(value) for value in data.values()):
        raise InvalidInput(f"line {number} of the export is not as it was written")
    return record


def _is_text(value: object) -> bool:
    """False for half of a surrogate pair, which JSON can spell and nothing can hash."""
    return not any("\ud800" <= character <= "\udfff" for character in str(value))


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InvalidInput(f"line {number} of the export cannot be read")
    return data  # pyright: ignore[reportUnknownVariableType]
