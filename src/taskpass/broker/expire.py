"""Leases whose time has come: taken back by the broker's clock; the target holds its own end by its own clock."""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.take_back import take_back
from taskpass.core.guard import effective_now
from taskpass.core.lease import Lease


def expire_leases(broker: Broker) -> list[Lease]:
    """Move what has expired to ``closing``; the sweeper then closes it. A clock set back never delays this."""
    with broker.store.read() as unit:
        now = effective_now(broker.clock.now(), unit.installation.latest_seen)
        expired = [lease.id for lease in unit.leases.expiring(now)]
    return take_back(broker, expired, reason="expired", actor="broker")
