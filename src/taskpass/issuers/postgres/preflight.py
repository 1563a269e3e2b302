"""Whether a database can be served: what stands against it, in words and SQL that a DBA can act on.

Looks as the broker's own login and changes nothing. What only a real throw-away account shows (does the server check
passwords, does a closed account get refused in the way that proves it) is the issuer's rehearsal; what the kit may pass
on is ``kit.lacking``; the other servers of the cluster are ``nodes.check``; a pooler that shows by its name is refused
when the configuration is loaded.

Not for: deciding what a lease may see; that is the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from taskpass.core.errors import TargetUnfit
from taskpass.core.lease import Target
from taskpass.core.text import visible
from taskpass.issuers.base import Finding, Severity
from taskpass.issuers.postgres import kit, managed
from taskpass.issuers.postgres.catalogue import KIT_SCHEMA, Opening, driver_errors, fetch, public_openings, query
from taskpass.wire.postgres.address import parse_address

Connection = psycopg.Connection[Any]
Facts = dict[str, Any]


def check(connection: Connection, target: Target, *, thorough: bool = False) -> list[Finding]:
    """Everything that stands against serving ``target``, worst first; empty if nothing does.

    ``thorough`` adds what may take long on a large database. Raises ``TargetUnavailable`` if the server does not
    answer and ``TargetUnfit`` if its catalogue cannot be read at all.
    """
    with driver_errors("looking at the database"):
        pids = [_backend(connection) for _ in range(2)]
        facts: Facts = fetch(connection, query("preflight"))[0][0]
    found = [finding for judge in _JUDGES for finding in judge(facts, target)]
    found += through_pooler(pids, connection.info.backend_pid, target.address)
    found += _fence(connection)
    found += _managed(connection, target)
    found += _kit(connection, facts["login"]) if facts["kit"] else [_NO_KIT]
    if facts["encoding"] != _NO_ENCODING:
        found += _public(connection, [name for name in facts["kit_schemas"] if name != KIT_SCHEMA])
    if thorough:
        found += _large_objects(connection)
    order = list(reversed(Severity))
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _backend(connection: Connection) -> int:
    """The process that serves this transaction. Not prepared: some poolers lose prepared statements."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute("SELECT pg_catalog.pg_backend_pid()", prepare=False).fetchone()
        return row[0] if row else 0


_NO_ENCODING = "SQL_ASCII"


def _server(facts: Facts, target: Target) -> list[Finding]:
    found: list[Finding] = []
    if facts["version"] < kit.OLDEST:
        found.append(_fatal("version", f"this is PostgreSQL {facts['version'] // 10000}; 15 is the oldest served"))
    if facts["encoding"] == _NO_ENCODING:
        found.append(
            _fatal(
                "encoding",
                "the database does not say what its bytes mean (SQL_ASCII), so names cannot be shown to people",
                "dump it and load it into a database with ENCODING 'UTF8'",
            )
        )
    if facts["standby"]:
        found.append(
            _fatal(
                "standby",
                "this server is a standby: accounts are made on the primary",
                "give the primary's address; list this one under nodes",
            )
        )
    return found


def _pins(facts: Facts, target: Target) -> list[Finding]:
    """The address may lead elsewhere than when it was enrolled: swapped names, a restored dump, a new cluster."""
    if target.cluster and facts["cluster"] != target.cluster:
        return [
            _fatal(
                "another_target",
                f"this is cluster {facts['cluster']}, and {target.cluster} was enrolled",
                "put the address right, or enrol this one: taskpass init",
            )
        ]
    if target.database and facts["database"] != target.database:
        return [
            _fatal(
                "another_target",
                f"this is database number {facts['database']} of the cluster, and"
                f" {target.database} was enrolled: it was dropped and made again, or the name was swapped",
                "put the address right, or enrol this one: taskpass init",
            )
        ]
    return []


def _login(facts: Facts, target: Target) -> list[Finding]:
    """The broker's login may run the kit's routines and nothing else. Names come quoted from the server."""
    login = facts["login"]
    rights = [
        *((f"is {word}", f"ALTER ROLE {login} NO{word};") for word in facts["attributes"]),
        *((f"is a member of {role}", f"REVOKE {role} FROM {login};") for role in facts["member_of"]),
        *(
            (f"has rights of its own on {named}", f"REVOKE ALL ON {words} FROM {login};" if words else "revoke it")
            for named, words in facts["granted"]
        ),
        *((f"owns {what}", "give it to another owner: ALTER … OWNER TO …;") for what in facts["owns"]),
    ]
    found = [_fatal("broker_login", f"the broker's login {login} {what}", fix) for what, fix in rights]
    if facts["expires"]:
        found.append(
            _warning(
                "broker_login",
                f"the broker's login {login} has an end (VALID UNTIL), after which nothing can be taken back",
                f"ALTER ROLE {login} VALID UNTIL 'infinity';",
            )
        )
    return found


def _other_databases(facts: Facts, target: Target) -> list[Finding]:
    """Roles belong to the whole cluster: a lease could enter every database that PUBLIC may enter."""
    names = facts["other_databases"]
    if not names:
        return []
    severity = Severity.WARNING if target.environment.disposable else Severity.FATAL
    message = f"every login may enter {len(names)} other database(s) of this cluster: {', '.join(names[:5])}"
    fix = "\n".join(facts["close_other_databases"]) + "\n-- first: GRANT CONNECT to the logins that need them"
    return [Finding("other_databases", severity, message, fix)]


def _default_privileges(facts: Facts, target: Target) -> list[Finding]:
    return [
        _warning("default_privileges", "tables that are made later will be open to every login", fix)
        for fix in facts["default_privileges"]
    ]


def _createrole(facts: Facts, target: Target) -> list[Finding]:
    if facts["version"] >= 160000:
        return []
    return [
        _warning(
            "createrole",
            "on PostgreSQL 15 CREATEROLE, which taskpass_kit has, is nearly superuser: whoever"
            " changes the kit's routines can become any role that is not superuser",
            "upgrade to 16 or newer; until then only superusers may alter schema taskpass",
        )
    ]


def _server_log(facts: Facts, target: Target) -> list[Finding]:
    """A role's name is its lease's id, so the server's own log can be joined with ours if it says who."""
    found: list[Finding] = []
    structured = {"csvlog", "jsonlog"} & {word.strip() for word in facts["log_destination"].split(",")}
    if not structured and "%u" not in facts["log_line_prefix"]:
        found.append(
            _note(
                "server_log",
                "the server's log does not say which login a line belongs to",
                "ALTER SYSTEM SET log_line_prefix = '%m [%p] %u@%d '; SELECT pg_reload_conf();",
            )
        )
    if facts["log_connections"] in ("off", ""):
        found.append(
            _note(
                "server_log",
                "the server does not log connections",
                "ALTER SYSTEM SET log_connections = 'on'; SELECT pg_reload_conf();",
            )
        )
    return found


def _passwords(facts: Facts, target: Target) -> list[Finding]:
    if facts["password_encryption"] == "scram-sha-256":  # noqa: S105
        return []
    return [
        _note(
            "password_encryption",
            f"passwords that people set are stored as {facts['password_encryption']} (ours always are SCRAM)",
            "ALTER SYSTEM SET password_encryption = 'scram-sha-256'; SELECT pg_reload_conf();",
        )
    ]


_JUDGES: tuple[Callable[[Facts, Target], list[Finding]], ...] = (
    _server,
    _pins,
    _login,
    _other_databases,
    _default_privileges,
    _createrole,
    _server_log,
    _passwords,
)


def through_pooler(pids: list[int], told: int, address: str) -> list[Finding]:
    """Behind a pooler sessions belong to the pooler, and cancelling and the proof of closing reach it, not the server.

    ``told`` is the process id that came with the login. A pooler invents one; whether two transactions run in one
    process shows less, because a pooler with one idle server connection hands out the same one again.
    """
    if set(pids) == {told}:
        return []
    if len(set(pids)) == 1 and parse_address(address).host.endswith(_SESSION_PROXIES):
        return [_warning("proxy", "the provider's proxy stands between us and the server, one session to one session")]
    return [
        _fatal(
            "pooler_address",
            "a pooler or proxy stands at this address: behind it a revoked account could not be proven gone",
            "give the server's own host and port (Neon: without -pooler; Supabase: db.<project>.supabase.co:5432)",
        )
    ]


def _managed(connection: Connection, target: Target) -> list[Finding]:
    with driver_errors("looking who runs this server"):
        return managed.look(connection, target.address)[1]


_SESSION_PROXIES = (".neon.tech",)
"""Providers whose direct addresses are proxies that pass each session on to a session of its own."""


def _fence(connection: Connection) -> list[Finding]:
    """A session that is only starting shows as a virtualxid lock and nowhere else; closing waits for those."""
    try:
        with driver_errors("looking at locks"):
            sees = fetch(connection, _OWN_LOCK)[0][0]
    except TargetUnfit:
        sees = False
    fix = "GRANT SELECT ON pg_locks TO PUBLIC;\nGRANT EXECUTE ON FUNCTION pg_lock_status() TO PUBLIC;"
    message = "sessions that are only starting cannot be seen, so closing could not be proven"
    return [] if sees else [_fatal("fence", message, fix)]


_OWN_LOCK = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
               WHERE l.locktype = 'virtualxid' AND l.pid = pg_catalog.pg_backend_pid())
"""


_NO_KIT = Finding(
    "kit",
    Severity.FATAL,
    "the target kit is not installed in this database",
    "run what 'taskpass init --postgres --print-sql' prints, as the owner of the database",
)


def _kit(connection: Connection, login: str) -> list[Finding]:
    """The kit is of our version, knows this login, and the DBA's ceiling allows something and is not ours to change."""
    try:
        with driver_errors("looking at the kit"):
            version, rows, writable, enrolled = fetch(connection, _KIT)[0]
    except TargetUnfit:
        return [_fatal("kit", "the broker's login may not look at the kit's version and ceiling", _ENROL_AGAIN)]
    found: list[Finding] = []
    found.append(_version(version))
    if not enrolled:
        found.append(_fatal("kit", "the broker's login may not call the kit's routines", _ENROL_AGAIN))
    if not rows:
        found.append(_fatal("ceiling", "the DBA's ceiling allows nothing", _CEILING))
    for table in writable:
        fix = f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {table} FROM {login}, PUBLIC;"
        found.append(_fatal("ceiling", f"the broker's login may change {table}, which limits it", fix))
    return found


def _version(version: int | None) -> Finding:
    message = f"the kit is version {version}"
    if version == kit.KIT_VERSION:
        return Finding("kit_version", Severity.OK, message)
    message += f", this broker needs {kit.KIT_VERSION}: nothing is issued, what was issued is still taken back"
    return _fatal("kit_version", message, _UPGRADE if (version or 0) < kit.KIT_VERSION else _NEWER_BROKER)


_UPGRADE = "run what 'taskpass init --print-sql --upgrade' prints, as the DBA who installed the kit, in this database"
_NEWER_BROKER = "the DBA has upgraded the kit: upgrade this broker too"
_ENROL_AGAIN = "run what 'taskpass init --postgres --print-sql' prints again, as the owner of the database"
_CEILING = "INSERT INTO taskpass.ceiling VALUES ('public', '*', 'SELECT', 28800, 50); -- or fewer tables"
_KIT = """
SELECT (SELECT max(v.version) FROM taskpass.kit_version v),
       (SELECT count(*) FROM taskpass.ceiling c WHERE c.longest_seconds > 0),
       ARRAY(SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'taskpass' AND c.relkind = 'r'
               AND (pg_catalog.has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                    OR pg_catalog.has_any_column_privilege(c.oid, 'INSERT, UPDATE')) ORDER BY 1),
       NOT EXISTS (SELECT FROM pg_catalog.unnest(ARRAY['issue', 'enable', 'close', 'sweep', 'lend', 'seal', 'clean',
                                                       'seen', 'set_epoch', 'rehearse', 'version']) AS needed(name)
                   WHERE NOT EXISTS (
                       SELECT FROM pg_catalog.pg_proc p
                       WHERE p.pronamespace = 'taskpass'::regnamespace AND p.proname = needed.name
                         AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')))
"""


def _public(connection: Connection, kit_schemas: list[str]) -> list[Finding]:
    """What every lease would inherit, or one on a schema closed to PUBLIC. Resolving refuses for the same."""
    now, later = public_openings(connection, kit_schemas)
    found = [_fatal(_public_check(o), f"{_PUBLIC[o.what]}: {o.named}", o.fix) for o in now]
    found += [
        _warning(_public_check(o), f"leases on {visible(o.schema)} are refused: {_PUBLIC[o.what]}: {o.named}", o.fix)
        for o in later
    ]
    return found


def _public_check(opening: Opening) -> str:
    return f"public_{opening.what.replace(' ', '_')}"


_PUBLIC = {
    "security definer": "every login may run this with its owner's rights",
    "outside": "every login may reach files, programs or the network through this",
    "table": "every login may use this table",
    "create": "every login may create objects here, and others would run them",
    "parameter": "every login may set this",
    "large objects": "every login may read every large object",
}


def _large_objects(connection: Connection) -> list[Finding]:
    with driver_errors("looking at large objects"):
        count, example = fetch(connection, _LARGE_OBJECTS)[0]
    if not count:
        return []
    fix = f"REVOKE ALL ON LARGE OBJECT {example} FROM PUBLIC; -- and {count - 1} more"
    return [_fatal("public_large_objects", f"every login may use {count} large object(s)", fix)]


_LARGE_OBJECTS = """
SELECT count(DISTINCT m.oid), min(m.oid::bigint) FROM pg_catalog.pg_largeobject_metadata m,
       pg_catalog.aclexplode(m.lomacl) a WHERE a.grantee = 0
"""


def _fatal(check: str, message: str, fix: str = "") -> Finding:
    return Finding(check, Severity.FATAL, message, fix)


def _warning(check: str, message: str, fix: str = "") -> Finding:
    return Finding(check, Severity.WARNING, message, fix)


def _note(check: str, message: str, fix: str = "") -> Finding:
    return Finding(check, Severity.NOTE, message, fix)
