"""What the demo's agent does with an access: ordinary queries, and what a curious or hijacked agent would try.

Runs as the command of ``taskpass exec``; finds the endpoint in the usual PostgreSQL variables. Prints JSON lines.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import psycopg

from taskpass.demo.agent import say

PERSONAL = "SELECT email FROM shop.customers LIMIT 1"
PERSONAL_BY_VIEW = "SELECT * FROM shop.customer_orders LIMIT 1"
NOTE = "SELECT note FROM shop.orders LIMIT 1"


def attempt(connection: psycopg.Connection[Any], statement: str) -> dict[str, object]:
    """The first row, or the SQLSTATE that the database answered with."""
    started = time.perf_counter()
    try:
        row = connection.execute(statement.encode()).fetchone()
    except psycopg.Error as error:
        return {"sqlstate": error.sqlstate or type(error).__name__, "message": str(error).splitlines()[0]}
    return {"row": [str(value) for value in row or ()], "ms": round(1000 * (time.perf_counter() - started), 1)}


def staging() -> None:
    with psycopg.connect(autocommit=True) as connection:
        say("query", where="staging", **attempt(connection, "SELECT count(*) FROM shop.orders"))
        connection.execute("SET default_transaction_read_only = off")
        say("write", where="staging", **attempt(connection, "UPDATE shop.orders SET note = 'mine'"))
        say("create", where="staging", **attempt(connection, "CREATE TABLE shop.mine (id int)"))


def production() -> None:
    idle = psycopg.connect(autocommit=True)
    say("query", where="production", **attempt(idle, "SELECT count(*), sum(total_cents) FROM shop.orders"))
    for event, statement in (("personal", PERSONAL), ("personal_by_view", PERSONAL_BY_VIEW), ("narrowed", NOTE)):
        say(event, **attempt(idle, statement))
    reading = psycopg.connect()
    cursor = reading.cursor(name="half_way")
    cursor.execute("SELECT id FROM shop.orders ORDER BY id")
    say("cursor", rows=len(cursor.fetchmany(10)))
    say("rekeyed", **rekey(idle))
    sys.stdin.readline()
    complete()
    say("after_idle", **attempt(idle, "SELECT 1"))
    say("after_cursor", **fetch(cursor))
    say("after_connect", **connect_again())


def rekey(connection: psycopg.Connection[Any]) -> dict[str, object]:
    """A role may change its own password: the agent makes itself one that the broker does not know."""
    password = "chosen-by-the-agent"
    connection.execute("SET default_transaction_read_only = off")
    answer = attempt(connection, f"ALTER ROLE CURRENT_USER PASSWORD '{password}'")
    user = connection.info.user
    return {"role": user, "password": password, "refused": answer.get("sqlstate") not in (None, "ProgrammingError")}


def complete() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "taskpass", "task", "complete", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    say("completed", code=done.returncode, answer=done.stdout, error=done.stderr.strip())


def fetch(cursor: psycopg.ServerCursor[Any]) -> dict[str, object]:
    try:
        return {"rows": len(cursor.fetchmany(10))}
    except psycopg.Error as error:
        return {"sqlstate": error.sqlstate or type(error).__name__, "message": str(error).splitlines()[0]}


def connect_again() -> dict[str, object]:
    try:
        psycopg.connect(connect_timeout=5).close()
    except psycopg.Error as error:
        return {"refused": True, "message": str(error).splitlines()[0]}
    return {"refused": False}


if __name__ == "__main__":
    {"staging": staging, "production": production}[sys.argv[1]]()
