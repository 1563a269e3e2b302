"""The clients of a drill on PostgreSQL: sessions of six kinds, a prepared transaction, and the old password.

They are ordinary clients that know nothing of the closing: what they meet is evidence beside the closing's own proof.
Not for taking anything back, and not for reading: they ask for constants, and for no row of one table.
"""

from __future__ import annotations

import contextlib
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import DiagnosticField

from taskpass.core.clock import Entropy
from taskpass.core.errors import NotProven, TargetUnavailable, TargetUnfit, TaskpassError
from taskpass.core.ids import RoleName
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.issuers.base import Met
from taskpass.issuers.postgres import scram
from taskpass.issuers.postgres.connection import BrokerLogin, Connection, Connections, driver_errors
from taskpass.issuers.postgres.probe import Place, attempt, control
from taskpass.wire.postgres.address import parse_address
from taskpass.wire.postgres.login import Ready, Refused

SESSIONS = 8
"""What the account must be allowed to have open at a time: one of each kind, and two that are just ending."""

PATIENCE = 5.0
"""Seconds that a client may take to notice what the server did, over whatever network lies between."""

PAUSE = 0.02
"""Seconds between two questions, and two attempts, of the client that connects again and again."""


class PostgresDrill:
    """See ``issuers.base.DrillClients``. ``broker`` are connections of the broker's own login."""

    def __init__(
        self,
        target: Target,
        role: RoleName,
        secret: Secret,
        *,
        reads: int | None,
        broker: Connections,
        entropy: Entropy,
    ) -> None:
        self._target = target
        self._role = role
        self._secret = secret
        self._reads = reads
        self._broker = broker
        self._entropy = entropy
        self._login = BrokerLogin(role, secret)
        self._database = parse_address(target.address).database
        self._held: dict[str, Connection] = {}
        self._prepared = ""
        self._watch = _Watch()
        self._restless = _Restless(self._enter)

    def control(self) -> None:
        wrong = scram.new_secret(self._entropy)
        first, *nodes = self._places()
        control(first, self._role, self._secret, wrong, self._entropy)
        for place in nodes:
            self._control_when_known(place, wrong)

    def open(self) -> tuple[str, ...]:
        first = self._hold("idle")
        with driver_errors("opening the sessions of a drill"):
            self._demand_room(first)
            self._read(first)
            for kind, begin in _KINDS.items():
                connection = self._hold(kind)
                begin(connection)
            for number, node in enumerate(self._target.nodes, 1):
                self._read(self._hold(f"idle on node {number}", node))
            self._prepare()
        self._restless.begin()
        prepared = ("prepared",) if self._prepared else ()
        return (*self._held, "reconnecting", *prepared)

    def ordered(self) -> None:
        self._watch.begin({kind: connection.fileno() for kind, connection in self._held.items()})
        self._restless.ordered_at = time.monotonic()

    def met(self) -> tuple[Met, ...]:
        self._restless.proven_at = time.monotonic()
        noticed = self._watch.end(PATIENCE)
        sessions = [Met(kind, _ending(kind, held, noticed), noticed.get(kind)) for kind, held in self._held.items()]
        return (*sessions, self._restless.met(), *self._met_prepared(), *self._met_password())

    def close(self) -> None:
        self._watch.stop()
        self._restless.stop()
        for connection in self._held.values():
            with contextlib.suppress(psycopg.Error):
                connection.close()

    # ---- opening ----

    def _control_when_known(self, place: Place, wrong: Secret) -> None:
        """A standby hears of the account a moment later; until then it refuses the right password as well."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return control(place, self._role, self._secret, wrong, self._entropy)
            except TargetUnfit:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)

    def _places(self) -> list[Place]:
        return [Place(each, self._target.tls.get("ca", "")) for each in (self._target.address, *self._target.nodes)]

    def _hold(self, kind: str, node: str = "") -> Connection:
        connection = self._held[kind] = self._enter(node)
        return connection

    def _enter(self, node: str = "") -> Connection:
        target = replace(self._target, address=node or self._target.address)
        return Connections(target, self._login).other_database(self._database)

    def _demand_room(self, connection: Connection) -> None:
        row = connection.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user").fetchone()
        limit = row[0] if row else 0
        if limit < SESSIONS:
            raise TargetUnfit(
                f"the account of a drill may open {limit} session(s) only: the target kit is older",
                hint="taskpass init --print-sql --upgrade",
                code="kit_missing",
            )

    def _read(self, connection: Connection) -> None:
        connection.execute("SELECT 1")
        if self._reads is None:
            return
        name = connection.execute(_NAME, [self._reads]).fetchone()
        if name is None:
            raise TargetUnfit("the table of the drill is gone", code="manifest_changed")
        connection.execute(sql.SQL("SELECT FROM {} LIMIT 0").format(sql.Identifier(*name)))

    def _prepare(self) -> None:
        """Where the server allows it: a prepared transaction outlives its session."""
        with self._enter() as connection:
            if connection.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
                return
            connection.execute("BEGIN")
            connection.execute("SELECT 1")
            connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(self._role)))
            self._prepared = self._role

    # ---- judging ----

    def _met_prepared(self) -> tuple[Met, ...]:
        if not self._prepared:
            return ()
        with self._broker.use() as connection, driver_errors("looking for the prepared transaction of a drill"):
            row = connection.execute("SELECT FROM pg_prepared_xact() WHERE gid = %s", [self._prepared]).fetchone()
        return (Met("prepared", "" if row is not None else "rolled back"),)

    def _met_password(self) -> tuple[Met, ...]:
        """The password that worked a moment ago, on every node."""
        names = ("password", *(f"password on node {number}" for number in range(1, 1 + len(self._target.nodes))))
        return tuple(Met(name, self._answer(place)) for name, place in zip(names, self._places(), strict=True))

    def _answer(self, place: Place) -> str:
        outcome = attempt(place, self._role, self._secret, self._entropy)
        if isinstance(outcome, Ready):
            return ""
        if isinstance(outcome, Refused):
            return outcome.sqlstate
        raise NotProven("the server does not say whether the old password is refused")


def _in_a_transaction(connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT 1")


def _with_a_cursor(connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("DECLARE taskpass_drill CURSOR FOR SELECT generate_series(1, 1000000)")
    connection.execute("FETCH 1 FROM taskpass_drill")


def _in_a_statement(connection: Connection) -> None:
    connection.execute("SELECT 1")
    connection.pgconn.send_query(b"SELECT pg_sleep(60)")
    connection.pgconn.flush()


def _listening(connection: Connection) -> None:
    connection.execute("LISTEN taskpass_drill")


_KINDS: dict[str, Callable[[Connection], None]] = {
    "transaction": _in_a_transaction,
    "cursor": _with_a_cursor,
    "statement": _in_a_statement,
    "listening": _listening,
}

_NAME = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s"

GONE = "connection lost"


def _ending(kind: str, connection: Connection, noticed: dict[str, int]) -> str:
    """How the session ended; empty if it still answers."""
    if kind == "statement":
        # Asking would wait for the statement itself, so what counts is whether the server broke it off.
        return _broken_off(connection) if kind in noticed else ""
    try:
        connection.execute("SELECT 1")
    except psycopg.Error as error:
        return error.sqlstate or GONE
    return ""


def _broken_off(connection: Connection) -> str:
    result: Any = connection.pgconn.get_result()
    if connection.pgconn.status == psycopg.pq.ConnStatus.OK and _answers(connection):
        return ""
    state = result.error_field(DiagnosticField.SQLSTATE) if result else None
    return state.decode() if state else GONE


def _answers(connection: Connection) -> bool:
    """Whether the session lives on although its statement ended."""
    while connection.pgconn.get_result() is not None:
        pass
    with contextlib.suppress(psycopg.Error):
        connection.execute("SELECT 1")
        return True
    return False


class _Watch:
    """When each session's socket had something to say that nobody asked for: the server's goodbye."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._noticed: dict[str, int] = {}

    def begin(self, sockets: dict[str, int]) -> None:
        self._thread = threading.Thread(target=self._run, args=(sockets, time.monotonic()), daemon=True, name="drill")
        self._thread.start()

    def end(self, patience: float) -> dict[str, int]:
        """Milliseconds from ``begin`` by kind; a kind that noticed nothing within ``patience`` seconds is absent."""
        if self._thread is not None:
            self._thread.join(patience)
        self.stop()
        return dict(self._noticed)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, sockets: dict[str, int], started: float) -> None:
        with selectors.DefaultSelector() as selector:
            for kind, number in sockets.items():
                selector.register(number, selectors.EVENT_READ, kind)
            while selector.get_map() and not self._stopping.is_set():
                for key, _ in selector.select(PAUSE):
                    self._noticed[key.data] = round((time.monotonic() - started) * 1000)
                    selector.unregister(key.fd)


class _Restless:
    """A client that asks without pause and connects again as soon as it is cut off."""

    def __init__(self, enter: Callable[[], Connection]) -> None:
        self._enter = enter
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="drill-reconnecting")
        self._answered_at = 0.0
        """When the last question that got an answer was asked."""
        self._refused_at = 0.0
        """When the last attempt that was refused began."""
        self.ordered_at = 0.0
        self.proven_at = 0.0

    def begin(self) -> None:
        self._thread.start()
        if not self._within(lambda: self._answered_at > 0):
            raise TargetUnavailable("the reconnecting client of the drill got no answer")

    def met(self) -> Met:
        """Waits until an attempt that began after the proof was refused, or a question asked after it was answered."""
        self._within(lambda: self._answered_at > self.proven_at or self._refused_at > self.proven_at)
        refused = self._refused_at > self.proven_at and not self._answered_at > self.proven_at
        return Met("reconnecting", "refused" if refused else "", max(0, self._since_order()))

    def _since_order(self) -> int:
        return round((self._answered_at - self.ordered_at) * 1000)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _within(self, true: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not true() and time.monotonic() < deadline:
            time.sleep(PAUSE / 4)
        return true()

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                connection = self._enter()
            except TaskpassError:
                self._refused_at = began
                self._stopping.wait(PAUSE)
                continue
            with contextlib.suppress(psycopg.Error), connection:
                self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            asked = time.monotonic()
            connection.execute("SELECT 1")
            self._answered_at = asked
            self._stopping.wait(PAUSE)
