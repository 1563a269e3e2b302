"""Time and randomness in a test's hands: a clock that stands still until told otherwise, and seeded bytes."""

from __future__ import annotations

import hashlib
import threading

from taskpass.core.clock import SECOND, Instant

START = Instant(1_790_000_000_000)
"""In the year 2026; any instant would do."""


class FakeClock:
    """Wall-clock and monotonic time that move only by ``forward``; ``jump`` moves the wall clock alone."""

    def __init__(self, start: Instant = START) -> None:
        self._now = start
        self._running = 0.0

    def now(self) -> Instant:
        return self._now

    def monotonic(self) -> float:
        """Seconds that never go back, whatever the wall clock does."""
        return self._running

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0
        self._running += seconds
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        """Set the wall clock, in either direction."""
        self._now = Instant(self._now + round(seconds * SECOND))


class SeededEntropy:
    """Bytes that are different at each call and the same in each run of a test. Safe for threads; never for secrets."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._calls = 0
        self._lock = threading.Lock()

    def bytes(self, count: int) -> bytes:
        with self._lock:
            self._calls += 1
            number = self._calls
        return hashlib.shake_256(f"{self._seed}/{number}".encode()).digest(count)
