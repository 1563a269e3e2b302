"""Endpoints in front of real servers, used by real clients."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time

import psycopg
import pytest
from psycopg import errors, sql

from taskpass.core.ids import LeaseId, RoleName
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.wire.postgres.messages import cancel_request
from tests.integration.postgres.certificates import certificate
from tests.unit.gateways.harness import SOON, Bench, eventually

pytestmark = pytest.mark.service

OTHERS = "local all all scram-sha-256\nhost all postgres all scram-sha-256\n"
WORDS = "access of this coding task has ended"


class Lease:
    """A role with a secret that nobody but the endpoint uses."""

    def __init__(self, bench, database, name="lease"):
        self.id = LeaseId(f"lse_{name}")
        self.secret = Secret(secrets.token_urlsafe(32))
        self.role = database.role(name, "LOGIN")
        self._bench = bench
        self._database = database
        with database.connect() as connection:
            words = sql.SQL("ALTER ROLE {} PASSWORD {}")
            connection.execute(words.format(sql.Identifier(self.role), sql.Literal(self.secret.reveal())))
        self.endpoint = self.open()

    def open(self, **changes):
        options = {
            "role": RoleName(self.role),
            "secret": self.secret,
            "target": Target("orders", "postgres", Environment.DEV, self._database.address, (), {}, {}),
        }
        return self._bench.endpoints.open(self._bench.order("", self.id, **{**options, **changes}))

    def connect(self, **options):
        return psycopg.connect(self.endpoint.dsn, autocommit=True, connect_timeout=20, **options)

    def end(self):
        return self._bench.endpoints.close(self.id, message=WORDS)

    def backends(self):
        query = "SELECT pid FROM pg_stat_activity WHERE usename = %s"
        return [pid for (pid,) in self._database.fetch(query, self.role)]


@pytest.fixture
def bench():
    import uvloop

    made = Bench(uvloop.new_event_loop)
    yield made
    made.stop()


@pytest.fixture
def leases(bench, database):
    made = []

    def make(name="lease"):
        made.append(Lease(bench, database, name))
        return made[-1]

    yield make
    for lease in made:
        lease.end()
        # A backend that is busy does not notice that its client has gone: the issuer terminates it, and here we do.
        database.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", lease.role)
        eventually(lambda lease=lease: not lease.backends())


@pytest.fixture
def lease(leases):
    return leases()


def program(lease, *words, **options):
    """Runs a client program without any secret in its reach."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGCONNECT_TIMEOUT": "5"}
    return subprocess.run(
        [*words], capture_output=True, text=True, timeout=30, check=False, env=environment, cwd="/", **options
    )


# ---- work passes through ---------------------------------------------------------------------------------------------


def test_psql_reaches_the_database_as_the_role(lease):
    done = program(lease, "psql", "-XAtc", "SELECT current_user, current_database()", lease.endpoint.dsn)
    assert (done.stdout, done.stderr, done.returncode) == (
        f"{lease.role}|{lease.endpoint.database}\n",
        "",
        0,
    )


def test_a_psql_that_would_like_encryption_is_served(lease):
    for option in ("sslmode=prefer", "gssencmode=prefer", "sslmode=allow"):
        done = program(lease, "psql", "-XAtc", "SELECT 1", f"{lease.endpoint.dsn}&{option}")
        assert done.stdout == "1\n"


def test_a_client_that_speaks_a_newer_minor_version_is_served(lease, servers):
    own = servers(18)._binaries.program("psql")
    for option in ("max_protocol_version=latest", "max_protocol_version=3.2"):
        done = program(lease, own, "-XAtc", "SELECT 1", f"{lease.endpoint.dsn}&{option}")
        assert (done.stdout, done.stderr) == ("1\n", "")
    done = program(lease, own, "-XAtc", "SELECT 1", f"{lease.endpoint.dsn}&min_protocol_version=3.2")
    assert done.returncode != 0


def test_pgbench_works_through_it(lease, database):
    database.execute("CREATE TABLE t (id int)", f'GRANT ALL ON t TO "{lease.role}"', "INSERT INTO t VALUES (1)")
    script = "SELECT id FROM t;\\;SELECT 1;\n"
    place = f"{lease.endpoint.host}-script"
    with open(place, "w", encoding="ascii") as file:
        file.write(script.replace("\\;", "\n"))
    for mode in ("simple", "extended", "prepared"):
        done = program(
            lease,
            *("pgbench", "-n", "-f", place, "-M", mode, "-c", "4", "-j", "2", "-t", "20"),
            *("-h", lease.endpoint.host, "-U", lease.role, lease.endpoint.database),
        )
        assert done.returncode == 0, done.stderr
        assert "80/80" in done.stdout
    os.unlink(place)


def test_what_the_server_reports_and_the_role_it_sees_are_the_targets_own(lease):
    with lease.connect() as connection:
        assert connection.info.backend_pid in lease.backends()
        assert connection.info.parameter_status("session_authorization") == lease.role
        row = connection.execute("SELECT session_user::text, current_setting('application_name')").fetchone()
        assert row == (lease.role, lease.id)


def test_copy_works_both_ways(lease, database):
    database.execute("CREATE TABLE c (id int, body text)", f'GRANT ALL ON c TO "{lease.role}"')
    with lease.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY c FROM STDIN") as copy:
            for number in range(50_000):
                copy.write_row((number, "x" * 50))
        with cursor.copy("COPY c TO STDOUT") as copy:
            rows = sum(1 for _ in copy.rows())
    assert rows == 50_000
    assert database.fetch("SELECT count(*), sum(id) FROM c") == [(50_000, 50_000 * 49_999 // 2)]


def test_large_values_and_large_results_arrive_whole(lease):
    with lease.connect() as connection:
        big = b"\x00\x5a" * 4_000_000
        assert connection.execute("SELECT %b::bytea", [big]).fetchone() == (big,)
        rows = connection.execute("SELECT g, md5(g::text) FROM generate_series(1, 200000) g").fetchall()
        assert (len(rows), sum(number for number, _ in rows)) == (200_000, 200_000 * 200_001 // 2)


def test_pipelines_cursors_and_notifications_work(lease):
    with lease.connect() as connection, lease.connect() as other:
        with connection.pipeline():
            results = [connection.execute("SELECT %s::int", [number]) for number in range(200)]
        assert [cursor.fetchone()[0] for cursor in results] == list(range(200))
        with connection.transaction():
            connection.execute("DECLARE c CURSOR FOR SELECT generate_series(1, 1000)")
            assert len(connection.execute("FETCH 600 FROM c").fetchall()) == 600
        connection.execute("LISTEN news")
        other.execute("NOTIFY news, 'hello'")
        assert [notice.payload for notice in connection.notifies(timeout=20, stop_after=1)] == ["hello"]


def test_two_sessions_never_share_a_backend(lease):
    with lease.connect() as one, lease.connect() as two:
        one.execute("SET statement_timeout = 4711")
        assert one.info.backend_pid != two.info.backend_pid
        assert two.execute("SHOW statement_timeout").fetchone() == ("0",)
    with lease.connect() as three:
        assert three.execute("SHOW statement_timeout").fetchone() == ("0",)


# ---- cancel ----------------------------------------------------------------------------------------------------------


def sleeping(connection):
    """Starts a long statement in a thread; joined, the result holds the SQLSTATE that ended it."""
    result = []

    def work():
        try:
            connection.execute("SELECT pg_sleep(30)")
        except psycopg.Error as error:
            result.append(error.sqlstate)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, result


def await_active(database, connection):
    query = "SELECT state FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%'"
    eventually(lambda: database.fetch(query, connection.info.backend_pid) == [("active",)])


def test_a_client_can_cancel_its_own_statement(lease, database):
    with lease.connect() as connection:
        thread, result = sleeping(connection)
        await_active(database, connection)
        connection.cancel_safe(timeout=20)
        thread.join(30)
        assert result == ["57014"]
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_key_of_another_lease_cancels_nothing(leases, bench, database):
    mine, other = leases("mine"), leases("other")
    # This raw session keeps its key, which a driver hides.
    raw = bench.client(other.endpoint)
    pid, key = raw.ready()
    raw.socket.sendall(statement("SELECT pg_sleep(30)"))
    query = "SELECT state FROM pg_stat_activity WHERE pid = %s"
    eventually(lambda: database.fetch(query, pid) == [("active",)])
    for endpoint, wrong in ((mine.endpoint, key), (other.endpoint, key[::-1])):
        attempt = bench.client(endpoint, start=False)
        attempt.socket.sendall(cancel_request(pid, wrong))
        assert attempt.messages() == []
    assert database.fetch(query, pid) == [("active",)]
    right = bench.client(other.endpoint, start=False)
    right.socket.sendall(cancel_request(pid, key))
    assert right.messages() == []
    assert b"C57014" in raw.until(b"E").body


# ---- the end ---------------------------------------------------------------------------------------------------------


def idle(connection):
    return lambda: connection.execute("SELECT 1")


def in_transaction(connection):
    connection.execute("BEGIN")
    return lambda: connection.execute("SELECT 1")


def in_statement(connection):
    return lambda: connection.execute("SELECT pg_sleep(30)")


def in_result(connection):
    return lambda: connection.execute("SELECT g, repeat('x', 3000) FROM generate_series(1, 100000000) g").fetchall()


def in_stream(connection):
    def work():
        for row in connection.cursor().stream("SELECT g, repeat('x', 3000) FROM generate_series(1, 100000000) g"):
            assert row[1] == "x" * 3000, "a row was cut"

    return work


def in_copy_out(connection):
    def work():
        with connection.cursor().copy(
            "COPY (SELECT repeat('y', 500) FROM generate_series(1, 100000000)) TO STDOUT"
        ) as c:
            for row in c.rows():
                assert row == ("y" * 500,), "a row was cut"

    return work


def in_cursor(connection):
    connection.execute("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 100000000)")

    def work():
        while True:
            connection.execute("FETCH 100 FROM c").fetchall()

    return work


SITUATIONS = {
    idle: "",
    in_transaction: "",
    in_statement: "SELECT pg_sleep",
    in_result: "SELECT g, repeat",
    in_stream: "SELECT g, repeat",
    in_copy_out: "COPY",
    in_cursor: "FETCH",
}
"""What the client does, and how the statement begins that the server is busy with."""


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
def test_the_client_reads_why_its_access_ended_whatever_it_was_doing(lease, database, situation):
    connection = lease.connect()
    work = situation(connection)
    result = []

    def run():
        try:
            work()
        except psycopg.Error as error:
            result.append(error)

    thread = threading.Thread(target=run)
    if SITUATIONS[situation]:
        thread.start()
        query = "SELECT starts_with(query, %s) FROM pg_stat_activity WHERE pid = %s"
        pid = connection.info.backend_pid
        eventually(lambda: database.fetch(query, SITUATIONS[situation], pid) == [(True,)])
    began = time.monotonic()
    assert lease.end() == 1
    assert time.monotonic() - began < SOON
    if not SITUATIONS[situation]:
        thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(result[0], errors.AdminShutdown), repr(result)
    assert WORDS in str(result[0])
    connection.close()


def statement(words):
    body = words.encode() + b"\0"
    return b"Q" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize("situation", ["copying in", "listening"])
def test_the_words_are_on_the_wire_where_drivers_hide_them(lease, bench, situation):
    """psycopg says only "server closed the connection" here, also when a server does the same without us."""
    client = bench.client(lease.endpoint)
    client.ready()
    client.socket.sendall(statement("CREATE TEMP TABLE c (body text)"))
    client.until(b"Z")
    client.socket.sendall(statement("COPY c FROM STDIN" if situation == "copying in" else "LISTEN news"))
    client.until(b"G" if situation == "copying in" else b"Z")
    ending = threading.Timer(0.05, lease.end)
    ending.start()
    if situation == "copying in":
        with contextlib.suppress(OSError):
            while True:
                client.socket.sendall(b"d" + (1004).to_bytes(4, "big") + b"z" * 999 + b"\n")
    last = client.messages()[-1]
    assert last.kind == b"E"
    assert b"C57P01\0" in last.body
    ending.join(30)


def test_nobody_connects_after_the_end_and_the_backends_go(lease):
    connections = [lease.connect() for _ in range(3)]
    lease.end()
    with pytest.raises(psycopg.OperationalError):
        lease.connect()
    eventually(lambda: not lease.backends())
    for connection in connections:
        connection.close()


@contextlib.contextmanager
def stopped(server):
    """No process of the server runs. The postmaster is stopped first, so that no new one appears."""
    stopped = [server.pid]
    try:
        os.kill(server.pid, signal.SIGSTOP)
        with open(f"/proc/{server.pid}/task/{server.pid}/children", encoding="ascii") as file:
            stopped += [int(pid) for pid in file.read().split()]
        for pid in stopped[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_an_end_works_while_the_server_is_stopped(lease, server):
    """The broker must be able to cut its side while the target does not answer at all."""
    connection = lease.connect()
    with stopped(server):
        began = time.monotonic()
        assert lease.end() == 1
        assert time.monotonic() - began < SOON
        with pytest.raises(errors.AdminShutdown):
            connection.execute("SELECT 1")
    connection.close()


def test_a_backend_that_dies_in_the_middle_is_reported_by_the_server_itself(lease, database):
    connection = lease.connect()
    thread, result = sleeping(connection)
    await_active(database, connection)
    database.fetch("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
    thread.join(30)
    assert result == ["57P01"]
    connection.close()
    with lease.connect() as again:
        assert again.execute("SELECT 1").fetchone() == (1,)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user": "postgres"}, "serves the role"),
        ({"dbname": "postgres"}, "leads to the database"),
        ({"options": "-c search_path=evil"}, "start-up parameter options"),
        ({"replication": "database"}, "start-up parameter replication"),
    ],
)
def test_a_client_that_asks_for_something_else_is_told_what(lease, change, words):
    with pytest.raises(psycopg.OperationalError, match=words):
        lease.connect(**change)
    assert lease.backends() == []


def test_the_limit_of_the_role_is_explained(lease, database):
    database.execute(f'ALTER ROLE "{lease.role}" CONNECTION LIMIT 2')
    with lease.connect(), lease.connect(), pytest.raises(psycopg.OperationalError, match="too many connections"):
        lease.connect()


@pytest.mark.parametrize("change", ["NOLOGIN", "VALID UNTIL '2000-01-01'", "PASSWORD 'another'"])
def test_a_role_that_the_target_no_longer_accepts_is_explained(lease, database, change):
    database.execute(f'ALTER ROLE "{lease.role}" {change}')
    with pytest.raises(psycopg.OperationalError, match="access has ended"):
        lease.connect()


def test_a_server_that_trusts_everybody_is_refused(lease, server):
    server.rewrite_hba(f"{OTHERS}host all all all trust\n")
    try:
        with pytest.raises(psycopg.OperationalError, match="without a password"):
            lease.connect()
    finally:
        server.rewrite_hba()


def test_a_server_that_wants_the_password_itself_does_not_get_it(lease, server):
    server.rewrite_hba(f"{OTHERS}host all all all password\n")
    try:
        with pytest.raises(psycopg.OperationalError, match="AuthenticationCleartextPassword"):
            lease.connect()
    finally:
        server.rewrite_hba()


def test_the_target_is_reached_over_its_unix_socket_too(bench, database):
    if os.geteuid() != 0:
        pytest.skip("the server's socket directory is for its own account")
    lease = Lease(bench, database, "local")
    lease.end()
    address = f"{database.server.socket_directory}:{database.server.port}/{database.name}"
    target = Target("orders", "postgres", Environment.DEV, address, (), {}, {})
    lease.id = LeaseId("lse_local2")
    lease.endpoint = lease.open(target=target)
    with lease.connect() as connection:
        row = connection.execute("SELECT inet_server_addr() IS NULL").fetchone()
    assert row == (True,)
    lease.end()


# ---- another uid -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another uid")
def test_an_agent_of_another_uid_is_served_and_a_third_one_cannot_even_connect(bench, database):
    lease = Lease(bench, database, "given")
    lease.end()
    lease.id = LeaseId("lse_given2")
    os.chmod(bench.directory, 0o711)
    lease.endpoint = lease.open(uid=65534)
    for user, served in ((65534, True), (65533, False)):
        done = program(lease, "psql", "-XAtc", "SELECT 1", lease.endpoint.dsn, user=user, group=user, extra_groups=[])
        assert (done.stdout == "1\n") is served
    lease.end()


# ---- the secret ------------------------------------------------------------------------------------------------------


def test_the_secret_is_nowhere_but_in_memory(lease, server, caplog, bench):
    with lease.connect() as connection:
        connection.execute("SELECT 1")
    with contextlib.suppress(psycopg.Error):
        lease.connect(user="postgres")
    lease.end()
    text = lease.secret.reveal()
    assert text not in caplog.text
    assert text not in server.log_text().replace(f"PASSWORD '{text}'", "")
    for root, _, files in os.walk(bench.directory):
        assert all(text not in name for name in files), root


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Self-signed: one for ``localhost``, one for another name, one that has ended."""
    place = tmp_path_factory.mktemp("tls")
    certificate(place, "good", host="localhost")
    certificate(place, "other", host="elsewhere.example")
    certificate(place, "ended", host="localhost", ended=True)
    return place


@pytest.fixture
def encrypted(server, certificates):
    """The server demands TLS over TCP, with the certificate for ``localhost``."""
    with server.connect() as connection:
        if connection.execute("SHOW ssl_library").fetchone() == ("",):
            pytest.skip("this server was built without TLS")
    owner = (server.data / "PG_VERSION").stat()
    for name in ("good", "other", "ended"):
        for end in ("key", "crt"):
            copied = server.data / f"{name}.{end}"
            shutil.copy(certificates / f"{name}.{end}", copied)
            os.chown(copied, owner.st_uid, owner.st_gid)
            copied.chmod(0o600)
    server.configure(ssl="on", ssl_cert_file="good.crt", ssl_key_file="good.key")
    server.rewrite_hba(
        "local all all scram-sha-256\nhost all postgres all scram-sha-256\nhostssl all all all scram-sha-256\n"
    )
    yield server
    server.rewrite_hba()
    server.configure(ssl="off")


def over_tls(lease, server, database, ca, host="localhost"):
    lease.end()
    lease.id = LeaseId(f"lse_{secrets.token_hex(4)}")
    target = Target("orders", "postgres", Environment.DEV, f"{host}:{server.port}/{database.name}", (), {}, {})
    lease.endpoint = lease.open(target=target, ca=ca and str(ca))


def test_tls_with_the_right_name_is_used_with_channel_binding(encrypted, lease, database, certificates):
    over_tls(lease, encrypted, database, certificates / "good.crt")
    with lease.connect() as connection:
        row = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert row is not None
        assert row[0] is True
        big = connection.execute("SELECT repeat('x', 3000000)").fetchone()
        assert big == ("x" * 3_000_000,)
        connection.execute("SET statement_timeout = 0")
        thread, result = sleeping(connection)
        await_active(database, connection)
        connection.cancel_safe(timeout=20)
        thread.join(30)
        assert result == ["57014"]
    connection = lease.connect()
    assert lease.end() == 1
    with pytest.raises(errors.AdminShutdown):
        connection.execute("SELECT 1")
    connection.close()


@pytest.mark.parametrize(
    ("shown", "ca", "host", "words"),
    [
        ("good", None, "localhost", "access has ended"),  # hostssl: the server refuses a login without TLS.
        ("other", "other", "localhost", "certificate is not valid"),
        ("good", "other", "localhost", "certificate is not valid"),
        ("good", "good", "127.0.0.1", "certificate is not valid"),
        ("good", "system", "localhost", "certificate is not valid"),
        ("ended", "ended", "localhost", "certificate is not valid"),
    ],
)
def test_there_is_no_way_down_from_verified_tls(encrypted, lease, database, certificates, shown, ca, host, words):
    encrypted.configure(ssl_cert_file=f"{shown}.crt", ssl_key_file=f"{shown}.key")
    file = ca if ca in (None, "system") else certificates / f"{ca}.crt"
    over_tls(lease, encrypted, database, file, host)
    with pytest.raises(psycopg.OperationalError, match=words):
        lease.connect()
