"""Revoke -> proven closed, with open sessions through the endpoint and directly."""

from __future__ import annotations

import psycopg

from bench.common import RESOURCE, Figures, median, milliseconds, percentile, stage
from taskpass.client.line import LineClient
from taskpass.testing.stage import Stage

ROUNDS = 100
SESSIONS = 2
"""Through the endpoint; one more goes directly to the server, with a password that the role gave itself."""


def run(figures: Figures) -> None:
    took: list[float] = []
    with stage() as place, LineClient(place.runtime / "line.sock") as client:
        task = str(client.call("open_task", {"repository": "bench", "branch": "main", "ticket": "B-1"})["task"])
        for _ in range(ROUNDS):
            lease, sessions = _sessions(place, client, task)
            took.append(milliseconds(lambda lease=lease: _revoke(place, lease)))
            for session in sessions:
                session.close()
    figures.note(f"revoke, {SESSIONS + 1} sessions open: {ROUNDS} rounds, slowest {max(took):.1f} ms")
    figures.at_most("revoke -> proven closed, p50", median(took), 50, "ms")
    figures.at_most("revoke -> proven closed, p99", percentile(took, 0.99), 500, "ms")


def _sessions(place: Stage, client: LineClient, task: str) -> tuple[str, list[psycopg.Connection]]:
    asked = client.call("request_access", {"resource": RESOURCE, "task": task})
    lease = client.call("issue", {"request": asked["request"]})
    sessions = [psycopg.connect(lease["endpoint"]["dsn"], autocommit=True) for _ in range(SESSIONS)]
    sessions[0].execute("SET default_transaction_read_only = off")
    sessions[0].execute("ALTER ROLE CURRENT_USER PASSWORD 'bench'")
    server = place.servers[RESOURCE]
    direct = psycopg.connect(
        host=server.host, port=server.port, dbname="orders", user=lease["endpoint"]["user"], password="bench"
    )
    return str(lease["lease"]), [*sessions, direct]


def _revoke(place: Stage, lease: str) -> None:
    done = place.call("revoke", level="lease", value=lease)["leases"][0]
    assert done["state"] in ("closed", "cleaned"), done


if __name__ == "__main__":
    run(Figures())
