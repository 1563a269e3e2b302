"""How long a server that does not answer is waited for: connections are cut, and one that hung is not tried at once.

A frozen server or a cut cable sends nothing, not even an error. Whoever pulls the plug must not wait for it. Not for:
a server that refuses, which says so by itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, event

UNIT_SECONDS = 10.0
"""The longest that a connection may be in use: waiting for other writers (5 s), the statements, and the disk."""
HUNG_SECONDS = 1.0
"""A connection attempt that failed after so long was not refused but unanswered."""
REST_SECONDS = 5.0
"""For so long an unanswered server is taken to be down without asking again."""


class Patience:
    """Watches the connections that are in use. ``stop`` ends its thread."""

    def __init__(self) -> None:
        self._limit: float | None = UNIT_SECONDS
        self._lock = threading.Lock()
        self._used: dict[object, tuple[psycopg.Connection[Any], float]] = {}
        self._stopping = threading.Event()
        self._resting_until = 0.0
        self._thread = threading.Thread(target=self._watch, name="store-patience", daemon=True)

    def attach(self, engine: Engine) -> None:
        event.listen(engine, "checkout", self._taken)
        event.listen(engine, "checkin", self._returned)
        self._thread.start()

    @contextmanager
    def suspended(self) -> Generator[None]:
        """While a schema is brought up to date, which may take its time. Nothing is served yet then."""
        limit, self._limit = self._limit, None
        try:
            yield
        finally:
            self._limit = limit

    def resting(self) -> bool:
        return time.monotonic() < self._resting_until

    def connecting(self, connect: Callable[[], psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
        """``connect``, and a rest after an attempt that nobody answered."""
        started = time.monotonic()
        try:
            return connect()
        except psycopg.OperationalError:
            if time.monotonic() - started > HUNG_SECONDS:
                self._resting_until = time.monotonic() + REST_SECONDS
            raise

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _taken(self, connection: psycopg.Connection[Any], record: object, proxy: object) -> None:
        if self._limit is not None:
            with self._lock:
                self._used[record] = (connection, time.monotonic() + self._limit)

    def _returned(self, connection: object, record: object) -> None:
        with self._lock:
            self._used.pop(record, None)

    def _watch(self) -> None:
        while not self._stopping.wait(0.5):
            now = time.monotonic()
            with self._lock:
                late = [key for key, (_, deadline) in self._used.items() if deadline < now]
                cut = [self._used.pop(key)[0] for key in late]
            for connection in cut:
                _cut(connection)


def _cut(connection: psycopg.Connection[Any]) -> None:
    """End it for both sides, also for the thread of ours that waits for an answer on it."""
    with contextlib.suppress(OSError, psycopg.Error):
        if not connection.closed:
            with socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
