"""The log as a file that can be verified elsewhere: one JSON object per line, a header first.

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
_LINE_CHARACTERS = 16 * 2**20
_FIELDS: Mapping[str, type] = {"seq": int, "body": str, "prev": str, "hash": str, "signature": str, "key": str}


@dataclass(frozen=True, slots=True)
class Export:
    """``records`` can be read once. ``keys`` are printable public keys; ``start`` the head before the first record."""

    installation: InstallationId
    keys: tuple[str, ...]
    start: tuple[int, str]
    records: Iterator[Record]


def write_export(
    stream: IO[str],
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
    stream.write(json.dumps(header) + "\n")
    count = 0
    for record in records:
        stream.write(json.dumps(asdict(record)) + "\n")
        count += 1
    return count


def read_export(stream: IO[str]) -> Export:
    """Open an export. Raises ``InvalidInput``; its ``records`` raise it for the first line that is not a record."""
    header = _object(_line(stream), 1)
    keys: Any = header.get("keys")
    if header.get("format") != FORMAT or not isinstance(keys, list):
        raise InvalidInput("not an export of an audit log", hint="taskpass audit export writes one")
    after, prev, installation = header.get("after"), header.get("prev"), header.get("installation")
    if type(after) is not int or not isinstance(prev, str) or not isinstance(installation, str):
        raise InvalidInput("the header of the export is damaged")
    lines = tuple(str(key) for key in keys)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return Export(InstallationId(installation), lines, (after, prev), _records(stream))


def _records(stream: IO[str]) -> Iterator[Record]:
    number = 1
    while line := _line(stream):
        number += 1
        yield _record(line, number)


def _line(stream: IO[str]) -> str:
    try:
        line = stream.readline(_LINE_CHARACTERS)
    except ValueError:
        raise InvalidInput("the export is not text") from None
    return line


def _record(line: str, number: int) -> Record:
    data = _object(line, number)
    if data.keys() != _FIELDS.keys() or any(type(data[name]) is not kind for name, kind in _FIELDS.items()):
        raise InvalidInput(f"line {number} of the export is not a record")
    return Record(**data)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InvalidInput(f"line {number} of the export cannot be read")
    return data  # pyright: ignore[reportUnknownVariableType]
