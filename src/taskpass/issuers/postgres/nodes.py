"""The other servers of a cluster: which of them an access could outlive, and whether the listed ones can prove its end.

What can be known from the primary: how many servers and backups replicate from it now (an ordinary login sees neither
who nor where), and which physical slots wait for one that is away. What cannot be known: replicas that do not stream
(shared storage, log shipping), and a server that was the primary once and lives on with clients of its own.

Not for: closing itself, which asks each listed node again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from taskpass.core.errors import NotProven, TargetUnavailable, TaskpassError
from taskpass.core.lease import Target
from taskpass.issuers.base import Finding, Severity
from taskpass.issuers.postgres.connection import Connection, Connections, driver_errors

MOST_DELAY_MS = 5000
"""Milliseconds by which a listed standby may be set to lag (``recovery_min_apply_delay``): closing waits for it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What one server says of itself. ``started`` tells servers apart: two addresses of one give the same."""

    started: str
    standby: bool
    replays: bool
    paused: bool
    delay_ms: int
    attached: int | None
    """Servers and backups that replicate from it, those in waiting included; None if it does not show them."""


def standing(connection: Connection) -> Standing:
    """Raises ``TargetUnavailable`` or ``TargetUnfit``."""
    with driver_errors("looking at a node"):
        row = connection.execute(_STANDING).fetchone()
    assert row is not None
    return Standing(*row, attached=attached(connection))


def attached(connection: Connection) -> int | None:
    """How many replicate from this server; None where an ordinary login is not shown."""
    try:
        row = connection.execute(_ATTACHED).fetchone()
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable, psycopg.errors.FeatureNotSupported):
        return None
    except psycopg.Error:
        raise TargetUnavailable("looking at replication: the database did not answer", hint="try again") from None
    return row[0] if row else None


def unlisted(found: int | None, target: Target) -> int | None:
    """How many of ``found`` attached servers are neither listed nor said to be out of every agent's reach."""
    return None if found is None else max(0, found - len(target.nodes) - target.unreachable_replicas)


def demand_follower(primary: Connection, node: Connection) -> None:
    """Raise ``NotProven`` for a listed node that takes writes of its own: it does not hear of what is forbidden here.

    The primary itself under a second address is fine.
    """
    there, here = _who(node), _who(primary)
    if not there[1] and there != here:
        raise NotProven(
            "it takes writes of its own, so it does not follow this server any more",
            hint="two servers of one cluster are primary: stop the wrong one, then put address and nodes right",
            code="split_brain",
        )


def _who(connection: Connection) -> tuple[str, bool]:
    with driver_errors("looking which server this is"):
        row = connection.execute("SELECT pg_postmaster_start_time()::text, pg_is_in_recovery()").fetchone()
    assert row is not None
    return row[0], row[1]


def check(connections: Connections, primary: Connection, target: Target) -> tuple[list[Finding], int | None]:
    """Findings about replicas, and how many are neither listed nor declared (None: not shown)."""
    here = standing(primary)
    found: list[Finding] = []
    counts = [here.attached]
    for number, address in enumerate(target.nodes, start=1):
        try:
            with connections.use(address) as node:
                there = standing(node)
        except TaskpassError as error:
            found.append(_unreachable(number, target, error))
            continue
        found += _judge(number, here, there)
        if there.started != here.started:
            counts.append(there.attached)
    shown = [count for count in counts if count is not None]
    extra = unlisted(sum(shown) if len(shown) == len(counts) else None, target)
    return [*found, *_replicas(extra, target)], extra


def _judge(number: int, here: Standing, there: Standing) -> Iterator[Finding]:
    name = f"listed node {number}"
    if there.started == here.started:
        return
    if not there.standby:
        yield Finding(
            "split_brain",
            Severity.FATAL,
            f"{name} takes writes of its own: it was promoted, or it is a former primary that came back",
            "stop the wrong one of the two, then put address and nodes right",
        )
    elif not there.replays:
        yield Finding(
            "node_replay",
            Severity.FATAL,
            f"{name} does not tell how far it has replayed, so no closing could be proven there",
            "take it out of nodes, and keep every agent away from it; count it in unreachable_replicas",
        )
    elif there.delay_ms > MOST_DELAY_MS:
        yield Finding(
            "node_delay",
            Severity.FATAL,
            f"{name} is set to lag by {there.delay_ms // 1000} s: every access would live that much longer there",
            "ALTER SYSTEM SET recovery_min_apply_delay = 0; SELECT pg_reload_conf(); -- there",
        )
    elif there.paused:
        yield Finding(
            "node_paused",
            Severity.WARNING,
            f"{name} has stopped replaying: closing stays open until it goes on",
            "SELECT pg_wal_replay_resume(); -- there",
        )


def _unreachable(number: int, target: Target, error: TaskpassError) -> Finding:
    """Fail closed where it matters: what is issued now could not be proven gone there."""
    return Finding(
        "node_down",
        Severity.WARNING if target.environment.disposable else Severity.FATAL,
        f"listed node {number} cannot be looked at: {error.message}; until it answers no closing is proven",
        "bring it back, or take it out of nodes if it is gone for good",
    )


def _replicas(extra: int | None, target: Target) -> Iterator[Finding]:
    severity = Severity.FATAL if target.environment.value == "production" else Severity.WARNING
    if extra is None:
        yield Finding(
            "replicas",
            Severity.WARNING,
            "the server does not show what replicates from it: a session on an unlisted replica is not ended and not"
            " proven gone",
            "list every replica that accepts logins: nodes",
        )
    elif extra:
        yield Finding(
            "replicas",
            severity,
            f"{extra} server(s) or backups replicate from here and are not listed: a session on an"
            " unlisted replica is not ended and not proven gone",
            'list each one that accepts logins: nodes = ["host:port/database"]\n'
            "count those that no agent can reach (backups, archives): unreachable_replicas = 1",
        )


_STANDING = """
SELECT pg_postmaster_start_time()::text, pg_is_in_recovery(),
       pg_is_in_recovery() AND pg_last_wal_replay_lsn() IS NOT NULL,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
       (SELECT coalesce(max(s.setting::bigint), 0) FROM pg_settings s WHERE s.name = 'recovery_min_apply_delay')
"""

_ATTACHED = """
SELECT (SELECT count(*) FROM pg_stat_replication r
         WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))
     + (SELECT count(*) FROM pg_replication_slots s WHERE s.slot_type = 'physical' AND NOT s.active)
"""
