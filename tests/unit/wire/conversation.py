"""A scripted PostgreSQL server for conversation tests. Its SCRAM is that of ``scramp``: an implementation not ours."""

from __future__ import annotations

from typing import Any

from scramp import ScramMechanism

from taskpass.core.secret import Secret
from taskpass.wire.postgres.login import Login
from taskpass.wire.postgres.messages import (
    Framer,
    authentication,
    backend_key_data,
    message,
    parameter_status,
    ready_for_query,
)

CANARY = "cAnArY-secret-0123456789"
NONCE = "fixedclientnonce"
SESSION = (
    authentication(0) + parameter_status("server_version", "18.4") + backend_key_data(4711, b"key!") + ready_for_query()
)


def login(**changes):
    options = {"user": "tp_x", "database": "orders", "secret": Secret(CANARY), "nonce": NONCE}
    return Login(**{**options, **changes})


class ScramServer:
    """Answers a login byte for byte; ``password`` is what the role really has."""

    def __init__(self, password=CANARY, mechanisms=("SCRAM-SHA-256",), binding=None, after=SESSION):
        self.sent = b""
        self._mechanisms = mechanisms
        self._after = after
        self._framer = Framer()
        self._step = self._first
        self._scram: Any = None
        self._binding = binding
        self._password = password

    def start(self):
        names = b"".join(name.encode() + b"\0" for name in self._mechanisms)
        return authentication(10, names + b"\0")

    def answer(self, data):
        self._framer.push(data)
        out = b""
        while (received := self._framer.take()) is not None:
            assert received.kind == b"p"
            out += self._step(received.body)
        return out

    def _first(self, body):
        name, rest = body.split(b"\0", 1)
        mechanism = ScramMechanism(name.decode())
        info = mechanism.make_auth_info(self._password)
        binding = ("tls-server-end-point", self._binding) if self._binding else None
        self._scram = mechanism.make_server(lambda _user: info, channel_binding=binding)
        self._scram.set_client_first(rest[4:].decode())
        self._step = self._final
        return authentication(11, self._scram.get_server_first().encode())

    def _final(self, body):
        self._scram.set_client_final(body.decode())
        return authentication(12, self._scram.get_server_final().encode()) + self._after


def converse(client, server, cut=lambda data: [data]):
    """Runs both sides until the client has an outcome or nobody has anything to say."""
    client.start()
    to_client = server.start()
    while to_client and client.outcome is None:
        to_server = b""
        for chunk in cut(to_client):
            to_server += client.feed(chunk)
        to_client = server.answer(to_server) if to_server else b""
    return client.outcome


__all__ = ["CANARY", "NONCE", "SESSION", "Login", "ScramServer", "converse", "login", "message"]
