"""Leases whose time has come: taken back by the broker's clock; the target holds its own end by its own clock."""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.take_back import is_usable
from taskpass.broker.take_back_many import take_back_many
from taskpass.core.clock import Instant
from taskpass.core.errors import StoreUnavailable
from taskpass.core.guard import effective_now
from taskpass.core.ids import LeaseId
from taskpass.core.lease import UNENDED
from taskpass.store.base import Unit


def expire_leases(broker: Broker) -> list[LeaseId]:
    """Move what has expired to ``closing``; the sweeper then closes it. A clock set back never delays this.

    While the store cannot be read, what this process made usable still ends on time.
    """
    try:
        with broker.store.read() as unit:
            now = effective_now(broker.clock.now(), unit.installation.latest_seen)
            expired = [lease.id for lease in unit.leases.expiring(now)]
            _forget_ended(broker, unit, now)
    except StoreUnavailable:
        now = broker.clock.now()
        expired = [lease.id for lease, _ in broker.remembered.all() if lease.expires_at <= now and is_usable(lease)]
        return take_back_many(broker, expired, reason="expired", actor="broker", writable=False)
    return take_back_many(broker, expired, reason="expired", actor="broker")


def _forget_ended(broker: Broker, unit: Unit, now: Instant) -> None:
    """What another broker on this store has closed need not be remembered here."""
    for lease, _ in broker.remembered.all():
        if lease.expires_at <= now and unit.leases.get(lease.id).state not in UNENDED:
            broker.remembered.forget(lease.id)
