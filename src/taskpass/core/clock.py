"""Instants, and the two ports through which time and randomness come in.

An ``Instant`` is a whole number of milliseconds since 1970-01-01 UTC. Whole milliseconds are exact in JSON and in both
stores; nothing in Taskpass needs finer time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NewType, Protocol

Instant = NewType("Instant", int)

SECOND = 1000


class Clock(Protocol):
    """Wall-clock time of this machine. The store guards against one that runs backwards; see ``core.guard``."""

    def now(self) -> Instant: ...


class Entropy(Protocol):
    """Cryptographically strong random bytes."""

    def bytes(self, count: int) -> bytes: ...


def after(start: Instant, seconds: int) -> Instant:
    """``start`` plus ``seconds``."""
    return Instant(start + seconds * SECOND)


def seconds_between(start: Instant, end: Instant) -> int:
    """Whole seconds from ``start`` to ``end``, never negative, rounded down (so that a life is never rounded up)."""
    return max(0, (end - start) // SECOND)


def rfc3339(at: Instant) -> str:
    """``at`` as RFC 3339 UTC with exactly three decimals; the fixed precision keeps digests stable."""
    moment = datetime.fromtimestamp(at // SECOND, UTC)
    return f"{moment.isoformat()[:19]}.{at % SECOND:03d}Z"
