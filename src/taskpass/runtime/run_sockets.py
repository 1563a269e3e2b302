"""The private directory and socket of each run: the runtime's implementation of ``broker.context.RunSockets``."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from taskpass.core.errors import NotAuthenticated
from taskpass.core.ids import RunId
from taskpass.identity.base import Peer
from taskpass.identity.local import LocalAttestor, RunBinding
from taskpass.runtime.watcher import ProcessWatcher
from taskpass.server.line import Handler, Line, LineServers
from taskpass.server.sockets import private_directory
from taskpass.store.base import Run

SOCKET = "line.sock"


class RunSocketServer:
    """One listening socket per run, each with an attestor that knows its run.
    ``ended(run)`` when its sandbox is gone.
    """

    def __init__(
        self,
        servers: LineServers,
        directory: Path,
        attestor: LocalAttestor,
        watcher: ProcessWatcher,
        ended: Callable[[RunId], None],
    ) -> None:
        self._servers = servers
        self._directory = directory
        self._attestor = attestor
        self._watcher = watcher
        self._ended = ended
        self._lock = threading.Lock()
        self._bindings: dict[RunId, RunBinding] = {}
        self.handler: Handler | None = None

    def open(self, run: RunId, uid: int, launcher: Peer) -> str:
        binding = RunBinding.prepared(run, uid, launcher)
        directory = private_directory(self._path(run), reader_uid=uid)
        self._serve(run, uid, directory, binding)
        try:
            launcher_pidfd = os.pidfd_open(launcher.caller.pid)
        except OSError:
            self.close(run)
            raise NotAuthenticated("the launcher has ended", code="peer_gone") from None
        self._watcher.watch(f"launcher/{run}", launcher_pidfd, lambda: self._ended(run))
        return str(directory)

    def reopen(self, run: Run) -> bool:
        """Serve a run of an earlier broker process again; False if its sandbox is gone."""
        binding = RunBinding.restored(run.id, run.uid, run.namespace) if run.namespace else None
        if binding is None:
            return False
        directory = private_directory(Path(run.directory), reader_uid=run.uid)
        self._serve(run.id, run.uid, directory, binding)
        self._watch_init(run.id, binding)
        return True

    def bound(self, run: RunId) -> None:
        self._watch_init(run, self.binding(run))

    def binding(self, run: RunId) -> RunBinding:
        """What is known of the run's sandbox; ``NotAuthenticated`` for a run that is not served."""
        with self._lock:
            binding = self._bindings.get(run)
        if binding is None:
            raise NotAuthenticated("this run has ended", code="run_ended")
        return binding

    def close(self, run: RunId) -> None:
        with self._lock:
            binding = self._bindings.pop(run, None)
        for key in (f"launcher/{run}", f"run/{run}"):
            self._watcher.forget(key)
        self._servers.remove(self._path(run) / SOCKET)
        if binding:
            binding.close()
        shutil.rmtree(self._path(run), ignore_errors=True)

    def _path(self, run: RunId) -> Path:
        return self._directory / "runs" / run[-12:]

    def _serve(self, run: RunId, uid: int, directory: Path, binding: RunBinding) -> None:
        assert self.handler is not None
        with self._lock:
            self._bindings[run] = binding
        self._servers.add(
            Line(
                directory / SOCKET, self.handler, lambda connection: self._attestor.of_run(connection, binding), uid=uid
            )
        )

    def _watch_init(self, run: RunId, binding: RunBinding) -> None:
        """A sandbox that has ended by now ends its run at once; nothing would tell us later."""
        try:
            init_pidfd = os.pidfd_open(binding.init_pid)
        except OSError:
            self._ended(run)
            return
        self._watcher.watch(f"run/{run}", init_pidfd, lambda: self._ended(run))
