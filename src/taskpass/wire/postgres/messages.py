"""Messages of the PostgreSQL protocol that a login needs, in both directions, with strict lengths.

Everything that is read here comes from a peer that nobody has authenticated yet, so every length is checked against a
small maximum before anything is kept. Not for queries, rows or COPY data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from taskpass.core.errors import InvalidInput

CANCEL_CODE = 80877102
SSL_CODE = 80877103
GSSENC_CODE = 80877104

MAX_FIRST_PACKET = 10_000
"""Bytes; PostgreSQL's own MAX_STARTUP_PACKET_LENGTH."""
MAX_LOGIN_MESSAGE = 30_000
"""Bytes of one server message before a session is ready; libpq's own limit for errors at that stage."""
MAX_KEY = 256
"""Bytes of a cancel key; the limit of protocol 3.2."""

_VERSION_3_0 = 3 << 16
_HEADER = struct.Struct("!ci")
_INT = struct.Struct("!i")
_TWO_INTS = struct.Struct("!ii")
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")


class Malformed(InvalidInput):
    """The peer broke the protocol. The message names the rule, never the bytes."""

    default_code = "malformed_wire"


@dataclass(frozen=True, slots=True)
class Startup:
    """A client's StartupMessage. The parameters are what the client claims; nothing in them is checked."""

    major: int
    minor: int
    unverified_parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class SslRequest:
    """Asks for TLS; the answer is one byte."""


@dataclass(frozen=True, slots=True)
class GssEncRequest:
    """Asks for GSSAPI encryption; the answer is one byte."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Asks to cancel what the session with this pid and key is doing; there is no answer."""

    pid: int
    key: bytes = field(repr=False)


FirstPacket = Startup | SslRequest | GssEncRequest | CancelRequest


@dataclass(frozen=True, slots=True)
class Message:
    """One server message: its type byte and its body without the length."""

    kind: bytes
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerError:
    """An ErrorResponse. ``untrusted_message`` is the server's own text: shown at most, never matched on."""

    severity: str
    sqlstate: str
    untrusted_message: str


# ---- the first packet of a client ------------------------------------------------------------------------------------


def take_first_packet(buffer: bytearray) -> FirstPacket | None:
    """Removes one first packet from the front of ``buffer``; None if it is not complete. Raises ``Malformed``."""
    if len(buffer) < 4:
        return None
    (length,) = _INT.unpack_from(buffer)
    if not 8 <= length <= MAX_FIRST_PACKET:
        raise Malformed("length of the first packet is out of range")
    if len(buffer) < length:
        return None
    packet = bytes(buffer[4:length])
    del buffer[:length]
    return _first_packet(packet)


def _first_packet(packet: bytes) -> FirstPacket:
    (code,) = _INT.unpack_from(packet)
    body = packet[4:]
    if code in (SSL_CODE, GSSENC_CODE):
        if body:
            raise Malformed("an encryption request has no body")
        return SslRequest() if code == SSL_CODE else GssEncRequest()
    if code == CANCEL_CODE:
        if not 8 <= len(body) <= 4 + MAX_KEY:
            raise Malformed("length of a cancel request is out of range")
        return CancelRequest(_INT.unpack_from(body)[0], body[4:])
    return Startup((code >> 16) & 0xFFFF, code & 0xFFFF, _pairs(body))


def _pairs(body: bytes) -> dict[str, str]:
    """The name/value list of a StartupMessage. A name given twice is refused: nobody shall guess which one counts."""
    if not body.endswith(b"\0"):
        raise Malformed("start-up parameters are not terminated")
    if body == b"\0":
        return {}
    if not body.endswith(b"\0\0"):
        raise Malformed("start-up parameters are not terminated")
    texts = [text(part) for part in body[:-2].split(b"\0")]
    if len(texts) % 2:
        raise Malformed("a start-up parameter has no value")
    pairs = dict(zip(texts[::2], texts[1::2], strict=True))
    if len(pairs) * 2 != len(texts) or "" in pairs:
        raise Malformed("a start-up parameter is named twice or not at all")
    return pairs


def startup(parameters: Mapping[str, str]) -> bytes:
    """A StartupMessage of protocol 3.0."""
    parts = [_cstring(name) + _cstring(value) for name, value in parameters.items()]
    body = _INT.pack(_VERSION_3_0) + b"".join(parts) + b"\0"
    return _INT.pack(len(body) + 4) + body


def ssl_request() -> bytes:
    return _TWO_INTS.pack(8, SSL_CODE)


def gssenc_request() -> bytes:
    return _TWO_INTS.pack(8, GSSENC_CODE)


def cancel_request(pid: int, key: bytes) -> bytes:
    return struct.pack("!iii", 12 + len(key), CANCEL_CODE, pid) + key


# ---- what a server sends ---------------------------------------------------------------------------------------------


class Framer:
    """Cuts a server's byte stream into messages, holding at most one message of ``limit`` bytes and one chunk."""

    DEFAULT_LIMIT: ClassVar[int] = MAX_LOGIN_MESSAGE

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def push(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> Message | None:
        """The next complete message, or None. Raises ``Malformed`` as soon as a length is out of range."""
        if len(self._buffer) < 5:
            return None
        kind, length = _HEADER.unpack_from(self._buffer)
        if not 4 <= length <= self._limit:
            raise Malformed("length of a server message is out of range")
        if len(self._buffer) < length + 1:
            return None
        body = bytes(self._buffer[5 : length + 1])
        del self._buffer[: length + 1]
        return Message(kind, body)

    @property
    def rest(self) -> bytes:
        """Bytes that were pushed and not taken."""
        return bytes(self._buffer)


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One framed message, for either direction."""
    return _HEADER.pack(kind, len(body) + 4) + body


def authentication(code: int, body: bytes = b"") -> bytes:
    """AuthenticationOk (0), AuthenticationSASL (10) and the like."""
    return message(b"R", _INT.pack(code) + body)


def parameter_status(name: str, value: str) -> bytes:
    return message(b"S", _cstring(name) + _cstring(value))


def backend_key_data(pid: int, key: bytes) -> bytes:
    return message(b"K", _INT.pack(pid) + key)


def ready_for_query(status: bytes = b"I") -> bytes:
    return message(b"Z", status)


def negotiate_protocol_version(unknown: Iterable[str]) -> bytes:
    """Tells a client that we speak 3.0 at most and which ``_pq_.`` options we ignore.

    The manual says that the first number is the minor version; servers send, and libpq expects, the whole version.
    """
    names = [_cstring(name) for name in unknown]
    return message(b"v", _TWO_INTS.pack(_VERSION_3_0, len(names)) + b"".join(names))


def error_response(sqlstate: str, words: str, *, hint: str = "", severity: str = "FATAL") -> bytes:
    """An ErrorResponse with our own words. Control characters become spaces, so that no word can end a field."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", words), ("H", hint)]
    body = b"".join(name.encode() + _cstring(_printable(value)) for name, value in fields if value)
    return message(b"E", body + b"\0")


def read_error(body: bytes) -> ServerError:
    """Parses an ErrorResponse body. Severity comes from the untranslated field where there is one."""
    fields: dict[str, str] = {}
    if not body.endswith(b"\0"):
        raise Malformed("an error message is not terminated")
    for part in body.split(b"\0"):
        if part:
            fields.setdefault(part[:1].decode("latin-1"), part[1:].decode("utf-8", "replace"))
    if not _SQLSTATE.fullmatch(fields.get("C", "")):
        raise Malformed("an error message has no SQLSTATE")
    return ServerError(fields.get("V") or fields.get("S", ""), fields["C"], _printable(fields.get("M", "")))


def read_int(body: bytes) -> int:
    """The 32-bit integer at the front of ``body``; raises ``Malformed`` if there is none."""
    if len(body) < 4:
        raise Malformed("a message is too short")
    (value,) = _INT.unpack_from(body)
    return int(value)


def text(raw: bytes) -> str:
    """``raw`` as UTF-8 text; raises ``Malformed`` for anything else."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("text is not UTF-8") from None


def _cstring(value: str) -> bytes:
    raw = value.encode("utf-8")
    if b"\0" in raw:
        raise Malformed("text with a NUL character")
    return raw + b"\0"


def _printable(value: str) -> str:
    return "".join(char if char.isprintable() else " " for char in value)
