"""How much an endpoint costs: ``pgbench -S`` through it, through pgbouncer (session pooling) and directly.

Everything runs over Unix sockets, in turn within one run, and only ratios within the run are judged: a busy machine
slows all three. The limits come from what a blind splice reached before it was built. Not a measure of PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from taskpass.core.ids import LeaseId, RoleName
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.gateways.base import EndpointOrder
from taskpass.gateways.postgres.endpoint import PostgresEndpoints
from taskpass.testing.postgres import EmbeddedServer, available

LIMITS = {1: 0.9, 8: 0.8}
"""Clients: what the endpoint must reach of pgbouncer's transactions per second."""
ROUNDS = 5
SECONDS = 2
SCALE = 10
ROLE = RoleName("bench")
DATABASE = "bench"


class _Entropy:
    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


def main() -> int:
    """Prints the figures; 1 if a limit is missed, else 0."""
    secret = Secret(secrets.token_urlsafe(32))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(available()[-1], durable=False))
        _prepare(server, secret)
        place = stack.enter_context(_directory(server))
        ways = {"direct": (str(server.socket_directory), server.port)}
        pooler = stack.enter_context(_pgbouncer(server, secret, place))
        if pooler is None:
            print("pgbouncer: not installed")
        else:
            ways["pgbouncer"] = pooler
        ways["endpoint"] = stack.enter_context(_endpoint(server, secret, place))
        met = [_measure(clients, ways, secret) for clients in LIMITS]
        return 0 if all(met) else 1


def _measure(clients: int, ways: dict[str, tuple[str, int]], secret: Secret) -> bool:
    """One line; whether the limit is met. Without pgbouncer there is nothing to judge."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (host, port) in ways.items():
            rates[name].append(_pgbench(host, port, clients, secret))
    median = {name: statistics.median(measured) for name, measured in rates.items()}
    shown = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in median.items())
    endpoint = rates["endpoint"]
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(endpoint, measured, strict=True))
        for name, measured in rates.items()
        if name != "endpoint"
    }
    told = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in ratios.items())
    limit = f"at least {LIMITS[clients]} x pgbouncer"
    met = ratios.get("pgbouncer", LIMITS[clients]) >= LIMITS[clients]
    verdict = ("ok" if met else "MISSED") if "pgbouncer" in ratios else "not judged"
    print(f"endpoint throughput, {clients} client(s): {told} ({limit}: {verdict}) | {shown}")
    return met


def _pgbench(host: str, port: int, clients: int, secret: Secret) -> float:
    """Transactions per second, connecting not counted."""
    done = subprocess.run(
        [
            *("pgbench", "-S", "-n", "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(SECONDS)),
            *("-h", host, "-p", str(port), "-U", ROLE, DATABASE),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "PGPASSWORD": secret.reveal()},
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


def _prepare(server: EmbeddedServer, secret: Secret) -> None:
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{secret.reveal()}'".encode())
        connection.execute(f"GRANT ALL ON DATABASE {DATABASE} TO {ROLE}".encode())
    with server.connect(DATABASE) as connection:
        connection.execute(f"GRANT ALL ON SCHEMA public TO {ROLE}".encode())
    subprocess.run(
        [
            *("pgbench", "-i", "-q", "-s", str(SCALE), "-h", str(server.socket_directory), "-p", str(server.port)),
            *("-U", ROLE, DATABASE),
        ],
        capture_output=True,
        check=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "PGPASSWORD": secret.reveal()},
    )


@contextlib.contextmanager
def _directory(server: EmbeddedServer) -> Iterator[Path]:
    """A short path that the server's account may use."""
    place = Path(tempfile.mkdtemp(prefix="tp-b-", dir="/tmp"))
    owner = server.data.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    yield place
    shutil.rmtree(place)


@contextlib.contextmanager
def _pgbouncer(server: EmbeddedServer, secret: Secret, place: Path) -> Iterator[tuple[str, int] | None]:
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        yield None
        return
    account = pwd.getpwuid(server.data.stat().st_uid)
    settings = place / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{DATABASE} = host={server.socket_directory} port={server.port}\n"
        f"[pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {place}\nauth_type = trust\n"
        f"auth_file = {place}/users\npool_mode = session\nlog_connections = 0\nlog_disconnections = 0\n"
    )
    (place / "users").write_text(f'"{ROLE}" "{secret.reveal()}"\n')
    for file in (settings, place / "users"):
        os.chown(file, account.pw_uid, account.pw_gid)
        file.chmod(0o600)
    identity = ["-u", account.pw_name] if os.getuid() == 0 else []
    process = subprocess.Popen([program, "-q", *identity, str(settings)], stderr=subprocess.DEVNULL)
    try:
        _await(lambda: (place / ".s.PGSQL.6432").exists())
        yield str(place), 6432
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def _endpoint(server: EmbeddedServer, secret: Secret, place: Path) -> Iterator[tuple[str, int]]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    endpoints = PostgresEndpoints(loop, entropy=_Entropy(), check_peer=lambda _connection, _order: None)
    address = f"{server.socket_directory}:{server.port}/{DATABASE}"
    order = EndpointOrder(
        lease=LeaseId("lse_bench"),
        role=ROLE,
        target=Target("bench", "postgres", Environment.DEV, address, (), {}, {}),
        directory=f"{place}/endpoint",
        uid=os.geteuid(),
        namespace="",
        run=None,
        secret=secret,
    )
    served = endpoints.open(order)
    try:
        yield served.host, served.port
    finally:
        endpoints.close(order.lease, message="the measurement is over")
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("pgbouncer does not start")
        time.sleep(0.01)


if __name__ == "__main__":
    raise SystemExit(main())
