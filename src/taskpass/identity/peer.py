"""The kernel's answer about who is at the other end of a Unix socket, held for as long as the connection is used.

A connected socket outlives the process that connected it and can be handed to another (threats.md, item 18), so the
peer is held by pidfd and asked at every request. Not for: saying what the caller may do; the peer is not the principal.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from functools import cache

from taskpass.core.errors import NotAuthenticated
from taskpass.identity.base import Caller
from taskpass.identity.process import Process, gone

_SO_PEERPIDFD = 77
"""asm-generic/socket.h, Linux 6.5 and later; Python has no name for it."""

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """One attested connection; implements ``identity.base.Peer``."""

    caller: Caller
    process: Process
    init_pid: int = 0
    """Outer pid of the init of the run's pid namespace; 0 outside any run."""

    def alive(self) -> bool:
        return self.process.alive()

    def close(self) -> None:
        self.process.close()


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the peer as it was when it connected; raises ``NotAuthenticated`` (peer_unknown)."""
    try:
        answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        raise _unknown("the kernel does not say who connected") from None
    pid, uid, _ = _UCRED.unpack(answer)
    return pid, uid


def held_peer(connection: socket.socket, *, allow_root: bool) -> tuple[Process, int]:
    """The peer's process, held, and its uid.

    Raises ``NotAuthenticated``: peer_gone if it has ended, peer_unknown for pid 0 (another pid namespace that we cannot
    see) and the overflow uid (a uid that is not mapped here), peer_root for uid 0 unless ``allow_root``.
    """
    pid, uid = credentials(connection)
    if pid <= 0:
        raise _unknown("the caller is in a pid namespace outside the broker's")
    if uid == overflow_uid():
        raise _unknown("the caller's uid is not known in the broker's user namespace")
    if uid == 0 and not allow_root:
        raise NotAuthenticated(
            "callers with uid 0 are not served",
            code="peer_root",
            hint="start the agent as an ordinary user, or with taskpass run",
        )
    return _hold(connection, pid, uid), uid


@cache
def overflow_uid() -> int:
    """The uid that stands for every uid without a mapping."""
    with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
        return int(file.read())


def facts(process: Process) -> dict[str, str]:
    """Observed facts for people: executable, where readable, and start time in clock ticks since boot."""
    try:
        found = {"started_ticks": str(process.started())}
    except (OSError, ValueError, IndexError):
        raise gone() from None
    executable = process.executable()
    return found if executable is None else {**found, "executable": executable}


def _hold(connection: socket.socket, pid: int, uid: int) -> Process:
    try:
        answer = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except ProcessLookupError:
        raise gone() from None
    except OSError:
        return _hold_by_pid(pid, uid)
    pidfd = struct.unpack("i", answer)[0]
    os.set_inheritable(pidfd, False)
    return Process.hold(pid, pidfd)


def _hold_by_pid(pid: int, uid: int) -> Process:
    """Before Linux 6.5: hold by pid, then see that pid, uid and start time still belong together.

    A pid that was given away between connect and here shows another uid; one that went to the same uid cannot be told
    apart by this kernel.
    """
    process = Process.hold(pid)
    try:
        started = process.started()
        again = Process.hold(pid)
        same = again.started() == started
        again.close()
        if same and int(process.status()["Uid"].split()[1]) == uid and process.alive():
            return process
    except (OSError, ValueError, LookupError, NotAuthenticated):
        pass
    process.close()
    raise gone()


def _unknown(message: str) -> NotAuthenticated:
    return NotAuthenticated(
        message, code="peer_unknown", hint="start the agent with taskpass run on the broker's machine"
    )
