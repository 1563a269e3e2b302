"""One process of this machine, held so that its pid cannot come to mean another process.

A pidfd says whether the process still runs; a descriptor of its directory in ``/proc`` keeps every later read with it.
Reads kernel facts only. Not for: command lines or environments of others, starting programs, or following paths that
a process names (threats.md, item 7).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass, field

from taskpass.core.errors import NotAuthenticated

_STATUS_BYTES = 65536
_DEEPEST_ANCESTRY = 4096


def gone() -> NotAuthenticated:
    return NotAuthenticated(
        "the process that connected has ended",
        code="peer_gone",
        hint="connect again from a living process",
    )


@dataclass(slots=True)
class Process:
    """A held process. ``close`` gives the descriptors back; after it ``alive`` is False."""

    pid: int
    _pidfd: int = field(repr=False)
    _directory: int = field(repr=False)

    @classmethod
    def hold(cls, pid: int, pidfd: int | None = None) -> Process:
        """Hold ``pid``; takes over ``pidfd`` if one is given. Raises ``NotAuthenticated`` (peer_gone) if it has ended.

        The directory is opened before life is checked: a process that is alive afterwards is the one whose directory
        was opened, because its pid cannot have been given away in between.
        """
        descriptors: list[int] = [] if pidfd is None else [pidfd]
        try:
            if pidfd is None:
                descriptors.append(os.pidfd_open(pid))
            descriptors.append(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            held = cls(pid, *descriptors)
            if held.alive():
                return held
        except OSError:
            pass
        for descriptor in descriptors:
            os.close(descriptor)
        raise gone()

    @property
    def pidfd(self) -> int:
        """Readable when the process has ended; stays ours."""
        return self._pidfd

    def alive(self) -> bool:
        """Whether the process still runs. A zombie does not."""
        if self._pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        for descriptor in (self._pidfd, self._directory):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._pidfd = self._directory = -1

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of ``name`` in the directory of this process; raises ``OSError``."""
        if self._directory < 0:
            raise ProcessLookupError("the process is no longer held")
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._directory)

    def read(self, name: str, limit: int = _STATUS_BYTES) -> bytes:
        """At most ``limit`` bytes of ``name``; raises ``OSError``."""
        with open(self.open(name), "rb") as file:
            return file.read(limit)

    def status(self) -> dict[str, str]:
        """``/proc/<pid>/status`` as names and values; raises ``OSError``."""
        return _fields(self.read("status"))

    def namespace(self, kind: str) -> int:
        """Inode of the ``kind`` namespace (``pid``, ``mnt``, ``user``); raises ``OSError`` where it is not readable."""
        if self._directory < 0:
            raise ProcessLookupError("the process is no longer held")
        return os.stat(f"ns/{kind}", dir_fd=self._directory).st_ino

    def started(self) -> int:
        """Start time in clock ticks since boot: with the pid it names a process; raises ``OSError``."""
        # The name of the program may hold spaces and brackets, so the fields are counted from the last bracket.
        return int(self.read("stat").rpartition(b")")[2].split()[19])

    def executable(self) -> str | None:
        """Path of the program as the kernel shows it, for people only; None where it is not readable."""
        try:
            return os.readlink("exe", dir_fd=self._directory)
        except (OSError, ValueError):
            return None


def _fields(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value.strip() for name, _, value in lines}


def inner_pids(status: dict[str, str]) -> list[int]:
    """The pid of a process in each pid namespace it is in, ours first (``NSpid``); empty where it is not known."""
    return [int(word) for word in status.get("NSpid", "").split()]


def ancestors(pid: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Pid and status of each parent of ``pid``, nearest first, as far as it can be read. Bounded."""
    for _ in range(_DEEPEST_ANCESTRY):
        try:
            pid = int(_status_of(pid).get("PPid", "0"))
            if pid <= 0:
                return
            yield pid, _status_of(pid)
        except (OSError, ValueError):
            return


def _status_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", "rb") as file:
        return _fields(file.read(_STATUS_BYTES))
