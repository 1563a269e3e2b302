"""Hears what other brokers on one PostgreSQL store announce, on a connection and in a thread of its own.

A help only, with polling behind it: while the connection is lost nothing is heard, and it is made again. Not for: what
was announced. An announcement has no content, so nothing can be learned from it or made to be believed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from taskpass.core.errors import TaskpassError

PAUSE_SECONDS = 1.0
"""Before the connection is made again."""
_TURN_SECONDS = 0.5


class Listener:
    """Calls ``wake`` after each announcement on ``channel``, and after each new connection: something may be missed."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], channel: str, wake: Callable[[], None]) -> None:
        self._connect = connect
        self._channel = channel
        self._wake = wake
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(psycopg.Error, TaskpassError):
                self._hear()
            self._stopping.wait(PAUSE_SECONDS)

    def _hear(self) -> None:
        with self._connect() as connection:
            connection.execute(f"LISTEN {self._channel}".encode())  # a constant of ours
            self._wake()
            while not self._stopping.is_set():
                for _ in connection.notifies(timeout=_TURN_SECONDS, stop_after=1):
                    self._wake()
