"""Closing on real servers: against clients that fight back and revokers that are wrong, and what is then proven."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from taskpass.core.errors import NotProven, TargetUnavailable
from taskpass.issuers.base import Severity
from taskpass.issuers.postgres import close, scram
from taskpass.issuers.postgres.connection import AT_ONCE
from taskpass.issuers.postgres.probe import Place, attempt
from taskpass.testing.postgres import EmbeddedServer, available
from tests.conftest import Database
from tests.integration.postgres.certificates import certificate
from tests.integration.postgres.enrolled import ENTROPY, TABLES, Broker, outcome, until

pytestmark = pytest.mark.service


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


def shut(broker, made):
    """Close ``made`` and let the world judge: nothing is open, nothing gets in."""
    taken = broker.issuer.close(made.role, audit_head="9:sha256:00ff")
    assert taken.answer == "AuthenticationOk,28000"
    assert broker.sessions(made) == []
    assert broker.refused(made)
    return taken


def fails(connection, statement="SELECT count(*) FROM shop.orders"):
    return outcome(lambda: connection.execute(statement)) is not None


def gone(broker, connection):
    """Whether the server has no such session any more, whatever the client believes."""
    return not broker.database.fetch("SELECT FROM pg_stat_activity WHERE pid = %s", connection.info.backend_pid)


def mutate(database, before, after):
    """A revoker with a defect: replaces ``before`` in the kit's own close."""
    (text,) = database.fetch("SELECT pg_get_functiondef('taskpass.close'::regproc)")[0]
    assert before in text
    database.execute(text.replace(before, after))


# ---- sessions ----


def idle(connection):
    connection.execute("SELECT count(*) FROM shop.orders")


def in_a_query(connection):
    connection.pgconn.send_query(b"SELECT pg_sleep(60)")


def in_a_transaction(connection):
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM shop.orders")


def with_a_cursor(connection):
    connection.execute("BEGIN")
    connection.execute("DECLARE c CURSOR FOR SELECT * FROM shop.orders")
    connection.execute("FETCH 1 FROM c")


def in_a_copy(connection):
    connection.pgconn.send_query(b"COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT")


def listening(connection):
    connection.execute("LISTEN something")


def holding_a_lock(connection):
    connection.execute("SELECT pg_advisory_lock(1)")


def with_limits_off(connection):
    connection.execute("SET idle_session_timeout = 0")
    connection.execute("SET default_transaction_read_only = off")
    connection.execute("ALTER ROLE CURRENT_USER SET statement_timeout = 0")


KINDS = [idle, in_a_query, in_a_transaction, with_a_cursor, in_a_copy, listening, holding_a_lock, with_limits_off]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_open_session_of_any_kind_is_ended(broker, kind):
    made = broker.live()
    connection = broker.enter(made)
    kind(connection)
    assert shut(broker, made).ended == 1
    assert gone(broker, connection)


def test_five_sessions_at_once_are_ended(broker):
    made = broker.live()
    connections = [broker.enter(made) for _ in range(5)]
    for connection, kind in zip(connections, KINDS, strict=False):
        kind(connection)
    assert shut(broker, made).ended == 5
    assert all(gone(broker, connection) for connection in connections)


class Client(threading.Thread):
    """An agent that connects again as soon as it is cut off, and notes the server's time of each thing it read."""

    def __init__(self, broker, made):
        super().__init__(daemon=True)
        self.broker, self.made = broker, made
        self.stop = threading.Event()
        self.last_read = None
        self.refusals = 0

    def run(self):
        while not self.stop.is_set():
            try:
                with self.broker.database.server.connect(
                    self.broker.database.name, self.made.role, self.made.secret, connect_timeout=10
                ) as connection:
                    while True:
                        self.last_read = connection.execute(
                            "SELECT clock_timestamp() FROM shop.orders LIMIT 1"
                        ).fetchone()[0]
            except psycopg.Error:
                self.refusals += 1


def test_eight_clients_that_reconnect_without_end_leave_no_survivor(broker):
    made = broker.live()
    clients = [Client(broker, made) for _ in range(8)]
    for client in clients:
        client.start()
    until(lambda: broker.sessions(made) and any(client.last_read for client in clients))
    shut(broker, made)
    closed_at = broker.database.fetch("SELECT clock_timestamp()")[0][0]
    before = [client.refusals for client in clients]
    until(lambda: all(c.refusals > earlier + 1 for c, earlier in zip(clients, before, strict=True)))
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join(30)
    assert broker.sessions(made) == []
    assert all(client.last_read is None or client.last_read < closed_at for client in clients)


@pytest.fixture
def slow_start(broker):
    """A server in which every session sleeps for a second between the login check and being listed under its role."""
    server = broker.database.server
    admin = server.connect(broker.database.name)
    # The broker's connection for taking back is open already, as in a broker at work.
    broker.issuer.sweep(broker.order().role)
    server.configure(post_auth_delay="1")
    yield admin
    server.configure(post_auth_delay="0")
    admin.close()


# A starting session takes this lock after the login check and keeps it until it is listed.
PAST_THE_CHECK = """
SELECT count(*) FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND a.usesysid IS NULL
"""


def race(broker, admin, made):
    """Closes while a session of ``made`` is between the login check and being listed; what became of that session."""
    client = {}

    def agent():
        with contextlib.suppress(psycopg.Error):
            client["connection"] = broker.enter(made)
            client["answer"] = client["connection"].execute("SELECT current_user").fetchone()

    thread = threading.Thread(target=agent, daemon=True)
    thread.start()
    until(lambda: admin.execute(PAST_THE_CHECK).fetchone()[0] > 0, what="the session's start")
    taken = broker.issuer.close(made.role, audit_head="")
    assert not admin.execute("SELECT FROM pg_stat_activity WHERE usesysid = %s::regrole", [made.role]).fetchall(), (
        "the session was listed too early to show anything"
    )
    thread.join(30)
    return taken, client


def test_a_session_that_was_starting_when_the_login_was_forbidden_is_fenced(broker, slow_start):
    made = broker.live()
    taken, client = race(broker, slow_start, made)
    assert taken.fenced == 1
    assert "answer" not in client


def test_without_the_fence_such_a_session_survives(broker, slow_start, monkeypatch):
    made = broker.live()
    monkeypatch.setattr(close, "starting", lambda node: set())
    taken, client = race(broker, slow_start, made)
    assert taken.answer == "AuthenticationOk,28000"
    assert client["answer"] == (made.role,)
    assert broker.issuer.sweep(made.role) == 1, "the late sweep reports it"


def test_taking_back_does_not_wait_for_issuing(broker):
    """Twelve issues that wait for a table fill all connections that issuing has."""
    made = broker.live()
    orders = [broker.order() for _ in range(12)]
    with (
        ThreadPoolExecutor(max_workers=12) as pool,
        broker.database.server.connect(broker.database.name, autocommit=False) as holder,
    ):
        holder.execute("LOCK TABLE shop.orders IN ACCESS EXCLUSIVE MODE")
        issues = [pool.submit(broker.issuer.create, each.order) for each in orders]
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'"
        until(lambda: broker.database.fetch(query, broker.login)[0][0] == AT_ONCE)
        taken = shut(broker, made)
        assert not any(issue.done() for issue in issues)
        holder.rollback()
        assert [issue.result() for issue in issues] == [None] * 12
    assert taken.took_ms < 1500


def test_half_open_connections_of_others_do_not_hold_the_closing_up(broker):
    made = broker.live()
    server = broker.database.server
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection((server.host, server.port)))
        shut(broker, made)


# ---- accounts that fight back ----


def test_an_account_that_replaced_its_password_is_closed(broker):
    made = broker.live()
    thief = scram.new_secret(ENTROPY)
    with broker.enter(made) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER ROLE CURRENT_USER PASSWORD '{thief.reveal()}'")
    assert not broker.refused(made, thief)
    shut(broker, made)
    assert broker.refused(made, thief)


def test_an_account_that_replaces_its_password_all_the_time_is_closed(broker):
    made = broker.live()
    connection = broker.enter(made)
    connection.execute("SET default_transaction_read_only = off")
    connection.pgconn.send_query(b"DO $$ BEGIN LOOP ALTER ROLE CURRENT_USER PASSWORD 'mine'; COMMIT; END LOOP; END $$")
    shut(broker, made)
    assert gone(broker, connection)


def test_an_open_transaction_that_holds_the_account_s_row_does_not_hold_the_closing_up(broker):
    made = broker.live()
    connection = broker.enter(made)
    connection.execute("SET default_transaction_read_only = off")
    connection.execute("BEGIN")
    connection.execute("ALTER ROLE CURRENT_USER PASSWORD 'mine'")
    taken = shut(broker, made)
    assert taken.ended == 1
    assert taken.took_ms < 5000


def test_a_prepared_transaction_is_rolled_back(broker):
    made = broker.live()
    with broker.enter(made) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM shop.orders")
        connection.execute("PREPARE TRANSACTION 'it''s \U0001f600 mine'")
    assert shut(broker, made).prepared == 1
    assert broker.database.fetch("SELECT gid FROM pg_prepared_xacts") == []


def test_a_prepared_transaction_that_would_set_the_password_again_is_rolled_back(broker):
    made = broker.live()
    with broker.enter(made) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("BEGIN")
        connection.execute("ALTER ROLE CURRENT_USER PASSWORD 'mine'")
        connection.execute("PREPARE TRANSACTION 'later'")
    assert shut(broker, made).prepared == 1


def test_a_prepared_transaction_in_another_database_is_rolled_back(broker):
    made = broker.live()
    with broker.database.server.connect("postgres", made.role, made.secret) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT pg_advisory_xact_lock_shared(7)")
        connection.execute("PREPARE TRANSACTION 'elsewhere'")
    assert shut(broker, made).prepared == 1
    assert broker.database.fetch("SELECT gid FROM pg_prepared_xacts") == []


def test_an_account_cannot_lend_itself(broker):
    made, accomplice = broker.live(), broker.live()
    connection = broker.enter(made)
    connection.execute("SET default_transaction_read_only = off")
    assert outcome(lambda: connection.execute(f"GRANT {made.role} TO {accomplice.role}")) == "42501"


def test_an_account_that_somebody_lent_gives_nothing_after_the_closing(broker):
    made = broker.live()
    borrower, password = broker.database.login("borrower")
    broker.database.execute(f'GRANT {made.role} TO "{borrower}"')
    session = broker.database.connect(borrower, password)
    session.execute(f"SET ROLE {made.role}")
    session.execute("SELECT count(*) FROM shop.orders")
    shut(broker, made)
    assert fails(session)


def test_an_account_that_somebody_dropped_with_a_session_open_is_not_proven_until_the_session_is_gone(broker):
    made = broker.live()
    connection = broker.enter(made)
    database = broker.database
    database.execute(f"SET ROLE taskpass_kit; DROP OWNED BY {made.role}; DROP ROLE {made.role}")
    with pytest.raises(NotProven) as caught:
        broker.issuer.close(made.role, audit_head="")
    assert caught.value.code == "dropped_with_sessions"
    connection.close()
    until(lambda: not database.fetch("SELECT pid FROM pg_stat_activity WHERE usename IS NULL AND usesysid > 16000"))
    assert broker.issuer.close(made.role, audit_head="").absent


# ---- revokers that are wrong ----

FORBID = "'ALTER ROLE %I NOLOGIN PASSWORD %L VALID UNTIL %L', lease_role,"


def test_a_revoker_that_forgets_nologin_is_not_proven(broker):
    made = broker.live()
    mutate(broker.database, FORBID, FORBID.replace("NOLOGIN ", ""))
    with pytest.raises(NotProven):
        broker.issuer.close(made.role, audit_head="")


def test_a_revoker_whose_commit_is_lost_is_not_proven(broker):
    made = broker.live()
    mutate(broker.database, FORBID, "'SELECT %L, %L, %L', lease_role,")
    with pytest.raises(NotProven):
        broker.issuer.close(made.role, audit_head="")
    assert not broker.refused(made)


def test_a_revoker_of_another_account_is_not_proven(broker):
    made, other = broker.live(), broker.live()
    mutate(broker.database, FORBID, FORBID.replace("lease_role", f"'{other.role}'"))
    with pytest.raises(NotProven):
        broker.issuer.close(made.role, audit_head="")
    assert not broker.refused(made)


def test_a_revoker_that_leaves_the_account_expired_is_not_proven(broker):
    """The server answers an expired account with the right password as it answers any wrong password."""
    made = broker.live()
    mutate(broker.database, "interval '10 minutes'", "interval '-1 minute'")
    with pytest.raises(NotProven):
        broker.issuer.close(made.role, audit_head="")


def test_a_close_that_was_not_proven_is_proven_by_the_next_one(broker):
    made = broker.live()
    mutate(broker.database, FORBID, FORBID.replace("NOLOGIN ", ""))
    with pytest.raises(NotProven):
        broker.issuer.close(made.role, audit_head="")
    mutate(broker.database, FORBID.replace("NOLOGIN ", ""), FORBID)
    shut(broker, made)


# ---- what the server's own rules do to the proof ----


@pytest.fixture
def hba(broker):
    """Rewrites pg_hba.conf for one test."""
    server = broker.database.server
    yield server.rewrite_hba
    server.rewrite_hba()


ORDINARY = "host all all 127.0.0.1/32 scram-sha-256\n"


def test_a_server_that_trusts_everybody_fails_the_positive_control(broker, hba):
    hba(f"host all {broker.login} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
    findings = {finding.check: finding for finding in broker.issuer.preflight(thorough=True)}
    assert findings["rehearsal"].severity is Severity.FATAL


def test_nothing_is_proven_on_a_server_that_asks_for_no_password(broker, hba):
    made = broker.live()
    hba(f"host all {made.role} 127.0.0.1/32 trust\n{ORDINARY}")
    with pytest.raises(NotProven):
        broker.issuer.close(made.role, audit_head="")


def test_a_refusal_by_pg_hba_is_not_proven_although_its_code_is_the_same(broker, hba):
    made = broker.live()
    hba(f"host all {made.role} 127.0.0.1/32 reject\n{ORDINARY}")
    with pytest.raises(NotProven) as caught:
        broker.issuer.close(made.role, audit_head="")
    assert "28000 before AuthenticationOk" in caught.value.message


# ---- afterwards ----


def test_a_closed_account_has_no_password_no_rights_and_is_lent_to_nobody_but_the_kit(broker):
    made = broker.live()
    with broker.enter(made) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM shop.orders")
        connection.execute("PREPARE TRANSACTION 'lent for this'")
    shut(broker, made)
    can_login, has_password, members = broker.role(made)
    assert (can_login, has_password) == (False, False)
    assert {name[:12] for name in members} == {"taskpass_kit"}
    assert broker.issuer.rights(made.role) == {}


def test_a_late_session_is_counted_by_the_late_sweep(broker):
    made = broker.live()
    shut(broker, made)
    broker.database.execute(f"ALTER ROLE {made.role} LOGIN PASSWORD '{made.secret.reveal()}'")
    broker.database.execute(f"GRANT CONNECT ON DATABASE {broker.database.name} TO {made.role}")
    session = broker.enter(made)
    assert broker.issuer.sweep(made.role) == 1
    assert fails(session, "SELECT 1")


def test_a_node_that_does_not_answer_makes_it_unproven(broker):
    made = broker.live()
    issuer = broker.new_issuer(nodes=("127.0.0.1:1/shop",))
    with pytest.raises(TargetUnavailable):
        issuer.close(made.role, audit_head="")
    issuer.close_connections()


def test_large_objects_of_the_account_go_with_it(broker):
    made = broker.live()
    with broker.enter(made) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("SELECT lo_create(0)")
    shut(broker, made)
    assert broker.issuer.clean(made.role)
    assert broker.role(made) is None


def test_what_the_account_owns_in_another_database_blocks_cleaning_and_not_closing(broker):
    made = broker.live()
    with broker.database.server.connect("postgres", made.role, made.secret) as connection:
        connection.execute("SET default_transaction_read_only = off")
        (number,) = connection.execute("SELECT lo_create(0)").fetchone()
    shut(broker, made)
    assert not broker.issuer.clean(made.role)
    assert broker.refused(made)
    with broker.database.server.connect("postgres") as admin:
        admin.execute("SELECT lo_unlink(%s)", [number])
    assert broker.issuer.clean(made.role)


# ---- what a crash does to it ----


def test_a_crash_right_after_the_closing_does_not_undo_it():
    """With ``synchronous_commit = off`` a commit may be lost that the client was told of."""
    with EmbeddedServer(available()[-1], options={"wal_writer_delay": "10s"}, durable=False) as server:
        with server.connect() as admin:
            admin.execute("CREATE DATABASE shop")
        database = Database(server, "shop")
        database.execute(*TABLES)
        broker = Broker(database)
        made, control = broker.live(), broker.live()
        with server.connect() as admin:
            admin.execute("CHECKPOINT")
            broker.issuer.close(made.role, audit_head="")
            admin.execute(f"ALTER ROLE {control.role} NOLOGIN")
        server.crash()
        server.start()
        broker.issuer.close_connections()
        assert broker.role(made)[0] is False
        broker.issuer.close(made.role, audit_head="")
        broker.issuer.close_connections()
        database.close()


# ---- TLS ----


@pytest.fixture
def authority(broker, tmp_path):
    """The server speaks TLS with a certificate of this authority."""
    server = broker.database.server
    if broker.database.fetch("SHOW ssl_library") == [("",)]:
        pytest.skip("this build of the server has no TLS")
    trusted, key = certificate(tmp_path, "trusted")
    present(server, trusted, key)
    server.configure(ssl="on", ssl_cert_file="server.crt", ssl_key_file="server.key")
    server.rewrite_hba("host all postgres all scram-sha-256\nhostssl all all all scram-sha-256\n")
    yield trusted
    server.rewrite_hba()
    server.configure(ssl="off")


def present(server, certificate_path, key_path):
    """Make the server show this certificate from its next start or reload on."""
    for source, name in [(certificate_path, "server.crt"), (key_path, "server.key")]:
        shutil.copy(source, server.data / name)
        (server.data / name).chmod(0o600)
        os.chown(server.data / name, server._account.uid, server._account.gid)


def test_login_and_proof_go_over_tls_that_is_verified_in_full(broker, authority):
    issuer = broker.new_issuer(tls={"ca": str(authority)})
    made = broker.order(issuer=issuer)
    issuer.create(made.order)
    issuer.enable(made.role, lifetime=60, audit_head="")
    assert issuer.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
    issuer.close_connections()


def test_a_server_of_another_authority_or_under_another_name_is_not_talked_to(broker, authority, tmp_path):
    other, _ = certificate(tmp_path, "other")
    for changes in [
        {"tls": {"ca": str(other)}},
        {"tls": {"ca": str(authority)}, "address": broker.database.address.replace("127.0.0.1", "localhost")},
    ]:
        issuer = broker.new_issuer(**changes)
        with pytest.raises(TargetUnavailable):
            issuer.inventory()
        with pytest.raises(TargetUnavailable):
            attempt(Place(issuer.target.address, issuer.target.tls["ca"]), "tp_x", scram.new_secret(ENTROPY), ENTROPY)


def test_a_server_whose_certificate_has_ended_is_not_talked_to(broker, authority, tmp_path):
    ended, key = certificate(tmp_path, "ended", ended=True)
    present(broker.database.server, ended, key)
    broker.database.server.configure()
    issuer = broker.new_issuer(tls={"ca": str(ended)})
    with pytest.raises(TargetUnavailable):
        issuer.inventory()
    with pytest.raises(TargetUnavailable):
        attempt(Place(issuer.target.address, str(ended)), "tp_x", scram.new_secret(ENTROPY), ENTROPY)


def test_a_server_without_tls_is_not_talked_to_where_tls_is_asked_for(broker, tmp_path):
    trusted, _ = certificate(tmp_path, "trusted")
    issuer = broker.new_issuer(tls={"ca": str(trusted)})
    with pytest.raises(TargetUnavailable):
        issuer.inventory()
    with pytest.raises(TargetUnavailable):
        attempt(Place(issuer.target.address, str(trusted)), "tp_x", scram.new_secret(ENTROPY), ENTROPY)
