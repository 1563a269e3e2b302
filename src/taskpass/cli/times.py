"""Times and durations as people write and read them. Standard library only."""

from __future__ import annotations

import re
import time
from datetime import datetime

from taskpass.core.errors import InvalidInput

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s?)?")


def seconds(text: str, *, what: str) -> int:
    """``15m``, ``1h30m``, ``90s`` or ``90`` in seconds; at least one. Raises ``InvalidInput``."""
    match = _DURATION.fullmatch(text)
    if not text or len(text) > 20 or not match:
        raise InvalidInput(f"{what} is not a duration", hint="write 90s, 15m or 1h30m", code="bad_ttl")
    parts = zip(match.groups(), _UNITS.values(), strict=True)
    total = sum(int(number) * unit for number, unit in parts if number)
    if total < 1:
        raise InvalidInput(f"{what} must be at least one second", hint="write 90s, 15m or 1h30m", code="bad_ttl")
    return total


def words(total: float) -> str:
    """A duration for people, in its two largest units."""
    whole, parts = int(total), list[str]()
    for unit, size in _UNITS.items():
        count, whole = divmod(whole, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {'min' if unit == 'm' else unit}")
    return " ".join(parts[:2])


def when(value: object, *, now: float | None = None) -> str:
    """An RFC 3339 time as ``in 12 min (2026-01-05 10:00:00 UTC)``; empty for none."""
    if not isinstance(value, str) or not value:
        return ""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    distance = moment.timestamp() - (time.time() if now is None else now)
    relative = f"in {words(distance)}" if distance >= 0 else f"{words(-distance)} ago"
    return f"{relative} ({moment:%Y-%m-%d %H:%M:%S} UTC)"
