"""Leases that end with a process: the runtime's implementation of ``broker.context.Holders``."""

from __future__ import annotations

import os
from collections.abc import Callable

from taskpass.core.errors import NotAuthenticated
from taskpass.core.ids import LeaseId
from taskpass.identity.base import Caller
from taskpass.identity.process import Process
from taskpass.runtime.watcher import ProcessWatcher


class LeaseHolders:
    """``ended(lease)`` is called once when the process that a lease was given to is gone."""

    def __init__(self, watcher: ProcessWatcher, ended: Callable[[LeaseId], None]) -> None:
        self._watcher = watcher
        self._ended = ended

    def watch_lease(self, lease: LeaseId, caller: Caller) -> None:
        """Hold the caller's process; a pid that means another process by now counts as ended."""
        try:
            process = Process.hold(caller.pid)
        except (NotAuthenticated, OSError):
            self._ended(lease)
            return
        try:
            same = str(process.started()) == caller.facts.get("started_ticks")
            pidfd = os.dup(process.pidfd) if same else -1
        except (OSError, ValueError, IndexError):
            pidfd = -1
        finally:
            process.close()
        if pidfd < 0:
            self._ended(lease)
        else:
            self._watcher.watch(lease, pidfd, lambda: self._ended(lease))

    def forget_lease(self, lease: LeaseId) -> None:
        self._watcher.forget(lease)
