"""One client of an endpoint: start-up with it, login to the target, joined streams, an end with words.

Not for accepting connections and not for deciding who may connect.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from taskpass.core.clock import Entropy
from taskpass.core.errors import TargetUnavailable, TaskpassError
from taskpass.gateways.base import EndpointOrder
from taskpass.gateways.postgres.leg import Leg
from taskpass.gateways.postgres.protocol import Cancel, ClientStart, Connect, HangUp, Say, explain, refuse, welcome
from taskpass.gateways.postgres.splice import Splice
from taskpass.gateways.postgres.target import Route, channel_binding, connect, log_in
from taskpass.wire.postgres.login import Login, Ready, Refused
from taskpass.wire.postgres.messages import cancel_request

START_SECONDS = 10.0
"""From accept to joined streams."""
END_SECONDS = 0.25
"""What a client that does not read, or a target that stops within a message, may delay an end."""
MAX_CLIENTS = 10
"""Client connections of one lease at a time. The target's own limit for the role is usually lower."""

_log = logging.getLogger(__name__)
_NONCE_BYTES = 18


@dataclass(frozen=True, slots=True)
class Service:
    """What every session of one endpoint shares. ``sessions`` is the endpoint's own, live collection."""

    order: EndpointOrder
    route: Route
    entropy: Entropy
    sessions: Collection[Session]
    parties: Counter[str]
    """Client connections of each party, on all endpoints of this process."""

    def refusal(self) -> str:
        """Why no further client is served now; empty if one is."""
        order = self.order
        if sum(session.is_client for session in self.sessions) >= MAX_CLIENTS:
            return f"this endpoint serves {MAX_CLIENTS} connections at a time"
        if order.party and self.parties[order.party] >= order.connections:
            return f"your tasks have {self.parties[order.party]} connections, as many as they may: close some"
        return ""


class Session:
    """``run`` is the whole life of it; ``end`` cuts it short. Both on the loop's thread."""

    def __init__(self, service: Service, connection: socket.socket) -> None:
        self.is_client = False
        """Whether it has asked for a session (and not only for a cancel)."""
        self._service = service
        self._connection = connection
        self._client: Leg | None = None
        self._ended: HangUp | None = None
        self._splice: Splice | None = None
        self._pid_and_key: tuple[int, bytes] | None = None

    async def run(self) -> None:
        """Until there is nothing left to do. Errors are told to the client and end here."""
        loop = asyncio.get_running_loop()
        try:
            _, self._client = await loop.connect_accepted_socket(Leg, self._connection)
            if self._ended is not None:
                self._hang_up(self._ended)
                return
            async with asyncio.timeout(START_SECONDS):
                await self._start(self._client)
        except TimeoutError:
            self._hang_up(refuse("57014", "the start-up took too long"))
        except TaskpassError as error:
            _log.warning("session_failed lease=%s code=%s", self._service.order.lease, error.code)
            state = "08001" if isinstance(error, TargetUnavailable) else "08004"
            self._hang_up(refuse(state, error.message, hint=error.hint))
        except OSError:
            self._hang_up(refuse("08006", "the connection failed"))
        else:
            if self._splice is not None:
                await asyncio.shield(self._splice.over)
        finally:
            self._close()

    async def end(self, words: HangUp, task: asyncio.Task[None]) -> None:
        """Ends the session that ``task`` runs; the client reads ``words``. Returns when nothing is left of it."""
        self._ended = words
        if self._splice is not None:
            self._splice.end_with(words.data)
        elif self._client is not None:
            self._hang_up(words)
            task.cancel()
        # Otherwise the connection is just being handed to its transport, which must not be interrupted: both would
        # close the same descriptor. ``run`` looks at the words next.
        await asyncio.wait({task}, timeout=END_SECONDS)
        if not task.done():
            if self._splice is not None:
                self._splice.abort()
            task.cancel()
            await asyncio.wait({task})

    def holds(self, pid: int, key: bytes) -> bool:
        """Whether ``pid`` and ``key`` are those that the target gave to this session."""
        mine = self._pid_and_key
        return mine is not None and mine[0] == pid and hmac.compare_digest(mine[1], key)

    # ---- start-up ----

    async def _start(self, client: Leg) -> None:
        order = self._service.order
        start = ClientStart(order.role, self._service.route.address.database)
        while data := await client.read():
            step = start.feed(data)
            if isinstance(step, Say):
                client.transport.write(step.data)
            elif isinstance(step, HangUp):
                self._hang_up(step)
                return
            elif isinstance(step, Cancel):
                await self._cancel(step)
                return
            elif isinstance(step, Connect):
                await self._connect(client, step, start)
                return

    async def _connect(self, client: Leg, step: Connect, start: ClientStart) -> None:
        if words := self._service.refusal():
            self._hang_up(refuse("53300", words))
            return
        self.is_client = True
        self._service.parties[self._service.order.party] += 1
        target = await connect(self._service.route)
        try:
            login = self._login(target, step.parameters)
            outcome = await log_in(target, login)
            refusal = explain(outcome)
            if refusal is not None or not isinstance(outcome, Ready):
                self._refused(outcome.sqlstate if isinstance(outcome, Refused) else "", step, refusal)
            elif not client.transport.is_closing() and not target.transport.is_closing():
                self._pid_and_key = outcome.pid, outcome.key
                self._splice = Splice.join(
                    client,
                    target,
                    greeting=step.first + welcome(outcome),
                    to_client=login.rest,
                    to_target=start.rest,
                )
        finally:
            if self._splice is None:
                target.transport.abort()

    def _login(self, target: Leg, parameters: dict[str, str]) -> Login:
        order = self._service.order
        return Login(
            user=order.role,
            database=self._service.route.address.database,
            secret=order.secret,
            nonce=self._service.entropy.bytes(_NONCE_BYTES).hex(),
            parameters={"application_name": order.lease, **parameters, **order.settings},
            binding=channel_binding(target),
        )

    def _refused(self, sqlstate: str, step: Connect, refusal: HangUp | None) -> None:
        _log.warning("target_refused lease=%s sqlstate=%s", self._service.order.lease, sqlstate)
        self._hang_up(HangUp(step.first + (refusal.data if refusal else b"")))

    async def _cancel(self, step: Cancel) -> None:
        """As the protocol says there is never an answer, so a wrong key is not told from a right one."""
        if not any(session.holds(step.pid, step.key) for session in self._service.sessions):
            _log.warning("cancel_refused lease=%s", self._service.order.lease)
            return
        target = await connect(self._service.route)
        try:
            target.transport.write(cancel_request(step.pid, step.key))
            while await target.read():
                pass
        finally:
            target.transport.abort()

    # ---- the end ----

    def _hang_up(self, words: HangUp) -> None:
        if self._client is not None and not self._client.transport.is_closing():
            self._client.transport.write(words.data)
            self._client.transport.close()

    def _close(self) -> None:
        if self.is_client:
            self._service.parties[self._service.order.party] -= 1
        if self._client is None:
            self._connection.close()
        elif self._splice is None:
            self._client.transport.close()
        elif not self._splice.over.done():
            self._splice.abort()
