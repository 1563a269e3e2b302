"""The target kit as one script for the DBA: install, upgrade, remove, and what it lacks.

``install_sql`` is the text that ``taskpass init`` runs and that ``--print-sql`` shows: the same bytes. It may be run
again (an upgrade, another installation, more tables). Not for: running anything with the broker's own rights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

from taskpass.core.decision import ABSOLUTE_MAX_TTL
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import InstallationId
from taskpass.core.scope import pattern
from taskpass.issuers.base import Finding, Severity

KIT_VERSION = 1
OLDEST = 150000
"""The oldest ``server_version_num`` that the kit was measured on."""

MOST_LIVE = 50

_INSTALLATION = re.compile(r"[0-9a-hjkmnp-tv-z]{8}")


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What one installation may do in one database at most.

    ``verifier`` is the SCRAM verifier of the broker's login, or empty if it proves itself without a password (peer, cert).
    ``tables`` and ``exclude`` are patterns as in a resource's access; they become rows of ``taskpass.ceiling``, which the
    DBA may edit afterwards (rows that exist are left alone). ``longest_seconds`` is one lease's whole life.
    """

    installation: InstallationId
    verifier: str
    tables: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    longest_seconds: int = ABSOLUTE_MAX_TTL
    most_live: int = MOST_LIVE


def broker_login(installation: InstallationId) -> str:
    """The name of the broker's own login in every target."""
    if not _INSTALLATION.fullmatch(installation):
        raise InvalidInput("not a valid installation id")
    return f"taskpass_broker_{installation}"


def install_sql(server_version: int, enrolment: Enrolment) -> str:
    """The whole script; ``server_version`` is ``server_version_num``. Needs no parameters and no psql commands.

    It runs in one transaction. What the administrator may not grant is a WARNING there and a finding of ``lacking``.
    """
    if server_version < OLDEST:
        raise InvalidInput("Taskpass needs PostgreSQL 15 or newer")
    if not enrolment.tables:
        raise InvalidInput("an enrolment names at least one table pattern")
    return "\n".join((_HEADER, _ROLES, _login(enrolment), _kit(), _OWNER, _enrol(enrolment), _REACH, _FOOTER))


def uninstall_sql() -> str:
    """Removes the kit from the current database. Refuses while a lease of any installation is not cleaned."""
    return _UNINSTALL


def hardening_sql(databases: Iterable[str]) -> str:
    """Ends what every login may do in the cluster's *other* databases: connect, and create temporary tables."""
    return "\n".join(
        sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC;").format(sql.Identifier(name)).as_string(None)
        for name in databases
    )


def lacking(connection: psycopg.Connection[Any]) -> list[Finding]:
    """What the kit needs and does not have here, as the broker's login (or an administrator) can see it."""
    found = connection.execute(_LACKING).fetchall()
    return [Finding(check, Severity(severity), message, fix) for check, severity, message, fix in found]


def _kit() -> str:
    return files(__package__ or "").joinpath("kit.sql").read_text(encoding="utf-8")


def _login(enrolment: Enrolment) -> str:
    name = sql.Identifier(broker_login(enrolment.installation))
    password = sql.SQL(" PASSWORD {}").format(_text(enrolment.verifier)) if enrolment.verifier else sql.SQL("")
    return (
        sql.SQL(
            "DO $do$ BEGIN\n"
            "    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {name}; END IF;\n"
            "END $do$;\n"
            "ALTER ROLE {name} LOGIN NOINHERIT NOCREATEDB NOCREATEROLE CONNECTION LIMIT 20{password};\n"
        )
        .format(name=name, literal=_text(broker_login(enrolment.installation)), password=password)
        .as_string(None)
    )


def _text(value: str) -> sql.Literal:
    if "\0" in value:
        raise InvalidInput("a text in SQL cannot hold a NUL")
    return sql.Literal(value)


def _enrol(enrolment: Enrolment) -> str:
    name = broker_login(enrolment.installation)
    rows = [(text, enrolment.longest_seconds, enrolment.most_live) for text in enrolment.tables]
    rows += [(text, 0, 0) for text in enrolment.exclude]
    lines = [
        sql.SQL("    ({}, {}, 'SELECT', {}, {})").format(*map(_text, pattern(text).split(".", 1)), longest, most)
        for text, longest, most in rows
    ]
    return (
        sql.SQL(_ENROL)
        .format(login=sql.Identifier(name), name=_text(name), installation=_text(enrolment.installation), rows=sql.SQL(",\n").join(lines))
        .as_string(None)
    )


_HEADER = """\
-- Taskpass: enrolment of one database. Run it while connected to that database, as a superuser, or (16 and later) as
-- the owner of the database and its tables with CREATEROLE. It may be run again.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL lock_timeout = '10s';
"""

_ROLES = """\
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskpass_kit') THEN
        CREATE ROLE taskpass_kit NOLOGIN CREATEROLE;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskpass_kit'
                  AND (rolsuper OR rolcanlogin OR rolcreatedb OR rolreplication OR rolbypassrls OR NOT rolcreaterole)) THEN
        RAISE EXCEPTION 'taskpass: there is a role taskpass_kit that is not NOLOGIN CREATEROLE only';
    END IF;
    -- An administrator who is not a superuser needs the role while the routines are handed to it; ends below.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF current_setting('server_version_num')::integer >= 160000 THEN
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
        ELSE
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER';
        END IF;
    END IF;
END $do$;
"""

_OWNER = """\
-- The routines run as taskpass_kit and are nobody's to call until they are granted.
GRANT CREATE ON SCHEMA taskpass TO taskpass_kit;
DO $do$ DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'taskpass'::regnamespace LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO taskpass_kit', routine);
        EXECUTE format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', routine);
    END LOOP;
END $do$;
REVOKE CREATE ON SCHEMA taskpass FROM taskpass_kit;
INSERT INTO taskpass.kit_version (version) VALUES (1) ON CONFLICT (version) DO NOTHING;
"""

_ENROL = """\
INSERT INTO taskpass.broker (login, installation) VALUES ({name}, {installation}) ON CONFLICT (login) DO NOTHING;
INSERT INTO taskpass.ceiling (schema_pattern, object_pattern, verb, longest_seconds, most_live) VALUES
{rows}
ON CONFLICT DO NOTHING;
GRANT USAGE ON SCHEMA taskpass TO {login};
GRANT SELECT ON taskpass.ceiling, taskpass.kit_version TO {login};
GRANT EXECUTE ON FUNCTION taskpass.issue, taskpass.enable, taskpass.close, taskpass.sweep, taskpass.lend, taskpass.seal,
    taskpass.clean, taskpass.epoch, taskpass.set_epoch, taskpass.rehearse, taskpass.version TO {login};
DO $do$ BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), {name});
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO taskpass_kit WITH GRANT OPTION', current_database());
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'taskpass: not allowed to grant CONNECT on this database';
END $do$;
"""

_REACH = """\
-- What taskpass_kit may pass on: SELECT on the tables that the ceiling allows, USAGE of their schemas, and the same for
-- tables that are made later where the ceiling has a wildcard. It gets no ownership and no other right.
DO $do$ DECLARE
    item record;
BEGIN
    FOR item IN SELECT DISTINCT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  JOIN taskpass.ceiling l ON n.nspname LIKE taskpass.pattern(l.schema_pattern) ESCAPE '!'
                                         AND c.relname LIKE taskpass.pattern(l.object_pattern) ESCAPE '!'
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                   AND n.nspname NOT IN ('information_schema', 'taskpass')
                 GROUP BY n.nspname, c.relname HAVING min(l.longest_seconds) > 0 ORDER BY 1, 2 LOOP
        BEGIN
            EXECUTE format('GRANT SELECT ON TABLE %I.%I TO taskpass_kit WITH GRANT OPTION', item.nspname, item.relname);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'taskpass: not allowed to grant SELECT on %.%', item.nspname, item.relname;
        END;
    END LOOP;
    FOR item IN SELECT n.nspname, bool_or(l.object_pattern LIKE '%*%') AS follows,
                       array(SELECT DISTINCT r.rolname FROM pg_roles r WHERE r.rolname !~ '^pg_' AND r.oid IN (
                           SELECT c.relowner FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
                           UNION SELECT n.nspowner
                           UNION SELECT d.datdba FROM pg_database d WHERE d.datname = current_database()))
                       AS owners
                  FROM pg_namespace n JOIN taskpass.ceiling l ON n.nspname LIKE taskpass.pattern(l.schema_pattern) ESCAPE '!'
                 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'taskpass') AND l.longest_seconds > 0
                 GROUP BY n.oid, n.nspname, n.nspowner LOOP
        BEGIN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO taskpass_kit WITH GRANT OPTION', item.nspname);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE WARNING 'taskpass: not allowed to grant USAGE on schema %', item.nspname;
        END;
        FOR number IN 1 .. CASE WHEN item.follows THEN cardinality(item.owners) ELSE 0 END LOOP
            BEGIN
                EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT SELECT ON TABLES TO taskpass_kit'
                               ' WITH GRANT OPTION', item.owners[number], item.nspname);
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE WARNING 'taskpass: new tables of % in schema % will not follow', item.owners[number], item.nspname;
            END;
        END LOOP;
    END LOOP;
END $do$;
"""

_FOOTER = """\
DO $do$ BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE taskpass_kit FROM CURRENT_USER;
    END IF;
END $do$;
COMMIT;
"""

_UNINSTALL = """\
-- Taskpass: removes the kit from the current database. Leases must be cleaned first.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
DO $do$ DECLARE
    login name;
    logins name[];
BEGIN
    IF EXISTS (SELECT FROM taskpass.lease WHERE state <> 'cleaned') THEN
        RAISE EXCEPTION 'taskpass: there are leases that are not cleaned' USING HINT = 'taskpass revoke --all';
    END IF;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF current_setting('server_version_num')::integer >= 160000 THEN
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER WITH INHERIT TRUE, SET TRUE';
        ELSE
            EXECUTE 'GRANT taskpass_kit TO CURRENT_USER';
        END IF;
    END IF;
    logins := array(SELECT b.login FROM taskpass.broker b);
    DROP SCHEMA taskpass CASCADE;
    DROP OWNED BY taskpass_kit;
    FOREACH login IN ARRAY logins LOOP
        BEGIN
            EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), login);
            EXECUTE format('DROP ROLE %I', login);
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            RAISE WARNING 'taskpass: % is still used elsewhere and stays', login;
        END;
    END LOOP;
    BEGIN
        DROP ROLE taskpass_kit;
    EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
        RAISE WARNING 'taskpass: taskpass_kit is still used in another database and stays';
    END;
END $do$;
COMMIT;
"""

_LACKING = """\
WITH kit AS (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = 'taskpass_kit'),
wanted AS (
    SELECT c.oid, n.oid AS schema, n.nspname, c.relname
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN taskpass.ceiling l
        ON n.nspname LIKE replace(replace(replace(replace(l.schema_pattern, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') ESCAPE '!'
       AND c.relname LIKE replace(replace(replace(replace(l.object_pattern, '!', '!!'), '%', '!%'), '_', '!_'), '*', '%') ESCAPE '!'
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
       AND n.nspname NOT IN ('information_schema', 'taskpass')
     GROUP BY c.oid, n.oid, n.nspname, c.relname HAVING min(l.longest_seconds) > 0)
SELECT 'kit_grant', 'warning', format('the kit may not pass on SELECT on %I.%I', w.nspname, w.relname),
       format('GRANT SELECT ON TABLE %I.%I TO taskpass_kit WITH GRANT OPTION;', w.nspname, w.relname)
  FROM wanted w, kit WHERE NOT has_table_privilege(kit.oid, w.oid, 'SELECT WITH GRANT OPTION')
UNION ALL
SELECT DISTINCT 'kit_grant', 'warning', format('the kit may not pass on USAGE of schema %I', w.nspname),
       format('GRANT USAGE ON SCHEMA %I TO taskpass_kit WITH GRANT OPTION;', w.nspname)
  FROM wanted w, kit WHERE NOT has_schema_privilege(kit.oid, w.schema, 'USAGE WITH GRANT OPTION')
UNION ALL
SELECT 'kit_grant', 'fatal', 'the kit may not pass on CONNECT to this database',
       format('GRANT CONNECT ON DATABASE %I TO taskpass_kit WITH GRANT OPTION;', current_database())
  FROM kit WHERE NOT has_database_privilege(kit.oid, current_database(), 'CONNECT WITH GRANT OPTION')
UNION ALL
SELECT 'kit_members', 'fatal', format('%s may become taskpass_kit, and so make any role', m.member::regrole),
       format('REVOKE taskpass_kit FROM %s;', m.member::regrole)
  FROM pg_catalog.pg_auth_members m, kit
 WHERE m.roleid = kit.oid AND NOT m.admin_option
UNION ALL
SELECT 'broker_login', 'fatal', format('the broker''s login %I has rights of its own', r.rolname),
       format('ALTER ROLE %I NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;', r.rolname)
  FROM pg_catalog.pg_roles r
 WHERE r.rolname ~ '^taskpass_broker_' AND (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
"""
