"""Who may connect to a lease's endpoint: processes of its own run, or outside any run of its own account."""

from __future__ import annotations

import socket

from taskpass.core.errors import NotAuthenticated
from taskpass.gateways.base import EndpointOrder
from taskpass.identity.peer import held_peer
from taskpass.runtime.run_sockets import RunSocketServer


class EndpointPeers:
    """Callable as the gateways' ``check_peer``; raises ``NotAuthenticated`` for anybody else."""

    def __init__(self, runs: RunSocketServer, *, allow_root: bool) -> None:
        self._runs = runs
        self._allow_root = allow_root

    def __call__(self, connection: socket.socket, order: EndpointOrder) -> None:
        process, uid = held_peer(connection, allow_root=self._allow_root)
        try:
            if order.run is not None:
                self._runs.binding(order.run).admit(process, uid)
            elif uid != order.uid:
                raise NotAuthenticated("another account", code="peer_elsewhere")
        finally:
            process.close()
