"""Attesting callers of this machine on the three kinds of socket: outside any run, of one run, and the operator's.

The socket a caller comes in on decides which rule applies, so each rule is a method of its own and nothing is guessed.
Not for tokens: no token leaves the broker.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

from taskpass.core.errors import NotAuthenticated
from taskpass.core.ids import RunId
from taskpass.core.separation import Separation
from taskpass.identity import namespaces
from taskpass.identity.base import Caller, Peer
from taskpass.identity.peer import LocalPeer, facts, held_peer
from taskpass.identity.probe import probe
from taskpass.identity.process import Process


class RunBinding:
    """One run as the attestor knows it: who prepared it, and since first contact, the namespace that it is.

    The first contact must come from below the launcher that asked for the run and from a pid namespace that is not
    the broker's; it binds the run. Afterwards only processes inside that namespace are served. Safe for threads.
    """

    def __init__(self, run: RunId, uid: int, launcher: Process | None, init: Process | None, namespace: str) -> None:
        self.run = run
        self.uid = uid
        self._launcher = launcher
        self._init = init
        self._namespace = namespace
        self._lock = threading.Lock()

    @classmethod
    def prepared(cls, run: RunId, uid: int, launcher: Peer) -> RunBinding:
        """A run that ``launcher``, attested on the operator's socket, asked for; agents will have ``uid``."""
        process = Process.hold(launcher.caller.pid)
        if not launcher.alive():
            process.close()
            raise NotAuthenticated("the launcher has ended", code="peer_gone")
        return cls(run, uid, process, None, "")

    @classmethod
    def restored(cls, run: RunId, uid: int, namespace: str) -> RunBinding | None:
        """The run of ``namespace`` from the store, after a restart of the broker; None if it has ended."""
        boot, _, inode = namespace.partition("/")
        if boot != namespaces.boot_id() or not inode.isdecimal():
            return None
        init = namespaces.find_init(int(inode))
        return cls(run, uid, None, init, namespace) if init is not None else None

    @property
    def namespace(self) -> str:
        """The bound pid namespace; empty before first contact."""
        return self._namespace

    @property
    def init_pid(self) -> int:
        """Outer pid of the run's init process; 0 before first contact."""
        return self._init.pid if self._init is not None else 0

    def admit(self, process: Process, uid: int) -> None:
        """Let the caller in, binding the run if it is the first; raises ``NotAuthenticated`` (peer_elsewhere)."""
        if uid != self.uid:
            raise _elsewhere()
        with self._lock:
            if not self._namespace:
                self._bind(process)
            elif not namespaces.inside(process, self._namespace, self._init):
                raise _elsewhere()

    def ended(self) -> bool:
        """Whether the run is over: its init has ended, or its launcher before any contact."""
        holder = self._init or self._launcher
        return holder is None or not holder.alive()

    def close(self) -> None:
        for process in (self._launcher, self._init):
            if process is not None:
                process.close()

    def _bind(self, process: Process) -> None:
        if self._launcher is None or not namespaces.descends(process, self._launcher):
            raise _elsewhere()
        namespace = namespaces.namespace_of(process)
        if namespace == namespaces.name_of(namespaces.own_namespace()):
            raise _elsewhere()
        init = namespaces.init_of(process)
        if init is None:
            raise _elsewhere()
        self._init = init
        self._namespace = namespace


@dataclass(frozen=True, slots=True)
class LocalAttestor:
    """Attests peers for a broker with ``broker_uid`` and ``broker_directory``.

    ``others``: further directories that a sandbox must hide, such as the store's. All paths are resolved.
    """

    broker_directory: Path
    allow_root: bool = False
    broker_uid: int = field(default_factory=os.getuid)
    others: tuple[Path, ...] = ()

    def outside(self, connection: socket.socket) -> LocalPeer:
        """A caller on ``line.sock``, outside any run."""
        process, uid = held_peer(connection, allow_root=self.allow_root)
        try:
            return LocalPeer(self._caller(process, uid, None), process)
        except NotAuthenticated:
            process.close()
            raise

    def of_run(self, connection: socket.socket, binding: RunBinding) -> LocalPeer:
        """A caller on the socket of the run of ``binding``."""
        process, uid = held_peer(connection, allow_root=self.allow_root)
        try:
            binding.admit(process, uid)
            return LocalPeer(self._caller(process, uid, binding.run), process, binding.init_pid)
        except NotAuthenticated:
            process.close()
            raise

    def operator(self, connection: socket.socket) -> LocalPeer:
        """A person's process on the operator's socket: the broker's uid or root, in the broker's pid namespace."""
        process, uid = held_peer(connection, allow_root=True)
        try:
            own = namespaces.name_of(namespaces.own_namespace())
            if uid not in (0, self.broker_uid) or namespaces.namespace_of(process) != own:
                raise NotAuthenticated(
                    "this socket serves the broker's own account only, outside any sandbox",
                    code="peer_not_operator",
                    hint="run the command as the broker's account, outside taskpass run",
                )
            return LocalPeer(Caller(process.pid, uid, own, Separation.NONE, None, facts(process)), process)
        except NotAuthenticated:
            process.close()
            raise

    def _caller(self, process: Process, uid: int, run: RunId | None) -> Caller:
        separation = probe(
            process,
            uid,
            broker_directory=self.broker_directory,
            broker_uid=self.broker_uid,
            run_bound=run is not None,
            others=self.others,
        )
        namespace = namespaces.namespace_of(process)
        if not process.alive():
            raise NotAuthenticated("the process that connected has ended", code="peer_gone")
        return Caller(process.pid, uid, namespace, separation, run, facts(process))


def _elsewhere() -> NotAuthenticated:
    return NotAuthenticated(
        "this socket belongs to a run that the caller is not part of",
        code="peer_elsewhere",
        hint="start the agent with taskpass run",
    )
