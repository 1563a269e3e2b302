"""Versions of the target kit: from an older one, never to an older one, and out again without a trace."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from taskpass.core.scope import VERBS_OF_LEVEL, Level, Scope
from taskpass.issuers.base import Severity
from taskpass.issuers.postgres import kit, scram
from taskpass.testing.postgres import program as newest
from tests.integration.postgres.enrolled import ENTROPY, TABLES, Broker, outcome

pytestmark = pytest.mark.service

VERSION_1 = (Path(__file__).parent / "kit_1.sql").read_text()


class OldBroker(Broker):
    """Enrolled with version 1 of the kit."""

    def install(self, connection, verifier, enrolment):
        script = VERSION_1.replace("@INSTALLATION@", self.installation).replace("@VERIFIER@", verifier)
        connection.execute(script.encode())


@pytest.fixture
def shop(database):
    database.execute(*TABLES)
    return database


@pytest.fixture
def enrol(shop):
    made = []

    def new(kind=Broker, **options):
        made.append(kind(shop, **options))
        return made[-1]

    yield new
    for each in made:
        each.forget()


CATALOGUE = """
SELECT 'column', format('%s.%s %s %s %s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
       a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
 WHERE c.relnamespace = 'taskpass'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v')
UNION ALL
SELECT 'constraint', format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
 WHERE connamespace = 'taskpass'::regnamespace
UNION ALL
SELECT 'routine', format('%s %s %s', proowner::regrole, pg_get_functiondef(oid),
       (SELECT string_agg(x::text, ',' ORDER BY x::text)
       FROM unnest(proacl) x)) FROM pg_proc WHERE pronamespace = 'taskpass'::regnamespace
UNION ALL
SELECT 'class', format('%s %s %s', oid::regclass, relowner::regrole, (SELECT string_agg(x::text, ',' ORDER BY x::text)
       FROM unnest(relacl) x)) FROM pg_class WHERE relnamespace = 'taskpass'::regnamespace AND relkind IN ('r', 'v')
UNION ALL
SELECT 'column rights', format('%s.%s %s', attrelid::regclass, attname, attacl) FROM pg_attribute
 WHERE attacl IS NOT NULL AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'taskpass'::regnamespace)
UNION ALL
SELECT 'rights', format('%s %s', nspname, (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(nspacl) x))
  FROM pg_namespace WHERE nspname IN ('taskpass', 'shop')
UNION ALL
SELECT 'view', pg_get_viewdef('taskpass.leases'::regclass)
"""


def catalogue(broker):
    return sorted(
        (kind, text.replace(broker.installation, "INSTALLATION")) for kind, text in broker.database.fetch(CATALOGUE)
    )


# ---- upgrade ----


def test_an_upgraded_kit_is_the_same_as_a_fresh_one(enrol, shop):
    old = enrol(OldBroker)
    for _ in range(2):  # It may run again.
        shop.execute(kit.upgrade_sql())
    upgraded = catalogue(old)
    old.forget()
    shop.execute("DROP SCHEMA taskpass CASCADE", "DROP OWNED BY taskpass_kit")
    assert upgraded == catalogue(enrol())


def test_an_upgrade_leaves_live_leases_alone_and_their_rows_whole(enrol, shop):
    old = enrol(OldBroker)
    lease = old.new_lease()
    issued_by_version_1(old, lease)
    shop.execute(kit.upgrade_sql())
    assert shop.fetch("SELECT lease, state, audit_head FROM taskpass.leases") == [(lease, "created", "")]
    old.issuer.enable(old.role_name(lease), lifetime=60, audit_head="9:sha256:0abc")
    assert shop.fetch("SELECT state, audit_head FROM taskpass.leases") == [("enabled", "9:sha256:0abc")]
    assert old.issuer.close(old.role_name(lease), audit_head="").answer == "AuthenticationOk,28000"
    assert old.issuer.clean(old.role_name(lease))


def issued_by_version_1(broker, lease):
    (oid,) = broker.database.fetch("SELECT 'shop.orders'::regclass::oid::bigint")[0]
    with contextlib.closing(broker.connect()) as connection:
        connection.execute(
            "SELECT taskpass.issue(%s, %s::jsonb, %s, 60, 5, '7:sha256:00')",
            [
                lease,
                f'[{{"oid": {oid}, "columns": [1], "verbs": ["SELECT"]}}]',
                scram.verifier(broker.password, ENTROPY),
            ],
        )


def test_with_an_older_kit_nothing_is_fit_and_everything_is_still_taken_back(enrol):
    old = enrol(OldBroker)
    lease = old.new_lease()
    issued_by_version_1(old, lease)
    (finding,) = [f for f in old.issuer.preflight() if f.severity is Severity.FATAL]
    assert finding.check == "kit_version"
    assert finding.message.startswith("the kit is version 1, this broker needs 2: ")
    assert "init --print-sql --upgrade" in finding.fix
    role = old.role_name(lease)
    assert [found.name for found in old.issuer.inventory().own] == [role]
    assert old.issuer.close(role, audit_head="8:sha256:00").answer == "AuthenticationOk,28000"
    assert old.issuer.sweep(role) == 0
    assert old.issuer.clean(role)
    assert old.issuer.inventory().own == ()


def test_a_newer_kit_is_not_replaced_by_an_older_script(enrol, shop):
    broker = enrol()
    shop.execute("INSERT INTO taskpass.kit_version VALUES (3)")
    before = catalogue(broker)
    for script in (kit.upgrade_sql(), script_of(broker)):
        with pytest.raises(psycopg.errors.RaiseException) as caught:
            shop.execute(script)
        assert "version 3" in caught.value.diag.message_primary
    assert catalogue(broker) == before
    (finding,) = [f for f in broker.issuer.preflight() if f.severity is Severity.FATAL]
    assert (finding.check, "upgrade this broker" in finding.fix) == ("kit_version", True)


def script_of(broker):
    verifier = scram.verifier(broker.password, ENTROPY)
    return kit.install_sql(
        broker.database.server.version * 10000,
        kit.Enrolment(broker.installation, verifier, ("shop.*",), ("shop.hidden",)),
    )


def test_an_upgrade_installs_nothing_where_no_broker_is_enrolled(shop):
    with pytest.raises(psycopg.errors.RaiseException):
        shop.execute(kit.upgrade_sql())
    assert shop.fetch("SELECT FROM pg_namespace WHERE nspname = 'taskpass'") == []


def test_a_routine_that_only_an_older_kit_had_is_gone_after_the_upgrade(enrol, shop):
    broker = enrol(OldBroker)
    shop.execute(
        "CREATE FUNCTION taskpass.issue(lease text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION taskpass.issue(text) OWNER TO taskpass_kit",
        f'GRANT EXECUTE ON FUNCTION taskpass.issue(text) TO "{broker.login}"',
        kit.upgrade_sql(),
    )
    assert shop.fetch("SELECT to_regprocedure('taskpass.issue(text)')") == [(None,)]


def test_another_installation_s_enrolment_keeps_the_first_one_serving(enrol):
    first = enrol()
    made = first.live()
    second = enrol()
    assert second.login != first.login
    assert first.issuer.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
    assert first.issuer.clean(made.role)


# ---- the DBA's view ----


def test_the_dba_sees_each_lease_with_its_role_end_audit_head_and_sessions(enrol, shop):
    broker = enrol()
    made = broker.live()
    session = broker.enter(made)
    query = (
        "SELECT lease, role::text, installation, state, can_login, audit_head, sessions, objects, until > since"
        " FROM taskpass.leases"
    )
    assert shop.fetch(query) == [
        (made.lease, made.role, broker.installation, "enabled", True, "8:sha256:00ff", 1, 1, True)
    ]
    session.close()
    broker.issuer.close(made.role, audit_head="9:sha256:00aa")
    assert shop.fetch("SELECT state, can_login, until, audit_head, sessions FROM taskpass.leases") == [
        ("sealed", False, None, "9:sha256:00aa", 0)
    ]


def test_nobody_but_dbas_sees_the_view(enrol, shop):
    broker = enrol()
    made = broker.live()
    for connection in (broker.connect(), broker.enter(made), shop.connect(*shop.login("app"))):
        assert outcome(lambda c=connection: c.execute("SELECT * FROM taskpass.leases")) == "42501"


# ---- uninstall ----


def traces(database):
    """Everything that pg_dumpall and pg_dump write, and the rights in the catalogue, where nothing is a default."""
    dumps = [_dump(database, "pg_dumpall", "--globals-only", "--no-role-passwords"), _dump(database, "pg_dump")]
    rights = database.fetch(
        """
        SELECT classid::regclass::text, objid::bigint, objsubid, refobjid::regrole::text FROM pg_shdepend
         WHERE refclassid = 'pg_authid'::regclass
           AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        UNION ALL SELECT 'member', roleid::bigint, 0, member::regrole::text FROM pg_auth_members
        UNION ALL SELECT 'role', oid::bigint, 0, rolname::text FROM pg_roles
        UNION ALL SELECT 'schema', oid::bigint, 0, nspname::text FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
        UNION ALL SELECT 'routine', oid::bigint, 0, proname::text FROM pg_proc
        UNION ALL SELECT 'default', oid::bigint, 0, defaclacl::text FROM pg_default_acl
        UNION ALL SELECT 'comment', objoid::bigint, 0, description FROM pg_shdescription
        """
    )
    return dumps, sorted(rights)


def _dump(database, program, *more):
    server = database.server
    done = subprocess.run(
        [
            *(newest(program), *more, "--no-sync", "-h", server.host, "-p", str(server.port)),
            *("-U", server.superuser, "-d" if program == "pg_dump" else "-l", database.name),
        ],
        env={"PATH": os.environ["PATH"], "PGPASSWORD": server.password.reveal()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if not line.startswith(("--", "\\restrict", "\\unrestrict"))]


def test_uninstalling_leaves_no_trace_in_the_database_or_the_cluster(enrol, shop):
    with shop.server.connect() as admin:
        if admin.execute("SELECT 1 FROM pg_roles WHERE rolname = 'taskpass_kit'").fetchone():
            in_use = admin.execute(
                "SELECT count(*) FROM pg_shdepend WHERE refobjid = 'taskpass_kit'::regrole AND dbid <> 0"
            ).fetchone()
            assert in_use == (0,), "another database of this server still uses the kit"
            admin.execute("DROP OWNED BY taskpass_kit")  # the right to set a parameter is the whole cluster's
            admin.execute("DROP ROLE taskpass_kit")
        for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^taskpass_kit_.$'").fetchall():
            admin.execute(f"DROP ROLE {name}")
    owner = shop.role("owner")
    before = traces(shop)
    verbs = VERBS_OF_LEVEL[Level.WRITE]
    broker = enrol(writes=(kit.Writing(("shop.*",), ("shop.hidden",), verbs),), owners=(owner,))
    made = broker.live(), broker.live(scope=Scope("shop", "write", Level.WRITE, ("shop.orders",)))
    for each in made:
        broker.enter(each).close()
        broker.issuer.close(each.role, audit_head="")
        assert broker.issuer.clean(each.role)
    broker.issuer.preflight(thorough=True)
    broker.issuer.close_connections()
    shop.execute(kit.uninstall_sql())
    after = traces(shop)
    assert after[1] == before[1]
    assert after[0] == before[0]


def test_uninstalling_is_refused_while_a_lease_is_left_and_changes_nothing(enrol, shop):
    broker = enrol()
    made = broker.live()
    before = catalogue(broker)
    with pytest.raises(psycopg.errors.RaiseException):
        shop.execute(kit.uninstall_sql())
    assert catalogue(broker) == before
    assert not broker.refused(made)
