"""Real streaming standbys: what is proven there, what holds it up, and what is said of those that nobody listed."""

from __future__ import annotations

import itertools

import psycopg
import pytest

from taskpass.core.errors import NotProven, TargetUnavailable
from taskpass.core.ids import role_name
from taskpass.core.separation import Environment
from taskpass.issuers.base import Severity
from taskpass.issuers.postgres import close, scram
from taskpass.testing.postgres import EmbeddedServer
from tests.conftest import Database, require_version
from tests.integration.postgres.enrolled import ENTROPY, TABLES, Broker, outcome
from tests.integration.postgres.standby import catch_up, caught_up, enter, streaming

pytestmark = pytest.mark.service

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=[18], ids=lambda version: f"pg{version}")
def pair(request):
    """A primary and its standby, apart from the session's servers: what attaches to those would show elsewhere."""
    require_version(request.param)
    with (
        EmbeddedServer(request.param, options={"max_prepared_transactions": "20"}, durable=False) as primary,
        streaming(primary, max_standby_streaming_delay="-1") as copy,
    ):
        yield primary, copy


@pytest.fixture
def broker(pair):
    primary, copy = pair
    database = Database(primary, f"n{next(_numbers)}")
    with primary.connect() as admin:
        admin.execute(f"CREATE DATABASE {database.name} TEMPLATE template0 STRATEGY file_copy".encode())
    database.execute(*TABLES)
    made = Broker(database)
    catch_up(primary, copy)
    yield made
    made.forget()
    database.close()


@pytest.fixture
def listed(pair, broker):
    """An issuer that has the standby on its list."""
    issuer = broker.new_issuer(nodes=(pair[1].address(broker.database.name),))
    yield issuer
    issuer.close_connections()


def there(pair, broker, made):
    return enter(pair[1], broker.database.name, made)


def refused_there(pair, broker, made):
    try:
        pair[1].connect(broker.database.name, made.role, made.secret, connect_timeout=10).close()
    except psycopg.OperationalError:
        return True
    return False


def fails(connection, statement="SELECT count(*) FROM shop.orders"):
    return outcome(lambda: connection.execute(statement)) is not None


def checks(issuer):
    return {finding.check: finding for finding in issuer.preflight()}


# ---- closing ----


def test_only_a_standby_that_is_listed_is_emptied_and_asked(pair, broker, listed):
    forgotten, made = broker.live(), broker.live()
    survivor, session = there(pair, broker, forgotten), there(pair, broker, made)
    with survivor, session:
        taken = broker.issuer.close(forgotten.role, audit_head="")
        assert taken.unlisted == 1
        assert survivor.execute("SELECT current_user").fetchone() == (forgotten.role,)
        taken = listed.close(made.role, audit_head="")
        assert taken.nodes == {broker.database.address: 2, pair[1].address(broker.database.name): 2}
        assert (taken.ended, taken.unlisted) == (1, 0)
        assert fails(session)
        assert refused_there(pair, broker, made)
        assert listed.sweep(forgotten.role) == 1
        assert fails(survivor)


@pytest.mark.parametrize("feedback", ["off", "on"])
def test_an_open_cursor_on_a_standby_returns_no_row_after_the_closing(pair, broker, listed, feedback):
    pair[1].configure(hot_standby_feedback=feedback)  # the other tests do not care
    made = broker.live()
    with there(pair, broker, made) as session:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        session.execute("DECLARE c CURSOR FOR SELECT * FROM shop.orders")
        assert len(session.execute("FETCH 10 FROM c").fetchall()) == 10
        broker.database.execute("DELETE FROM shop.orders WHERE id > 500", "VACUUM shop.orders")
        assert listed.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
        assert fails(session, "FETCH 10 FROM c")


def test_the_accounts_own_session_cannot_hold_up_the_replay_of_its_closing(pair, broker, listed):
    """The standby waits for ever for a query that conflicts with a change: the agent's session would keep itself."""
    made = broker.live()
    with there(pair, broker, made) as session:
        session.execute("BEGIN")
        session.execute("SELECT count(*) FROM shop.orders")
        broker.database.execute("ALTER TABLE shop.orders ADD COLUMN later int")
        assert not caught_up(*pair)
        assert listed.close(made.role, audit_head="").ended == 1
        assert fails(session)


def test_a_standby_that_has_not_replayed_the_closing_keeps_it_unproven(pair, broker, listed, monkeypatch):
    made = broker.live()
    with there(pair, broker, made) as session:
        monkeypatch.setattr(close, "PATIENCE", 0.3)
        with pair[1].connect() as admin:
            admin.execute("SELECT pg_wal_replay_pause()")
            with pytest.raises(NotProven, match="listed node 1: it has not replayed"):
                listed.close(made.role, audit_head="")
            # Its sessions there are ended all the same; that it could come again is why this is no proof.
            assert fails(session)
            assert not refused_there(pair, broker, made)
            assert checks(listed)["node_paused"].severity is Severity.WARNING
            admin.execute("SELECT pg_wal_replay_resume()")
        monkeypatch.undo()
        assert listed.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
        assert refused_there(pair, broker, made)


def test_a_node_that_is_down_leaves_it_unproven_and_shields_no_other_node(pair, broker):
    made = broker.live()
    issuer = broker.new_issuer(nodes=("127.0.0.1:1/shop", pair[1].address(broker.database.name)))
    with there(pair, broker, made) as session:
        with pytest.raises(TargetUnavailable, match="listed node 1"):
            issuer.close(made.role, audit_head="")
        assert fails(session)
    assert broker.refused(made)
    issuer.close_connections()


def test_a_session_that_comes_late_on_a_standby_is_found_although_another_node_is_down(pair, broker, listed):
    made = broker.live()
    with there(pair, broker, made) as session:
        issuer = broker.new_issuer(nodes=("127.0.0.1:1/shop", pair[1].address(broker.database.name)))
        assert issuer.sweep(made.role) == 1
        with pytest.raises(TargetUnavailable):
            issuer.sweep(made.role)
        issuer.close_connections()
        assert fails(session)
    listed.close(made.role, audit_head="")


# ---- what is said beforehand ----


def test_an_unlisted_replica_is_reported_lowers_what_is_stated_and_stops_production(broker):
    assert broker.issuer.capabilities.unlisted_nodes is None
    assert checks(broker.issuer)["replicas"].severity is Severity.WARNING
    assert broker.issuer.capabilities.unlisted_nodes == 1
    assert broker.issuer.inventory().unlisted_nodes == ("1 server(s) replicate from it and are not listed",)
    production = broker.new_issuer(environment=Environment.PRODUCTION)
    assert checks(production)["replicas"].severity is Severity.FATAL
    declared = broker.new_issuer(environment=Environment.PRODUCTION, unreachable_replicas=1)
    assert "replicas" not in checks(declared)
    assert declared.capabilities.unlisted_nodes == 0
    for issuer in (production, declared):
        issuer.close_connections()


def test_a_listed_replica_is_no_finding_and_one_more_that_waits_in_a_slot_is(pair, broker, listed):
    assert not {"replicas", "node_down", "split_brain", "node_replay"} & set(checks(listed))
    assert listed.capabilities.unlisted_nodes == 0
    with pair[0].connect() as admin:
        admin.execute("SELECT pg_create_physical_replication_slot('away')")
        try:
            assert checks(listed)["replicas"].severity is Severity.WARNING
            assert listed.capabilities.unlisted_nodes == 1
        finally:
            admin.execute("SELECT pg_drop_replication_slot('away')")


def test_a_standby_that_is_set_to_lag_is_refused(pair, broker, listed):
    pair[1].configure(recovery_min_apply_delay="1min")
    try:
        assert checks(listed)["node_delay"].severity is Severity.FATAL
    finally:
        pair[1].configure(recovery_min_apply_delay="0")


@pytest.mark.parametrize(
    ("environment", "severity"), [(Environment.DEV, Severity.WARNING), (Environment.STAGING, Severity.FATAL)]
)
def test_a_listed_node_that_is_down_stops_issuing_where_it_matters(broker, environment, severity):
    issuer = broker.new_issuer(nodes=("127.0.0.1:1/shop",), environment=environment)
    found = checks(issuer)["node_down"]
    assert found.severity is severity
    assert "127.0.0.1" not in found.message
    issuer.close_connections()


def test_a_second_address_of_the_primary_is_no_standby(broker):
    second = broker.database.address.replace("127.0.0.1", "localhost")
    issuer = broker.new_issuer(nodes=(second,))
    assert "split_brain" not in checks(issuer)
    made = broker.live()
    assert issuer.close(made.role, audit_head="").nodes == {broker.database.address: 2, second: 2}
    issuer.close_connections()


def test_a_listed_node_that_takes_writes_of_its_own_proves_nothing(pair, broker):
    """A former primary that came back, or a standby that somebody promoted beside the primary."""
    primary, _ = pair
    made = broker.live()
    with streaming(primary) as second:
        address = second.address(broker.database.name)
        issuer = broker.new_issuer(nodes=(address,))
        with enter(second, broker.database.name, made) as session:
            with second.connect() as admin:
                admin.execute("SELECT pg_promote(true, 20)")
            with pytest.raises(NotProven) as refused:
                issuer.close(made.role, audit_head="")
            assert refused.value.code == "split_brain"
            assert checks(issuer)["split_brain"].severity is Severity.FATAL
            assert not fails(session)
        issuer.close_connections()
    assert broker.refused(made)


def test_a_drill_plays_on_the_standby_too(pair, broker, listed):
    secret, role = scram.new_secret(ENTROPY), role_name(broker.installation, broker.new_lease())
    listed.rehearse(role, secret, audit_head="")
    clients = listed.drill(role, secret, reads=None)
    clients.control()
    assert "idle on node 1" in clients.open()
    clients.ordered()
    listed.close(role, audit_head="")
    met = {each.kind: each.ended for each in clients.met()}
    clients.close()
    assert (met["idle"], met["idle on node 1"]) == ("57P01", "57P01")
    assert (met["password"], met["password on node 1"]) == ("28P01", "28P01")


def test_a_drill_notices_a_standby_that_the_closing_passed_over(pair, broker, listed, monkeypatch):
    monkeypatch.setattr("taskpass.issuers.postgres.drill.PATIENCE", 1.0)
    secret, role = scram.new_secret(ENTROPY), role_name(broker.installation, broker.new_lease())
    listed.rehearse(role, secret, audit_head="")
    clients = listed.drill(role, secret, reads=None)
    clients.control()
    clients.open()
    clients.ordered()
    broker.issuer.close(role, audit_head="")
    working = [each.kind for each in clients.met() if not each.ended]
    clients.close()
    assert "idle on node 1" in working
