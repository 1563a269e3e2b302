"""The broker's own connections to a target: how many, when they are closed, and the one beside another."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from taskpass.core.errors import TargetUnfit
from taskpass.issuers.postgres import connection as connecting
from taskpass.issuers.postgres.connection import AT_ONCE
from taskpass.testing.postgres import EmbeddedServer
from tests.conftest import Database, require_version
from tests.integration.postgres.enrolled import TABLES, Broker, until

pytestmark = pytest.mark.service


@pytest.fixture
def broker(servers, clusters):
    database = clusters(servers(18)).database()
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()
    database.drop()


def open_sessions(broker):
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
    return broker.database.fetch(query, broker.login)[0][0]


def test_what_public_may_do_is_read_beside_the_rest_and_refuses_all_the_same(broker):
    assert [item.name for item in broker.issuer.resolve(broker.scope).objects] == ["orders"]
    assert open_sessions(broker) == 2
    broker.database.execute("CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
    with pytest.raises(TargetUnfit):
        broker.issuer.resolve(broker.scope)


def test_without_a_second_connection_it_is_read_on_the_first_one(broker):
    connections = broker.issuer._connections
    with contextlib.ExitStack() as held:
        for _ in range(AT_ONCE - 1):
            held.enter_context(connections.use())
        assert broker.issuer.resolve(broker.scope).objects
        broker.database.execute("CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
        with pytest.raises(TargetUnfit):
            broker.issuer.resolve(broker.scope)
    broker.database.execute("DROP FUNCTION shop.f()", f"ALTER ROLE {broker.login} CONNECTION LIMIT 1")
    broker.issuer.close_connections()
    until(lambda: open_sessions(broker) == 0, what="the end of the sessions")
    assert broker.issuer.resolve(broker.scope).objects


def test_a_connection_that_was_not_needed_for_a_while_is_closed_when_another_one_is_given_back(broker, monkeypatch):
    broker.issuer.resolve(broker.scope)
    assert open_sessions(broker) == 2
    monkeypatch.setattr(connecting, "KEPT_SECONDS", 0.0)
    with broker.issuer._connections.use():
        pass
    until(lambda: open_sessions(broker) == 1, what="the end of the unused one")


def test_a_crash_may_take_away_what_was_just_given_and_never_brings_back_what_was_taken():
    """With a log that is not written by itself, only what waits for the disk is on it."""
    require_version(18)
    with EmbeddedServer(18, options={"wal_writer_delay": "10s"}) as server:
        database = Database(server, "shop")
        with server.connect() as admin:
            admin.execute("CREATE DATABASE shop")
        database.execute(*TABLES)
        broker = Broker(database)
        taken, lost = broker.live(), broker.live()
        broker.issuer.close(taken.role, audit_head="9:sha256:00ff")
        given = broker.live()
        server.crash()
        server.start()
        broker.issuer.close_connections()
        assert broker.role(given) is None
        assert broker.role(lost) is not None
        assert broker.refused(taken)
        assert broker.refused(given)
        for made in (given, lost, taken):
            assert broker.issuer.close(made.role, audit_head="9:sha256:00ff").answer
            assert broker.issuer.clean(made.role)
            assert broker.role(made) is None
        broker.issuer.close_connections()
        database.close()


def test_what_the_kit_refuses_while_granting_keeps_its_meaning(broker):
    """Several statements are sent at once then: the error is the one of the first that failed."""
    made = broker.order()
    broker.database.execute(
        f"REVOKE EXECUTE ON FUNCTION taskpass.issue(text, jsonb, text, integer, integer, text) FROM {broker.login}"
    )
    with pytest.raises(TargetUnfit) as refused:
        broker.issuer.create(made.order)
    assert refused.value.code == "kit_grant"
    assert "account" in refused.value.message
    with pytest.raises(psycopg.OperationalError):
        broker.enter(made)
