"""Closing: take an access away and prove it, in the one order that leaves nothing behind (architecture.md, *closing*).

    forbid (no login, a fresh password, ten minutes of life: one commit) -> end what is listed under the role's number
    -> fence what was starting when the commit landed -> two clean scans on every node -> roll back prepared
    transactions -> log in with the fresh password: only AuthenticationOk and then 28000 is proof -> seal

Every step may be repeated: a close that broke off anywhere is simply run again. Not for cleaning, which may take days.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import psycopg
from psycopg import sql

from taskpass.core.clock import Entropy
from taskpass.core.errors import NotProven, TargetUnavailable, TaskpassError
from taskpass.core.ids import LeaseId, RoleName
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.issuers.base import Taken
from taskpass.issuers.postgres import scram
from taskpass.issuers.postgres.connection import TRANSIENT, Connection, Connections, driver_errors
from taskpass.issuers.postgres.nodes import attached, demand_follower, unlisted
from taskpass.issuers.postgres.probe import PROOF, Place, prove_refused

PATIENCE = 15.0
"""Seconds for one attempt in all; after that it is an error and the lease stays ``closing``."""

PAUSE = 0.003
"""Seconds between two looks. ``pg_terminate_backend`` with a timeout would sleep 100 ms per session instead."""

REFUSALS = 3
"""A starting session that refuses us this often belongs to another role, or will meet the login check itself."""

ABSENT = "absent"
"""The answer of a target in which the account does not exist."""

REKEYS = 3
"""How often the password is replaced within one attempt, if a session replaced it before it was ended."""


T = TypeVar("T")

Starting = tuple[int, str]
"""A session that is not listed under its role yet: process id and virtual transaction."""


@dataclass(slots=True)
class _Tally:
    """What happened so far, for the stored proof."""

    started: float
    ended: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    fenced: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    prepared: int = 0
    scans: dict[str, int] = field(default_factory=dict[str, int])
    steps: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def step(self, name: str) -> None:
        self.steps.append((name, self.milliseconds()))

    def milliseconds(self) -> int:
        return round((time.monotonic() - self.started) * 1000)


class Closing:
    """One attempt to close one lease. Raises ``NotProven`` or ``TargetUnavailable``; the attempt may be repeated."""

    def __init__(
        self, connections: Connections, target: Target, entropy: Entropy, lease: LeaseId, role: RoleName, head: str
    ) -> None:
        self._connections = connections
        self._target = target
        self._entropy = entropy
        self._lease = lease
        self._role = role
        self._head = head
        self._tally = _Tally(time.monotonic())
        self._deadline = self._tally.started + PATIENCE
        self._lent = False

    def run(self) -> Taken:
        with self._connections.use() as primary:
            for _ in range(REKEYS):
                secret = scram.new_secret(self._entropy)
                oid, present = self._forbid(primary, secret)
                if not present:
                    return self._absent(primary, oid)
                self._empty_every_node(primary, oid)
                if self._prove(secret):
                    self._seal(primary)
                    return self._taken(primary, PROOF)
        raise NotProven("the account's password was replaced again and again", hint="it is tried again")

    # ---- forbid ----

    def _forbid(self, primary: Connection, secret: Secret) -> tuple[int, bool]:
        """Commit NOLOGIN, the fresh password and ten minutes. Returns the oid (or 0) and whether the role exists."""
        verifier = scram.verifier(secret, self._entropy)
        while True:
            oid, present, busy = self._forbid_once(primary, verifier)
            if not busy:
                self._tally.step("forbidden")
                return oid, present
            # The agent's own open or prepared ALTER ROLE holds the row: end what can hold it.
            self._sweep(primary, self._target.address)
            self._roll_back_prepared(primary, oid)
            self._wait("another transaction holds the account's row")

    def _forbid_once(self, primary: Connection, verifier: str) -> tuple[int, bool, bool]:
        query = "SELECT coalesce(role, 0)::bigint, present, busy FROM taskpass.close(%s, %s, %s)"
        with driver_errors("forbidding the login"):
            row = self._patiently(lambda: primary.execute(query, [self._lease, verifier, self._head]).fetchone())
        if row is None:
            raise TargetUnavailable("forbidding the login: no answer")
        return row[0], row[1], row[2]

    # ---- sessions ----

    def _empty_every_node(self, primary: Connection, oid: int) -> None:
        self._empty(primary, primary, self._target.address)
        self._on_each_node(lambda node, address: self._empty_node(primary, node, address))
        self._roll_back_prepared(primary, oid)
        self._tally.step("emptied")

    def _empty_node(self, primary: Connection, node: Connection, address: str) -> None:
        demand_follower(primary, node)
        self._catch_up(primary, node, address)
        self._empty(primary, node, address)

    def _on_each_node(self, effect: Callable[[Connection, str], None]) -> None:
        """``effect`` on every listed node, also after one failed: a node that is down keeps no session alive elsewhere.

        Raises what failed first, with the number of the node in ``nodes`` and not its address, which agents may see.
        """
        failed: TaskpassError | None = None
        for number, address in enumerate(self._target.nodes, start=1):
            try:
                with self._connections.use(address) as node:
                    effect(node, address)
            except TaskpassError as error:
                named = type(error)(f"listed node {number}: {error.message}", hint=error.hint, code=error.code)
                failed = failed or named
        if failed:
            raise failed

    def _empty(self, primary: Connection, node: Connection, address: str) -> None:
        """End listed sessions and the starting ones, until two scans in a row are clean."""
        pending = starting(node)
        refused: Counter[Starting] = Counter()
        clean = 0
        while True:
            listed = self._sweep(node, address)
            if pending:
                self._fence(primary, node, address, pending, refused)
            # Scans count from here on: a session that left the fence because it is listed now was in none of them.
            clean = 0 if listed or pending else clean + 1
            self._tally.scans[address] = clean
            if clean >= 2:
                return
            pending = {each for each in pending & starting(node) if refused[each] < REFUSALS} if pending else pending
            self._wait("sessions of the account are still open")

    def _sweep(self, node: Connection, address: str) -> int:
        """End what is listed under the role's number; how many that were."""
        with driver_errors("ending sessions"):
            row = node.execute("SELECT taskpass.sweep(%s)", [self._lease]).fetchone()
        listed: list[int] = row[0] if row else []
        self._tally.ended.update((address, pid) for pid in listed)
        return len(listed)

    def _fence(
        self, primary: Connection, node: Connection, address: str, pending: set[Starting], refused: Counter[Starting]
    ) -> None:
        """Under the lease's own role a session can be ended once it has become that role, and no other one can."""
        with self._as_lease(primary, node):
            for each in sorted(pending):
                if self._end_if_ours(node, each[0]):
                    self._tally.fenced.add((address, each[0]))
                else:
                    refused[each] += 1

    def _end_if_ours(self, node: Connection, pid: int) -> bool:
        """False for another role's session, and for what is no session at all (a standby's recovery process)."""
        try:
            return node.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone() == (True,)
        except psycopg.errors.InsufficientPrivilege:
            return False

    @contextmanager
    def _as_lease(self, primary: Connection, node: Connection) -> Generator[None]:
        with driver_errors("acting as the account that is closed"):
            if not self._lent:
                self._patiently(lambda: primary.execute("SELECT taskpass.lend(%s)", [self._lease]))
                self._lent = True
            if node is not primary:
                self._catch_up(primary, node, "")
            node.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(self._role)))
            yield
            node.execute("RESET ROLE")

    def _catch_up(self, primary: Connection, node: Connection, address: str) -> None:
        """Wait until a standby has replayed what is committed, ending the account's sessions there meanwhile.

        Such a session can be what holds the replay up: the standby waits for it where it conflicts with a change.
        """
        with driver_errors("waiting for a node"):
            written = primary.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            query = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= %s::pg_lsn"
            while node.execute(query, written).fetchone() != (True,):
                if address:
                    self._sweep(node, address)
                self._wait("it has not replayed the closing yet")

    # ---- prepared transactions ----

    def _roll_back_prepared(self, primary: Connection, oid: int) -> None:
        """They outlive sessions and even the role, hold locks, and could set the password again."""
        while found := self._prepared(primary, oid):
            for gid, database in found:
                if database is None:
                    with self._as_lease(primary, primary):
                        self._roll_back(primary, gid)
                else:
                    self._roll_back_elsewhere(primary, gid, database)
            if self._prepared(primary, oid):
                self._wait("a prepared transaction of the account cannot be rolled back")

    def _prepared(self, primary: Connection, oid: int) -> list[tuple[str, str | None]]:
        """(gid, database or None for this one)."""
        with driver_errors("looking for prepared transactions"):
            return primary.execute(_PREPARED, [oid]).fetchall()

    def _roll_back(self, connection: Connection, gid: str) -> None:
        try:
            connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState):
            return  # Gone meanwhile, or in other hands at this moment: the next look shows which.
        self._tally.prepared += 1

    def _roll_back_elsewhere(self, primary: Connection, gid: str, database: str) -> None:
        """A prepared transaction can only be ended in its own database, where the broker has no more than PUBLIC."""
        try:
            other = self._connections.other_database(database)
        except TargetUnavailable:
            raise NotProven(
                "the account has a prepared transaction in another database, where the broker may not connect",
                hint=f"a superuser must roll it back in database {database}",
                code="prepared_elsewhere",
            ) from None
        with other, self._as_lease(primary, other):
            self._roll_back(other, gid)

    # ---- proof ----

    def _prove(self, secret: Secret) -> bool:
        """True if every node proved it; False if the password is not ours any more and must be replaced again."""
        try:
            for address in (self._target.address, *self._target.nodes):
                prove_refused(Place(address, self._target.tls.get("ca", "")), self._role, secret, self._entropy)
        except NotProven as unproven:
            # A session that was still open may have replaced the password; by now all of them are gone.
            if unproven.code != "rekeyed":
                raise
            return False
        self._tally.step("proven")
        return True

    def _seal(self, primary: Connection) -> None:
        with driver_errors("sealing the closed account"):
            self._patiently(lambda: primary.execute("SELECT taskpass.seal(%s)", [self._lease]))
        self._tally.step("sealed")

    def _absent(self, primary: Connection, oid: int) -> Taken:
        """Nothing by that name. If it was dropped by other hands, sessions under its number must be gone as well."""
        self._absent_on(primary, oid, self._target.address)
        self._on_each_node(lambda node, address: self._absent_on_node(primary, node, oid, address))
        if oid and self._prepared(primary, oid):
            raise NotProven(
                "somebody dropped the account while it had a prepared transaction",
                hint="a superuser must roll it back",
                code="dropped_with_prepared",
            )
        self._seal(primary)
        return self._taken(primary, ABSENT, absent=True)

    def _absent_on_node(self, primary: Connection, node: Connection, oid: int, address: str) -> None:
        demand_follower(primary, node)
        self._catch_up(primary, node, address)
        self._absent_on(node, oid, address)

    def _absent_on(self, node: Connection, oid: int, address: str) -> None:
        if self._sweep(node, address) or self._sweep(node, address):
            raise NotProven(
                "somebody dropped the account while it had sessions, which only a superuser can end now",
                hint=f"a superuser must end the sessions whose usesysid is {oid}",
                code="dropped_with_sessions",
            )
        self._tally.scans[address] = 2

    def _taken(self, primary: Connection, answer: str, *, absent: bool = False) -> Taken:
        tally = self._tally
        beyond = unlisted(attached(primary), self._target)
        return Taken(
            answer=answer,
            nodes=dict(tally.scans),
            ended=len(tally.ended),
            fenced=len(tally.fenced),
            prepared=tally.prepared,
            absent=absent,
            took_ms=tally.milliseconds(),
            steps=tuple(tally.steps),
            unlisted=beyond,
        )

    # ---- patience ----

    def _wait(self, reason: str) -> None:
        if time.monotonic() > self._deadline:
            raise NotProven(reason, hint="it is tried again")
        time.sleep(PAUSE)

    def _patiently(self, effect: Callable[[], T]) -> T:
        """``effect`` again while it only met another one at the same row or lock."""
        while True:
            try:
                return effect()
            except psycopg.Error as error:
                if error.sqlstate not in (*TRANSIENT, "55P03") or time.monotonic() > self._deadline:
                    raise
            time.sleep(PAUSE)


_PREPARED = """
SELECT x.gid, nullif(d.datname, current_database())::text
  FROM pg_prepared_xact() x JOIN pg_database d ON d.oid = x.dbid WHERE x.ownerid = %s
"""

_STARTING = """
SELECT l.pid, l.virtualtransaction FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'virtualxid' AND l.granted AND a.usesysid IS NULL AND l.pid <> pg_backend_pid()
"""


def starting(node: Connection) -> set[Starting]:
    """Sessions that hold a virtual transaction and are not listed under a role yet.

    Up to 17 they have no row in pg_stat_activity, from 18 on one without a role. Background processes are among them.
    """
    with driver_errors("looking for starting sessions"):
        return set(node.execute(_STARTING).fetchall())
