"""The line protocol: newline-delimited JSON over Unix sockets whose peers the kernel names.

One request a line: ``{"id": n, "method": "...", "params": {...}}``; one answer a line, in the order of the requests:
``{"id": n, "result": {...}}`` or ``{"id": n, "error": {"code", "message", "hint", "retryable", "family"}}``. A
request that cannot be read is answered once and ends its connection. Handlers are plain functions and run in threads.

Not for: HTTP (``agent.sock`` has a server of its own), or for deciding anything about a caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast
from weakref import WeakValueDictionary

from taskpass.core.errors import Conflict, Internal, InvalidInput, NotAuthenticated, OverBudget, TaskpassError
from taskpass.identity.base import Peer
from taskpass.server.sockets import bind_unix

MAX_LINE = 1024 * 1024
"""Bytes of a request or an answer, without the newline."""

_IN_FLIGHT = 16
_AT_ONCE = 16
_CONNECTIONS = 256
_CONNECTIONS_OF_UID = 128
"""Of one account, on all sockets together: the others find a place on the socket that they share with it."""
_AT_ONCE_OF_UID = 32
"""Calls of one account, on all sockets together."""
_BURST = 200
_REFUSED = 5
"""Calls that one call counts as which was refused."""
_ACCOUNTS = 1000
"""Accounts that are remembered before those are forgotten of which nothing needs to be."""
_SEND_SECONDS = 60
"""A client that does not read its answers is cut off after this."""

_PEER = struct.Struct("iII")

_METHOD = re.compile(r"[a-z][a-z_]{0,63}")
_LARGEST_ID = 2**53 - 1

Params = dict[str, Any]
Handler = Callable[[str, Params, Peer], Params]
Attest = Callable[[socket.socket], Peer]

_log = logging.getLogger("taskpass.server.line")


@dataclass(frozen=True, slots=True)
class Line:
    """One socket to serve. ``attest`` raises ``NotAuthenticated``; ``handler`` raises ``TaskpassError``.

    ``uid``: owner of the socket file (default: ours). ``idle``: seconds without a request after which a connection is
    closed. Both functions run in the executor's threads; of ``handler`` at most ``at_once`` calls of one account for
    this socket, so that one run which waits in every call leaves threads to the others.
    """

    path: Path
    handler: Handler
    attest: Attest
    mode: int = 0o600
    uid: int | None = None
    max_line: int = MAX_LINE
    idle: float = 600.0
    connections: int = _CONNECTIONS
    at_once: int = _AT_ONCE


@dataclass(slots=True)
class _Served:
    line: Line
    listener: socket.socket
    accepting: asyncio.Task[None]
    talking: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    places: WeakValueDictionary[int, asyncio.Semaphore] = field(
        default_factory=WeakValueDictionary[int, asyncio.Semaphore]
    )


class _Account:
    """One account of the machine, on all sockets together: its connections, calls under way, and its pace.

    It begins ``_BURST`` calls at once and then so many a second; a call that is refused counts as several, because
    whoever is refused again and again only costs the others time. Calls wait here, before they have a thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, at_once: int, calls_per_second: float) -> None:
        self.connections = 0
        self._loop = loop
        self._at_once = asyncio.Semaphore(at_once)
        self._rate = calls_per_second
        self._left = float(_BURST)
        self._at = loop.time()
        self._order = asyncio.Lock()

    @property
    def is_new(self) -> bool:
        """Whether nothing is lost if it is forgotten."""
        self._refill()
        return not self.connections and self._left >= _BURST

    async def begin(self) -> None:
        async with self._order:
            await self._wait()
        await self._at_once.acquire()

    async def pace(self) -> None:
        """As a call does, without being one."""
        async with self._order:
            await self._wait()

    def end(self, *, refused: bool) -> None:
        self._at_once.release()
        if refused:
            self._left -= _REFUSED - 1

    async def _wait(self) -> None:
        if not self._rate:
            return
        self._refill()
        while self._left < 1:
            await asyncio.sleep((1 - self._left) / self._rate)
            self._refill()
        self._left -= 1

    def _refill(self) -> None:
        now = self._loop.time()
        self._left = min(_BURST, self._left + (now - self._at) * self._rate)
        self._at = now


class _Places:
    """For the calls of one account on one socket."""

    def __init__(self, here: asyncio.Semaphore, account: _Account) -> None:
        self._here = here
        self.account = account

    async def acquire(self) -> None:
        await self._here.acquire()
        try:
            await self.account.begin()
        except BaseException:
            self._here.release()
            raise

    def release(self, call: Future[Params]) -> None:
        refused = call.cancelled() or call.exception() is not None or "error" in call.result()
        self.account.end(refused=refused)
        self._here.release()


class LineServers:
    """Line sockets that share an executor; ``add`` and ``remove`` may be called from any thread but the loop's own.

    Agents and operators need one each: an agent that fills every thread must not keep a person from revoking. And one
    account that opens every connection it may, and waits in every call, must not keep another one from being served.
    ``calls_per_second`` is the pace of one account; 0 is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        *,
        connections_of_uid: int = _CONNECTIONS_OF_UID,
        at_once_of_uid: int = _AT_ONCE_OF_UID,
        calls_per_second: float = 0,
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._connections_of_uid = connections_of_uid
        self._at_once_of_uid = at_once_of_uid
        self._calls_per_second = calls_per_second
        self._accounts: dict[int, _Account] = {}
        self._served: dict[Path, _Served] = {}

    def add(self, line: Line) -> None:
        """Serve ``line``; returns when clients can connect. Raises as ``sockets.bind_unix``, or ``Conflict``."""
        listener = bind_unix(line.path, mode=line.mode, uid=line.uid)
        asyncio.run_coroutine_threadsafe(self._start(line, listener), self._loop).result()

    def remove(self, path: Path) -> None:
        """Stop serving ``path``: its connections are cut and its file is removed. Idempotent."""
        asyncio.run_coroutine_threadsafe(self.stop(path), self._loop).result()

    async def start(self, line: Line) -> None:
        """``add`` for callers in the loop."""
        await self._start(line, bind_unix(line.path, mode=line.mode, uid=line.uid))

    async def stop(self, path: Path) -> None:
        """``remove`` for callers in the loop."""
        served = self._served.pop(path, None)
        if served is None:
            return
        _unlink(path)
        tasks = {served.accepting, *served.talking}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        served.listener.close()

    async def close(self) -> None:
        for path in list(self._served):
            await self.stop(path)

    async def _start(self, line: Line, listener: socket.socket) -> None:
        if line.path in self._served:
            listener.close()
            raise Conflict(f"{line.path} is already served")
        listener.setblocking(False)
        accepting = self._loop.create_task(self._accept(line, listener))
        self._served[line.path] = _Served(line, listener, accepting)

    async def _accept(self, line: Line, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                _log.warning("accept failed: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            served = self._served[line.path]
            uid = _uid_of(connection)
            account = self._account(uid)
            if len(served.talking) >= line.connections or account.connections >= self._connections_of_uid:
                _say_and_close(connection, _failure(None, _too_many()))
                continue
            account.connections += 1
            places = _Places(served.places.setdefault(uid, asyncio.Semaphore(line.at_once)), account)
            task = self._loop.create_task(_talk(line, connection, self._executor, places))
            served.talking.add(task)
            task.add_done_callback(partial(_forget, served, account))

    def _account(self, uid: int) -> _Account:
        if uid not in self._accounts:
            if len(self._accounts) >= _ACCOUNTS:
                self._accounts = {uid: account for uid, account in self._accounts.items() if not account.is_new}
            self._accounts[uid] = _Account(self._loop, self._at_once_of_uid, self._calls_per_second)
        return self._accounts[uid]


async def serve_line(line: Line, executor: Executor) -> None:
    """Serve one socket until cancelled; for processes that have only one."""
    servers = LineServers(asyncio.get_running_loop(), executor)
    await servers.start(line)
    try:
        await asyncio.Event().wait()
    finally:
        await servers.close()


async def _talk(line: Line, connection: socket.socket, executor: Executor, places: _Places) -> None:
    """One connection from attestation to its end; never raises but when cancelled."""
    loop = asyncio.get_running_loop()
    peer: Peer | None = None
    writer: asyncio.StreamWriter | None = None
    try:
        await places.account.pace()
        attested = await loop.run_in_executor(executor, _attested, line, connection)
        peer = None if isinstance(attested, TaskpassError) else attested
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=line.max_line)
        if isinstance(attested, TaskpassError):
            await _send(writer, _failure(None, attested), line.max_line)
        else:
            await _Conversation(line, reader, writer, attested, executor, places).run()
    except (OSError, TimeoutError):
        pass
    finally:
        if writer is None:
            connection.close()
        else:
            writer.close()
        if peer is not None:
            peer.close()


def _attested(line: Line, connection: socket.socket) -> Peer | TaskpassError:
    try:
        return line.attest(connection)
    except TaskpassError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a defect must refuse the caller and not end the server.
        return _internal("attest", error)


@dataclass(slots=True)
class _Conversation:
    """Requests in, answers out in the same order, at most ``_IN_FLIGHT`` of them between the two."""

    line: Line
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    executor: Executor
    places: _Places

    async def run(self) -> None:
        answers: asyncio.Queue[asyncio.Future[Params] | None] = asyncio.Queue(_IN_FLIGHT)
        sending = asyncio.create_task(self._send_answers(answers))
        receiving = asyncio.create_task(self._receive(answers))
        try:
            # If sending ends first, nobody is left to answer; if receiving does, the answers under way are still due.
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done() and receiving.exception() is None:
                await sending
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _receive(self, answers: asyncio.Queue[asyncio.Future[Params] | None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while (text := await self._read_line()) is not None:
                number, method, params = parse_request(text)
                if not self.peer.alive():
                    raise _peer_gone()
                await answers.put(await self._started(number, method, params))
        except TaskpassError as error:
            last: asyncio.Future[Params] = loop.create_future()
            last.set_result(_failure(None, error))
            await answers.put(last)
        except OSError:
            pass
        await answers.put(None)

    async def _started(self, number: int, method: str, params: Params) -> asyncio.Future[Params]:
        """Start one call when there is a place for it. The place is free again when its *thread* is."""
        loop = asyncio.get_running_loop()
        await self.places.acquire()
        call = self.executor.submit(self._handle, number, method, params)
        call.add_done_callback(lambda done: _in_loop(loop, partial(self.places.release, done)))
        return asyncio.wrap_future(call, loop=loop)

    async def _read_line(self) -> bytes | None:
        """The next request without its newline; None at the end, after idling, or for a broken last line."""
        try:
            async with asyncio.timeout(self.line.idle):
                return (await self.reader.readuntil(b"\n"))[:-1]
        except asyncio.LimitOverrunError:
            raise InvalidInput(
                f"a request must not be longer than {self.line.max_line} bytes", code="line_too_long"
            ) from None
        except (asyncio.IncompleteReadError, TimeoutError):
            return None

    async def _send_answers(self, answers: asyncio.Queue[asyncio.Future[Params] | None]) -> None:
        while (answer := await answers.get()) is not None:
            text = await answer
            if not self.peer.alive():
                # Whoever holds the socket now is not who was attested, so the answer is not for them.
                text = _failure(text.get("id"), _peer_gone())
            await _send(self.writer, text, self.line.max_line)

    def _handle(self, number: int, method: str, params: Params) -> Params:
        if not self.peer.alive():
            return _failure(number, _peer_gone())  # It may have ended while the call waited for its place.
        try:
            return {"id": number, "result": self.line.handler(method, params, self.peer)}
        except TaskpassError as error:
            return _failure(number, error)
        except Exception as error:  # noqa: BLE001 - a defect in one request must not end the server.
            return _failure(number, _internal(method, error))


def _in_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call ``function`` in ``loop``, unless that has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)


def parse_request(text: bytes) -> tuple[int, str, Params]:
    """Id, method and params of one request; raises ``InvalidInput``, which never repeats what was sent."""
    try:
        found = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise InvalidInput("a request must be one line of JSON without duplicate keys", code="bad_request") from None
    if not isinstance(found, dict):
        raise _bad_shape()
    request = cast(Params, found)
    number, method, params = request.get("id"), request.get("method"), request.get("params", {})
    if request.keys() - {"id", "method", "params"} or not isinstance(params, dict):
        raise _bad_shape()
    if type(number) is not int or not 0 <= number <= _LARGEST_ID:
        raise _bad_shape()
    if not isinstance(method, str) or not _METHOD.fullmatch(method):
        raise _bad_shape()
    return number, method, cast(Params, params)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _bad_shape() -> InvalidInput:
    return InvalidInput(
        "a request needs exactly an id (a whole number), a method and params (an object)", code="bad_request"
    )


def _peer_gone() -> NotAuthenticated:
    return NotAuthenticated("the process that connected has ended", code="peer_gone", hint="connect again")


def _failure(number: int | None, error: TaskpassError) -> Params:
    # The code may be more precise than its class; the family lets a client find the class and its exit code.
    return {"id": number, "error": {**error.to_json(), "family": error.default_code}}


def _internal(where: str, error: Exception) -> Internal:
    """Log a defect by class and place only: messages of unknown exceptions may hold values."""
    places: list[str] = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    _log.error("internal error in %s: %s at %s", where, type(error).__name__, " < ".join(reversed(places)))
    return Internal("something went wrong inside the broker", hint="see the broker's log")


async def _send(writer: asyncio.StreamWriter, answer: Params, limit: int) -> None:
    try:
        text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        text = json.dumps(_failure(answer.get("id"), _internal("answer", error))).encode()
    if len(text) > limit:
        too_long = Internal("the answer is too long for one line", code="answer_too_long", hint="ask for less")
        text = json.dumps(_failure(answer.get("id"), too_long)).encode()
    writer.write(text + b"\n")
    async with asyncio.timeout(_SEND_SECONDS):
        await writer.drain()


def _forget(served: _Served, account: _Account, task: asyncio.Task[None]) -> None:
    served.talking.discard(task)
    account.connections -= 1


def _uid_of(connection: socket.socket) -> int:
    """As the kernel names it. Who the caller is, ``attest`` finds out: this only counts."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def _too_many() -> OverBudget:
    return OverBudget("too many connections are open", hint="close some", code="too_many_connections", retry_after=1)


def _say_and_close(connection: socket.socket, answer: Params) -> None:
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(json.dumps(answer).encode() + b"\n")
    connection.close()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
