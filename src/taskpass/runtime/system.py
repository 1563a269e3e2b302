"""The real clock and the real entropy: the only place where either is read."""

from __future__ import annotations

import os
import pwd
import time

from taskpass.core.clock import Instant


class SystemClock:
    """Wall-clock time of this machine."""

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000_000)


def monotonic() -> float:
    """Seconds that never go back, for pacing; not a time of day."""
    return time.monotonic()


class SystemEntropy:
    """The kernel's random bytes."""

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


def os_user(uid: int) -> str:
    """The account name of ``uid``; a uid without an account is written as a number,
    which no config can name by luck.
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
