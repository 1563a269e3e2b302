"""What an agent in a run sees and does not see, as a pure plan. The programs that carry it out are beside this module.

Hidden: the broker's directory, the runtime directory with everybody's sockets (D-Bus, containers, terminals
multiplexers under ``/run`` and ``/tmp``), shared memory; for an agent that root starts, root's home. Read-only: our own
program, because the next ``taskpass`` that the person starts must not be the agent's, and existing shell profiles.
Everything else stays as it is: this sandbox is thin. Not for: the network, abstract sockets, and files of the person
that the agent can read or write anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from taskpass.core.errors import InvalidInput


class Show(StrEnum):
    HIDDEN = "hidden"
    """An empty file system lies over it."""
    READ = "read"
    """Itself, read-only."""
    OPEN = "open"
    """Itself, back in view below something hidden."""


_STRICTEST = (Show.HIDDEN, Show.READ, Show.OPEN)


@dataclass(frozen=True, slots=True)
class Mount:
    """One path and how it is shown. ``mode`` and ``owned`` (by the agent's account) are for hidden ones."""

    path: Path
    show: Show
    mode: int = 0o755
    owned: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """The account that the agent runs under; equal to the launcher's unless root starts it."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What there is on this machine, all paths absolute and resolved. ``others``: further directories to hide."""

    broker_directory: Path
    runtime_directory: Path
    home: Path
    shared: tuple[Path, ...]
    others: tuple[Path, ...]
    program: tuple[Path, ...]
    profiles: tuple[Path, ...]
    resolver: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """``mounts`` in the order in which they are made (parents first); ``directory`` is where the agent starts."""

    mounts: tuple[Mount, ...]
    directory: Path
    socket: Path
    account: Account


def make_plan(around: Surroundings, *, run_directory: Path, worktree: Path, directory: Path, account: Account) -> Plan:
    """The plan of one run whose private directory is ``run_directory``; ``directory`` lies in ``worktree``.

    Raises ``InvalidInput`` for a worktree that lies in what must stay hidden.
    """
    for hidden in (around.broker_directory, around.runtime_directory):
        if worktree.is_relative_to(hidden):
            raise InvalidInput("the worktree lies in a directory of the broker", hint="start in a checkout elsewhere")
    wanted = [
        *(Mount(path, Show.HIDDEN, mode=0o1777) for path in around.shared),
        *(Mount(path, Show.HIDDEN) for path in (around.broker_directory, around.runtime_directory, *around.others)),
        *(Mount(path, Show.READ) for path in (*around.program, *around.profiles, *around.resolver)),
        Mount(worktree, Show.OPEN),
        Mount(run_directory, Show.OPEN),
    ]
    if account.uid != 0 and around.home == Path("/root"):
        wanted.append(Mount(around.home, Show.HIDDEN, owned=True))
    return Plan(tuple(_effective(wanted)), directory, run_directory / "line.sock", account)


def _effective(wanted: Iterable[Mount]) -> Iterable[Mount]:
    """Parents first, one mount a path (the strictest), without those that change nothing."""
    kept: dict[Path, Mount] = {}
    for mount in sorted(wanted, key=lambda one: (len(one.path.parts), str(one.path), _STRICTEST.index(one.show))):
        if mount.path not in kept and _changes(mount, _nearest(mount.path, kept)):
            kept[mount.path] = mount
    return kept.values()


def _nearest(path: Path, kept: dict[Path, Mount]) -> Mount | None:
    return next((kept[parent] for parent in path.parents if parent in kept), None)


def _changes(mount: Mount, around: Mount | None) -> bool:
    if around is None:
        return mount.show is not Show.OPEN
    return mount.show is not around.show


def hidden_paths(plan: Plan) -> Sequence[Path]:
    return [mount.path for mount in plan.mounts if mount.show is Show.HIDDEN]
