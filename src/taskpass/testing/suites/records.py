"""Records with plausible content for suites and tests: one call gives a whole, valid value. Never for a real store."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from taskpass.core.aftermath import Aftermath, AftermathState
from taskpass.core.approval import Approval, Method, Verdict
from taskpass.core.audit import Event
from taskpass.core.clock import Instant
from taskpass.core.decision import Decision, Delivery, Obligations, Outcome
from taskpass.core.grant import Grant
from taskpass.core.ids import (
    ApprovalId,
    GrantId,
    HumanId,
    InstallationId,
    LeaseId,
    RequestId,
    RunId,
    TaskId,
    new_id,
    role_name,
)
from taskpass.core.lease import Lease, LeaseState, Target
from taskpass.core.manifest import Column, Dropped, DropReason, Kind, Manifest, ObjectRights, Reach, Through
from taskpass.core.provenance import Fact, Provenance
from taskpass.core.request import AccessRequest, RequestState
from taskpass.core.scope import Level, Scope, Verb
from taskpass.core.separation import Environment, Separation
from taskpass.core.task import Principal, Task, TaskState
from taskpass.core.widening import Change, Item, snapshot
from taskpass.store.base import Run

NOW = Instant(1_790_000_000_000)
SPONSOR = HumanId("ana@example")
REVIEWER = HumanId("ben@example")


class Counting:
    """An ``Entropy`` that never repeats itself and is the same in every run."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def bytes(self, count: int) -> bytes:
        return next(self._numbers).to_bytes(count)


@dataclass
class FixedClock:
    """A ``Clock`` that stands where it is put."""

    at: Instant = NOW

    def now(self) -> Instant:
        return self.at


def manifest(*, schema: str = "public", name: str = "orders") -> Manifest:
    return Manifest(
        cluster="7300000000000000001",
        database=16384,
        database_name="orders",
        level=Level.READ,
        objects=(
            ObjectRights(
                oid=16390,
                kind=Kind.PARTITIONED,
                schema=schema,
                name=name,
                owner="orders_owner",
                columns=(Column(1, "id"), Column(2, 'größe "x"')),
                verbs=frozenset({Verb.SELECT}),
                reach=(Reach(16400, Kind.TABLE, schema, f"{name}_2026", Through.PARTITION),),
            ),
        ),
        dropped=(Dropped(16410, Kind.VIEW, schema, "v", DropReason.REACHES_EXCLUDED, "public.customers_pii"),),
        ambient=("TEMP",),
    )


@dataclass
class Records:
    """Makes values whose references fit together. Keyword arguments replace fields."""

    installation: InstallationId
    entropy: Counting = field(default_factory=Counting)

    def _id(self, kind: str) -> str:
        return new_id(kind, NOW, self.entropy)

    def run(self, **fields: Any) -> Run:
        made: dict[str, Any] = {
            "id": RunId(self._id("run")),
            "tool": "agent",
            "sponsor": SPONSOR,
            "uid": 1000,
            "directory": "/run/taskpass/runs/1",
            "separation": "none",
            "namespace": "",
            "created_at": NOW,
            "ended_at": None,
        }
        return Run(**(made | fields))

    def task(self, *, run: RunId | None = None, parents: tuple[TaskId, ...] = (), **fields: Any) -> Task:
        """A sponsor, machine or repository given here goes into the principal or the facts."""
        number = self._id("tsk")
        made: dict[str, Any] = {
            "id": TaskId(number),
            "principal": Principal(
                spiffe_id=f"spiffe://example/agent/agent/{number}",
                sponsor=fields.pop("sponsor", SPONSOR),
                machine=fields.pop("machine", "laptop"),
                tool="agent",
                separation=Separation.SANDBOX,
                run=run,
                parents=parents,
            ),
            "repository": Fact(fields.pop("repository", number), Provenance.OBSERVED),
            "branch": Fact("feature/\u202e emoji 🙂 'x'", Provenance.OBSERVED),
            "ticket": Fact("", Provenance.CLAIMED),
            "state": TaskState.OPEN,
            "opened_at": NOW,
            "expires_at": Instant(NOW + 3_600_000),
        }
        return Task(**(made | fields))

    def request(self, task: TaskId, **fields: Any) -> AccessRequest:
        rights = manifest()
        made: dict[str, Any] = {
            "id": RequestId(self._id("req")),
            "task": task,
            "scope": Scope("orders", "read", Level.READ, ("public.*",), ("public.customers_pii",), ("public.orders",)),
            "environment": Environment.STAGING,
            "manifest": rights,
            "lifetime": 900,
            "reason": "look at one order",
            "decision": Decision(
                Outcome.NEEDS_APPROVAL,
                "needs_approval",
                Obligations(max_ttl=600, quorum=2, approvers=frozenset({"dba", "lead"}), read_only=True),
                ("guard", "permit"),
                (),
                "cedar",
                "sha256:" + "1" * 64,
            ),
            "digest": "sha256:" + "2" * 64,
            "separation": Separation.SANDBOX,
            "state": RequestState.PENDING,
            "created_at": NOW,
            "lapses_at": Instant(NOW + 900_000),
        }
        return AccessRequest(**(made | fields))

    def approval(self, request: RequestId, **fields: Any) -> Approval:
        made: dict[str, Any] = {
            "id": ApprovalId(self._id("apr")),
            "request": request,
            "approver": REVIEWER,
            "method": Method.REVIEWER_SECRET,
            "verdict": Verdict.APPROVE,
            "manifest": manifest(),
            "lifetime": 600,
            "digest": "sha256:" + "3" * 64,
            "nonce": "bm9uY2U=",
            "signature": "c2lnbmF0dXJl",
            "key": "a2V5",
            "created_at": NOW,
            "expires_at": Instant(NOW + 900_000),
            "comment": "only today",
        }
        return Approval(**(made | fields))

    def grant(self, request: AccessRequest, **fields: Any) -> Grant:
        made: dict[str, Any] = {
            "id": GrantId(self._id("grt")),
            "request": request.id,
            "task": request.task,
            "resource": request.scope.resource,
            "asked": request.manifest.digest(),
            "manifest": request.manifest,
            "digest": request.digest,
            "approvals": (),
            "renewable": False,
            "created_at": NOW,
            "ends_at": Instant(NOW + 900_000),
        }
        return Grant(**(made | fields))

    def lease(self, grant: Grant, **fields: Any) -> Lease:
        number = LeaseId(self._id("lse"))
        made: dict[str, Any] = {
            "id": number,
            "grant": grant.id,
            "task": grant.task,
            "role": role_name(self.installation, number),
            "target": Target(
                resource=grant.resource,
                issuer="postgres",
                environment=Environment.STAGING,
                address="db.example:5432/orders",
                nodes=("replica.example:5432/orders",),
                tls={"ca": "system"},
                login={"file": "orders.cred"},
                cluster="7300000000000000001",
                database=16384,
            ),
            "manifest_digest": grant.manifest.digest(),
            "delivery": Delivery.ENDPOINT,
            "state": LeaseState.INTENDED,
            "created_at": NOW,
            "expires_at": Instant(NOW + 600_000),
        }
        return Lease(**(made | fields))

    def aftermath(self, lease: Lease, **fields: Any) -> Aftermath:
        item = Item("grant", "SELECT on relation public.orders to PUBLIC", "", frozenset({Change.ADDED}))
        made: dict[str, Any] = {
            "lease": lease.id,
            "task": lease.task,
            "resource": lease.target.resource,
            "cluster": lease.target.cluster,
            "database": lease.target.database,
            "state": AftermathState.OPEN,
            "before": snapshot([item]),
            "opened_at": NOW,
        }
        return Aftermath(**(made | fields))


def event(number: int = 0, **subject: str) -> Event:
    """An audit event; ``number`` tells one from another."""
    return Event("lease.created", "broker", subject, {"number": number, "resource": "orders"})
