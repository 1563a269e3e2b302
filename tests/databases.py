"""What makes the many databases and logins of the tests cheap."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import sql

from taskpass.core.secret import Secret
from taskpass.issuers.postgres import scram
from taskpass.runtime.system import SystemEntropy

EMPTY_SECONDS = 5.0


def empty(admin: psycopg.Connection[tuple[Any, ...]], database: str) -> None:
    """End every session in ``database`` and wait for that: if one is left, DROP DATABASE looks again after 100 ms."""
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    deadline = time.monotonic() + EMPTY_SECONDS
    while admin.execute(ending, [database]).fetchall() and time.monotonic() < deadline:
        time.sleep(0.001)


def cheap_password(what: str, role: str, password: Secret) -> sql.Composed:
    """``CREATE ROLE`` or ``ALTER ROLE`` with one round of hashing, not 4096: the suite logs in ten thousand times."""
    verifier = scram.verifier(password, SystemEntropy(), iterations=1)
    words = {"CREATE ROLE": "CREATE ROLE {} LOGIN PASSWORD {}", "ALTER ROLE": "ALTER ROLE {} PASSWORD {}"}[what]
    return sql.SQL(words).format(sql.Identifier(role), sql.Literal(verifier))
