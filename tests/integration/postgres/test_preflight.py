"""What stands against serving a database, found as the broker's own login and closed by the SQL that is shown."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from taskpass.core.errors import TargetUnavailable, TargetUnfit
from taskpass.core.separation import Environment
from taskpass.issuers.base import Severity
from taskpass.issuers.postgres import kit, preflight
from tests.integration.postgres.enrolled import TABLES, Broker, until

pytestmark = pytest.mark.service


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


def findings(broker, *, thorough=False, connection=None, **changes):
    target = dataclasses.replace(broker.issuer.target, **changes)
    return preflight.check(connection or broker.connect(), target, thorough=thorough)


def by_check(found):
    return {finding.check: finding for finding in found}


def fatal(found):
    return [finding.check for finding in found if finding.severity is Severity.FATAL]


def test_an_enrolled_database_has_nothing_fatal(broker):
    found = findings(broker, thorough=True)
    assert fatal(found) == []
    modern = broker.database.server.version >= 16
    expected = {"other_databases", "server_log"} if modern else {"other_databases", "server_log", "createrole"}
    assert {finding.check for finding in found if finding.severity is not Severity.OK} == expected


def test_another_cluster_or_database_than_the_enrolled_one_is_fatal(broker):
    (pin,) = broker.database.fetch(
        "SELECT system_identifier::text, (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) "
        "FROM pg_control_system()"
    )
    assert fatal(findings(broker, cluster=pin[0], database=pin[1])) == []
    assert fatal(findings(broker, cluster="7000000000000000001", database=pin[1])) == ["another_target"]
    assert fatal(findings(broker, cluster=pin[0], database=pin[1] + 1)) == ["another_target"]


def test_a_database_without_the_kit_says_how_to_get_it(database):
    database.execute(*TABLES)
    made = Broker(database)
    try:
        made.issuer.close_connections()
        database.execute("DROP SCHEMA taskpass CASCADE")
        found = findings(made)
        assert fatal(found) == ["kit"]
        assert "--print-sql" in by_check(found)["kit"].fix
    finally:
        made.forget()


def test_a_login_that_is_not_enrolled_is_told_so(broker):
    found = findings(broker, connection=broker.database.connect(*broker.database.login("stranger")))
    assert "kit" in fatal(found)


EXCESS = {
    "superuser": 'ALTER ROLE "{login}" SUPERUSER',
    "may make roles": 'ALTER ROLE "{login}" CREATEROLE BYPASSRLS',
    "member of a predefined role": 'GRANT pg_read_all_data TO "{login}"',
    "member of an odd role": 'CREATE ROLE "{name}_o""dd"; GRANT "{name}_o""dd" TO "{login}"',
    "reads a table": 'GRANT SELECT ON shop.orders TO "{login}"',
    "reads a column": 'GRANT SELECT (id) ON shop.orders TO "{login}"',
    "makes things in a schema": 'GRANT CREATE ON SCHEMA shop TO "{login}"',
    "runs a routine": (
        "CREATE FUNCTION shop.f(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';"
        'GRANT EXECUTE ON FUNCTION shop.f TO "{login}"'
    ),
    "a large object": 'SELECT lo_create(4712); GRANT SELECT ON LARGE OBJECT 4712 TO "{login}"',
    "writes the kit's table": 'GRANT UPDATE (state) ON taskpass.lease TO "{login}"',
    "changes the ceiling": 'GRANT UPDATE ON taskpass.ceiling TO "{login}"',
}


@pytest.mark.parametrize("excess", EXCESS)
def test_a_login_with_more_rights_than_the_kits_routines_is_fatal_until_the_shown_sql_has_run(broker, excess):
    broker.database.execute(EXCESS[excess].format(login=broker.login, name=broker.database.name))
    found = [finding for finding in findings(broker) if finding.severity is Severity.FATAL]
    assert {finding.check for finding in found} & {"broker_login", "ceiling"}
    for finding in found:
        broker.database.execute(finding.fix)
    assert fatal(findings(broker)) == []


def test_a_login_that_owns_something_or_ends_by_itself_is_found(broker):
    broker.database.execute(
        "CREATE TABLE shop.mine (id int)",
        f'ALTER TABLE shop.mine OWNER TO "{broker.login}"',
        f"ALTER ROLE \"{broker.login}\" VALID UNTIL '2099-01-01'",
    )
    found = [finding for finding in findings(broker) if finding.check == "broker_login"]
    assert [finding.severity for finding in found] == [Severity.FATAL, Severity.WARNING]
    assert "shop.mine" in found[0].message


def test_the_role_of_an_own_lease_that_is_lent_for_closing_is_no_excess(broker):
    role = f"tp_{broker.installation}_lent"
    broker.database.execute(f'CREATE ROLE "{role}"', f'GRANT "{role}" TO "{broker.login}"')
    found = fatal(findings(broker))
    broker.database.execute(f'DROP ROLE "{role}"')
    assert found == []


def test_the_role_of_another_installations_lease_is_excess(broker):
    role = f"tp_0000{broker.database.name:0>4}_lent"
    broker.database.execute(f'CREATE ROLE "{role}"', f'GRANT "{role}" TO "{broker.login}"')
    found = fatal(findings(broker))
    broker.database.execute(f'DROP ROLE "{role}"')
    assert found == ["broker_login"]


def test_other_databases_that_every_login_may_enter_are_fatal_where_data_matters(broker):
    opened = [name for (name,) in broker.database.fetch("SELECT datname FROM pg_database WHERE datallowconn")]
    opened = [name for name in opened if name != broker.database.name]
    for environment, severity in (
        (Environment.PREVIEW, Severity.WARNING),
        (Environment.DEV, Severity.WARNING),
        (Environment.STAGING, Severity.FATAL),
        (Environment.PRODUCTION, Severity.FATAL),
    ):
        found = by_check(findings(broker, environment=environment))["other_databases"]
        assert found.severity is severity
    assert all(name in found.message for name in opened[:5])
    try:
        broker.database.execute(*found.fix.splitlines()[:-1])
        assert "other_databases" not in by_check(findings(broker, environment=Environment.PRODUCTION))
    finally:
        broker.database.execute(
            *(f'GRANT CONNECT, TEMPORARY ON DATABASE "{name}" TO PUBLIC' for name in opened if name != "template1"),
            "GRANT CONNECT ON DATABASE template1 TO PUBLIC",
        )


def test_defaults_that_will_open_later_tables_are_found_and_closed(broker):
    owner = broker.database.role("owner")
    broker.database.execute(
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO PUBLIC",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA shop GRANT USAGE ON SEQUENCES TO PUBLIC",
    )
    found = [finding for finding in findings(broker) if finding.check == "default_privileges"]
    assert len(found) == 2
    broker.database.execute(*(finding.fix for finding in found))
    assert "default_privileges" not in by_check(findings(broker))


def test_a_server_on_which_starting_sessions_cannot_be_seen_is_fatal(broker):
    broker.database.execute("REVOKE SELECT ON pg_catalog.pg_locks FROM PUBLIC")
    try:
        found = findings(broker)
        assert fatal(found) == ["fence"]
        broker.database.execute(by_check(found)["fence"].fix)
        assert fatal(findings(broker)) == []
    finally:
        broker.database.execute("GRANT SELECT ON pg_catalog.pg_locks TO PUBLIC")


class Pooled:
    """Behaves as a transaction pooler does: each statement goes to the next of two server processes."""

    def __init__(self, first, second, told=None):
        self._each = [first, second]
        self.info = type("Info", (), {"backend_pid": told or first.info.backend_pid})()

    def cursor(self, **options):
        self._each.reverse()
        return self._each[0].cursor(**options)


def test_a_pooler_that_changes_processes_is_fatal_and_the_direct_address_is_asked_for(broker):
    found = findings(broker, connection=Pooled(broker.connect(), broker.connect()))
    assert fatal(found) == ["pooler_address"]
    assert "server's own host" in by_check(found)["pooler_address"].fix


def test_a_process_id_that_the_server_did_not_give_is_fatal_but_for_a_providers_session_proxy(broker):
    one = broker.connect()
    invented = Pooled(one, one, told=1)
    assert fatal(findings(broker, connection=invented)) == ["pooler_address"]
    direct = findings(broker, connection=invented, address="ep-x.eu.aws.neon.tech:5432/shop")
    assert fatal(direct) == []
    assert by_check(direct)["proxy"].severity is Severity.WARNING
    changing = Pooled(broker.connect(), broker.connect())
    assert fatal(findings(broker, connection=changing, address="ep-x.eu.aws.neon.tech:5432/shop")) == ["pooler_address"]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_real_pgbouncer_is_refused(broker, mode):
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    server = broker.database.server
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        users, config = Path(folder, "users"), Path(folder, "ini")
        users.write_text(f'"{broker.login}" "{broker.password.reveal()}"\n')
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = {mode}\n"
            "unix_socket_dir =\n"
        )
        state = server.directory.stat()
        for path in (Path(folder), users, config):
            os.chown(path, state.st_uid, state.st_gid)
        as_root = {"user": state.st_uid, "group": state.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
        process = subprocess.Popen([program, "-q", config], stderr=subprocess.DEVNULL, **as_root)
        try:
            with until(lambda: _through(broker, port), what="a connection through pgbouncer") as connection:
                assert fatal(findings(broker, connection=connection)) == ["pooler_address"]
        finally:
            process.terminate()
            process.wait(30)


def _through(broker, port):
    try:
        return psycopg.connect(
            host="127.0.0.1",
            port=port,
            dbname=broker.database.name,
            user=broker.login,
            password=broker.password.reveal(),
            autocommit=True,
        )
    except psycopg.OperationalError:
        return None


def test_a_kit_of_another_version_or_with_a_missing_right_is_fatal(broker):
    broker.database.execute("UPDATE taskpass.kit_version SET version = 99")
    assert fatal(findings(broker)) == ["kit_version"]
    broker.database.execute(f"UPDATE taskpass.kit_version SET version = {kit.KIT_VERSION}")
    broker.database.execute(f'REVOKE EXECUTE ON FUNCTION taskpass.sweep FROM "{broker.login}"')
    assert fatal(findings(broker)) == ["kit"]


def test_a_ceiling_that_allows_nothing_or_cannot_be_read_is_fatal(broker):
    broker.database.execute("UPDATE taskpass.ceiling SET longest_seconds = 0")
    assert fatal(findings(broker)) == ["ceiling"]
    broker.database.execute(f'REVOKE SELECT ON taskpass.ceiling FROM "{broker.login}"')
    assert fatal(findings(broker)) == ["kit"]


@pytest.mark.parametrize(
    ("opening", "check"),
    [
        (
            "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
            "public_security_definer",
        ),
        ("CREATE TABLE public.t (id int); GRANT SELECT ON public.t TO PUBLIC", "public_table"),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "public_create"),
        ("GRANT EXECUTE ON FUNCTION pg_ls_dir(text) TO PUBLIC", "public_outside"),
    ],
)
def test_what_public_may_do_beyond_any_lease_is_named_with_its_sql(broker, opening, check):
    broker.database.execute(opening)
    found = findings(broker)
    assert fatal(found) == [check]
    broker.database.execute(found[0].fix)
    assert fatal(findings(broker)) == []


def test_an_opening_in_a_schema_that_only_leases_may_use_is_a_warning_with_its_sql(broker):
    broker.database.execute(
        "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "CREATE SCHEMA elsewhere",
        "CREATE FUNCTION elsewhere.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    )
    found = [finding for finding in findings(broker) if finding.check == "public_security_definer"]
    assert [finding.severity for finding in found] == [Severity.WARNING]
    assert "leases on shop" in found[0].message
    with pytest.raises(TargetUnfit):
        broker.issuer.resolve(broker.scope)
    broker.database.execute(found[0].fix)
    assert broker.issuer.resolve(broker.scope).objects


def test_a_large_object_for_everybody_is_found_by_the_thorough_look(broker):
    broker.database.execute("SELECT lo_create(4711)", "GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC")
    assert fatal(findings(broker)) == []
    found = findings(broker, thorough=True)
    assert fatal(found) == ["public_large_objects"]
    broker.database.execute(found[0].fix)
    assert fatal(findings(broker, thorough=True)) == []


def test_a_log_that_names_no_login_is_a_note(broker):
    server = broker.database.server
    try:
        server.configure(log_line_prefix="%m ", log_connections="off", password_encryption="md5")
        found = findings(broker)
        assert {f.check for f in found if f.severity is Severity.NOTE} == {"server_log", "password_encryption"}
        assert sum(f.check == "server_log" for f in found) == 2
        server.configure(log_line_prefix="%m %u ", log_connections="on")
        assert "server_log" not in by_check(findings(broker))
    finally:
        server.configure(log_line_prefix="%m [%p] %u@%d ", log_connections="off", password_encryption="scram-sha-256")


def test_a_database_without_an_encoding_is_fatal_and_not_a_crash(server, database):
    name = f"{database.name}_ascii"
    database.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII'")
    user, password = database.login()
    try:
        with server.connect(name, user, password) as connection:
            found = preflight.check(connection, Broker.new_issuer(_Bare(database)).target)
        assert "encoding" in fatal(found)
    finally:
        database.execute(f"DROP DATABASE {name}")


class _Bare:
    """Enough of a broker to make a target."""

    def __init__(self, database):
        self.database, self.installation, self.password = database, "0" * 8, None


def test_a_standby_and_an_old_server_are_fatal(broker):
    facts = {"version": 140010, "encoding": "UTF8", "standby": True}
    assert fatal(preflight._server(facts, broker.issuer.target)) == ["version", "standby"]


def test_a_server_that_trusts_everybody_fails_the_rehearsal(broker):
    server = broker.database.server
    server.rewrite_hba(
        f"host all {broker.login},{server.superuser} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
    )
    try:
        found = broker.issuer.preflight(thorough=True)
        assert "rehearsal" in fatal(found)
        assert "without checking its password" in by_check(found)["rehearsal"].message
    finally:
        server.rewrite_hba()


def test_worst_comes_first(broker):
    broker.database.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    order = [Severity.FATAL, Severity.WARNING, Severity.NOTE, Severity.OK]
    ranks = [order.index(finding.severity) for finding in findings(broker)]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0


def test_a_server_that_went_away_is_unavailable(broker):
    connection = broker.connect()
    connection.close()
    with pytest.raises(TargetUnavailable):
        findings(broker, connection=connection)
