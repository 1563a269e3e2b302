"""The agent gives one of its own leases back before its time."""

from __future__ import annotations

from taskpass.broker.complete_task import end_leases
from taskpass.broker.context import Broker
from taskpass.broker.open_task import own_task
from taskpass.core.errors import NotFound
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Lease
from taskpass.identity.base import Caller


def release_lease(broker: Broker, caller: Caller, lease_id: LeaseId) -> Lease:
    """Take the caller's own lease back and close it; somebody else's is reported as absent."""
    with broker.store.read() as unit:
        try:
            task = own_task(broker, unit, caller, unit.leases.get(lease_id).task)
        except NotFound:
            raise NotFound("no such access of yours", hint="taskpass status lists your own") from None
    return end_leases(broker, [lease_id], reason="released", actor=task.principal.spiffe_id)[0]
