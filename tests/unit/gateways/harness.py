"""A loop in a thread, a scripted target on a Unix socket, and a raw client: every wait has a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading
import time

from taskpass.core.ids import LeaseId, RoleName
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.gateways.base import EndpointOrder
from taskpass.gateways.postgres.endpoint import PostgresEndpoints
from taskpass.wire.postgres.messages import Framer, read_error, startup, take_first_packet
from tests.unit.wire.conversation import CANARY, SESSION, ScramServer

PATIENCE = 15.0
SOON = PATIENCE / 3
"""For what must not wait for the other side: enough for a busy machine, and far less than that side takes."""
LEASE = LeaseId("lse_01")
ROLE = RoleName("tp_x")


class SystemEntropy:
    def bytes(self, count):
        return os.urandom(count)


class LoopThread:
    """An asyncio loop that runs until ``stop``; what it could not handle is kept in ``complaints``."""

    def __init__(self, factory=asyncio.new_event_loop):
        self.loop = factory()
        self.complaints = []
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        assert not self.complaints


class ScriptedTarget:
    """Listens at ``address``; ``script(connection)`` plays each accepted connection in a thread of its own."""

    def __init__(self, directory, script):
        self.address = f"{directory}:1/orders"
        self.script = script
        self.accepted = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{directory}/.s.PGSQL.1")
        self._listener.listen()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            self.accepted.append(connection)
            thread = threading.Thread(target=self._play, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, connection):
        with contextlib.suppress(OSError), connection:
            self.script(connection)

    def stop(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.accepted:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)


def first_packet(connection):
    buffer = bytearray()
    while (packet := take_first_packet(buffer)) is None:
        data = connection.recv(65536)
        if not data:
            return None
        buffer += data
    return packet


def log_in(connection, after=SESSION):
    """The target's side of a login with the right secret. Returns the StartupMessage."""
    packet = first_packet(connection)
    play_login(connection, after)
    return packet


def play_login(connection, after=SESSION):
    """What follows the StartupMessage."""
    server = ScramServer(after=after)
    connection.sendall(server.start())
    for _ in range(2):
        connection.sendall(server.answer(connection.recv(65536)))


def echo(connection):
    """A target that lets in and sends back what it gets."""
    log_in(connection)
    while data := connection.recv(65536):
        connection.sendall(data)


def silent(connection):
    """A target that accepts and never says a word."""
    while connection.recv(65536):
        pass


class Client:
    """A raw client of an endpoint."""

    def __init__(self, endpoint, *, start=True, **parameters):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(f"{endpoint.host}/.s.PGSQL.{endpoint.port}")
        except OSError:
            self.socket.close()
            raise
        self._framer = Framer(1 << 20)
        if start:
            self.socket.sendall(startup({"user": endpoint.user, "database": endpoint.database, **parameters}))

    def message(self):
        """The next message, or None once the endpoint has hung up."""
        while (received := self._framer.take()) is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                assert not self._framer.rest, "the stream ended within a message"
                return None
            self._framer.push(data)
        return received

    def messages(self):
        """Everything until the end."""
        return list(iter(self.message, None))

    def until(self, kind):
        while (received := self.message()) is not None:
            if received.kind == kind:
                return received
        raise AssertionError(f"the stream ended before {kind!r}")

    def refusal(self):
        """The one error that the endpoint says before it hangs up."""
        (received,) = [m for m in self.messages() if m.kind != b"v"]
        assert received.kind == b"E"
        return read_error(received.body)

    def ready(self):
        """Waits for the session; returns pid and key."""
        body = self.until(b"K").body
        self.until(b"Z")
        return struct.unpack("!i", body[:4])[0], body[4:]

    def close(self):
        self.socket.close()


class Bench:
    """Endpoints on a loop, with everything that a test must clean up."""

    def __init__(self, factory=asyncio.new_event_loop, check_peer=lambda _connection, _order: None):
        self.directory = tempfile.mkdtemp(prefix="tp-", dir="/tmp")
        self.thread = LoopThread(factory)
        self.endpoints = PostgresEndpoints(self.thread.loop, entropy=SystemEntropy(), check_peer=check_peer)
        self._targets = []
        self._clients = []
        self._leases = []

    def target(self, script):
        directory = f"{self.directory}/t{len(self._targets)}"
        os.mkdir(directory)
        made = ScriptedTarget(directory, script)
        self._targets.append(made)
        return made

    def order(self, address, lease=LEASE, **changes):
        options = {
            "lease": lease,
            "role": ROLE,
            "target": Target("orders", "postgres", Environment.DEV, address, (), {}, {}),
            "directory": f"{self.directory}/{lease}",
            "uid": os.geteuid(),
            "namespace": "",
            "run": None,
            "secret": Secret(CANARY),
        }
        return EndpointOrder(**{**options, **changes})

    def open(self, script, lease=LEASE, **changes):
        self._leases.append(lease)
        return self.endpoints.open(self.order(self.target(script).address, lease, **changes))

    def client(self, endpoint, **options):
        made = Client(endpoint, **options)
        self._clients.append(made)
        return made

    def stop(self):
        for client in self._clients:
            client.close()
        for lease in self._leases:
            self.endpoints.close(lease, message="the test is over")
        for target in self._targets:
            target.stop()
        self.thread.stop()
        shutil.rmtree(self.directory)


def eventually(condition):
    """Polls until ``condition`` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
