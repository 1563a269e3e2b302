"""Waking those who wait for a decision. Announced is what may end such a wait, and nothing else: each waiter looks."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Changed:
    """Wakes those who wait for a decision; polls behind it, because another process may decide."""

    POLL = 1.0
    """Seconds. Not announced here is the end of a question that nobody answered, and what was done elsewhere."""

    def __init__(self) -> None:
        self._condition = threading.Condition()

    def announce(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Return when ``done()`` or after ``seconds``, whichever is first."""
        left = seconds
        while left > 0 and not done():
            with self._condition:
                if not self._condition.wait(min(self.POLL, left)):
                    left -= self.POLL
