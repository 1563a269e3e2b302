"""A lease: the life of one issued credential or endpoint, from intent to nothing left.

The record keeps what is needed to take the access back even if its resource has left the config. It never keeps the
secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from taskpass.core.clock import Instant
from taskpass.core.decision import Delivery
from taskpass.core.ids import GrantId, LeaseId, RoleName, TaskId
from taskpass.core.machine import Table
from taskpass.core.separation import Environment


class LeaseState(StrEnum):
    INTENDED = "intended"
    ACTIVE = "active"
    CLOSING = "closing"
    CLOSED = "closed"
    CLEANED = "cleaned"


class LeaseEvent(StrEnum):
    CREATED = "created"
    RENEW = "renew"
    TAKE_BACK = "take_back"
    """Expired, revoked, task or parent ended, policy changed, wider than its manifest, failed, found after a crash."""
    PROVEN = "proven"
    WRITE_OFF = "write_off"
    CLEANED = "cleaned"


LEASE_TABLE: Table[LeaseState, LeaseEvent] = {
    LeaseState.INTENDED: {
        LeaseEvent.CREATED: LeaseState.ACTIVE,
        LeaseEvent.TAKE_BACK: LeaseState.CLOSING,
    },
    LeaseState.ACTIVE: {
        LeaseEvent.RENEW: LeaseState.ACTIVE,
        LeaseEvent.TAKE_BACK: LeaseState.CLOSING,
    },
    LeaseState.CLOSING: {
        LeaseEvent.PROVEN: LeaseState.CLOSED,
        LeaseEvent.WRITE_OFF: LeaseState.CLOSED,
    },
    LeaseState.CLOSED: {LeaseEvent.CLEANED: LeaseState.CLEANED},
    LeaseState.CLEANED: {},
}

UNENDED = frozenset({LeaseState.INTENDED, LeaseState.ACTIVE, LeaseState.CLOSING})
"""States in which a credential may be usable."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a lease lives, complete enough to take it back without the config.

    ``address`` is ``host:port/database`` or ``/directory:port/database``; ``nodes`` are further addresses of the same
    cluster; ``login`` is the reference of the broker's own login (never its secret); ``cluster`` and ``database`` pin
    what was enrolled (system identifier as text, database oid).
    """

    resource: str
    issuer: str
    environment: Environment
    address: str
    nodes: tuple[str, ...]
    tls: dict[str, str] = field(hash=False)
    login: dict[str, str] = field(hash=False)
    cluster: str = ""
    database: int = 0
    unreachable_replicas: int = 0
    """Servers and backups that replicate from it and that no agent can reach, as the operator says."""

    def to_json(self) -> dict[str, object]:
        return {
            "resource": self.resource,
            "issuer": self.issuer,
            "environment": self.environment.value,
            "address": self.address,
            "nodes": list(self.nodes),
            "tls": dict(self.tls),
            "login": dict(self.login),
            "cluster": self.cluster,
            "database": self.database,
            "unreachable_replicas": self.unreachable_replicas,
        }

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Target:
        nodes, tls, login = data["nodes"], data["tls"], data["login"]
        assert isinstance(nodes, list)
        assert isinstance(tls, dict)
        assert isinstance(login, dict)
        return cls(
            resource=str(data["resource"]),
            issuer=str(data["issuer"]),
            environment=Environment(str(data["environment"])),
            address=str(data["address"]),
            nodes=tuple(str(node) for node in nodes),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            tls={str(k): str(v) for k, v in tls.items()},  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            login={str(k): str(v) for k, v in login.items()},  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            cluster=str(data["cluster"]),
            database=int(str(data["database"])),
            unreachable_replicas=int(str(data.get("unreachable_replicas", 0))),
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """``expires_at`` is our copy of the end; the target holds its own by its own clock.

    ``proof`` is what the target answered when the access was proven gone (empty before ``closed``). ``attempts`` and
    ``retry_at`` pace the closing, which never gives up. ``enabled`` is True once the target was told to let it log in.
    """

    id: LeaseId
    grant: GrantId
    task: TaskId
    role: RoleName
    target: Target
    manifest_digest: str
    delivery: Delivery
    state: LeaseState
    created_at: Instant
    expires_at: Instant
    renewals: int = 0
    reason: str = ""
    closing_at: Instant | None = None
    closed_at: Instant | None = None
    proof: dict[str, object] = field(default_factory=dict[str, object], hash=False)
    attempts: int = 0
    retry_at: Instant | None = None
    last_error: str = ""
    incidents: int = 0
