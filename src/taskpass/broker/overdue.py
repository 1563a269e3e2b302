"""End sessions that are over a limit of their lease, and record it. The lease itself lives on."""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.core.audit import Event
from taskpass.core.errors import NotFound
from taskpass.core.ids import LeaseId
from taskpass.issuers.base import Overdue


def end_overdue(broker: Broker, resource: str) -> int:
    """How many sessions were ended. Ending comes first, as with everything that takes away.

    Raises ``TargetUnavailable`` if the target does not answer, and ``StoreUnavailable`` if it could not be recorded.
    """
    ended = broker.issuers[resource].end_overdue()
    if ended:
        with broker.store.write() as unit:
            now = broker.now(unit)
            for item in ended:
                subject = {"lease": item.lease, **_task(broker, item)}
                data = {"resource": resource, "limit": item.limit, "node": item.node}
                unit.audit.append(Event("session.over_limit", "broker", subject, data), now)
    return len(ended)


def _task(broker: Broker, item: Overdue) -> dict[str, str]:
    try:
        with broker.store.read() as unit:
            return {"task": unit.leases.get(LeaseId(item.lease)).task}
    except NotFound:
        return {}
