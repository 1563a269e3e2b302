"""The part of the store's disk that agents never fill: below it nothing new is opened, asked for or issued.

It is left to what must be recorded whatever agents do: approvals, denials, what takes back, and what people look at.
When that too is used up, taking back still has the reserve (``broker.context.Broker.release_reserve``). Not for a store
on a server, whose disk cannot be seen from here.
"""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.core.errors import StoreUnavailable

FLOOR = 32 * 2**20
"""Bytes. What people do in a day takes a small part of it."""


def is_disk_low(broker: Broker) -> bool:
    free = broker.free_disk()
    return free is not None and free < FLOOR


def demand_disk(broker: Broker) -> None:
    """Raise ``StoreUnavailable`` (disk_low) while less than ``FLOOR`` is free."""
    if is_disk_low(broker):
        raise StoreUnavailable(
            "the disk that holds the record is nearly full, so nothing new is given",
            hint="an operator frees space; approving and revoking go on",
            code="disk_low",
        )
