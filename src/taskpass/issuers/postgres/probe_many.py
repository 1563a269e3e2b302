"""The proof of ``probe`` for many roles with one password, many logins side by side in one thread.

Every role is tried by itself: nothing is concluded from another one's answer. Over TLS the logins are made by a few
threads instead, with the same code as a single one.
"""

from __future__ import annotations

import base64
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from taskpass.core.clock import Entropy
from taskpass.core.errors import NotProven, TargetUnavailable, TaskpassError
from taskpass.core.ids import RoleName
from taskpass.core.secret import Secret
from taskpass.issuers.postgres.probe import Place, is_proof, prove_refused, unproven
from taskpass.wire.postgres.address import Address, parse_address
from taskpass.wire.postgres.login import Broken, Login

SIDE_BY_SIDE = 8
"""Logins at a time. Each takes one of the server's connections for a millisecond; more make it no faster on few
processors."""

SECONDS = 10.0
"""For one login from connecting to its answer."""


@dataclass(slots=True)
class _Try:
    role: RoleName
    login: Login
    stream: socket.socket
    deadline: float
    started: bool = False


def prove_all_refused(
    place: Place, roles: Sequence[RoleName], secret: Secret, entropy: Entropy
) -> dict[RoleName, TaskpassError | None]:
    """For each role None if it is refused although the password is right, else why that is not proven.

    Raises ``TargetUnavailable`` if the server answers nobody.
    """
    address = parse_address(place.address)
    if place.ca and not address.socket_path:
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="probe") as pool:
            return dict(zip(roles, pool.map(partial(_prove_one, place, secret, entropy), roles), strict=True))
    return _Tries(address, secret, entropy).run(roles)


def _prove_one(place: Place, secret: Secret, entropy: Entropy, role: RoleName) -> TaskpassError | None:
    try:
        prove_refused(place, role, secret, entropy)
    except TaskpassError as error:
        return error
    return None


class _Tries:
    def __init__(self, address: Address, secret: Secret, entropy: Entropy) -> None:
        self._address = address
        self._secret = secret
        self._entropy = entropy
        self._found: dict[RoleName, TaskpassError | None] = {}
        self._selector = selectors.DefaultSelector()

    def run(self, roles: Sequence[RoleName]) -> dict[RoleName, TaskpassError | None]:
        waiting = iter(roles)
        try:
            for _ in range(SIDE_BY_SIDE):
                self._next(waiting)
            while self._selector.get_map():
                for key, _ in self._selector.select(timeout=1.0):
                    if self._step(key.data):
                        self._next(waiting)
                self._give_up_late(waiting)
        finally:
            for key in list(self._selector.get_map().values()):
                key.data.stream.close()
            self._selector.close()
        return self._found

    def _next(self, waiting: Iterator[RoleName]) -> None:
        """Begin with the next role that can be begun with."""
        for role in waiting:
            nonce = base64.b64encode(self._entropy.bytes(18)).decode()
            login = Login(
                user=role,
                database=self._address.database,
                secret=self._secret,
                nonce=nonce,
                parameters={"application_name": "taskpass"},
            )
            try:
                stream = self._connect()
            except OSError:
                self._found[role] = TargetUnavailable("the server to prove it on does not answer")
                continue
            each = _Try(role, login, stream, time.monotonic() + SECONDS)
            self._selector.register(stream, selectors.EVENT_WRITE, each)
            return

    def _connect(self) -> socket.socket:
        path = self._address.socket_path
        if path:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            place: str | tuple[str, int] = path
            stream.settimeout(SECONDS)  # A local socket connects at once or waits for its backlog.
        else:
            found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)[0]
            stream, place = socket.socket(found[0], socket.SOCK_STREAM), found[4][:2]  # pyright: ignore[reportAssignmentType]
            stream.setblocking(False)
        try:
            stream.connect(place)
        except BlockingIOError:
            pass
        except BaseException:
            stream.close()
            raise
        stream.setblocking(False)
        return stream

    def _step(self, each: _Try) -> bool:
        """Go on with one login; whether it is over."""
        try:
            if not each.started:
                each.stream.sendall(each.login.start())
                each.started = True
                self._selector.modify(each.stream, selectors.EVENT_READ, each)
                return False
            data = each.stream.recv(16384)
            if not data:
                each.login.eof()
            elif reply := each.login.feed(data):
                each.stream.sendall(reply)
        except BlockingIOError:
            return False
        except OSError:
            return self._end(each, TargetUnavailable("the server to prove it on does not answer"))
        outcome = each.login.outcome
        if outcome is None:
            return False
        return self._end(each, None if is_proof(outcome) else unproven(outcome))

    def _end(self, each: _Try, error: TaskpassError | None) -> bool:
        self._selector.unregister(each.stream)
        each.stream.close()
        self._found[each.role] = error
        return True

    def _give_up_late(self, waiting: Iterator[RoleName]) -> None:
        now = time.monotonic()
        for key in list(self._selector.get_map().values()):
            each: _Try = key.data
            if now > each.deadline:
                self._end(each, NotProven(unproven(Broken("no answer")).message))
                self._next(waiting)
