"""Enrolment: the one time that an administrator's login is used, to install the kit and make the broker's own login.

The administrator's login is read once, held in memory and dropped. It is used over TLS that is verified in full, or on
this machine. Whatever fails, the target is left as it was found. Not for files of the broker: ``taskpass init`` writes
those, after this.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from taskpass.config.address import parse_address
from taskpass.core.clock import Clock, Entropy
from taskpass.core.errors import InvalidInput, TargetUnavailable, TargetUnfit
from taskpass.core.ids import InstallationId
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.issuers.base import Finding, Severity
from taskpass.issuers.postgres import kit, managed, preflight, probe, scram
from taskpass.issuers.postgres.connection import BrokerLogin, Connections
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.issuers.postgres.own_login import OwnLogin
from taskpass.wire.postgres.dial import NoTls
from taskpass.wire.postgres.login import Refused

Connection = psycopg.Connection[Any]

_KNOWN = frozenset({"host", "port", "user", "password", "dbname", "sslmode", "sslrootcert"})
_CONNECT_SECONDS = 10
_STATEMENT = "60s"


@dataclass(frozen=True, slots=True)
class Login:
    """A login as somebody gave it: where, who, and with which password. ``ca`` is empty for what stays here."""

    address: str
    user: str
    password: Secret | None = field(repr=False)
    ca: str = ""


def read_login(text: str) -> Login:
    """A libpq connection string or URL. Raises ``InvalidInput`` or ``ConfigInvalid``, never with any part of it.

    Only host, port, user, password, database and the TLS authority are taken; TLS is verified in full whatever
    ``sslmode`` says. Nothing is taken from the environment or from files of the user.
    """
    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(text.strip()).items() if value is not None}
    except psycopg.Error:
        raise InvalidInput("that is not a connection string", hint=_SHAPE, code="bad_dsn") from None
    unknown = sorted(parts.keys() - _KNOWN)
    if unknown:
        raise InvalidInput(f"the connection string has a part that is not used here: {unknown[0]}", hint=_SHAPE)
    missing = sorted({"host", "user", "dbname"} - parts.keys())
    if missing:
        raise InvalidInput(f"the connection string has no {missing[0]}", hint=_SHAPE, code="bad_dsn")
    host, port = parts["host"], parts.get("port", "5432")
    if "," in host:
        raise InvalidInput(
            "the connection string names several hosts", hint="give the primary; nodes go into the config"
        )
    shown = f"[{host}]" if ":" in host and not host.startswith("/") else host
    address = f"{shown}:{port}/{parts['dbname']}"
    local = parse_address(address).is_local
    password = parts.get("password")
    ca = "" if local else parts.get("sslrootcert", "system")
    return Login(address, parts["user"], Secret(password) if password else None, ca)


_SHAPE = "postgresql://user:password@host:port/database"


@dataclass(frozen=True, slots=True)
class Survey:
    """What stands at an address: the facts that an enrolment pins and the kit depends on."""

    server_version: int
    cluster: str
    database: int
    database_name: str
    kit_version: int
    """0 where there is no kit yet."""
    others: dict[str, bool] = field(hash=False)
    """The cluster's other databases that every login may enter, and whether it may make temporary tables there."""
    managed: tuple[Finding, ...] = ()
    """What is different where a provider runs the server; empty for one of one's own."""

    @property
    def major(self) -> int:
        return self.server_version // 10000


@contextmanager
def connected(login: Login, entropy: Entropy) -> Generator[Connection]:
    """One connection with ``login`` for the length of the block. Errors are ours and hold nothing of the login."""
    connection = _connect(login, entropy)
    try:
        yield connection
    finally:
        connection.close()


def _connect(login: Login, entropy: Entropy) -> Connection:
    address = parse_address(login.address)
    tls: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": login.ca} if login.ca else {"sslmode": "disable"}
    secret: dict[str, Any] = {"password": login.password.reveal()} if login.password else {}
    try:
        return psycopg.connect(
            host=address.host,
            port=address.port,
            dbname=address.database,
            user=login.user,
            application_name="taskpass",
            options=f"-c statement_timeout={_STATEMENT} -c lock_timeout=10s -c search_path=pg_catalog,pg_temp",
            connect_timeout=_CONNECT_SECONDS,
            passfile="/dev/null",
            gssencmode="disable",
            autocommit=True,
            **secret,
            **tls,
        )
    except psycopg.Error:
        raise _why(login, entropy) from None


def _why(login: Login, entropy: Entropy) -> TargetUnavailable | TargetUnfit:
    """Why a login failed. The driver only has a text, in the server's language and perhaps with parts of the login, so
    the server is asked once more on the wire, where the answer is a code.
    """
    try:
        outcome = probe.converse(
            probe.Place(login.address, login.ca), login.user, login.password or Secret(""), entropy
        )
    except (ssl.SSLError, NoTls):
        return TargetUnfit(
            "the server's certificate cannot be verified, or it speaks no TLS",
            hint="name the authority's file: sslrootcert=/path/ca.pem; TLS is always verified in full",
            code="target_tls",
        )
    except (OSError, ValueError):
        return TargetUnavailable("the server cannot be reached", hint="check host and port, and that it runs")
    state = outcome.sqlstate if isinstance(outcome, Refused) else ""
    if state in ("28P01", "28000"):
        return TargetUnavailable("the server refuses this login", hint="check user and password", code="target_auth")
    if state == "3D000":
        return TargetUnfit("there is no such database on the server", code="target_absent")
    return TargetUnavailable(
        f"the server does not let anybody in now ({state or 'no code'})", hint="try again, or look into its log"
    )


def survey(connection: Connection) -> Survey:
    """Look at the target. Raises ``TargetUnfit`` for a standby, a pooler and a server older than PostgreSQL 15."""
    try:
        first = connection.execute("SELECT pg_backend_pid()").fetchone()
        row = connection.execute(_SURVEY).fetchone()
        kit_version = connection.execute(_KIT).fetchone()
        others = connection.execute(_OTHERS).fetchall()
        address = f"{connection.info.host}:{connection.info.port}/{connection.info.dbname}"
        _, notes = managed.look(connection, address)
        again = connection.execute("SELECT pg_backend_pid()").fetchone()
    except psycopg.Error as error:
        raise TargetUnavailable(
            f"the server did not answer as PostgreSQL does ({error.sqlstate or 'no code'})"
        ) from None
    assert row is not None
    version, cluster, database, name, standby = row
    if standby:
        raise TargetUnfit("this server is a standby", hint="give the address of the primary", code="target_standby")
    pids = [number for row in (first, again) if row for number in row]
    place = f"{connection.info.host}:{connection.info.port}/{name}"
    if any(f.severity is Severity.FATAL for f in preflight.through_pooler(pids, connection.info.backend_pid, place)):
        raise TargetUnfit(
            "a pooler stands at this address", hint="give the server's own address", code="pooler_address"
        )
    if version < kit.OLDEST:
        raise TargetUnfit(
            f"this is PostgreSQL {version // 10000}", hint="15 is the oldest that is served", code="too_old"
        )
    present = kit_version[0] if kit_version else 0
    return Survey(version, cluster, database, name, present, dict(others), tuple(notes))


_SURVEY = """\
SELECT current_setting('server_version_num')::integer, (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()), current_database()::text,
       pg_is_in_recovery()"""

_KIT = """\
SELECT CASE WHEN to_regclass('taskpass.kit_version') IS NULL THEN 0 ELSE 1 END"""

_OTHERS = """\
SELECT datname::text, has_database_privilege('public', oid, 'TEMPORARY') FROM pg_database
 WHERE datallowconn AND datname <> current_database() AND has_database_privilege('public', oid, 'CONNECT')
 ORDER BY 1"""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to enrol: within which tables, for which installation, with which password for the broker's login.

    ``writes`` may be written to; ``tables`` may be read besides, and be none if there are ``writes``.
    """

    installation: InstallationId
    tables: tuple[str, ...]
    exclude: tuple[str, ...]
    password: Secret = field(repr=False)
    keep_password: bool
    """A login that is there already keeps its password: the broker may have replaced this one since."""
    writes: tuple[kit.Writing, ...] = ()
    owner: str = ""
    broker: str = ""


def judge_owner(connection: Connection, owner: str) -> list[Finding]:
    """Why nobody can migrate as ``owner``, with the SQL that mends it; empty if nothing is wrong or there is none."""
    return kit.judged_owners(connection, [owner] if owner else [])


def script(wish: Wish, server_version: int, entropy: Entropy) -> str:
    """What the administrator runs: the same text that ``install`` runs. It holds a verifier and no password."""
    verifier = scram.verifier(wish.password, entropy, iterations=scram.BEARER_ITERATIONS)
    owners = (wish.owner,) if wish.owner else ()
    enrolment = kit.Enrolment(
        wish.installation,
        verifier,
        wish.tables,
        wish.exclude,
        keep_password=wish.keep_password,
        writes=wish.writes,
        owners=owners,
        broker=wish.broker,
    )
    return kit.install_sql(server_version, enrolment) + (kit.give_password_sql(enrolment) if wish.keep_password else "")


def install(connection: Connection, text: str) -> list[Finding]:
    """Run the script; its warnings are findings. Raises ``TargetUnfit``: it is one transaction, so nothing stays."""
    warnings: list[str] = []
    connection.add_notice_handler(
        lambda notice: (
            warnings.append(notice.message_primary or "") if notice.severity_nonlocalized == "WARNING" else None
        )
    )
    try:
        connection.execute(text.encode())
    except psycopg.Error as error:
        with_rollback(connection)
        words = (error.diag.message_primary or "the connection was lost").removeprefix("taskpass: ")
        raise TargetUnfit(
            f"the kit could not be installed: {_one_line(words)}",
            hint="as a superuser, or on 16 and later as owner of database and tables with CREATEROLE; or: --print-sql",
            code="kit_not_installed",
        ) from None
    return [
        Finding("enrolment", Severity.WARNING, _one_line(text.removeprefix("taskpass: ")), "run it as a superuser")
        for text in warnings
    ]


def with_rollback(connection: Connection) -> None:
    """End a transaction that the script left open, if the connection still stands."""
    if not connection.closed and connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            connection.close()


def undo(connection: Connection, before: Survey, login: str) -> bool:
    """Take out what was put in since ``before``, for an enrolment that failed later. True if nothing is left of it.

    A kit that was there before stays: another installation may live from it.
    """
    try:
        for name, temporary in before.others.items():
            # What was not ended is granted again, which changes nothing.
            rights = sql.SQL("CONNECT, TEMPORARY") if temporary else sql.SQL("CONNECT")
            connection.execute(sql.SQL("GRANT {} ON DATABASE {} TO PUBLIC").format(rights, sql.Identifier(name)))
        if before.kit_version == 0:
            connection.execute(kit.uninstall_sql().encode())
            return True
        connection.execute("DELETE FROM taskpass.broker WHERE login = %s", [login])
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(login)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(login)))
    except psycopg.Error:
        with_rollback(connection)
        return False
    return True


def close_other_databases(connection: Connection, found: Survey) -> list[Finding]:
    """End what every login may do in the cluster's other databases. What is refused is a finding with its SQL."""
    findings: list[Finding] = []
    for name in found.others:
        text = kit.hardening_sql([name])
        try:
            connection.execute(text.encode())
        except psycopg.Error:
            findings.append(Finding("other_databases", Severity.WARNING, f"{name} stays open to every login", text))
    return findings


def login_script(installation: InstallationId, broker: str, password: Secret, entropy: Entropy) -> str:
    """What the administrator runs to give a further broker a login of its own. It holds a verifier and no password."""
    verifier = scram.verifier(password, entropy, iterations=scram.BEARER_ITERATIONS)
    return kit.login_sql(kit.Enrolment(installation, verifier, (), broker=broker))


def exists(connection: Connection, login: str) -> bool:
    """Whether there is such a login in the cluster."""
    return connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [login]).fetchone() is not None


def accepts(target: Target, user: str, password: Secret, entropy: Entropy) -> bool:
    """Whether the server takes ``password`` for the login ``user``. Raises ``TargetUnavailable`` if it does not say."""
    return OwnLogin(Connections(target, BrokerLogin(user)), target, user, entropy).accepts(password)


def rehearse(
    target: Target, installation: InstallationId, user: str, password: Secret, *, clock: Clock, entropy: Entropy
) -> list[Finding]:
    """Look at everything as the broker's own login, and make and take back a throw-away role."""
    issuer = PostgresIssuer(target, installation, password, clock=clock, entropy=entropy, user=user)
    try:
        return issuer.preflight(thorough=True)
    finally:
        issuer.close_connections()


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:300]
