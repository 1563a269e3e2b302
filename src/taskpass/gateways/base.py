"""The data path of a lease: how an access reaches the tool without a secret in it.

Contract
    * ``open`` returns when a client can connect. The secret stays in the memory of the process that serves the
      endpoint.
    * ``close`` refuses new connections at once, tells each connected client why in its own protocol, and returns
      when no stream is left. It is idempotent, and it must work while nothing else does.
    * The endpoint refuses and ends its streams by itself when the lease's ``seconds`` are over, whatever else works.
    * A connection beyond what the order's party may have is refused in the client's own protocol.
    * Only peers of the lease's own run (or, outside any run, of its uid) are served.
    * Methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from taskpass.core.ids import LeaseId, RoleName, RunId
from taskpass.core.lease import Target
from taskpass.core.secret import Secret


@dataclass(frozen=True, slots=True)
class EndpointOrder:
    """What to serve: a Unix socket in ``directory`` (owned by ``uid``) that leads to ``target`` as ``role``.

    ``namespace`` restricts peers to that pid namespace (``<boot id>/<inode>``) and its descendants; empty restricts to
    ``uid`` alone. ``seconds`` from now until the lease ends, by a clock that nobody sets; None for no end of its own.
    ``party`` has at most ``connections`` client connections at a time, on all endpoints whose orders name it; an empty
    one is not counted. ``settings`` are those with which every session starts, whatever its client asks for.
    """

    lease: LeaseId
    role: RoleName
    target: Target
    directory: str
    uid: int
    namespace: str
    run: RunId | None
    secret: Secret = field(repr=False)
    ca: str | None = None
    seconds: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    party: str = ""
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a client needs; nothing here is secret. ``dsn`` works in every libpq and in node-postgres."""

    host: str
    port: int
    database: str
    user: str

    @property
    def dsn(self) -> str:
        return f"postgresql:///{self.database}?host={self.host}&port={self.port}&user={self.user}"

    def to_json(self) -> dict[str, object]:
        return {
            "host": self.host,
            "port": self.port,
            "database": self.database,
            "user": self.user,
            "dsn": self.dsn,
        }


class Endpoints(Protocol):
    def open(self, order: EndpointOrder) -> Endpoint: ...

    def extend(self, lease: LeaseId, seconds: float) -> None:
        """The lease now ends in ``seconds``; nothing happens if there is no such endpoint."""
        ...

    def close_many(self, leases: Sequence[LeaseId], *, message: str) -> None:
        """``close`` for each of them, side by side."""
        ...

    def close(self, lease: LeaseId, *, message: str) -> int:
        """End the endpoint and its streams; the number of client connections that were open."""
        ...

    def connections(self, lease: LeaseId) -> int: ...
    def connections_of(self, party: str) -> int:
        """Client connections of that party's orders, on all endpoints."""
        ...
