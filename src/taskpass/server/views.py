"""The shapes of answers, one function each. Agents get codes and fields, never people, rules or other tasks' values."""

from __future__ import annotations

from taskpass.core.aftermath import BLOCKING, Aftermath
from taskpass.core.approval import Approval
from taskpass.core.bearer import Bearer
from taskpass.core.clock import Instant, rfc3339
from taskpass.core.decision import Decision, Outcome
from taskpass.core.lease import Lease, LeaseState
from taskpass.core.manifest import Manifest
from taskpass.core.request import AccessRequest, RequestState
from taskpass.core.task import Task
from taskpass.gateways.base import Endpoint

MAX_WIDENING = 50
"""Items of what one migration left, in a list; ``more`` says how many are not shown."""
MAX_WIDENING_SHOWN = 800
"""The same where one migration is shown alone, to be decided on."""


def when(at: Instant | None) -> str | None:
    return None if at is None else rfc3339(at)


def task_view(task: Task) -> dict[str, object]:
    return {
        "task": task.id,
        "state": task.state.value,
        "principal": task.principal.spiffe_id,
        "tool": task.principal.tool,
        "run": task.principal.run,
        "parents": list(task.principal.parents),
        "separation": task.principal.separation.word,
        "repository": task.repository.to_json(),
        "branch": task.branch.to_json(),
        "ticket": task.ticket.to_json(),
        "opened_at": when(task.opened_at),
        "expires_at": when(task.expires_at),
        "ended_at": when(task.ended_at),
        "reason": task.reason,
    }


def request_view(request: AccessRequest, capabilities: dict[str, object] | None = None) -> dict[str, object]:
    """For the requester: AuthZEN's ``decision`` and ``context`` beside our own words."""
    pending = request.state is RequestState.PENDING
    permitted = request.decision.outcome is Outcome.PERMIT
    return {
        "request": request.id,
        "task": request.task,
        "state": request.state.value,
        "outcome": request.decision.outcome.word,
        "code": request.decision.code,
        "resource": request.scope.resource,
        "environment": request.environment.value,
        "access": request.scope.access,
        "lifetime": request.lifetime,
        "created_at": when(request.created_at),
        "lapses_at": when(request.lapses_at),
        "comment": request.comment,
        "granted": _granted(request.manifest),
        "dropped": [f"{item.schema}.{item.name}" for item in request.manifest.dropped],
        "held_back": sorted({f"{item.full_name}: {h.verb}" for item in request.manifest.objects for h in item.held}),
        "next": _next(request),
        "decision": permitted,
        "context": {
            "obligations": _agent_duties(request.decision) if permitted else [],
            **({"access_request": {"id": request.id, "expires_at": when(request.lapses_at)}} if pending else {}),
        },
        **({} if capabilities is None else {"capabilities": _for_agents(capabilities)}),
    }


def _for_agents(capabilities: dict[str, object]) -> dict[str, object]:
    """Without what says where a session could outlive its lease."""
    return {name: value for name, value in capabilities.items() if name != "unlisted_nodes"}


def _granted(manifest: Manifest) -> list[str]:
    if manifest.migration:
        return [f"everything that {manifest.migration.owner} owns"]
    return [f"{item.schema}.{item.name}" for item in manifest.objects]


def _agent_duties(decision: Decision) -> list[dict[str, object]]:
    return [{"id": "max_ttl", "type": "max_ttl", "properties": {"seconds": decision.obligations.max_ttl}}]


def _next(request: AccessRequest) -> str:
    match request.state:
        case RequestState.PENDING:
            return f"A person must approve this. Call again later: taskpass wait {request.id}"
        case RequestState.APPROVED:
            return "Use it now: the access is made when you connect."
        case RequestState.FULFILLED:
            return "This request has been used. Ask again for another access."
        case RequestState.DENIED:
            return "Do not retry the same request. Ask for fewer tables, or tell your person what you need."
        case _:
            return "This request has ended. Ask again if you still need the access."


def lease_view(
    lease: Lease, endpoint: Endpoint | None = None, bearer: Bearer | None = None, *, people: bool = False
) -> dict[str, object]:
    """``people`` adds what only operators see: attempts, errors, the address. ``bearer`` is revealed: only for the
    answer to the one who was issued it.
    """
    view: dict[str, object] = {
        "lease": lease.id,
        "task": lease.task,
        "state": lease.state.value,
        "resource": lease.target.resource,
        "environment": lease.target.environment.value,
        "role": lease.role,
        "delivery": lease.delivery.value,
        "created_at": when(lease.created_at),
        "expires_at": when(lease.expires_at),
        "closed_at": when(lease.closed_at),
        "renewals": lease.renewals,
        "reason": lease.reason,
    }
    if lease.state in (LeaseState.CLOSED, LeaseState.CLEANED):
        view["proof"] = dict(lease.proof) if people else _proof_for_agents(lease)
    if endpoint:
        view["endpoint"] = endpoint.to_json()
    if bearer:
        view["bearer"] = bearer.reveal()
    if people:
        view |= {
            "grant": lease.grant,
            "manifest_digest": lease.manifest_digest,
            "address": lease.target.address,
            "attempts": lease.attempts,
            "retry_at": when(lease.retry_at),
            "last_error": lease.last_error,
            "incidents": lease.incidents,
        }
    return view


def _proof_for_agents(lease: Lease) -> dict[str, object]:
    """Without the addresses of nodes, and without the person who wrote a lease off."""
    shown = {name: lease.proof[name] for name in ("answer", "ended", "absent", "took_ms") if name in lease.proof}
    nodes = lease.proof.get("nodes")
    return {**shown, "nodes": len(nodes)} if isinstance(nodes, dict) else shown  # pyright: ignore[reportUnknownArgumentType]


def aftermath_view(found: Aftermath, *, people: bool = False, limit: int = MAX_WIDENING) -> dict[str, object]:
    """What a migration left. ``people`` adds who accepted it, and why."""
    view: dict[str, object] = {
        "lease": found.lease,
        "task": found.task,
        "resource": found.resource,
        "state": found.state.value,
        "blocks": found.state in BLOCKING,
        "ran": found.ran.value if found.ran else None,
        "widening": [each.to_json() for each in found.widening[:limit]],
        "more": max(0, len(found.widening) - limit),
        "opened_at": when(found.opened_at),
        "looked_at": when(found.looked_at),
    }
    if people:
        view |= {
            "error": found.error,
            "decided_at": when(found.decided_at),
            "decided_by": found.decided_by,
            "comment": found.comment,
        }
    return view


def card(
    request: AccessRequest,
    task: Task,
    estimates: dict[int, int],
    capabilities: dict[str, object],
    file: str | None = None,
) -> dict[str, object]:
    """What a person decides on, in three classes that must look different: only ``facts`` may look official.

    ``file`` is the text of a migration file: the agent's words, to which the manifest's digest binds the decision.
    """
    return {
        "request": request.id,
        "state": request.state.value,
        "digest": request.digest,
        "facts": {
            "resource": request.scope.resource,
            "environment": request.environment.value,
            "level": request.manifest.level.value,
            "access": request.scope.access,
            "principal": task.principal.spiffe_id,
            "sponsor": task.principal.sponsor,
            "machine": task.principal.machine,
            "separation": request.separation.word,
            "parents": list(task.principal.parents),
            "task": task.id,
            "lifetime": request.lifetime,
            "delivery": request.decision.obligations.delivery.value,
            "asked_at": when(request.created_at),
            "lapses_at": when(request.lapses_at),
        },
        "fetched": {"database": request.manifest.database_name},
        "claimed": {
            "repository": task.repository.to_json(),
            "branch": task.branch.to_json(),
            "ticket": task.ticket.to_json(),
            "reason": request.reason,
        },
        "file": file,
        "manifest": request.manifest.to_json(),
        "estimates": {str(oid): rows for oid, rows in estimates.items()},
        "capabilities": capabilities,
        "duties": request.decision.obligations.to_json(),
        "policies": list(request.decision.policies),
        "code": request.decision.code,
    }


def vote_view(vote: Approval) -> dict[str, object]:
    return {
        "approval": vote.id,
        "approver": vote.approver,
        "method": vote.method.value,
        "verdict": vote.verdict.value,
        "digest": vote.digest,
        "lifetime": vote.lifetime,
        "comment": vote.comment,
        "at": when(vote.created_at),
        "expires_at": when(vote.expires_at),
    }
