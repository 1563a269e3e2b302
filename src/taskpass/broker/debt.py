"""Revocation debt: closes that are not proven yet. It first stops whoever caused it, a target only for many of them."""

from __future__ import annotations

from taskpass.core.budgets import same_party
from taskpass.core.errors import Denied
from taskpass.core.lease import Lease, LeaseState
from taskpass.core.task import Task
from taskpass.store.base import Unit

TARGET_LIMIT = 10
"""Unproven closes on one target, from whatever sponsor, above which it gets no new lease."""


def unproven(leases: list[Lease]) -> list[Lease]:
    """The closing leases of which at least one attempt failed."""
    return [lease for lease in leases if lease.state is LeaseState.CLOSING and lease.attempts > 0]


def owed(unit: Unit) -> list[tuple[Lease, Task]]:
    """Every debt with the task that caused it."""
    return [(lease, unit.tasks.get(lease.task)) for lease in unit.leases.unproven()]


def refuse_debtors(debt: list[tuple[Lease, Task]], task: Task, resource: str) -> None:
    """Raise ``Denied`` while the party of ``task``, or the target as a whole, owes proofs of closing.

    Another repository is another party only if it is vouched for: a name that the agent chose leaves no debt behind.
    """
    if any(same_party(owner, task) for _, owner in debt):
        raise Denied(
            "an earlier access of yours is not proven closed yet, so nothing new is issued to you",
            hint="wait for it: it is retried until the target answers; taskpass status shows it",
            code="revocation_debt",
        )
    if sum(lease.target.resource == resource for lease, _ in debt) >= TARGET_LIMIT:
        raise Denied(
            "too many accesses on this target are not proven closed yet",
            hint="an operator looks at taskpass lease ls --debt",
            code="target_debt",
        )
