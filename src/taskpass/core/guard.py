"""The guard against a clock that runs backwards: the later of the clock and the latest time ever seen."""

from __future__ import annotations

from taskpass.core.clock import SECOND, Instant
from taskpass.core.errors import Conflict

TOLERANCE = 5 * SECOND
"""Milliseconds by which the clock may be behind the latest time seen before issuing stops (NTP slew, not a jump)."""


def effective_now(clock_now: Instant, latest_seen: Instant) -> Instant:
    """The time that expiry uses: a clock set back never revives anything."""
    return max(clock_now, latest_seen)


def demand_sane_clock(clock_now: Instant, latest_seen: Instant) -> None:
    """Raise if the clock is behind what was seen: nothing may be issued then (threats.md, item 14)."""
    if clock_now + TOLERANCE < latest_seen:
        raise Conflict(
            "this machine's clock is behind a time that Taskpass has already seen, so nothing is issued",
            hint="set the clock; revoking still works",
            code="clock_behind",
        )
