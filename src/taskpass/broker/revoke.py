"""Pull the plug, at every level: one lease, a task, an agent, a ticket, a resource, everything."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from taskpass.broker.complete_task import end_leases
from taskpass.broker.context import Broker
from taskpass.broker.late import LateEntry
from taskpass.core.audit import Event
from taskpass.core.errors import InvalidInput, StoreUnavailable
from taskpass.core.lease import UNENDED, Lease
from taskpass.core.task import Task

_SLOW = ("store_locked", "store_down", "store_connections")
"""Answers of a store that one may have to wait for."""

LEVELS = ("lease", "task", "agent", "ticket", "resource", "all")


@dataclass(frozen=True, slots=True)
class Selector:
    """``level`` is one of ``LEVELS``; ``value`` names it (empty for ``all``).
    ``agent`` is a SPIFFE id or a tool name.
    """

    level: str
    value: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InvalidInput(f"nothing can be revoked by {self.level[:20]!r}", hint=f"one of {', '.join(LEVELS)}")
        if (self.level == "all") != (self.value == ""):
            raise InvalidInput(f"revoke by {self.level} needs {'no' if self.level == 'all' else 'a'} value")


def select(broker: Broker, selector: Selector) -> list[Lease]:
    """The leases that may still be usable and that ``selector`` means. Shown first with ``--dry-run``."""
    try:
        with broker.store.read() as unit:
            leases = unit.leases.list(states=UNENDED)
            tasks = {lease.task: unit.tasks.get(lease.task) for lease in leases}
    except StoreUnavailable:
        # A store that is away as a whole: what this process made usable is what is usable here.
        known = broker.remembered.all()
        leases, tasks = [lease for lease, _ in known], {task.id: task for _, task in known}
    return [lease for lease in leases if _meant(selector, lease, tasks[lease.task])]


def _meant(selector: Selector, lease: Lease, task: Task) -> bool:
    value = selector.value
    match selector.level:
        case "lease":
            return lease.id == value
        case "task":
            return task.id == value or value in task.principal.parents
        case "agent":
            return value in (task.principal.spiffe_id, task.principal.tool)
        case "ticket":
            return task.ticket.value == value
        case "resource":
            return lease.target.resource == value
        case _:
            return selector.level == "all"


def revoke(broker: Broker, selector: Selector, *, actor: str, reason: str = "") -> list[Lease]:
    """Take back everything that ``selector`` means and close it; the leases as they stand afterwards."""
    chosen = select(broker, selector)
    writable = _record(broker, selector, chosen, actor, reason)
    return end_leases(broker, [lease.id for lease in chosen], reason="revoked", actor=actor, writable=writable)


def _record(broker: Broker, selector: Selector, chosen: list[Lease], actor: str, reason: str) -> bool:
    """False if the store is locked or away: whoever pulls the plug does not wait for it once more before the cut.

    On a full disk the space kept for revoking is used, so that who ordered it, and why, is not lost; else it is
    recorded late.
    """
    order: dict[str, object] = {
        "level": selector.level,
        "value": selector.value,
        "leases": [x.id for x in chosen],
        "reason": reason,
    }
    event = Event("revoke.ordered", actor, {}, order)
    try:
        _append(broker, event)
    except StoreUnavailable as error:
        if error.code == "store_full" and broker.release_reserve():
            with contextlib.suppress(StoreUnavailable):
                _append(broker, event)
                return True
        broker.late.add(LateEntry(None, reason, event, broker.clock.now()))
        return error.code not in _SLOW
    return True


def _append(broker: Broker, event: Event) -> None:
    with broker.store.write() as unit:
        unit.audit.append(event, broker.now(unit))
