"""Which provider runs a PostgreSQL, by the traces it leaves, and what is different there for us.

Known from the providers' own pages and from what their databases show; **none of this was tried on a real one**, and
every text says so. What matters is never decided by the name: the preflight probes what the server really does. This
only explains a refusal before somebody wonders, and gives the SQL and the settings that a provider's administrator can
use in place of a superuser's.

``detect`` and ``explain`` are pure: facts in, words out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg

from taskpass.issuers.base import Finding, Severity
from taskpass.wire.postgres.address import parse_address

NOT_TRIED = "not tried on a real one"


class Provider(StrEnum):
    RDS = "Amazon RDS"
    AURORA = "Amazon Aurora"
    CLOUD_SQL = "Google Cloud SQL"
    ALLOYDB = "Google AlloyDB"
    AZURE = "Azure Database for PostgreSQL (flexible server)"
    AZURE_SINGLE = "Azure Database for PostgreSQL (single server)"
    NEON = "Neon"
    SUPABASE = "Supabase"
    CRUNCHY = "Crunchy Bridge or Crunchy PGO"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an ordinary login sees. ``host`` as it was given; ``settings`` are names, of those with a provider's prefix;
    ``superuser``: whether the login that looked is one.
    """

    host: str
    version: str
    roles: frozenset[str]
    settings: frozenset[str]
    databases: frozenset[str]
    routines: frozenset[str]
    superuser: bool = False


def detect(facts: Facts) -> Provider | None:
    """The first provider of whom two kinds of trace agree, or whose host name says it; None for a server of one's own.

    One role or one database of such a name is no sign: a dump that was restored elsewhere brings both.
    """
    for provider, traces in _TRACES.items():
        if any(facts.host.lower().endswith(suffix) for suffix in traces.hosts) and traces.also(facts):
            return provider
    for provider, traces in _TRACES.items():
        kinds = (
            bool(traces.roles & facts.roles),
            any(name.startswith(traces.settings) for name in facts.settings) if traces.settings else False,
            bool(traces.databases & facts.databases),
            bool(traces.routines & facts.routines),
        )
        if sum(kinds) >= traces.enough and traces.also(facts):
            return provider
    return None


@dataclass(frozen=True, slots=True)
class _Traces:
    hosts: tuple[str, ...] = ()
    roles: frozenset[str] = frozenset()
    settings: tuple[str, ...] = ()
    databases: frozenset[str] = frozenset()
    routines: frozenset[str] = frozenset()
    enough: int = 2
    also: Callable[[Facts], bool] = lambda facts: True


def _is_aurora(facts: Facts) -> bool:
    return "aurora_version" in facts.routines or ".cluster-" in facts.host.lower()


# The narrower ones come first: an Aurora has all that RDS has.
_TRACES: dict[Provider, _Traces] = {
    Provider.AURORA: _Traces(
        hosts=(".rds.amazonaws.com", ".rds.amazonaws.com.cn"),
        roles=frozenset({"rds_superuser", "rdsadmin"}),
        settings=("rds.", "apg_", "aurora_"),
        databases=frozenset({"rdsadmin"}),
        routines=frozenset({"aurora_version"}),
        also=_is_aurora,
    ),
    Provider.RDS: _Traces(
        hosts=(".rds.amazonaws.com", ".rds.amazonaws.com.cn"),
        roles=frozenset({"rds_superuser", "rdsadmin"}),
        settings=("rds.",),
        databases=frozenset({"rdsadmin"}),
    ),
    Provider.ALLOYDB: _Traces(
        hosts=(".alloydb.goog",),
        roles=frozenset({"alloydbsuperuser", "alloydbadmin"}),
        settings=("alloydb.", "alloydb_", "google_columnar_engine."),
        databases=frozenset({"alloydbadmin"}),
    ),
    Provider.CLOUD_SQL: _Traces(
        hosts=(".sql.goog",),
        roles=frozenset({"cloudsqlsuperuser", "cloudsqladmin"}),
        settings=("cloudsql.",),
        databases=frozenset({"cloudsqladmin"}),
    ),
    Provider.AZURE_SINGLE: _Traces(
        roles=frozenset({"azure_pg_admin", "azure_superuser"}),
        databases=frozenset({"azure_maintenance", "azure_sys"}),
        also=lambda facts: "Visual C++" in facts.version,
    ),
    Provider.AZURE: _Traces(
        hosts=(".postgres.database.azure.com", ".postgres.database.chinacloudapi.cn"),
        roles=frozenset({"azure_pg_admin", "azuresu"}),
        settings=("azure.",),
        databases=frozenset({"azure_maintenance", "azure_sys"}),
    ),
    Provider.NEON: _Traces(
        hosts=(".neon.tech",),
        roles=frozenset({"neon_superuser", "cloud_admin"}),
        settings=("neon.",),
    ),
    Provider.SUPABASE: _Traces(
        hosts=(".supabase.co", ".supabase.com"),
        roles=frozenset({"supabase_admin", "supabase_auth_admin"}),
        settings=("supautils.", "pgsodium."),
        routines=frozenset({"pgrst_ddl_watch"}),
    ),
    Provider.CRUNCHY: _Traces(
        hosts=(".postgresbridge.com",),
        roles=frozenset({"_crunchyrepl", "_crunchypgbouncer", "crunchyadm"}),
        enough=1,
    ),
}


def explain(provider: Provider, facts: Facts) -> list[Finding]:
    """What is different there, each with the SQL or the step that fits. Notes and warnings, never a refusal."""
    found = [_note(f"this looks like {provider.value}; what follows is from its documentation, {NOT_TRIED}")]
    found += [_note(text, fix) for text, fix in _DIFFERENCES[provider]]
    if provider not in _WITH_SUPERUSER:
        found.append(
            _note(
                "there is no superuser, so the kit's script runs as the provider's administrator: it must own the"
                " database and the tables, or be a member of their owners",
                f"GRANT owner_of_the_tables TO CURRENT_USER;  -- {_ADMIN[provider]}; 16 and later",
            )
        )
        found.append(_note("temp_file_limit cannot be passed on there: no lease has a limit of temporary files"))
    if provider in _HIDDEN:
        found.append(_warning(*_HIDDEN[provider]))
    return found


_WITH_SUPERUSER = frozenset({Provider.CRUNCHY})

_ADMIN: dict[Provider, str] = {
    Provider.RDS: "a member of rds_superuser",
    Provider.AURORA: "a member of rds_superuser",
    Provider.CLOUD_SQL: "postgres, a member of cloudsqlsuperuser",
    Provider.ALLOYDB: "postgres, a member of alloydbsuperuser",
    Provider.AZURE: "the server's administrator, a member of azure_pg_admin",
    Provider.AZURE_SINGLE: "the server's administrator, a member of azure_pg_admin",
    Provider.NEON: "the role that made the database, a member of neon_superuser",
    Provider.SUPABASE: "postgres",
}


def _differs(message: str, fix: str = "") -> tuple[str, str]:
    return message, fix


_LOG_PARAMETERS = "log_line_prefix and log_connections are set in the provider's settings, not by ALTER SYSTEM"

_DIFFERENCES: dict[Provider, tuple[tuple[str, str], ...]] = {
    Provider.RDS: (
        _differs(
            "a login that is a member of rds_iam cannot use its password: the broker's must not be one",
            "REVOKE rds_iam FROM taskpass_broker_…;  -- if somebody granted it",
        ),
        _differs(
            "RDS Proxy pools sessions, so it cannot stand in between",
            "-- use the instance's own endpoint: NAME.ID.REGION.rds.amazonaws.com:5432",
        ),
        _differs(_LOG_PARAMETERS, "-- DB parameter group: log_connections = 1"),
    ),
    Provider.AURORA: (
        _differs(
            "the cluster's writer endpoint moves at a failover; the timeline does not show it, "
            "so a former writer cannot be told apart",
            "-- address = the writer endpoint: NAME.cluster-ID.REGION.rds.amazonaws.com:5432",
        ),
        _differs(
            "readers share the storage and have no replay position that could be waited for: listed as nodes they are"
            " refused",
            "SELECT server_id FROM aurora_replica_status() WHERE session_id <> 'MASTER_SESSION_ID';\n"
            "-- keep agents away from each of them, by their security group",
        ),
        _differs(_LOG_PARAMETERS, "-- DB cluster parameter group: log_connections = 1"),
    ),
    Provider.CLOUD_SQL: (
        _differs(
            "users made through the Cloud SQL API or console are members of cloudsqlsuperuser: "
            "the broker's login is made by the script, in SQL",
            "REVOKE cloudsqlsuperuser FROM taskpass_broker_…;  -- if it was made otherwise",
        ),
        _differs(
            "a server certificate of the instance's own authority",
            "-- sslrootcert=/path/server-ca.pem, and the DNS name",
        ),
        _differs(_LOG_PARAMETERS, "-- database flags: log_connections=on"),
    ),
    Provider.ALLOYDB: (
        _differs(
            "read pools are instances of their own with shared storage: no session there is ended or proven gone",
            "-- keep agents away from the addresses of the read pools",
        ),
        _differs("managed connection pooling listens at a port of its own", "-- use port 5432"),
        _differs(_LOG_PARAMETERS, "-- database flags: log_connections=on"),
    ),
    Provider.AZURE: (
        _differs(
            "the built-in PgBouncer listens at port 6432",
            "-- use port 5432",
        ),
        _differs(
            "logins must be allowed to use SCRAM",
            "-- server parameters: azure.accepted_password_auth_method = scram-sha-256, password_encryption ="
            " scram-sha-256",
        ),
        _differs(_LOG_PARAMETERS, "-- server parameters: log_connections = on"),
    ),
    Provider.AZURE_SINGLE: (
        _differs(
            "single server ended at PostgreSQL 11, and 15 is the oldest that is served",
            "-- migrate to flexible server",
        ),
    ),
    Provider.NEON: (
        _differs(
            "the host with -pooler is a pooler in transaction mode",
            "-- use the host without -pooler",
        ),
        _differs(
            "a direct host is a proxy too, one session to one session; it can suspend an idle server, which ends its"
            " sessions",
            "",
        ),
        _differs(
            "branches are copies with their own logins and passwords of that moment: "
            "a lease that was live when a branch was made can log in there until its VALID UNTIL",
            "-- make branches for agents before leases are given, or as databases of their own",
        ),
    ),
    Provider.SUPABASE: (
        _differs(
            "Supavisor (*.pooler.supabase.com, and port 6543) is a pooler",
            "-- use db.PROJECT.supabase.co:5432, which is IPv6 unless the IPv4 add-on is booked",
        ),
        _differs(
            "PostgREST serves what anon, authenticated and service_role may do over HTTP: a second way to the data that"
            " no lease limits",
            "SELECT grantee, table_schema, table_name, privilege_type FROM information_schema.role_table_grants\n"
            " WHERE grantee IN ('anon', 'authenticated', 'service_role');",
        ),
        _differs(
            "new tables in schema public are open to anon and authenticated by default privileges",
            "ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public"
            " REVOKE ALL ON TABLES FROM anon, authenticated;",
        ),
    ),
    Provider.CRUNCHY: (
        _differs(
            "Bridge: PgBouncer listens at port 5431; PGO: it is a service of its own",
            "-- use port 5432 of the primary",
        ),
        _differs(
            "replicas are hosts or services of their own",
            '-- list each one: nodes = ["HOST:5432/DATABASE"]',
        ),
    ),
}

_HIDDEN: dict[Provider, tuple[str, str]] = dict.fromkeys(
    (Provider.AURORA, Provider.ALLOYDB, Provider.NEON),
    (
        "replicas on shared storage do not show in pg_stat_replication: that none is reported says nothing",
        "-- ask the provider's console, and keep every agent away from them",
    ),
)


def look(connection: psycopg.Connection[Any], address: str) -> tuple[Provider | None, list[Finding]]:
    """Read the facts and explain them. Driver errors come through."""
    with connection.cursor() as cursor:
        row = cursor.execute(
            _FACTS, {"roles": sorted(_names("roles")), "routines": sorted(_names("routines"))}
        ).fetchone()
    assert row is not None
    version, roles, settings, databases, routines, superuser = row
    host = parse_address(address).host
    facts = Facts(
        host, version, frozenset(roles), frozenset(settings), frozenset(databases), frozenset(routines), superuser
    )
    provider = detect(facts)
    return provider, explain(provider, facts) if provider else []


def _names(kind: str) -> frozenset[str]:
    return frozenset[str]().union(*(getattr(traces, kind) for traces in _TRACES.values()))


_FACTS = r"""
SELECT version(),
       ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY (%(roles)s)),
       ARRAY(SELECT name FROM pg_settings
              WHERE name ~ '^(apg_|aurora_|alloydb)'
                 OR name ~ '^(rds|google_columnar_engine|cloudsql|azure|neon|supautils|pgsodium)\.'),
       ARRAY(SELECT datname::text FROM pg_database WHERE datname ~ '^(rdsadmin|alloydbadmin|cloudsqladmin|azure_)'),
       ARRAY(SELECT DISTINCT proname::text FROM pg_proc WHERE proname = ANY (%(routines)s)),
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""


def _note(message: str, fix: str = "") -> Finding:
    return Finding("managed", Severity.NOTE, message, fix)


def _warning(message: str, fix: str = "") -> Finding:
    return Finding("managed", Severity.WARNING, message, fix)
