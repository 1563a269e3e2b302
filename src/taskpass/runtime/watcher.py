"""Waiting for processes to end, by pidfd, in one thread.

A pidfd becomes readable when its process ends and never means another process. Not for deciding what follows: each
watch has a callback, which runs in the watcher's thread and must be short.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

_log = logging.getLogger("taskpass.runtime.watcher")


class ProcessWatcher:
    """Owns the descriptors given to it; safe for threads."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._watched: dict[str, int] = {}
        self._callbacks: dict[int, tuple[str, Callable[[], None]]] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def watch(self, key: str, pidfd: int, ended: Callable[[], None]) -> None:
        """Call ``ended`` once when the process of ``pidfd`` ends; replaces an earlier watch of ``key``."""
        self.forget(key)
        with self._lock:
            self._watched[key] = pidfd
            self._callbacks[pidfd] = (key, ended)
            self._epoll.register(pidfd, select.EPOLLIN)

    def forget(self, key: str) -> None:
        """Idempotent."""
        with self._lock:
            pidfd = self._watched.pop(key, None)
            if pidfd is not None:
                self._drop(pidfd)

    def stop(self) -> None:
        self._stopping = True
        os.write(self._wake_write, b"x")
        if self._thread.is_alive():
            self._thread.join(5)

    def _drop(self, pidfd: int) -> None:
        self._callbacks.pop(pidfd, None)
        self._epoll.unregister(pidfd)
        os.close(pidfd)

    def _run(self) -> None:
        while not self._stopping:
            for pidfd, _ in self._epoll.poll():
                self._ended(pidfd)

    def _ended(self, pidfd: int) -> None:
        with self._lock:
            found = self._callbacks.get(pidfd)
            # The number may have come to mean another process since the poll: ask the descriptor itself.
            if found is None or not _has_ended(pidfd):
                return
            key, callback = found
            self._watched.pop(key, None)
            self._drop(pidfd)
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - one failing callback must not end the watching of all others.
            _log.error("after the end of a watched process: %s", type(error).__name__)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
