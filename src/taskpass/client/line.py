"""The client of the line protocol: one call, one answer, over a Unix socket. Standard library only, quick to import.

Not for secrets that a person types: those go to the operator's socket only, and only after the account behind it is
checked (``owners``).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from contextlib import suppress

from taskpass.client.errors import from_wire
from taskpass.core.errors import BrokerUnreachable, Internal, InvalidInput, NotAuthenticated, TaskpassError

TYPE_CHECKING = False  # What typing.TYPE_CHECKING is, without importing typing: start-up is a feature.
if TYPE_CHECKING:
    from typing import Any, Self

MAX_LINE = 1024 * 1024
"""Bytes of a request or an answer, without the newline."""

_CHUNK = 65536


class LineClient:
    """A connection to a broker's line socket, made at the first call. Not for several threads at once.

    ``owners``: uids that the process behind the socket may have; empty accepts any (the agents' sockets, where the
    file's place and mode decide). Use as a context manager, or call ``close``.
    """

    def __init__(self, path: str | os.PathLike[str], *, owners: frozenset[int] = frozenset()) -> None:
        self._path = os.fspath(path)
        self._owners = owners
        self._socket: socket.socket | None = None
        self._received = b""
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received = b""

    def call(self, method: str, params: dict[str, Any] | None = None, timeout: float = 60.0) -> dict[str, Any]:
        """The result of ``method``; waits at most ``timeout`` seconds.

        Raises what the broker answered, or ``BrokerUnreachable`` (broker_unreachable, socket_forbidden, timeout,
        connection_lost). After an error of the connection the next call connects anew; nothing is sent twice.
        """
        self._number += 1
        request = {"id": self._number, "method": method, "params": params or {}}
        text = json.dumps(request, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        if len(text) - 1 > MAX_LINE:
            raise InvalidInput(f"the request is longer than {MAX_LINE} bytes", code="line_too_long")
        try:
            answer = self._exchange(text, time.monotonic() + timeout)
        except OSError as error:
            self.close()
            raise _unreachable(error, self._path) from None
        return self._result(answer)

    def _exchange(self, text: bytes, deadline: float) -> bytes:
        connection = self._connected(deadline)
        connection.settimeout(_left(deadline))
        # The broker may have said why before it closed: that answer is still to be read.
        with suppress(BrokenPipeError):
            connection.sendall(text)
        while b"\n" not in self._received:
            if len(self._received) > MAX_LINE:
                raise ConnectionAbortedError
            connection.settimeout(_left(deadline))
            chunk = connection.recv(_CHUNK)
            if not chunk:
                raise ConnectionAbortedError
            self._received += chunk
        answer, _, self._received = self._received.partition(b"\n")
        return answer

    def _connected(self, deadline: float) -> socket.socket:
        if self._socket is not None and _closed_by_server(self._socket):
            self.close()
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                connection.settimeout(_left(deadline))
                connection.connect(self._path)
                self._demand_owner(connection)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
        return self._socket

    def _demand_owner(self, connection: socket.socket) -> None:
        if not self._owners:
            return
        answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", answer)[1] not in self._owners:
            raise NotAuthenticated(
                "another account than the broker's serves this socket",
                code="broker_not_trusted",
                hint="type nothing; tell whoever runs this machine",
            )

    def _result(self, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            answer: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType]
            if "error" in answer:
                if answer.get("id") is None:
                    self.close()
                raise from_wire(answer["error"])
            result = answer.get("result")
            if answer.get("id") == self._number and isinstance(result, dict):
                return result  # pyright: ignore[reportUnknownVariableType]
        self.close()
        raise Internal("the broker's answer is not understood", code="bad_answer", hint="is it another version?")


def _closed_by_server(connection: socket.socket) -> bool:
    """Whether the broker has closed a connection that was idle for long, so that a call on it could not arrive."""
    # With a timeout set, Python itself would wait for data, whatever the flags say; each use sets its own timeout.
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _unreachable(error: OSError, path: str) -> TaskpassError:
    if isinstance(error, TimeoutError | BlockingIOError):
        return BrokerUnreachable("the broker did not answer in time", code="timeout", hint="try again")
    if isinstance(error, PermissionError):
        return BrokerUnreachable(
            f"this process may not connect to {path}",
            code="socket_forbidden",
            hint="allow this Unix socket in the tool's own sandbox settings, or start the tool with taskpass run",
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        if os.environ.get("TASKPASS_SOCK") == path:
            return BrokerUnreachable(
                "the broker of this run does not answer", hint="ask your person to look at taskpass up, or run anew"
            )
        return BrokerUnreachable(f"no broker runs at {path}", hint="start one with: taskpass up")
    if isinstance(error, ConnectionError):
        return BrokerUnreachable(
            "the broker closed the connection without an answer", code="connection_lost", hint="see taskpass status"
        )
    if error.errno is None:  # Python's own "AF_UNIX path too long".
        return InvalidInput(f"not a usable socket path: {path}", hint="a path has at most 107 bytes")
    return BrokerUnreachable(f"cannot speak to the broker at {path}: {error.strerror}", hint="is taskpass up?")
