"""The target kit as one script for the DBA: install, upgrade, remove, and what it lacks.

``install_sql`` is the text that ``taskpass init`` runs and that ``--print-sql`` shows: the same bytes. It may be run
again (an upgrade, another installation, more tables). Not for: running anything with the broker's own rights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql

from taskpass.core.decision import ABSOLUTE_MAX_TTL
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import InstallationId
from taskpass.core.scope import Verb, pattern
from taskpass.issuers.base import Finding, Severity

KIT_VERSION = 2
OLDEST = 150000
"""The oldest ``server_version_num`` that the kit was measured on."""

MOST_LIVE = 50
MOST_LIVE_MIGRATIONS = 2

_INSTALLATION = re.compile(r"[0-9a-hjkmnp-tv-z]{8}")
_BROKER = re.compile(r"[a-z0-9]{0,16}")


@dataclass(frozen=True, slots=True)
class Writing:
    """Patterns as in ``Enrolment``, for some verbs; ``SELECT`` comes along with them."""

    tables: tuple[str, ...]
    exclude: tuple[str, ...]
    verbs: frozenset[Verb]


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What one installation may do in one database at most.

    ``verifier`` is the SCRAM verifier of the broker's login, or empty if it proves itself without a password (peer,
    cert). ``tables`` and ``exclude`` are patterns as in a resource's access; they become rows of ``taskpass.ceiling``,
    which the DBA may edit afterwards (rows that exist are left alone). ``writes`` are those of the writing accesses.
    ``longest_seconds`` is one lease's whole life. ``owners`` are the roles that migrations may run as; they become rows
    of ``taskpass.owner``.
    """

    installation: InstallationId
    verifier: str
    tables: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    longest_seconds: int = ABSOLUTE_MAX_TTL
    most_live: int = MOST_LIVE
    owners: tuple[str, ...] = ()
    writes: tuple[Writing, ...] = ()
    keep_password: bool = False
    """Give ``verifier`` to a login that is made here, and leave that of a login that is there already."""
    broker: str = ""
    """Which of several brokers on one store, as in ``broker_login``."""

    @property
    def login(self) -> str:
        return broker_login(self.installation, self.broker)


def broker_login(installation: InstallationId, broker: str = "") -> str:
    """The name of the broker's own login in every target; ``broker`` tells further ones on the same store apart."""
    if not _INSTALLATION.fullmatch(installation) or not _BROKER.fullmatch(broker):
        raise InvalidInput("not a valid installation id")
    return f"taskpass_broker_{installation}" + (f"_{broker}" if broker else "")


def install_sql(server_version: int, enrolment: Enrolment) -> str:
    """The whole script; ``server_version`` is ``server_version_num``. Needs no parameters and no psql commands.

    It runs in one transaction. What the administrator may not grant is a WARNING there and a finding of ``lacking``.
    """
    if server_version < OLDEST:
        raise InvalidInput("Taskpass needs PostgreSQL 15 or newer")
    if not enrolment.tables and not enrolment.writes:
        raise InvalidInput("an enrolment names at least one table pattern")
    return "\n".join(
        (
            _file("kit.sql"),
            _file("makers.sql"),
            _login(enrolment),
            _enrol(enrolment),
            _file("brokers.sql"),
            _file("owners.sql"),
            _file("reach.sql"),
        )
    )


def give_password_sql(enrolment: Enrolment) -> str:
    """A comment for the DBA of a broker that lost its password: what gives ``verifier`` to a login that is there."""
    name = sql.Identifier(enrolment.login)
    words = sql.SQL("ALTER ROLE {} PASSWORD {};").format(name, _text(enrolment.verifier)).as_string(None)
    return f"\n-- Only if the broker has lost its password (its directory was restored from a backup):\n-- {words}\n"


def login_sql(enrolment: Enrolment) -> str:
    """A login for a further broker of an installation that is enrolled: nothing else changes. May run again."""
    names = {"name": _text(enrolment.login), "installation": _text(enrolment.installation)}
    return "\n".join(
        (
            _BEGIN_AS_KIT,
            _login(replace(enrolment, keep_password=True)),
            sql.SQL(_FURTHER).format(**names).as_string(None),
            _file("brokers.sql"),
            _COMMIT_AS_KIT,
        )
    ) + give_password_sql(enrolment)


def upgrade_sql() -> str:
    """For the DBA: brings a kit of any earlier version to this one. May run again; refuses a newer kit and none."""
    parts = ("makers.sql", "brokers.sql", "owners.sql", "reach.sql")
    return "\n".join((_file("kit.sql"), _UPGRADE, *map(_file, parts)))


def uninstall_sql() -> str:
    """Removes the kit from the current database. Refuses while a lease of any installation is not cleaned."""
    return _file("uninstall.sql")


def hardening_sql(databases: Iterable[str]) -> str:
    """Ends what every login may do in the cluster's *other* databases: connect, and create temporary tables."""
    return "\n".join(
        sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC;").format(sql.Identifier(name)).as_string(None)
        for name in databases
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What a target lets the kit do about limits: end sessions that are over one, bound temporary files."""

    watched: bool
    temp_files: bool


def settings(connection: psycopg.Connection[Any]) -> Settings:
    """As it is now. Without ``track_activities`` nobody sees how long a session has been at something."""
    row = connection.execute(_SETTINGS).fetchone()
    return Settings(*row) if row else Settings(watched=False, temp_files=False)


def lacking(connection: psycopg.Connection[Any]) -> list[Finding]:
    """What the kit needs and does not have here, as the broker's login (or an administrator) can see it.

    Empty where there is no kit for this login at all: that is ``preflight``'s finding.
    """
    if connection.execute(_VISIBLE).fetchone() is None:
        return []
    found = connection.execute(_file("lacking.sql")).fetchall()
    findings = [Finding(check, Severity(severity), message, fix) for check, severity, message, fix in found]
    return findings + _lacking_for_owners(connection)


def _lacking_for_owners(connection: psycopg.Connection[Any]) -> list[Finding]:
    """Warnings only: reading goes on where nobody can migrate any more."""
    if connection.execute("SELECT to_regclass('taskpass.owner') IS NOT NULL").fetchone() != (True,):
        return []
    owners = [name for (name,) in connection.execute("SELECT role::text FROM taskpass.owner ORDER BY 1").fetchall()]
    found = [replace(finding, severity=Severity.WARNING) for finding in judged_owners(connection, owners)]
    lacking_admin = connection.execute(_LACKING_ADMIN).fetchall()
    found += [
        Finding("migrate_owner", Severity.WARNING, f"the kit may not let migrations run as {name}", fix)
        for name, fix in lacking_admin
    ]
    return found


def judged_owners(connection: psycopg.Connection[Any], owners: list[str]) -> list[Finding]:
    """A finding for each of ``owners`` that cannot be migrated as, with the SQL that separates owner and login."""
    found = connection.execute(_file("owners_judged.sql"), {"owners": owners}).fetchall() if owners else []
    return [
        Finding("migrate_owner", Severity.FATAL, f"nobody can migrate as {name}: it {why}", fix)
        for name, why, fix in found
    ]


def _file(name: str) -> LiteralString:
    # Text of this package: as trustworthy as a literal.
    return cast("LiteralString", files("taskpass.issuers.postgres").joinpath(name).read_text(encoding="utf-8"))


def _login(enrolment: Enrolment) -> str:
    name = enrolment.login
    password = sql.SQL(" PASSWORD {}").format(_text(enrolment.verifier)) if enrolment.verifier else sql.SQL("")
    return (
        sql.SQL(_LOGIN if enrolment.keep_password else _REKEYED_LOGIN)
        .format(name=sql.Identifier(name), literal=_text(name), password=password)
        .as_string(None)
    )


def _text(value: str) -> sql.Literal:
    if "\0" in value:
        raise InvalidInput("a text in SQL cannot hold a NUL")
    return sql.Literal(value)


def _ceiling(enrolment: Enrolment) -> list[tuple[str, Verb, int, int]]:
    """Rows of the ceiling. Of all that match a table the strictest counts.

    So an exclusion must hold for a verb only if it stands on the list of every access that has the verb: what one
    excludes another may offer. Exclusions come first, because where a pattern is on both lists the first row stays.
    """
    parts = [Writing(enrolment.tables, enrolment.exclude, frozenset({Verb.SELECT})), *enrolment.writes]
    parts = [part for part in parts if part.tables]
    rows: list[tuple[str, Verb, int, int]] = []
    for verb in sorted(Verb):
        offers = [part for part in parts if verb in part.verbs | {Verb.SELECT}]
        never = [text for part in offers[:1] for text in part.exclude if all(text in o.exclude for o in offers)]
        rows += [(text, verb, 0, 0) for text in never]
        rows += [(t, verb, enrolment.longest_seconds, enrolment.most_live) for part in offers for t in part.tables]
    return list(dict.fromkeys(rows))


def _enrol(enrolment: Enrolment) -> str:
    name = enrolment.login
    lines = [
        sql.SQL("    ({}, {}, {}, {}, {})").format(
            *map(_text, (*pattern(text).split(".", 1), verb.value)), longest, most
        )
        for text, verb, longest, most in _ceiling(enrolment)
    ]
    owners = [
        sql.SQL(_OWNER).format(_text(owner), enrolment.longest_seconds, MOST_LIVE_MIGRATIONS)
        for owner in enrolment.owners
    ]
    return (
        sql.SQL(_ENROL)
        .format(
            name=_text(name),
            installation=_text(enrolment.installation),
            rows=sql.SQL(",\n").join(lines),
        )
        .as_string(None)
    ) + "".join(owner.as_string(None) for owner in owners)


_OWNER = """\
INSERT INTO taskpass.owner (role, longest_seconds, most_live) VALUES ({}, {}, {}) ON CONFLICT DO NOTHING;
"""

_LOGIN = """\
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
        CREATE ROLE {name}{password};
    ELSE
        RAISE NOTICE 'taskpass: the login % is there already and keeps its password', {literal};
    END IF;
END $do$;
ALTER ROLE {name} LOGIN NOINHERIT NOCREATEROLE CONNECTION LIMIT 20;
"""

_REKEYED_LOGIN = """\
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {name}; END IF;
END $do$;
ALTER ROLE {name} LOGIN NOINHERIT NOCREATEROLE CONNECTION LIMIT 20{password};
"""

_VISIBLE = """
SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'taskpass' AND c.relname = 'ceiling'
   AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
"""

_SETTINGS = """
SELECT current_setting('track_activities')::boolean AND to_regprocedure('taskpass.overdue()') IS NOT NULL,
       coalesce(has_parameter_privilege(to_regrole('taskpass_kit')::oid, 'temp_file_limit', 'SET'), false)
"""

_LACKING_ADMIN = """
SELECT o.role::text, format('GRANT %I TO taskpass_kit WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;', o.role)
  FROM taskpass.owner o JOIN pg_roles r ON r.rolname = o.role
 WHERE current_setting('server_version_num')::integer >= 160000
   AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = r.oid AND m.admin_option
                                                   AND m.member = to_regrole('taskpass_kit'))
"""

_UPGRADE = """\
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM taskpass.broker) THEN
        RAISE EXCEPTION 'taskpass: no broker is enrolled in this database, so there is nothing to upgrade'
            USING HINT = 'taskpass init --postgres --print-sql';
    END IF;
END $do$;
"""

# As in kit.sql and reach.sql: an administrator who is no superuser needs the kit's role for what it owns.
_BEGIN_AS_KIT = """\
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL lock_timeout = '10s';
DO $do$ BEGIN
    IF to_regclass('taskpass.broker') IS NULL THEN
        RAISE EXCEPTION 'taskpass: there is no kit in this database';
    END IF;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF current_setting('server_version_num')::integer >= 160000 THEN
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
        ELSE
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER';
        END IF;
    END IF;
END $do$;
"""

_COMMIT_AS_KIT = """\
DO $do$ BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE taskpass_kit FROM CURRENT_USER;
    END IF;
END $do$;
COMMIT;
"""

_FURTHER = """\
INSERT INTO taskpass.broker (login, installation, epoch)
SELECT {name}, {installation}, max(b.epoch) FROM taskpass.broker b WHERE b.installation = {installation}
HAVING count(*) > 0 ON CONFLICT (login) DO NOTHING;
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM taskpass.broker b WHERE b.login = {name} AND b.installation = {installation}) THEN
        RAISE EXCEPTION 'taskpass: this installation is not enrolled in this database';
    END IF;
END $do$;
"""

_ENROL = """\
INSERT INTO taskpass.broker (login, installation) VALUES ({name}, {installation}) ON CONFLICT (login) DO NOTHING;
INSERT INTO taskpass.ceiling (schema_pattern, object_pattern, verb, longest_seconds, most_live) VALUES
{rows}
ON CONFLICT DO NOTHING;
"""
