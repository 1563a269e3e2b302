"""Connections of the broker's own login to a target: how they are made, kept, pinned to the enrolled cluster.

Everything that libpq would otherwise take from the environment or from files of the user is given explicitly. Not for
the leases' logins: those are the endpoint's and the probe's.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import psycopg

from taskpass.core.errors import Conflict, InvalidInput, ManifestChanged, TargetUnavailable, TargetUnfit, TaskpassError
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.wire.postgres.address import parse_address

Connection = psycopg.Connection[Any]

# The driver warns that closing after an error met an error too, and prints the login. The first error is what is told.
logging.getLogger("psycopg").setLevel(logging.ERROR)

AT_ONCE = 8
"""Connections per node. An issuer has two sets, one of them for taking back, and the kit allows a broker 20."""

KEPT_SECONDS = 60.0
"""How long one that is not used stays open, as long as others are used."""

_TURN_SECONDS = 20.0
_TRUSTED_SECONDS = 5.0

_CONNECT_SECONDS = 5
_SETTINGS = (
    "-c search_path=pg_catalog -c statement_timeout=15s -c lock_timeout=5s"
    " -c idle_in_transaction_session_timeout=30s -c client_min_messages=notice"
)


class BrokerLogin:
    """Who the broker is in the target. Without a password the server must prove us otherwise (peer, cert).

    ``reload`` gives every password that may be the right one by now, the newest first: the broker replaces its password
    daily, and a crash in the middle of that leaves two. ``settings`` are those of the sessions, as options of the
    start-up. Safe to use from several threads.
    """

    def __init__(
        self,
        user: str,
        password: Secret | None = None,
        settings: str = _SETTINGS,
        *,
        reload: Callable[[], Sequence[Secret]] = lambda: (),
    ) -> None:
        self.user = user
        self.settings = settings
        self._password = password
        self._reload = reload

    @property
    def password(self) -> Secret | None:
        """The one that was right last."""
        return self._password

    def open(self, connect: Callable[[Secret | None], Connection]) -> Connection:
        """``connect`` with the known password, and if that fails with the others. Raises what the last one raised.

        The driver tells no code for a refused login, so a server that is away is tried with each of them too.
        """
        known = self._password
        try:
            return connect(known)
        except psycopg.Error:
            others = [secret for secret in self._reload() if known is None or secret.reveal() != known.reveal()]
            if not others:
                raise
        for secret in others[:-1]:
            with contextlib.suppress(psycopg.Error):
                return self._opened(connect, secret)
        return self._opened(connect, others[-1])

    def _opened(self, connect: Callable[[Secret | None], Connection], secret: Secret) -> Connection:
        connection = connect(secret)
        self._password = secret
        return connection


class Timeline:
    """The highest timeline on which a target was seen. Each promotion raises it, so an earlier one is a former primary.

    Shared by the sets of connections of one issuer. 0: never seen, or the target does not tell.
    """

    def __init__(self) -> None:
        self.highest = 0

    def demand(self, found: int) -> None:
        """Raise ``TargetUnfit`` for a server that is behind; else remember where it is."""
        if 0 < found < self.highest:
            raise TargetUnfit(
                f"the address leads to a former primary: timeline {found}, and the cluster has come to {self.highest}",
                hint="put the address right, and stop that server",
                code="former_primary",
            )
        self.highest = max(self.highest, found)


class Connections:
    """A few open connections per node, handed to one user at a time. Safe to use from several threads.

    ``name`` is their application_name, by which this process's sessions are told from others of the same login.
    """

    def __init__(
        self, target: Target, login: BrokerLogin, name: str = "taskpass", *, timeline: Timeline | None = None
    ) -> None:
        self._timeline = timeline or Timeline()
        self._connected_on = 0
        self._target = target
        self._login = login
        self._name = name
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[Connection, float]]] = {}
        self._turns = {node: threading.BoundedSemaphore(AT_ONCE) for node in (target.address, *target.nodes)}

    @contextlib.contextmanager
    def use(self, address: str | None = None) -> Generator[Connection]:
        """A connection in autocommit mode; at most one per node and thread at a time.

        After any error it is not used again, so nothing of what was done on it can leak into another use.
        """
        node = address or self._target.address
        if not self._turns[node].acquire(timeout=_TURN_SECONDS):
            raise TargetUnavailable(f"too much is done in {self._target.resource} at once", hint="try again")
        with self._in_turn(node) as connection:
            yield connection

    @contextlib.contextmanager
    def use_one_more(self) -> Generator[Connection | None]:
        """For what runs beside a connection that is in use: None if there is no turn left, so nobody waits for two."""
        node = self._target.address
        if not self._turns[node].acquire(blocking=False):
            yield None
            return
        with self._in_turn(node) as connection:
            yield connection

    @contextlib.contextmanager
    def _in_turn(self, node: str) -> Generator[Connection]:
        try:
            connection = self._take(node) or self._connect(node)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._give_back(node, connection)
        finally:
            self._turns[node].release()

    @contextlib.contextmanager
    def fresh(self) -> Generator[Connection]:
        """A connection that is made now, to the target's address, and is not kept."""
        with contextlib.closing(self._connect(self._target.address)) as connection:
            yield connection

    def _give_back(self, node: str, connection: Connection) -> None:
        now = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(node, [])
            # The one that was used last is used first, so those that are not needed any more are the first ones.
            unused = [idle.pop(0) for since in [since for _, since in idle] if now - since > KEPT_SECONDS]
            if not connection.closed:
                idle.append((connection, now))
        for each, _ in unused:
            each.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, {}
        for connection, _ in (each for node in idle.values() for each in node):
            connection.close()

    def other_database(self, database: str) -> Connection:
        """A connection to another database of the same cluster, for the caller to close."""
        host = self._target.address.rsplit("/", 1)[0]
        return self._open(f"{host}/{database}")

    def _take(self, node: str) -> Connection | None:
        if self._connected_on != self._timeline.highest:
            # There was a promotion: what is open may lead to the former primary, which may live on.
            self._connected_on = self._timeline.highest
            self.close()
        while True:
            with self._lock:
                idle = self._idle.get(node)
                if not idle:
                    return None
                connection, since = idle.pop()
            # A server that restarted since is noticed here and not in the middle of an effect.
            if _answers(connection, time.monotonic() - since):
                return connection
            connection.close()

    def _connect(self, node: str) -> Connection:
        connection = self._open(node)
        try:
            with driver_errors("looking which cluster this is"):
                found = connection.execute(_WHICH).fetchone()
                writes_on = timeline(connection) if node == self._target.address else 0
            self._demand_enrolled(found)
            self._timeline.demand(writes_on)
        except BaseException:
            connection.close()
            raise
        return connection

    def _demand_enrolled(self, found: tuple[str, int] | None) -> None:
        cluster, database = found or ("", 0)
        expected = (self._target.cluster or cluster, self._target.database or database)
        if (cluster, database) != expected:
            raise TargetUnfit(
                "the address leads to another cluster or database than the one that was enrolled",
                hint="enrol it again with: taskpass init",
                code="another_target",
            )

    def _open(self, node: str) -> Connection:
        parameters = self._parameters(node)
        try:
            return self._login.open(lambda password: psycopg.connect(**parameters, **_proof(password)))
        except psycopg.Error:
            # The driver does not say whether nobody answered or the login was refused, and its text quotes the server.
            raise TargetUnavailable(
                f"the broker cannot log in to {self._target.resource}",
                hint="is the server up, and is the broker's login as enrolled?",
            ) from None

    def _parameters(self, node: str) -> dict[str, Any]:
        address = parse_address(node)
        ca = self._target.tls.get("ca")
        if not ca and not address.is_local:
            raise TargetUnfit(
                f"{self._target.resource} is not on this machine and has no tls",
                hint='write tls = { ca = "system" } or the path of its authority',
                code="tls_required",
            )
        tls = {"sslmode": "verify-full", "sslrootcert": ca} if ca else {"sslmode": "disable"}
        return {
            "host": address.host,
            "port": address.port,
            "dbname": address.database,
            "user": self._login.user,
            "application_name": self._name,
            "options": self._login.settings,
            "connect_timeout": _CONNECT_SECONDS,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15000,
            "gssencmode": "disable",
            "passfile": "/dev/null",
            "target_session_attrs": "any",
            "autocommit": True,
            **tls,
        }


@contextlib.contextmanager
def giving(connection: Connection) -> Generator[None]:
    """One transaction that gives access, whose statements are sent without waiting for each answer. After an error the
    connection is of no more use.

    It does not wait for the disk: a crash of the server within the next moment may take what was given away again, and
    whatever it lets pass it keeps whole and in order. Not for taking back, which has to last, and whose commit makes
    everything before it last too. (The driver's own transaction waits for the server at both of its ends.)
    """
    with connection.pipeline():
        connection.execute("BEGIN")
        connection.execute("SET LOCAL synchronous_commit = off")
        yield
        connection.execute("COMMIT")


def _answers(connection: Connection, idle: float) -> bool:
    """Whether the server is still there, without asking it if the connection was used ``idle`` seconds ago only.

    A server that ended has closed its side, and that shows without a word; a network that swallows everything shows
    only in an answer that does not come.
    """
    readable = select.poll()  # unlike select(), for descriptors of any number
    readable.register(connection.pgconn.socket, select.POLLIN)
    if not readable.poll(0) and idle < _TRUSTED_SECONDS:
        return True
    with contextlib.suppress(psycopg.Error):
        connection.execute("SELECT")
        return True
    return False


def _proof(password: Secret | None) -> dict[str, Any]:
    return {"password": password.reveal(), "require_auth": "scram-sha-256"} if password else {}


_WHICH = """
SELECT system_identifier::text, (SELECT oid::bigint FROM pg_database WHERE datname = current_database())
  FROM pg_control_system()
"""

_TIMELINE = """
SELECT CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint ELSE 0 END
"""


def timeline(connection: Connection) -> int:
    """The timeline on which the server writes; 0 for a standby and where a provider does not tell (shared storage)."""
    try:
        row = connection.execute(_TIMELINE).fetchone()
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFunction):
        return 0
    return int(row[0]) if row else 0


_KIT_MISSING = ("42883", "3F000", "42P01")
TRANSIENT = ("XX000", "40001", "40P01")
"""Two effects met at one catalogue row: nothing was done, trying again is right."""

MET_ANOTHER = "target_busy"


@contextlib.contextmanager
def driver_errors(doing: str) -> Generator[None]:
    """Turns the driver's exceptions into ours; the kit's own refusals keep their words (they hold names, no values)."""
    try:
        yield
    except psycopg.Error as error:
        raise _ours(doing, error) from None


def _ours(doing: str, error: psycopg.Error) -> TaskpassError:
    state = error.sqlstate or ""
    words = "".join(c if c.isprintable() else " " for c in (error.diag.message_primary or ""))[:200]
    words = words.removeprefix("taskpass: ")
    if state == "TP001":
        return InvalidInput(f"{doing}: {words}")
    if state == "TP002":
        return TargetUnfit(f"{doing}: {words}", hint="enrol it with: taskpass init", code="kit_not_enrolled")
    if state == "TP003":
        return TargetUnfit(
            f"{doing}: {words}", hint="the DBA decides what is in taskpass.ceiling", code="above_ceiling"
        )
    if state == "TP004":
        return ManifestChanged(f"{doing}: {words}", hint="ask again: the database changed")
    if state == "TP005":
        return TargetUnfit(f"{doing}: {words}", hint=error.diag.message_hint or "", code="kit_grant")
    if state == "TP007":
        return TargetUnfit(f"{doing}: {words}", hint="'taskpass doctor' prints the SQL for it", code="owner_unfit")
    if state == "TP006":
        return Conflict(f"{doing}: {words}", code="lease_ended")
    if state in _KIT_MISSING:
        return TargetUnfit(f"{doing}: the target kit is missing or older", hint="taskpass init", code="kit_missing")
    if state == "42501":
        return TargetUnfit(f"{doing}: the target did not allow it", hint="taskpass doctor", code="kit_grant")
    return TargetUnavailable(
        f"{doing}: the database did not do it now ({state or 'no answer'})",
        code=MET_ANOTHER if state in TRANSIENT else None,
    )
