"""The clients of a drill on real servers: they notice an end, and they notice a revoker with a defect."""

from __future__ import annotations

import psycopg
import pytest

from taskpass.core.errors import NotProven, TargetUnfit
from taskpass.core.ids import role_name
from taskpass.issuers.postgres import close, scram
from tests.integration.postgres.enrolled import ENTROPY, TABLES, Broker, until

pytestmark = pytest.mark.service

SESSIONS = {"idle", "transaction", "cursor", "statement", "listening"}


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


class Drill:
    """A rehearsed account with its clients."""

    def __init__(self, broker, reads=None):
        self.broker, self.secret = broker, scram.new_secret(ENTROPY)
        self.role = role_name(broker.installation, broker.new_lease())
        broker.issuer.rehearse(self.role, self.secret, audit_head="7:sha256:00ff")
        self.clients = broker.issuer.drill(self.role, self.secret, reads=reads)

    def play(self):
        """What each kind of client met, by kind."""
        self.clients.control()
        self.kinds = self.clients.open()
        self.clients.ordered()
        self.taken = self.broker.issuer.close(self.role, audit_head="9:sha256:00ff")
        return {met.kind: met for met in self.clients.met()}


@pytest.fixture
def drill(broker):
    made = []

    def make(reads=None):
        made.append(Drill(broker, reads))
        return made[-1]

    yield make
    for each in made:
        each.clients.close()


def test_clients_of_every_kind_notice_the_end(drill):
    played = drill()
    met = played.play()
    assert set(met) == {*SESSIONS, "reconnecting", "prepared", "password"} == {*played.kinds, "password"}
    assert {met[kind].ended for kind in SESSIONS} == {"57P01"}
    assert (met["reconnecting"].ended, met["prepared"].ended, met["password"].ended) == (
        "refused",
        "rolled back",
        "28P01",
    )
    assert all(met[kind].after_ms <= played.taken.took_ms + 1000 for kind in SESSIONS)
    assert played.taken.prepared == 1


def test_before_the_end_every_client_says_that_it_still_works(broker, drill, monkeypatch):
    """The control of the judgement: a revoker that does nothing and says that it did."""
    monkeypatch.setattr("taskpass.issuers.postgres.drill.PATIENCE", 0.5)
    monkeypatch.setattr(broker.issuer, "close", lambda role, audit_head: None)
    met = drill().play()
    assert {kind for kind, each in met.items() if not each.ended} == {
        *SESSIONS,
        "reconnecting",
        "prepared",
        "password",
    }


def test_a_revoker_that_leaves_the_login_open_is_not_proven(broker, drill):
    (text,) = broker.database.fetch("SELECT pg_get_functiondef('taskpass.close'::regproc)")[0]
    assert " NOLOGIN PASSWORD" in text
    broker.database.execute(text.replace(" NOLOGIN PASSWORD", " PASSWORD"))
    with pytest.raises(NotProven):
        drill().play()


def test_a_session_that_the_fence_let_through_is_noticed(broker, drill, monkeypatch):
    """A server in which every session takes a second to start, and a closing without its fence."""
    played = drill()
    played.clients.control()
    played.clients.open()
    broker.issuer.sweep(role_name(broker.installation, broker.new_lease()))
    server = broker.database.server
    with server.connect() as admin:
        server.configure(post_auth_delay="1")
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [played.role])
            until(lambda: _past_the_check(admin), what="the session's start")
            monkeypatch.setattr(close, "starting", lambda node: set())
            played.clients.ordered()
            assert broker.issuer.close(played.role, audit_head="").answer == "AuthenticationOk,28000"
            met = {each.kind: each.ended for each in played.clients.met()}
        finally:
            server.configure(post_auth_delay="0")
    assert met["reconnecting"] == ""


def _past_the_check(admin):
    query = """
    SELECT count(*) FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
     WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND a.usesysid IS NULL
    """
    return admin.execute(query).fetchone()[0]


def test_no_row_is_read_and_the_table_must_be_granted(broker, drill):
    (oid,) = broker.database.fetch("SELECT 'shop.orders'::regclass::oid::bigint")[0]
    with pytest.raises(TargetUnfit) as refused:
        drill(reads=oid).clients.open()
    assert refused.value.code == "kit_grant"
    made = broker.live()
    clients = broker.issuer.drill(made.role, made.secret, reads=oid)
    with pytest.raises(TargetUnfit) as refused:
        clients.open()
    clients.close()
    assert "5 session(s) only" in refused.value.message
    assert refused.value.code == "kit_missing"


def test_a_rehearsed_account_can_read_nothing(broker, drill):
    played = drill()
    with (
        broker.database.connect(played.role, played.secret) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT FROM shop.orders LIMIT 0")
