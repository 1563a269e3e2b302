"""Endpoints in memory, for tests of the verbs: nothing listens, but orders, clients and ends are remembered."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from taskpass.core.errors import Conflict, TaskpassError
from taskpass.core.ids import LeaseId
from taskpass.gateways.base import Endpoint, EndpointOrder


@dataclass
class FakeEndpoints:
    """Implements ``gateways.base.Endpoints``.

    ``served`` are the open orders, ``ended`` the words given at each close of an open endpoint, ``clients`` what
    ``connect`` added. ``failure``, if set, is raised by the next ``open``, once.
    """

    served: dict[LeaseId, EndpointOrder] = field(default_factory=dict[LeaseId, EndpointOrder])
    ended: dict[LeaseId, str] = field(default_factory=dict[LeaseId, str])
    failure: TaskpassError | None = None
    _clients: dict[LeaseId, int] = field(default_factory=dict[LeaseId, int])
    _closed: set[LeaseId] = field(default_factory=set[LeaseId])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, order: EndpointOrder) -> Endpoint:
        with self._lock:
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure
            if order.lease in self.served:
                raise Conflict("the lease has an endpoint already")
            if order.lease in self._closed:
                raise Conflict("the lease has ended", code="lease_ended", hint="ask for access again")
            self.served[order.lease] = order
            return Endpoint(order.directory, 5432, order.target.address.rpartition("/")[2], order.role)

    def close(self, lease: LeaseId, *, message: str) -> int:
        with self._lock:
            self._closed.add(lease)
            if self.served.pop(lease, None) is None:
                return 0
            self.ended[lease] = message
            return self._clients.pop(lease, 0)

    def close_many(self, leases: Sequence[LeaseId], *, message: str) -> None:
        for lease in leases:
            self.close(lease, message=message)

    def extend(self, lease: LeaseId, seconds: float) -> None:
        with self._lock:
            if lease in self.served:
                self.served[lease] = replace(self.served[lease], seconds=seconds)

    def connections(self, lease: LeaseId) -> int:
        with self._lock:
            return self._clients.get(lease, 0)

    def connections_of(self, party: str) -> int:
        with self._lock:
            return sum(self._clients.get(lease, 0) for lease, order in self.served.items() if order.party == party)

    def connect(self, lease: LeaseId) -> None:
        """A client connects; raises ``KeyError`` if nothing is served for ``lease``."""
        with self._lock:
            self._clients[lease] = self._clients.get(self.served[lease].lease, 0) + 1
