"""The client's side of a PostgreSQL login, from StartupMessage to the first ReadyForQuery, without a socket.

Drive it so: send what ``start`` returns, then give every received chunk to ``feed`` and send what it returns, until
``outcome`` is set; tell it ``eof`` when the server hangs up. Only SCRAM-SHA-256 is answered: a server that asks for a
password in another way gets nothing and the outcome is ``Broken``. A server that accepts without asking gives an
outcome whose ``sasl`` is False: the caller must refuse it (``trust`` in pg_hba would make every proof empty).

Not for TLS (the caller does SSLRequest first) and not for deadlines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from taskpass.core.secret import Secret
from taskpass.wire.postgres.messages import (
    MAX_KEY,
    Framer,
    Malformed,
    Message,
    message,
    read_error,
    read_int,
    startup,
    text,
)
from taskpass.wire.postgres.scram import PLAIN, PLUS, ScramClient

MAX_LOGIN = 300_000
"""Bytes of all messages of one login; a server sends about 600. It bounds what a hostile server can make us keep."""

AUTHENTICATION_NAMES = {
    0: "AuthenticationOk",
    2: "AuthenticationKerberosV5",
    3: "AuthenticationCleartextPassword",
    5: "AuthenticationMD5Password",
    7: "AuthenticationGSS",
    8: "AuthenticationGSSContinue",
    9: "AuthenticationSSPI",
    10: "AuthenticationSASL",
    11: "AuthenticationSASLContinue",
    12: "AuthenticationSASLFinal",
}


@dataclass(frozen=True, slots=True)
class Ready:
    """The server accepted the login. ``sasl`` is False if it did so without asking for a proof (trust, peer, cert)."""

    sasl: bool
    parameters: dict[str, str]
    pid: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """The server answered with an error. ``untrusted_message`` is its own text: shown at most, never matched on."""

    sqlstate: str
    severity: str
    untrusted_message: str
    sasl: bool
    """Whether a complete SCRAM exchange came first, the server's signature verified."""
    after_authentication_ok: bool


@dataclass(frozen=True, slots=True)
class Broken:
    """No answer that means anything: the reason names the broken rule."""

    reason: str


Outcome = Ready | Refused | Broken


class Login:
    """One login. ``secret`` is ASCII; ``nonce`` is fresh for each login; ``binding`` see ``ScramClient``.

    ``outcome`` is None while the server has not decided. ``seen`` names the authentication messages in the order in
    which they came. ``rest`` holds bytes after the first ReadyForQuery: they belong to the session.
    """

    def __init__(
        self,
        *,
        user: str,
        database: str,
        secret: Secret,
        nonce: str,
        parameters: Mapping[str, str] | None = None,
        binding: bytes | None = None,
    ) -> None:
        self.outcome: Outcome | None = None
        self.seen: tuple[str, ...] = ()
        self._startup = startup({**(parameters or {}), "user": user, "database": database})
        self._secret = secret
        self._nonce = nonce
        self._binding = binding
        self._framer = Framer()
        self._scram: ScramClient | None = None
        self._step: Callable[[Message], bytes] = self._expect_method
        self._sasl = False
        self._accepted = False
        self._received = 0
        self._parameters: dict[str, str] = {}
        self._pid_and_key = (0, b"")

    @property
    def rest(self) -> bytes:
        return self._framer.rest

    def start(self) -> bytes:
        """The StartupMessage."""
        return self._startup

    def feed(self, data: bytes) -> bytes:
        """Takes bytes from the server, returns bytes for it. After the outcome is set, only ``rest`` grows."""
        self._framer.push(data)
        out = b""
        try:
            while self.outcome is None and (received := self._framer.take()) is not None:
                out += self._handle(received)
        except Malformed as broken:
            self.outcome = Broken(broken.message)
        return out

    def eof(self) -> None:
        """The server hung up."""
        if self.outcome is None:
            self.outcome = Broken("the server closed the connection during the login")

    def _handle(self, received: Message) -> bytes:
        self._received += 5 + len(received.body)
        if self._received > MAX_LOGIN:
            raise Malformed("the server sends too much during the login")
        if received.kind == b"E":
            error = read_error(received.body)
            self.outcome = Refused(error.sqlstate, error.severity, error.untrusted_message, self._sasl, self._accepted)
            return b""
        if received.kind in (b"N", b"v"):  # A notice, or protocol options that the server does not know.
            return b""
        return self._step(received)

    # ---- one method per state ----

    def _expect_method(self, received: Message) -> bytes:
        code, body = self._authentication(received)
        if code == 0:
            return self._accept()
        if code != 10:
            raise Malformed(f"the server asks for {_name(code)}, which is not answered")
        return self._choose(body)

    def _choose(self, body: bytes) -> bytes:
        if not body.endswith(b"\0\0"):
            raise Malformed("list of mechanisms is not terminated")
        offered = {text(name) for name in body[:-2].split(b"\0")}
        binding = self._binding if PLUS in offered else None
        self._scram = ScramClient(self._secret, self._nonce, binding)
        if self._scram.mechanism not in offered:
            raise Malformed(f"the server does not offer {PLAIN}")
        self._step = self._expect_challenge
        first = self._scram.first()
        return message(b"p", self._scram.mechanism.encode() + b"\0" + len(first).to_bytes(4, "big") + first)

    def _expect_challenge(self, received: Message) -> bytes:
        body = self._authentication_of(received, 11)
        self._step = self._expect_signature
        return message(b"p", self._exchange.final(body))

    def _expect_signature(self, received: Message) -> bytes:
        self._exchange.verify(self._authentication_of(received, 12))
        self._sasl = True
        self._step = self._expect_ok
        return b""

    def _expect_ok(self, received: Message) -> bytes:
        self._authentication_of(received, 0)
        return self._accept()

    def _expect_session(self, received: Message) -> bytes:
        if received.kind == b"S":
            name, value = _two_texts(received.body)
            self._parameters[name] = value
        elif received.kind == b"K":
            if not 8 <= len(received.body) <= 4 + MAX_KEY:
                raise Malformed("length of the cancel key is out of range")
            self._pid_and_key = read_int(received.body), received.body[4:]
        elif received.kind == b"Z" and received.body == b"I":
            self.outcome = Ready(self._sasl, self._parameters, *self._pid_and_key)
        else:
            raise Malformed("unexpected message before the session is ready")
        return b""

    # ---- helpers ----

    @property
    def _exchange(self) -> ScramClient:
        if self._scram is None:
            raise Malformed("no SCRAM exchange has begun")
        return self._scram

    def _accept(self) -> bytes:
        self._accepted = True
        self._step = self._expect_session
        return b""

    def _authentication(self, received: Message) -> tuple[int, bytes]:
        if received.kind != b"R":
            raise Malformed("expected an authentication message")
        code = read_int(received.body)
        self.seen = (*self.seen, _name(code))
        return code, received.body[4:]

    def _authentication_of(self, received: Message, expected: int) -> bytes:
        code, body = self._authentication(received)
        if code != expected:
            raise Malformed(f"expected {_name(expected)}, got {_name(code)}")
        return body


def _name(code: int) -> str:
    return AUTHENTICATION_NAMES.get(code, "an unknown authentication message")


def _two_texts(body: bytes) -> tuple[str, str]:
    parts = body.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise Malformed("a parameter is not a name and a value")
    return text(parts[0]), text(parts[1])
