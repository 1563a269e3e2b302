"""An access request: a principal's question for a scope, with reason and lifetime, and what was decided about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from taskpass.core import digest
from taskpass.core.clock import Instant
from taskpass.core.decision import Decision, Delivery
from taskpass.core.ids import InstallationId, RequestId, TaskId
from taskpass.core.machine import Table
from taskpass.core.manifest import Manifest
from taskpass.core.scope import Scope
from taskpass.core.separation import Environment, Separation
from taskpass.core.task import Task


class RequestState(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    FULFILLED = "fulfilled"
    DENIED = "denied"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RequestEvent(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    CANCEL = "cancel"
    LAPSE = "lapse"
    FULFIL = "fulfil"
    WITHDRAW = "withdraw"


REQUEST_TABLE: Table[RequestState, RequestEvent] = {
    RequestState.PENDING: {
        RequestEvent.APPROVE: RequestState.APPROVED,
        RequestEvent.DENY: RequestState.DENIED,
        RequestEvent.CANCEL: RequestState.CANCELLED,
        RequestEvent.LAPSE: RequestState.EXPIRED,
    },
    RequestState.APPROVED: {
        RequestEvent.FULFIL: RequestState.FULFILLED,
        RequestEvent.WITHDRAW: RequestState.CANCELLED,
        RequestEvent.LAPSE: RequestState.EXPIRED,
    },
    RequestState.FULFILLED: {},
    RequestState.DENIED: {},
    RequestState.CANCELLED: {},
    RequestState.EXPIRED: {},
}

PENDING_SECONDS = 15 * 60
"""A question that nobody answered lapses after this."""

APPROVED_SECONDS = 15 * 60
"""An approval that nobody used lapses after this."""


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """``manifest`` is what the scope resolved to when asked; ``lifetime`` in seconds; ``digest`` see
    ``request_digest``.

    ``reason`` is the agent's words; ``comment`` the deciding person's. ``state`` is a convenience for people and
    listings; issuing verifies the votes, never this field.
    """

    id: RequestId
    task: TaskId
    scope: Scope
    environment: Environment
    manifest: Manifest
    lifetime: int
    reason: str
    decision: Decision
    digest: str
    separation: Separation
    state: RequestState
    created_at: Instant
    lapses_at: Instant
    decided_at: Instant | None = None
    comment: str = ""


def request_digest(
    *,
    installation: InstallationId,
    epoch: int,
    task: Task,
    resource: str,
    environment: Environment,
    manifest: Manifest,
    lifetime: int,
    delivery: Delivery,
    snapshot: str,
) -> str:
    """What an approver signs: {epoch, principal chain, task, resource, manifest, level, lifetime, delivery, policy
    snapshot}.

    Design: architecture.md, *Digest*. The manifest is the one the approver leaves after narrowing.
    """
    return digest.digest(
        digest.REQUEST,
        {
            "installation": installation,
            "epoch": epoch,
            "task": task.to_json(),
            "resource": resource,
            "environment": environment.value,
            "level": manifest.level.value,
            "manifest": manifest.to_json(),
            "lifetime": lifetime,
            "delivery": delivery.value,
            "snapshot": snapshot,
        },
    )
