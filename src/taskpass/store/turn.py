"""Whose turn it is to write, among the threads of this process: in order of arrival, those of reserved lanes first.

A plain lock is not fair: a flood of writers can keep one that takes access back waiting. A thread is put into the
reserved lane once, by ``reserve_this_thread``; wiring does so for taking back and for people. Not for keeping other
processes out: the database does that.
"""

from __future__ import annotations

import threading
from collections import deque

_lane = threading.local()


def reserve_this_thread() -> None:
    """From now on this thread writes before any thread that is not reserved."""
    _lane.reserved = True


def is_reserved() -> bool:
    return getattr(_lane, "reserved", False)


class Turn:
    """Handed from one thread to the next; never free while somebody waits."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._reserved: deque[threading.Event] = deque()
        self._others: deque[threading.Event] = deque()

    def acquire(self, timeout: float) -> bool:
        """False if the turn did not come within ``timeout`` seconds."""
        queue = self._reserved if is_reserved() else self._others
        with self._guard:
            if not self._held:
                self._held = True
                return True
            called = threading.Event()
            queue.append(called)
        if called.wait(timeout):
            return True
        with self._guard:
            if called.is_set():
                return True  # It came just now, and nobody else has it.
            queue.remove(called)
        return False

    def release(self) -> None:
        with self._guard:
            for queue in (self._reserved, self._others):
                if queue:
                    queue.popleft().set()
                    return
            self._held = False
