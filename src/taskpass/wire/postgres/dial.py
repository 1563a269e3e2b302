"""One login over a connection of its own, to hear the server's answer as a code: texts are in the server's language.

The only part of ``wire`` that opens a socket; it blocks, and the connection is closed whatever the answer is. Not for
getting a session.
"""

from __future__ import annotations

import socket
import ssl
import time

from taskpass.wire.postgres.address import Address
from taskpass.wire.postgres.login import Broken, Login, Outcome
from taskpass.wire.postgres.messages import ssl_request


class NoTls(OSError):
    """The server does not offer TLS where it is asked for."""


def dial(address: Address, ca: str, login: Login, *, seconds: float) -> Outcome:
    """The server's answer to ``login``. ``ca`` is ``system``, a path, or empty for no TLS; ``seconds`` are for each of
    connecting and logging in. Raises ``OSError`` if nobody answers, ``NoTls`` or ``ssl.SSLError`` for no trusted TLS.
    """
    with _connect(address, ca, seconds) as stream:
        return _drive(login, stream, seconds)


def _connect(address: Address, ca: str, seconds: float) -> socket.socket:
    if address.socket_path:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        stream = socket.create_connection((address.host, address.port), timeout=seconds)
    try:
        stream.settimeout(seconds)
        if address.socket_path:
            stream.connect(address.socket_path)
        return _secure(stream, address.host, ca) if ca and not address.socket_path else stream
    except BaseException:
        stream.close()
        raise


def _secure(stream: socket.socket, host: str, ca: str) -> socket.socket:
    stream.sendall(ssl_request())
    if stream.recv(1) != b"S":
        raise NoTls("the server offers no TLS")
    context = ssl.create_default_context(cafile=None if ca == "system" else ca)
    return context.wrap_socket(stream, server_hostname=host)


def _drive(login: Login, stream: socket.socket, seconds: float) -> Outcome:
    # The deadline is for the whole login: a server that sends byte by byte must not hold the caller up.
    deadline = time.monotonic() + seconds
    stream.sendall(login.start())
    while login.outcome is None:
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        data = stream.recv(16384)
        if not data:
            login.eof()
            break
        if reply := login.feed(data):
            stream.sendall(reply)
    return login.outcome or Broken("no answer")
