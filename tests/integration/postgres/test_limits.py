"""Limits of a lease on real servers: which of them the agent can lift, and what then. Rows of one tenant only."""

from __future__ import annotations

import dataclasses

import psycopg
import pytest

from taskpass.core.errors import ManifestChanged, TargetUnfit
from taskpass.core.limits import Enforced, Limits
from taskpass.issuers.postgres import kit
from tests.integration.postgres.enrolled import TABLES, Broker, outcome, until

# The oldest and the newest: what differs between versions is told apart by what the server can do.
pytestmark = [pytest.mark.service, pytest.mark.parametrize("server", [15, 18], indirect=True)]

TENANTS = (
    "CREATE TABLE shop.bills (id int PRIMARY KEY, tenant text, total int)",
    "INSERT INTO shop.bills VALUES (1, 'acme', 10), (2, 'other', 20), (3, 'acme', 30)",
)
BOUND = (
    "ALTER TABLE shop.bills ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY bound ON shop.bills USING (tenant = (SELECT taskpass.tenant()))",
)


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


def limited(broker, **limits):
    made = broker.order()
    broker.issuer.create(dataclasses.replace(made.order, limits=Limits(**limits)))
    broker.issuer.enable(made.role, lifetime=300, audit_head="8:sha256:00ff")
    return made


def setting(session, name):
    return session.execute("SELECT current_setting(%s)", [name]).fetchone()[0]


def test_limits_are_the_roles_settings_and_the_number_of_sessions_is_the_targets(broker):
    made = limited(broker, connections=1, statement_seconds=7, idle_in_transaction_seconds=8, idle_seconds=90)
    with broker.enter(made) as session:
        assert setting(session, "statement_timeout") == "7s"
        assert setting(session, "idle_in_transaction_session_timeout") == "8s"
        assert setting(session, "idle_session_timeout") == "90s"
        if broker.database.server.version >= 17:
            assert setting(session, "transaction_timeout") == "10min"
        assert broker.refused(made)
        session.execute("SET default_transaction_read_only = off")
        assert outcome(lambda: session.execute(f"ALTER ROLE {made.role} CONNECTION LIMIT 9")) == "42501"


def test_temporary_files_are_bounded_by_the_target_where_the_kit_may_set_it(broker):
    assert broker.issuer.capabilities.limits["temp_megabytes"] is Enforced.NONE  # nobody has looked yet
    broker.issuer.preflight()
    assert broker.issuer.capabilities.limits["temp_megabytes"] is Enforced.TARGET
    made = limited(broker, temp_megabytes=1)
    with broker.enter(made) as session:
        assert outcome(lambda: session.execute("SET temp_file_limit = -1")) == "42501"
        session.execute("SET default_transaction_read_only = off")
        session.execute(f"ALTER ROLE {made.role} RESET ALL")
        session.execute("SET work_mem = '64kB'")
        many = "SELECT count(*) FROM (SELECT n FROM generate_series(1, 500000) n ORDER BY n DESC OFFSET 1) x"
        assert outcome(lambda: session.execute(many)) == "53400"
    with broker.enter(made) as again:
        assert setting(again, "temp_file_limit") == "1MB"
        assert setting(again, "statement_timeout") == "0"  # what the agent could reset is why this is only a default


def test_where_the_kit_may_not_set_it_the_limit_is_stated_as_nobodys(broker):
    try:
        broker.database.execute("REVOKE SET ON PARAMETER temp_file_limit FROM taskpass_kit")
        broker.issuer.preflight()
        assert broker.issuer.capabilities.limits["temp_megabytes"] is Enforced.NONE
        with broker.enter(broker.live()) as session:
            assert setting(session, "temp_file_limit") == "-1"
    finally:
        broker.database.execute("GRANT SET ON PARAMETER temp_file_limit TO taskpass_kit")


def test_limits_that_the_agent_lifts_are_enforced_from_outside(broker):
    broker.issuer.preflight()
    stated = broker.issuer.capabilities.limits
    lifted = {
        "statement_seconds": b"SELECT pg_sleep(30)",
        "transaction_seconds": b"BEGIN; SELECT pg_sleep(30)",
        "idle_in_transaction_seconds": b"BEGIN",
    }
    leases = {}
    for limit, statement in lifted.items():
        assert stated[limit] is Enforced.BROKER
        made = limited(broker, **{limit: 1})
        session = broker.enter(made)
        for name in ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
            session.execute(f"SET {name} = 0")
        if broker.database.server.version >= 17:
            session.execute("SET transaction_timeout = 0")
        session.pgconn.send_query(statement)
        leases[made.lease] = made, limit
    innocent = broker.enter(broker.live())
    innocent.execute("BEGIN")
    found = set()

    def all_ended():
        found.update((item.lease, item.limit) for item in broker.issuer.end_overdue())
        return len(found) == len(leases)

    until(all_ended, what="the end of the sessions")
    assert found == {(lease, limit) for lease, (_, limit) in leases.items()}
    for made, _ in leases.values():
        until(lambda made=made: not broker.sessions(made), what="the session's end")
        assert not broker.refused(made)
    assert innocent.execute("SELECT 1").fetchone() == (1,)


def test_without_activity_tracking_the_times_are_stated_as_defaults(broker):
    broker.database.server.configure(track_activities="off")
    try:
        issuer = broker.new_issuer()
        issuer.preflight()
        assert issuer.capabilities.limits["statement_seconds"] is Enforced.DEFAULT
        issuer.close_connections()
    finally:
        broker.database.server.configure(track_activities="on")


@pytest.mark.parametrize(
    ("limits", "tenant"),
    [
        ('{"statement_seconds": 0}', None),
        ('{"statement_seconds": 3601}', None),
        ('{"idle_seconds": "x"}', None),
        ('{"temp_megabytes": 99999999999}', None),
        ("[]", None),
        ("{}", ""),
        ("{}", "x" * 201),
    ],
)
def test_the_kit_refuses_limits_beyond_its_bounds(broker, limits, tenant):
    made = broker.order()
    broker.issuer.create(made.order)
    with broker.connect() as login:
        call = "SELECT taskpass.bind(%s, %s::jsonb, %s)"
        assert outcome(lambda: login.execute(call, [made.lease, limits, tenant])) == "TP001"


def test_a_live_lease_is_bound_to_nothing_else(broker):
    made = broker.live()
    with broker.connect() as login:
        call = "SELECT taskpass.bind(%s, '{}', 'acme')"
        assert outcome(lambda: login.execute(call, [made.lease])) == "TP006"


# ---- rows ----


def of_tenant(broker, tenant="acme", **changes):
    return dataclasses.replace(broker.scope, tenant=tenant, limited_rows=("shop.bills",), **changes)


def rows(broker, made):
    with broker.enter(made) as session:
        return sorted({tenant for (tenant,) in session.execute("SELECT tenant FROM shop.bills").fetchall()})


def test_a_lease_sees_its_tenants_rows_and_cannot_become_another_tenant(broker):
    broker.database.execute(*TENANTS, *BOUND)
    acme, other = (broker.live(scope=of_tenant(broker, tenant)) for tenant in ("acme", "other"))
    assert rows(broker, acme) == ["acme"]
    assert rows(broker, other) == ["other"]
    with broker.enter(acme) as session:
        session.execute("SET app.tenant = 'other'")
        assert outcome(lambda: session.execute(f"SET SESSION AUTHORIZATION {other.role}")) == "42501"
        assert outcome(lambda: session.execute("SET ROLE taskpass_kit")) == "42501"
        assert outcome(lambda: session.execute("UPDATE taskpass.lease SET tenant = 'other'")) == "42501"
        assert outcome(lambda: session.execute("SELECT taskpass.tenant()")) == "42501"
        session.execute("SET row_security = off")
        assert outcome(lambda: session.execute("SELECT tenant FROM shop.bills")) == "42501"
    assert rows(broker, broker.live(scope=broker.scope)) == []


def test_the_tenant_is_part_of_what_is_approved(broker):
    broker.database.execute(*TENANTS, *BOUND)
    acme, other = (broker.issuer.resolve(of_tenant(broker, tenant)) for tenant in ("acme", "other"))
    assert "ROWS OF TENANT acme shop.bills" in acme.ambient
    assert acme.digest() != other.digest()


UNBOUND = {
    "none at all": (),
    "off": BOUND[1:],
    "a setting that the agent makes": (
        BOUND[0],
        "CREATE POLICY loose ON shop.bills USING (tenant = current_setting('app.tenant'))",
    ),
    "another one beside it": (*BOUND, "CREATE POLICY everybody ON shop.bills USING (true)"),
    "only the words": (BOUND[0], "CREATE POLICY words ON shop.bills USING (tenant <> 'taskpass.tenant()')"),
    "bound or set": (
        BOUND[0],
        "CREATE POLICY either ON shop.bills USING (tenant IN (taskpass.tenant(), current_setting('app.tenant', true)))",
    ),
}


@pytest.mark.parametrize("policies", UNBOUND)
def test_a_table_on_which_no_policy_holds_the_lease_to_its_tenant_is_refused(broker, policies):
    broker.database.execute(*TENANTS, *UNBOUND[policies])
    with pytest.raises(TargetUnfit, match=r"shop\.bills is to be limited") as refused:
        broker.issuer.resolve(of_tenant(broker))
    assert refused.value.code == "rows_not_limited"


def test_a_restrictive_policy_that_is_bound_is_enough(broker):
    broker.database.execute(
        *TENANTS,
        BOUND[0],
        "CREATE POLICY everybody ON shop.bills USING (true)",
        "CREATE POLICY bound ON shop.bills AS RESTRICTIVE USING (tenant = (SELECT taskpass.tenant()))",
    )
    assert rows(broker, broker.live(scope=of_tenant(broker))) == ["acme"]


def test_a_policy_that_is_loosened_after_the_decision_stops_the_issue(broker):
    broker.database.execute(*TENANTS, *BOUND)
    made = broker.order(scope=of_tenant(broker))
    broker.database.execute("CREATE POLICY everybody ON shop.bills USING (true)")
    with pytest.raises((TargetUnfit, ManifestChanged)):
        broker.issuer.create(made.order)
    assert broker.role(made) is None


def test_rows_of_a_limited_table_by_another_name_are_refused_too(broker):
    """A partition has policies of its own, and only the table that is asked counts."""
    broker.database.execute(
        "CREATE TABLE shop.bills (id int, tenant text) PARTITION BY RANGE (id)",
        "CREATE TABLE shop.bills_1 PARTITION OF shop.bills FOR VALUES FROM (0) TO (100)",
        *BOUND,
    )
    with pytest.raises(TargetUnfit, match="bills_1"):
        broker.issuer.resolve(of_tenant(broker))
    scope = of_tenant(broker, only=("shop.bills",))
    assert [item.name for item in broker.issuer.resolve(scope).objects] == ["bills"]


def test_a_kit_is_not_removed_from_under_the_policies_that_rest_on_it(broker):
    broker.database.execute(*TENANTS, *BOUND)
    with pytest.raises(psycopg.Error, match="policies of row security use"):
        broker.database.execute(kit.uninstall_sql())


def test_an_upgrade_keeps_the_policies_that_rest_on_the_kit(broker):
    broker.database.execute(*TENANTS, *BOUND)
    made = broker.live(scope=of_tenant(broker))
    broker.database.execute(kit.upgrade_sql())
    assert rows(broker, made) == ["acme"]
