"""Two installations on one database: each minds its own business, sees the other, and never takes anything of it."""

from __future__ import annotations

import psycopg
import pytest

from taskpass.issuers.postgres import kit
from taskpass.testing.postgres import available
from tests.acceptance.actors import RESOURCE, Small, connect, met, until
from tests.missing import missing

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def pair():
    """Two brokers with directories of their own and one server; the first one owns the server."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as one, Small(durable=False) as two:
        one.prepare()
        two.servers[RESOURCE] = one.server
        two.found("ana")
        two.set_broker("allow_root_agents = true")
        two.set_budgets()
        two.enrol(RESOURCE, environment="dev", exclude=["shop.customers"])
        two.start_broker()
        yield one, two
        two.stop_broker()
        two.servers.clear()


def of(stage):
    installation = stage.call("health")["installation"]
    return {name for name, login, sessions in stage.roles() if name.startswith(f"tp_{installation}_") and login}


def test_both_serve_at_the_same_time_and_each_closes_only_its_own(pair):
    one, two = pair
    with one.agent() as first, two.agent() as second:
        mine, yours = one.lease(first), two.lease(second)
        my_session, your_session = connect(mine), connect(yours)
        assert of(one) == {mine["role"]}
        assert of(two) == {yours["role"]}
        assert one.taskpass("revoke", "--all").returncode == 0
        one.proven(mine)
        assert met(my_session) == "57P01"
        assert met(your_session, "SELECT count(*) FROM shop.orders") == "alive"
        assert of(two) == {yours["role"]}
        two.taskpass("revoke", "--all")
        two.proven(yours)


def test_a_killed_one_is_tidied_up_by_itself_and_not_by_the_other(pair):
    one, two = pair
    with one.agent() as first, two.agent() as second:
        mine, yours = one.lease(first), two.lease(second)
        two.stop_broker(kill=True)
        one.stop_broker()
        one.start_broker()
        one.proven(mine)
        reported = until(lambda: one.call("health")["foreign_roles"], what="the other's role reported")
        assert yours["role"] in reported
        done = one.taskpass("doctor", check=False)
        assert f"{yours['role']} is another installation's, and left alone" in done.stdout
        assert yours["role"] in {name for name, login, _ in one.roles() if login}
        two.start_broker()
        two.proven(yours)
    for stage in pair:
        stage.verify()


def test_the_kit_is_not_removed_while_a_lease_of_either_lives(pair):
    one, two = pair
    with two.agent() as second:
        lease = two.lease(second)
        with one.server.connect("orders") as dba, pytest.raises(psycopg.Error, match="not cleaned"):
            dba.execute(kit.uninstall_sql())
        with connect(lease) as session:
            assert met(session, "SELECT count(*) FROM shop.orders") == "alive"
    two.taskpass("revoke", "--all")
    two.proven(lease)
    until(lambda: not one.roles(), what="everything cleaned")
    with one.server.connect("orders") as dba:
        dba.execute(kit.uninstall_sql())
        left = dba.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^(tp_|taskpass)'").fetchall()
    assert left == []
