"""Who is calling: what an attestor tells the broker about a caller, and how far that can be believed.

The peer is not the principal. Authority belongs to a task, which belongs to a run's namespace (or, outside any run, to
a sponsor and a repository); the peer's credentials only tell which (threats.md, item 18).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from taskpass.core.ids import RunId
from taskpass.core.separation import Separation


@dataclass(frozen=True, slots=True)
class Caller:
    """One attested peer of a local socket.

    ``pid`` and ``uid`` as the broker's own namespace sees them; ``namespace`` is ``<boot id>/<pid namespace inode>``;
    ``run`` is set when the connection came in on a run's own socket; ``facts`` are observed process facts for people
    (executable, start time). ``alive`` must be asked again at every request: a connected socket outlives its process.
    """

    pid: int
    uid: int
    namespace: str
    separation: Separation
    run: RunId | None
    facts: dict[str, str] = field(default_factory=dict[str, str], hash=False)


class Peer(Protocol):
    """A connected peer, held by pidfd so that its pid cannot come to mean another process."""

    @property
    def caller(self) -> Caller: ...

    def alive(self) -> bool:
        """Whether the attested process still runs. False is final."""
        ...

    def close(self) -> None: ...
