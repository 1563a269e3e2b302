"""Between the values of ``core`` and the columns of a row. Structured values are RFC 8785 JSON text.

Not for: trusting. What is read back is as good as the file; issuing verifies signatures, not rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, TypeVar

from taskpass.core import digest
from taskpass.core.aftermath import Aftermath, AftermathState, Ran
from taskpass.core.approval import Approval, Method, Verdict
from taskpass.core.decision import Decision, Delivery, Obligations, Outcome
from taskpass.core.errors import InvalidInput, StoreUnavailable
from taskpass.core.grant import Grant
from taskpass.core.lease import Lease, LeaseState, Target
from taskpass.core.manifest import Manifest
from taskpass.core.provenance import Fact, Provenance
from taskpass.core.request import AccessRequest, RequestState
from taskpass.core.scope import Scope
from taskpass.core.separation import Environment, Separation
from taskpass.core.task import Principal, Task, TaskState
from taskpass.core.widening import Item, Widening, snapshot
from taskpass.store.base import Run
from taskpass.store.session import Row

V = TypeVar("V")


def _reads(decode: Callable[[Row], V]) -> Callable[[Row], V]:
    """A row that is not what we write is damage, and says so instead of failing somewhere in the code."""

    @wraps(decode)
    def checked(row: Row) -> V:
        try:
            return decode(row)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, InvalidInput):
            raise StoreUnavailable(
                "a record in the store is damaged", hint="run taskpass audit verify", code="store_corrupt"
            ) from None

    return checked


@lru_cache(maxsize=64)
def _manifest(text: str) -> Manifest:
    """Manifests never change, and a lease reads its own again at every step."""
    return Manifest.from_json(json.loads(text))


def dump(value: object) -> str:
    """Canonical JSON text; raises ``InvalidInput`` for what cannot be digested."""
    return digest.canonical(value).decode()


def run_row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "tool": run.tool,
        "sponsor": run.sponsor,
        "uid": run.uid,
        "directory": run.directory,
        "separation": run.separation,
        "namespace": run.namespace,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
    }


@_reads
def run_of(row: Row) -> Run:
    return Run(**row)


def task_row(task: Task) -> dict[str, Any]:
    who = task.principal
    facts = {"repository": task.repository, "branch": task.branch, "ticket": task.ticket}
    return {
        "id": task.id,
        "spiffe_id": who.spiffe_id,
        "sponsor": who.sponsor,
        "machine": who.machine,
        "tool": who.tool,
        "separation": who.separation.word,
        "run": who.run,
        "parents": dump(who.parents),
        **{name: fact.value for name, fact in facts.items()},
        **{f"{name}_provenance": fact.provenance.word for name, fact in facts.items()},
        "state": task.state.value,
        "opened_at": task.opened_at,
        "expires_at": task.expires_at,
        "ended_at": task.ended_at,
        "reason": task.reason,
    }


def _fact(row: Row, name: str) -> Fact:
    return Fact(row[name], Provenance[row[f"{name}_provenance"].upper()])


@_reads
def task_of(row: Row) -> Task:
    return Task(
        id=row["id"],
        principal=Principal(
            spiffe_id=row["spiffe_id"],
            sponsor=row["sponsor"],
            machine=row["machine"],
            tool=row["tool"],
            separation=Separation[row["separation"].upper()],
            run=row["run"],
            parents=tuple(json.loads(row["parents"])),
        ),
        repository=_fact(row, "repository"),
        branch=_fact(row, "branch"),
        ticket=_fact(row, "ticket"),
        state=TaskState(row["state"]),
        opened_at=row["opened_at"],
        expires_at=row["expires_at"],
        ended_at=row["ended_at"],
        reason=row["reason"],
    )


def decision_of(data: Mapping[str, Any]) -> Decision:
    return Decision(
        outcome=Outcome[data["outcome"].upper()],
        code=data["code"],
        obligations=Obligations.from_json(data["obligations"]),
        policies=tuple(data["policies"]),
        errors=tuple(data["errors"]),
        engine=data["engine"],
        snapshot=data["snapshot"],
    )


def request_row(request: AccessRequest) -> dict[str, Any]:
    return {
        "id": request.id,
        "task": request.task,
        "resource": request.scope.resource,
        "scope": dump(request.scope.to_json()),
        "environment": request.environment.value,
        "manifest": request.manifest.text(),
        "lifetime": request.lifetime,
        "reason": request.reason,
        "decision": dump(request.decision.to_json()),
        "digest": request.digest,
        "separation": request.separation.word,
        "state": request.state.value,
        "created_at": request.created_at,
        "lapses_at": request.lapses_at,
        "decided_at": request.decided_at,
        "comment": request.comment,
    }


@_reads
def request_of(row: Row) -> AccessRequest:
    return AccessRequest(
        id=row["id"],
        task=row["task"],
        scope=Scope.from_json(json.loads(row["scope"])),
        environment=Environment(row["environment"]),
        manifest=_manifest(row["manifest"]),
        lifetime=row["lifetime"],
        reason=row["reason"],
        decision=decision_of(json.loads(row["decision"])),
        digest=row["digest"],
        separation=Separation[row["separation"].upper()],
        state=RequestState(row["state"]),
        created_at=row["created_at"],
        lapses_at=row["lapses_at"],
        decided_at=row["decided_at"],
        comment=row["comment"],
    )


def approval_row(approval: Approval) -> dict[str, Any]:
    return {
        "id": approval.id,
        "request": approval.request,
        "approver": approval.approver,
        "method": approval.method.value,
        "verdict": approval.verdict.value,
        "manifest": approval.manifest.text(),
        "lifetime": approval.lifetime,
        "digest": approval.digest,
        "nonce": approval.nonce,
        "signature": approval.signature,
        "key": approval.key,
        "created_at": approval.created_at,
        "expires_at": approval.expires_at,
        "comment": approval.comment,
    }


@_reads
def approval_of(row: Row) -> Approval:
    fields: dict[str, Any] = {
        **row,
        "method": Method(row["method"]),
        "verdict": Verdict(row["verdict"]),
        "manifest": _manifest(row["manifest"]),
    }
    return Approval(**fields)


def grant_row(grant: Grant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "request": grant.request,
        "task": grant.task,
        "resource": grant.resource,
        "asked": grant.asked,
        "manifest": grant.manifest.text(),
        "digest": grant.digest,
        "approvals": dump(grant.approvals),
        "renewable": grant.renewable,
        "created_at": grant.created_at,
        "ends_at": grant.ends_at,
    }


@_reads
def grant_of(row: Row) -> Grant:
    fields: dict[str, Any] = {
        **row,
        "manifest": _manifest(row["manifest"]),
        "approvals": tuple(json.loads(row["approvals"])),
        # SQLite knows numbers only.
        "renewable": bool(row["renewable"]),
    }
    return Grant(**fields)


def lease_row(lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "grant": lease.grant,
        "task": lease.task,
        "role": lease.role,
        "resource": lease.target.resource,
        "target": dump(lease.target.to_json()),
        "manifest_digest": lease.manifest_digest,
        "delivery": lease.delivery.value,
        "state": lease.state.value,
        "created_at": lease.created_at,
        "expires_at": lease.expires_at,
        "renewals": lease.renewals,
        "reason": lease.reason,
        "closing_at": lease.closing_at,
        "closed_at": lease.closed_at,
        "proof": dump(lease.proof),
        "attempts": lease.attempts,
        "retry_at": lease.retry_at,
        "last_error": lease.last_error,
        "incidents": lease.incidents,
    }


def aftermath_row(aftermath: Aftermath) -> dict[str, Any]:
    return {
        "id": aftermath.lease,
        "task": aftermath.task,
        "resource": aftermath.resource,
        "cluster": aftermath.cluster,
        "database": aftermath.database,
        "state": aftermath.state.value,
        "before": dump([item.to_json() for item in aftermath.before.values()]),
        "opened_at": aftermath.opened_at,
        "ran": aftermath.ran and aftermath.ran.value,
        "widening": dump([each.to_json() for each in aftermath.widening]),
        "error": aftermath.error,
        "looked_at": aftermath.looked_at,
        "decided_at": aftermath.decided_at,
        "decided_by": aftermath.decided_by,
        "comment": aftermath.comment,
    }


def aftermath_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``Aftermath`` as columns."""
    values = dict(changes)
    if "widening" in values:
        values["widening"] = dump([each.to_json() for each in values["widening"]])
    if "ran" in values:
        values["ran"] = values["ran"] and values["ran"].value
    return values


@_reads
def aftermath_of(row: Row) -> Aftermath:
    fields: dict[str, Any] = {
        **row,
        "lease": row["id"],
        "state": AftermathState(row["state"]),
        "before": snapshot(Item.from_json(item) for item in json.loads(row["before"])),
        "ran": Ran(row["ran"]) if row["ran"] else None,
        "widening": tuple(Widening.from_json(each) for each in json.loads(row["widening"])),
    }
    del fields["id"]
    return Aftermath(**fields)


@lru_cache(maxsize=1024)
def _target(text: str) -> Target:
    """Kept, because thousands of leases share a few targets, which nothing changes."""
    return Target.from_json(json.loads(text))


@_reads
def target_of(row: Row) -> Target:
    """The target of a row that has at least this column."""
    return _target(row["target"])


@_reads
def lease_of(row: Row) -> Lease:
    fields: dict[str, Any] = {
        **row,
        "target": _target(row["target"]),
        "delivery": Delivery(row["delivery"]),
        "state": LeaseState(row["state"]),
        "proof": json.loads(row["proof"]),
    }
    del fields["resource"]
    return Lease(**fields)
