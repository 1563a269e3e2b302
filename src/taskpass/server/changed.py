"""Waking those who wait for a decision."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Changed:
    """Wakes those who wait for a decision; polls behind it, because another process may decide."""

    POLL = 0.25

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def announce(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Return when ``done()`` or after ``seconds``, whichever is first."""
        rounds = int(seconds / self.POLL)
        for _ in range(rounds):
            if done():
                return
            with self._condition:
                self._condition.wait(self.POLL)
