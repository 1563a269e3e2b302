"""Endpoints for PostgreSQL: one Unix socket per lease, served on an asyncio loop that runs in another thread.

The secret of a lease stays in this object for as long as the endpoint is open and goes nowhere but into the SCRAM
exchange with the target. Not for TCP listeners and not for ending a lease: the target's own proof does that.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from taskpass.core.clock import Entropy
from taskpass.core.errors import Conflict, Internal, TaskpassError
from taskpass.core.ids import LeaseId
from taskpass.gateways.base import Endpoint, EndpointOrder
from taskpass.gateways.postgres.place import PORT, Place, make_place
from taskpass.gateways.postgres.protocol import HangUp, refuse
from taskpass.gateways.postgres.session import MAX_CLIENTS, Service, Session
from taskpass.gateways.postgres.target import Route, make_route
from taskpass.wire.postgres.address import parse_address
from taskpass.wire.postgres.messages import error_response

MAX_SOCKETS = 2 * MAX_CLIENTS
"""Accepted sockets of one lease at a time, those that only cancel or have said nothing yet included."""
CALL_SECONDS = 10.0
_REMEMBERED = 50_000
_SIDE_BY_SIDE = 200
"""Endpoints that are ended in one turn of the loop."""
_TIME_OVER = "access of this coding task has run out"
_ACCEPT_AGAIN_SECONDS = 0.5

CheckPeer = Callable[[socket.socket, EndpointOrder], None]
"""Raises ``NotAuthenticated`` unless the peer belongs to the lease's run (or, outside any run, to its uid)."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class PostgresEndpoints:
    """Implements ``gateways.base.Endpoints``. Its methods block and must not be called on ``loop``'s own thread.

    ``loop`` runs already and outlives this object. A lease that was closed is not opened again: an order that was
    overtaken by a revocation raises ``Conflict``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, entropy: Entropy, check_peer: CheckPeer) -> None:
        self._loop = loop
        self._entropy = entropy
        self._check_peer = check_peer
        self._open: dict[LeaseId, _Listener] = {}
        self._closed: OrderedDict[LeaseId, None] = OrderedDict()
        self._parties: Counter[str] = Counter()

    def open(self, order: EndpointOrder) -> Endpoint:
        """Raises ``Conflict``, ``InvalidInput``, ``TargetUnfit``, ``ConfigInvalid``. Does not touch the target."""
        route = make_route(parse_address(order.target.address), order.ca)
        return self._call(self._open_here(order, route))

    def close(self, lease: LeaseId, *, message: str) -> int:
        return self._call(self._close_here(lease, message))

    def extend(self, lease: LeaseId, seconds: float) -> None:
        self._call(self._extend_here(lease, seconds))

    def close_many(self, leases: Sequence[LeaseId], *, message: str) -> None:
        self._call(self._close_many_here(leases, message))

    def close_all(self, *, message: str) -> int:
        """For the end of the process: every client is told, and no directory is left behind. Not part of the port."""
        return self._call(self._close_all_here(message))

    def connections(self, lease: LeaseId) -> int:
        """Client connections that are open or starting; 0 for an unknown lease."""
        return self._call(self._connections_here(lease))

    def connections_of(self, party: str) -> int:
        # Kept by the loop's thread; one number is read whole.
        return self._parties[party]

    async def _open_here(self, order: EndpointOrder, route: Route) -> Endpoint:
        if order.lease in self._open:
            raise Conflict("the lease has an endpoint already")
        if order.lease in self._closed:
            raise Conflict("the lease has ended", code="lease_ended", hint="ask for access again")
        place = make_place(order.directory, order.uid)
        sessions: dict[Session, asyncio.Task[None]] = {}
        service = Service(order, route, self._entropy, sessions.keys(), self._parties)
        self._open[order.lease] = _Listener(self._loop, place, service, sessions, self._check_peer)
        _log.info("endpoint_opened lease=%s", order.lease)
        return Endpoint(order.directory, PORT, route.address.database, order.role)

    async def _close_here(self, lease: LeaseId, message: str) -> int:
        self._remember(lease)
        listener = self._open.pop(lease, None)
        if listener is None:
            return 0
        ended = await listener.close(message)
        _log.info("endpoint_closed lease=%s connections=%d", lease, ended)
        return ended

    async def _extend_here(self, lease: LeaseId, seconds: float) -> None:
        if (listener := self._open.get(lease)) is not None:
            listener.end_in(seconds)

    async def _close_many_here(self, leases: Sequence[LeaseId], message: str) -> None:
        served = [lease for lease in leases if lease in self._open]
        for lease in leases:
            self._remember(lease)
        for start in range(0, len(served), _SIDE_BY_SIDE):
            part = served[start : start + _SIDE_BY_SIDE]
            await asyncio.gather(*(self._close_here(lease, message) for lease in part))
            await asyncio.sleep(0)  # Others of the loop have their turn.

    def _remember(self, lease: LeaseId) -> None:
        self._closed[lease] = None
        if len(self._closed) > _REMEMBERED:
            self._closed.popitem(last=False)

    async def _close_all_here(self, message: str) -> int:
        return sum(await asyncio.gather(*(self._close_here(lease, message) for lease in list(self._open))))

    async def _connections_here(self, lease: LeaseId) -> int:
        listener = self._open.get(lease)
        return listener.clients if listener is not None else 0

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        if _running_loop() is self._loop:
            work.close()
            raise Internal("an endpoint was called on the thread that serves it")
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise Internal("the endpoints' loop has ended") from None
        try:
            return future.result(CALL_SECONDS)
        except TimeoutError:
            if not self._loop.is_closed():
                future.cancel()
            raise Internal("the endpoints' loop does not answer") from None


class _Listener:
    """One endpoint: its place, who may connect, and the sessions."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        place: Place,
        service: Service,
        sessions: dict[Session, asyncio.Task[None]],
        check_peer: CheckPeer,
    ) -> None:
        self._loop = loop
        self._place = place
        self._order = order = service.order
        self._check_peer = check_peer
        self._sessions = sessions
        self._ending: set[asyncio.Task[None]] = set()
        self._service = service
        self._closed = False
        self._ends_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if order.seconds is not None:
            self.end_in(order.seconds)
        self._listen()

    @property
    def clients(self) -> int:
        return sum(session.is_client for session in self._sessions)

    def end_in(self, seconds: float) -> None:
        """Refuse new connections from then on, and end the streams: by this loop's clock, which nobody sets."""
        self._ends_at = self._loop.time() + seconds
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._ends_at, self._time_over)

    @property
    def is_over(self) -> bool:
        return self._ends_at is not None and self._loop.time() >= self._ends_at

    def _time_over(self) -> None:
        """The directory stays for ``close``, which the broker calls when it records the end."""
        words = HangUp(error_response("57P01", f"terminating connection: {_TIME_OVER}"))
        for session, task in list(self._sessions.items()):
            ending = self._loop.create_task(session.end(words, task))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self, message: str) -> int:
        """New connections are refused before the first stream is cut."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._place.listener)
        self._place.remove()
        count = self.clients
        words = HangUp(error_response("57P01", f"terminating connection: {message}"))
        await asyncio.gather(*(session.end(words, task) for session, task in list(self._sessions.items())))
        return count

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._place.listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._place.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors, most likely: the listener stays readable, so wait instead of spinning.
            _log.error("accept_failed lease=%s error=%s", self._order.lease, error.strerror)
            self._loop.remove_reader(self._place.listener)
            self._loop.call_later(_ACCEPT_AGAIN_SECONDS, self._listen)
            return
        connection.setblocking(False)
        try:
            refusal = self._refusal(connection)
        except BaseException:
            connection.close()
            raise
        if refusal is not None:
            _say_and_close(connection, refusal)
            return
        session = Session(self._service, connection)
        task = self._loop.create_task(session.run(), name=f"endpoint {self._order.lease}")
        self._sessions[session] = task
        task.add_done_callback(lambda done: self._forget(session, done))

    def _refusal(self, connection: socket.socket) -> HangUp | None:
        if self.is_over:
            return refuse("57P01", _TIME_OVER)
        if len(self._sessions) >= MAX_SOCKETS:
            return refuse("53300", "too many connections to this endpoint")
        try:
            self._check_peer(connection, self._order)
        except TaskpassError as error:
            _log.warning("peer_refused lease=%s code=%s", self._order.lease, error.code)
            return refuse("28000", f"this endpoint belongs to another task: {error.message}")
        return None

    def _forget(self, session: Session, task: asyncio.Task[None]) -> None:
        self._sessions.pop(session, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Only its kind: a message of an unexpected error may hold anything.
            _log.error("session_broken lease=%s error=%s", self._order.lease, type(error).__name__)


def _say_and_close(connection: socket.socket, words: HangUp) -> None:
    try:
        connection.send(words.data)
    except OSError:
        pass
    finally:
        connection.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
