"""Migrations of a PostgreSQL database: as whom, what the catalogue holds before and after, and running a file.

The lease that runs acts as the owner from the start of its session (kit.sql, ``make_owner``). Not for splitting
(``script``) and not for deciding what a difference of two snapshots means (``core.widening``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from psycopg.generators import fetch as fetch_result
from psycopg.generators import send
from psycopg.pq import ExecStatus, TransactionStatus

from taskpass.core.aftermath import Ran
from taskpass.core.errors import TargetUnfit
from taskpass.core.manifest import Manifest, Migration
from taskpass.core.scope import Scope
from taskpass.core.text import visible
from taskpass.core.widening import Change, Item, snapshot
from taskpass.issuers.base import Progress
from taskpass.issuers.postgres.catalogue import driver_errors, fetch, query
from taskpass.issuers.postgres.connection import Connection
from taskpass.issuers.postgres.script import Split, Statement

_SETTINGS = "-c standard_conforming_strings=on -c client_min_messages=notice -c idle_in_transaction_session_timeout=60s"
"""Of the session that runs a file: its text is read as it was when it was split. Its life is the lease's."""

MAX_NOTICES = 500
MAX_WORDS = 500
"""Characters of a notice or an error that are passed on."""

_COUNTS = {"a": Change.ADDED, "c": Change.CHANGED, "r": Change.REMOVED}

_WHERE = """
SELECT (SELECT system_identifier::text FROM pg_control_system()), d.oid::bigint, d.datname::text,
       (SELECT r.oid::bigint FROM pg_roles r WHERE r.rolname = %(owner)s), taskpass.judge_owner(%(owner)s),
       current_setting('max_prepared_transactions')::int > 0
  FROM pg_database d WHERE d.datname = current_database()
"""


def resolve(connection: Connection, scope: Scope) -> Manifest:
    """What migrating as ``scope.owner`` means here now. Raises ``TargetUnfit`` for an owner that is not fit for it."""
    with driver_errors("looking at the owner"):
        row = connection.execute(_WHERE, {"owner": scope.owner}).fetchall()[0]
    cluster, database, name, owner, unfit, prepares = row
    if unfit is not None or owner is None:
        raise _unfit(scope.owner, str(unfit or ""))
    if prepares and scope.script is None:
        # A prepared transaction belongs to the owner, so closing could not tell whose it is and prove nothing is left.
        raise TargetUnfit(
            "hands-on is refused where transactions can be prepared: they would outlive the access",
            hint="run a file with taskpass migrate, or set max_prepared_transactions = 0 on the server",
            code="prepared_transactions",
        )
    return Manifest(
        cluster=cluster,
        database=database,
        database_name=name,
        level=scope.level,
        objects=(),
        migration=Migration(scope.owner, owner, scope.script),
    )


def _unfit(owner: str, why: str) -> TargetUnfit:
    name = visible(owner, limit=80)
    if not why:
        return TargetUnfit(
            f"the DBA has not allowed migrations as {name}",
            hint=f"taskpass init --postgres --migrate-owner {name}",
            code="owner_not_enrolled",
        )
    return TargetUnfit(
        f"nobody can migrate as {name}: the role {visible(why, limit=120)}",
        hint="'taskpass doctor' prints the SQL that separates the owner from the application's login",
        code="owner_unfit",
    )


def take_snapshot(connection: Connection) -> dict[str, Item]:
    """The items of ``snapshot.sql``, in one statement, so that they belong together."""
    with driver_errors("taking a snapshot of the catalogue"):
        rows = fetch(connection, query("snapshot"))
    return snapshot(
        Item(kind, name, _bounded(detail), frozenset(_COUNTS[letter] for letter in counts), parent, tuple(excuses))
        for kind, name, detail, counts, parent, excuses in rows
    )


def _bounded(detail: str) -> str:
    """A definition may be long; what was cut off still tells one from another."""
    if len(detail) <= MAX_WORDS:
        return detail
    return f"{detail[:MAX_WORDS]}… sha256 {hashlib.sha256(detail.encode()).hexdigest()[:16]}"


# ---- running a file ----


def settings(owner: str) -> str:
    """The start-up options of a session that runs a file as ``owner``."""
    quoted = "".join(f"\\{character}" if character.isspace() or character == "\\" else character for character in owner)
    return f"{_SETTINGS} -c role={quoted}"


@dataclass(slots=True)
class Run:
    """One run of one file on an open session of the lease. ``tell`` gets what the agent may know."""

    connection: Connection
    split: Split
    tell: Callable[[Progress], None]
    _at: Statement | None = None
    _number: int = 0
    _notices: int = field(default=0)

    def __call__(self) -> Ran:
        """Run to the end, or to the first failure. Driver errors end here."""
        self.connection.add_notice_handler(self._hear)
        self._demand_owner()
        if self.split.script.one_transaction:
            return self._in_one_transaction()
        return self._one_by_one()

    def _demand_owner(self) -> None:
        """The role's own setting makes the session the owner's. Without it the file would run with no rights at all."""
        with driver_errors("looking who runs the file"):
            if self.connection.execute("SELECT current_user = session_user").fetchone() != (False,):
                raise TargetUnfit("the session does not act as the owner", code="owner_unfit")

    def _in_one_transaction(self) -> Ran:
        try:
            self.connection.execute("BEGIN")
            for number, statement in enumerate(self.split.statements, start=1):
                self._send(number, statement)
        except psycopg.Error as error:
            self._failed(error)
            return Ran.ROLLED_BACK
        return self._commit()

    def _commit(self) -> Ran:
        self._number, self._at = 0, None
        try:
            self.connection.execute("COMMIT")
        except psycopg.Error as error:
            self._failed(error)
            # Without an answer of the server nobody knows which of the two happened.
            return Ran.ROLLED_BACK if error.sqlstate and not self.connection.closed else Ran.UNKNOWN
        return Ran.COMMITTED

    def _one_by_one(self) -> Ran:
        for number, statement in enumerate(self.split.statements, start=1):
            try:
                self._send(number, statement)
            except psycopg.Error as error:
                self._failed(error)
                return Ran.PARTLY if number > 1 else Ran.UNKNOWN if not error.sqlstate else Ran.ROLLED_BACK
        if self.connection.info.transaction_status is not TransactionStatus.IDLE:
            self.tell(Progress("failed", text="the file ends inside a transaction, which is rolled back"))
            return Ran.PARTLY
        return Ran.COMMITTED

    def _send(self, number: int, statement: Statement) -> None:
        self._number, self._at = number, statement
        self.tell(Progress("begun", number, statement.line, statement.kind))
        started = time.monotonic()
        words, rows = _one_statement(self.connection, statement.text)
        took = round((time.monotonic() - started) * 1000)
        self.tell(Progress("done", number, statement.line, words or statement.kind, rows, took))

    def _failed(self, error: psycopg.Error) -> None:
        words = error.diag.message_primary or "the connection ended"
        if error.sqlstate in ("57P01", "28000", "57P05") or (self.connection.closed and not error.sqlstate):
            words = "the access ended while the file was run"
        line = self._line(error)
        text = visible(f"{words} [{error.sqlstate or 'no answer'}]", limit=MAX_WORDS)
        self.tell(Progress("failed", self._number, line, text))

    def _line(self, error: psycopg.Error) -> int:
        if self._at is None:
            return 0
        position = error.diag.statement_position
        within = self._at.text[: int(position) - 1].count("\n") if position and position.isdecimal() else 0
        return self._at.line + within

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        self._notices += 1
        if self._notices > MAX_NOTICES:
            return
        words = f"{notice.severity}: {notice.message_primary}"
        if self._notices == MAX_NOTICES:
            words = "further notices are not passed on"
        self.tell(Progress("notice", self._number, self._at.line if self._at else 0, visible(words, limit=MAX_WORDS)))


def _one_statement(connection: Connection, text: str) -> tuple[str, int | None]:
    """Send ``text`` in a message that carries one statement only; the server's word for it, and how many rows.

    Rows are counted as they come and not kept: a migration is no way to read, and must not fill our memory. Not the
    driver's own streaming, which calls it a misuse if a statement returns none, as most of a migration's do.
    """
    pgconn, rows, words, failed = connection.pgconn, 0, "", None
    pgconn.send_query_params(text.encode(), None)
    pgconn.set_single_row_mode()
    connection.wait(send(pgconn))
    while (result := connection.wait(fetch_result(pgconn))) is not None:
        if result.status in (ExecStatus.SINGLE_TUPLE, ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            rows += result.ntuples
            words = (result.command_status or b"").decode(errors="replace") or words
            rows = max(rows, result.command_tuples or 0)
        else:
            failed = failed or psycopg.errors.error_from_result(result, encoding="utf-8")
    if failed:
        raise failed
    return words, rows if words[-1:].isdecimal() else None
