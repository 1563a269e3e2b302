"""Durable units of work per second with a PostgreSQL store: one writer, and eight writers of two processes.

Beside them what the disk allows one who waits for it each time: the same server, one connection, one row per commit.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from psycopg import sql

from bench.common import Figures
from taskpass.config.credentials import Credential
from taskpass.core.audit import Event
from taskpass.core.secret import Secret
from taskpass.keys import files
from taskpass.runtime.system import SystemClock, SystemEntropy
from taskpass.store.open import Access, Create, open_store
from taskpass.store.unit import SqlStore
from taskpass.testing.postgres import EmbeddedServer

SECONDS = 3.0
VERSION = 16


def run(figures: Figures) -> None:
    with EmbeddedServer(VERSION) as server, tempfile.TemporaryDirectory() as name:
        place, password = Path(name), secrets.token_urlsafe(12)
        with server.connect() as connection:
            connection.execute(sql.SQL("CREATE ROLE bench LOGIN PASSWORD {}").format(sql.Literal(password)))
            connection.execute("CREATE DATABASE bench OWNER bench")
        (place / "login").write_text(password)
        files.create(place / "keys", files.AUDIT, entropy=SystemEntropy(), at=SystemClock().now())
        url = f"postgresql://{server.address('bench')}"
        store = _open(url, place)
        limit = _bare(server)
        one = _rate(store, 1)
        store.close()
        together = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.store_postgres", url, name], stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        eight = sum(float(process.communicate()[0]) for process in together)
        figures.at_least("store on PostgreSQL, bare commits of one connection", limit, 1, "per s")
        figures.at_least("store on PostgreSQL, units of work, 1 writer", one, 1, "per s")
        figures.at_least("store on PostgreSQL, units of work, 8 writers in 2 processes", eight, 1, "per s")


def _open(url: str, place: Path) -> SqlStore:
    password = Secret((place / "login").read_text())
    return open_store(
        url,
        clock=SystemClock(),
        entropy=SystemEntropy(),
        audit_key=files.load(place / "keys", files.AUDIT),
        create=Create(),
        access=Access(lambda: Credential("bench", password)),
    )


def _bare(server: EmbeddedServer) -> float:
    with server.connect("bench") as connection:
        connection.execute("CREATE TABLE bare (n int)")
        done, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            connection.execute("INSERT INTO bare VALUES (1)")
            done += 1
    return done / SECONDS


def _rate(store: SqlStore, writers: int) -> float:
    """Each unit sets the latest time seen and appends a record with a subject, and is durable when it is counted."""
    counts = [0] * writers
    end = time.monotonic() + SECONDS
    clock = SystemClock()

    def write(number: int) -> None:
        while time.monotonic() < end:
            with store.write() as unit:
                now = unit.see_time(clock.now())
                unit.audit.append(Event("bench.written", "bench", {"task": f"tsk_{number}"}, {}), now)
            counts[number] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / SECONDS


if __name__ == "__main__":
    opened = _open(sys.argv[1], Path(sys.argv[2]))
    print(_rate(opened, 4))
    opened.close()
