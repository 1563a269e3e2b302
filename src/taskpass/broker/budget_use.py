"""How much of its budgets a sponsor has used on this machine, for its agents and for people. Reads only.

Not for refusing: that happens in the unit of work that records what is asked, with the same counts.
"""

from __future__ import annotations

from dataclasses import asdict

from taskpass.broker.context import Broker
from taskpass.core.budgets import window_start
from taskpass.core.guard import effective_now
from taskpass.core.ids import HumanId
from taskpass.store.base import Unit


def budget_use(broker: Broker, unit: Unit, sponsor: HumanId) -> dict[str, dict[str, int]]:
    """``used`` and ``most`` by the name of each budget that is counted over all tasks of ``sponsor``.

    What comes and goes is counted over ``core.budgets.WINDOW``; connections are those of this broker's endpoints.
    """
    since = window_start(effective_now(broker.clock.now(), unit.installation.latest_seen))
    recorded = unit.requests.used(sponsor, broker.machine, since=since)
    used = {
        "pending": unit.requests.count_pending(sponsor),
        "prompts": recorded.prompts,
        "requests": recorded.requests,
        "tasks": unit.tasks.opened(sponsor, broker.machine, since=since)[0],
        "rights": len(unit.leases.rights(sponsor, broker.machine, since=since)),
        "leases": unit.leases.count_live(sponsor=sponsor),
        "connections": broker.endpoints.connections_of(sponsor),
        "text_bytes": recorded.text_bytes,
        "record_bytes": recorded.record_bytes,
    }
    most = asdict(broker.config.budgets)
    return {name: {"used": value, "most": most[name]} for name, value in used.items()}


def budget_use_of_all(broker: Broker, unit: Unit) -> dict[str, dict[str, dict[str, int]]]:
    """``budget_use`` of every sponsor that has an open task."""
    return {sponsor: budget_use(broker, unit, sponsor) for sponsor in unit.tasks.sponsors()}
