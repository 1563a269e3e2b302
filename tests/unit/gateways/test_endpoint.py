from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter

import pytest
import uvloop

from taskpass.core.errors import (
    ConfigInvalid,
    Conflict,
    Internal,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    TargetUnfit,
)
from taskpass.core.ids import LeaseId
from taskpass.core.lease import Target
from taskpass.core.separation import Environment
from taskpass.gateways.postgres import session as session_module
from taskpass.gateways.postgres.endpoint import MAX_SOCKETS, PostgresEndpoints
from taskpass.gateways.postgres.protocol import HangUp
from taskpass.gateways.postgres.session import MAX_CLIENTS, Service, Session
from taskpass.gateways.postgres.target import make_route
from taskpass.wire.postgres.address import parse_address
from taskpass.wire.postgres.login import Login
from taskpass.wire.postgres.messages import (
    CancelRequest,
    Startup,
    authentication,
    cancel_request,
    error_response,
    message,
    read_error,
    ready_for_query,
    ssl_request,
    startup,
)
from tests.unit.gateways.harness import (
    LEASE,
    PATIENCE,
    SOON,
    Bench,
    LoopThread,
    SystemEntropy,
    echo,
    eventually,
    first_packet,
    log_in,
    play_login,
    silent,
)
from tests.unit.wire.conversation import CANARY, SESSION

ROW = message(b"D", b"x" * 5000)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def bench(request):
    made = Bench(request.param)
    yield made
    made.stop()


def end_of(client):
    """The last error of a stream that the endpoint ended, and how many messages came before it."""
    received = client.messages()
    assert received, "the endpoint hung up without a word"
    assert received[-1].kind == b"E"
    return read_error(received[-1].body), received[:-1]


# ---- the session -----------------------------------------------------------------------------------------------------


def test_a_client_without_a_password_reaches_the_target_as_the_role(bench):
    seen = []

    def script(connection):
        seen.append(log_in(connection))
        while data := connection.recv(65536):
            connection.sendall(data)

    endpoint = bench.open(script)
    assert endpoint.dsn == f"postgresql:///orders?host={endpoint.host}&port=5432&user=tp_x"
    client = bench.client(endpoint, application_name="psql")
    assert client.ready() == (4711, b"key!")
    client.socket.sendall(ROW)
    assert client.message().body == b"x" * 5000
    eventually(lambda: seen)
    assert seen == [Startup(3, 0, {"application_name": "psql", "user": "tp_x", "database": "orders"})]


def test_without_a_name_of_its_own_the_session_carries_the_lease(bench):
    seen = []
    bench.client(bench.open(lambda connection: seen.append(log_in(connection)))).ready()
    eventually(lambda: seen)
    assert seen[0].unverified_parameters["application_name"] == LEASE


def test_what_the_client_sends_early_reaches_the_target_in_order(bench):
    endpoint = bench.open(echo)
    client = bench.client(endpoint, start=False)
    early = startup({"user": "tp_x", "database": "orders"}) + message(b"A", b"1")
    client.socket.sendall(early + message(b"B", b"2"))
    client.ready()
    client.socket.sendall(message(b"C", b"3"))
    assert [client.message().kind for _ in range(3)] == [b"A", b"B", b"C"]


def test_what_the_target_sends_along_with_ready_reaches_the_client(bench):
    client = bench.client(bench.open(lambda connection: log_in(connection, SESSION + message(b"N", b"\0"))))
    client.ready()
    assert client.message().kind == b"N"


def test_a_client_that_reads_slowly_gets_everything_and_little_is_kept_for_it(bench):
    block, blocks = message(b"D", b"x" * 65000), 400
    sent = []

    def script(connection):
        log_in(connection)
        for number in range(blocks):
            connection.sendall(block)
            sent.append(number)

    client = bench.client(bench.open(script))
    client.ready()
    before = -1
    while len(sent) != before:  # The target is stopped by flow control long before it is done.
        before = len(sent)
        time.sleep(0.05)
    assert before < 60
    assert [received.kind for received in client.messages()] == [b"D"] * blocks


def test_the_end_of_each_side_reaches_the_other(bench):
    ended = threading.Event()

    def script(connection):
        log_in(connection)
        assert connection.recv(65536) == b""
        ended.set()

    client = bench.client(bench.open(script))
    client.ready()
    client.close()
    assert ended.wait(PATIENCE)
    eventually(lambda: bench.endpoints.connections(LEASE) == 0)

    other = bench.client(bench.open(log_in, LeaseId("lse_02")))
    other.ready()
    assert other.message() is None


def test_a_client_that_only_stops_sending_still_reads_its_answer(bench):
    def script(connection):
        log_in(connection)
        while connection.recv(65536):
            pass
        connection.sendall(ROW)

    client = bench.client(bench.open(script))
    client.ready()
    client.socket.shutdown(socket.SHUT_WR)
    assert client.message().body == b"x" * 5000
    assert client.message() is None


def test_a_client_that_vanishes_cuts_the_target_also_in_the_middle_of_an_answer(bench):
    cut = threading.Event()

    def script(connection):
        log_in(connection)
        try:
            while True:
                connection.sendall(ROW)
        except OSError:
            cut.set()

    client = bench.client(bench.open(script))
    client.ready()
    client.close()
    assert cut.wait(PATIENCE)


# ---- who and what is refused -----------------------------------------------------------------------------------------


def test_a_peer_that_is_not_of_the_run_is_told_so_before_the_target_is_touched():
    def check_peer(connection, order):
        assert isinstance(connection, socket.socket)
        raise NotAuthenticated("not of this run")

    bench = Bench(check_peer=check_peer)
    try:
        error = bench.client(bench.open(echo), start=False).refusal()
        assert error.sqlstate == "28000"
        assert "not of this run" in error.untrusted_message
        assert bench.endpoints.connections(LEASE) == 0
        assert bench._targets[0].accepted == []
    finally:
        bench.stop()


@pytest.mark.parametrize("error", [NotFound("the run is gone"), RuntimeError("a defect")])
def test_a_peer_that_cannot_be_judged_is_not_served(error):
    def check_peer(_connection, _order):
        raise error

    bench = Bench(check_peer=check_peer)
    client = bench.client(bench.open(echo), start=False)
    assert [received.kind for received in client.messages()] == [b"E"] * isinstance(error, NotFound)
    assert bench.endpoints.close(LEASE, message="over") == 0
    assert [context["exception"] for context in bench.thread.complaints] == [error] * isinstance(error, RuntimeError)
    bench.thread.complaints.clear()
    bench.stop()


@pytest.mark.parametrize(
    ("parameters", "sqlstate"),
    [
        ({"user": "postgres"}, "28000"),
        ({"database": "payments"}, "3D000"),
        ({"options": "-c role=postgres"}, "42501"),
        ({"replication": "database"}, "42501"),
    ],
)
def test_a_refused_start_up_never_touches_the_target(bench, parameters, sqlstate):
    endpoint = bench.open(echo)
    assert bench.client(endpoint, **parameters).refusal().sqlstate == sqlstate
    assert bench._targets[0].accepted == []


def test_bytes_along_with_an_encryption_request_end_the_connection(bench):
    client = bench.client(bench.open(echo), start=False)
    client.socket.sendall(ssl_request() + startup({"user": "tp_x", "database": "orders"}))
    assert client.messages() == []


def test_after_encryption_was_declined_the_session_starts(bench):
    endpoint = bench.open(echo)
    client = bench.client(endpoint, start=False)
    client.socket.sendall(ssl_request())
    assert client.socket.recv(10) == b"N"
    client.socket.sendall(startup({"user": "tp_x", "database": "orders"}))
    client.ready()


def accept_anybody(connection):
    first_packet(connection)
    connection.sendall(SESSION)


def ask_for_the_password(connection):
    first_packet(connection)
    connection.sendall(authentication(3))
    assert connection.recv(65536) == b"", "an answer to a cleartext request"


def talk_nonsense(connection):
    first_packet(connection)
    connection.sendall(b"\xff" * 100)


def refuse_with(sqlstate):
    def script(connection):
        first_packet(connection)
        connection.sendall(error_response(sqlstate, "words of the server"))

    return script


@pytest.mark.parametrize(
    ("script", "sqlstate", "words"),
    [
        (accept_anybody, "28000", "without a password"),
        (ask_for_the_password, "08P01", "AuthenticationCleartextPassword"),
        (refuse_with("53300"), "53300", "too many connections"),
        (refuse_with("28P01"), "28P01", "access has ended"),
        (refuse_with("57P03"), "57P03", "not accept connections now"),
        (talk_nonsense, "08P01", "out of range"),
        (first_packet, "08P01", "closed the connection during the login"),
    ],
)
def test_a_target_that_gives_no_session_is_explained_in_our_words(bench, script, sqlstate, words):
    error = bench.client(bench.open(script)).refusal()
    assert (error.severity, error.sqlstate) == ("FATAL", sqlstate)
    assert words in error.untrusted_message
    assert "words of the server" not in error.untrusted_message


def test_a_target_that_is_not_there_is_unreachable(bench):
    endpoint = bench.endpoints.open(bench.order(f"{bench.directory}:2/orders"))
    error = bench.client(endpoint).refusal()
    assert error.sqlstate == "08001"
    assert "cannot be reached" in error.untrusted_message
    bench.endpoints.close(LEASE, message="over")


def test_another_machine_needs_a_ca_and_the_ca_must_be_readable(bench):
    with pytest.raises(TargetUnfit):
        bench.endpoints.open(bench.order("db.example:5432/orders"))
    with pytest.raises(ConfigInvalid):
        bench.endpoints.open(bench.order("db.example:5432/orders", ca=f"{bench.directory}/absent.pem"))
    with pytest.raises(InvalidInput):
        bench.endpoints.open(bench.order("nonsense"))


def test_a_target_without_tls_is_refused_where_tls_is_demanded(bench):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)
    port = listener.getsockname()[1]

    def serve():
        connection, _ = listener.accept()
        with connection:
            first_packet(connection)
            connection.sendall(b"N")
            assert connection.recv(100) == b"", "something was said without TLS"

    thread = threading.Thread(target=serve)
    thread.start()
    endpoint = bench.endpoints.open(bench.order(f"127.0.0.1:{port}/orders", ca="system"))
    error = bench.client(endpoint).refusal()
    assert (error.sqlstate, "does not offer TLS" in error.untrusted_message) == ("08004", True)
    bench.endpoints.close(LEASE, message="over")
    thread.join(PATIENCE)
    listener.close()


def test_bytes_that_come_with_the_answer_to_tls_are_not_taken_for_protected_ones(bench):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)

    def serve():
        connection, _ = listener.accept()
        with connection:
            first_packet(connection)
            connection.sendall(b"S" + SESSION)
            assert connection.recv(100) == b"", "a handshake began"

    thread = threading.Thread(target=serve)
    thread.start()
    endpoint = bench.endpoints.open(bench.order(f"127.0.0.1:{listener.getsockname()[1]}/orders", ca="system"))
    assert bench.client(endpoint).refusal().sqlstate == "08004"
    bench.endpoints.close(LEASE, message="over")
    thread.join(PATIENCE)
    listener.close()


def test_a_local_name_that_leads_to_another_machine_is_not_followed(monkeypatch):
    bench = Bench()
    elsewhere = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 5432))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [elsewhere])
    endpoint = bench.endpoints.open(bench.order("localhost:5432/orders"))
    error = bench.client(endpoint).refusal()
    assert (error.sqlstate, "leads to another machine" in error.untrusted_message) == ("08004", True)
    bench.endpoints.close(LEASE, message="over")
    bench.stop()


# ---- limits and deadlines --------------------------------------------------------------------------------------------


def test_silence_on_either_side_ends_with_the_start_up_deadline(bench, monkeypatch):
    monkeypatch.setattr(session_module, "START_SECONDS", 0.1)
    endpoint = bench.open(silent)
    for client in (bench.client(endpoint, start=False), bench.client(endpoint)):
        assert "took too long" in client.refusal().untrusted_message
    eventually(lambda: bench.endpoints.connections(LEASE) == 0)


def test_one_client_more_than_allowed_is_refused_and_a_freed_place_is_taken(bench):
    endpoint = bench.open(echo)
    clients = [bench.client(endpoint) for _ in range(MAX_CLIENTS)]
    for client in clients:
        client.ready()
    assert bench.endpoints.connections(LEASE) == MAX_CLIENTS
    assert bench.client(endpoint).refusal().sqlstate == "53300"
    clients[0].close()
    eventually(lambda: bench.endpoints.connections(LEASE) == MAX_CLIENTS - 1)
    bench.client(endpoint).ready()


def test_a_party_has_so_many_connections_on_all_its_endpoints_and_no_other_party_less(bench):
    mine = [bench.open(echo, LeaseId(f"lse_{n}"), party="dora", connections=2) for n in range(2)]
    other = bench.open(echo, LeaseId("lse_o"), party="otto", connections=2)
    clients = [bench.client(endpoint) for endpoint in mine]
    for client in clients:
        client.ready()
    refused = bench.client(mine[0]).refusal()
    assert refused.sqlstate == "53300"
    bench.client(other).ready()
    bench.endpoints.close(LeaseId("lse_1"), message="over")
    eventually(lambda: bench.endpoints.connections(LeaseId("lse_1")) == 0)
    bench.client(mine[0]).ready()


def test_sockets_that_say_nothing_are_bounded(bench):
    endpoint = bench.open(echo)
    for _ in range(MAX_SOCKETS):
        bench.client(endpoint, start=False)
    assert bench.client(endpoint, start=False).refusal().sqlstate == "53300"


# ---- cancel ----------------------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_target_only_with_the_key_of_a_live_session_of_this_lease(bench):
    cancels = []

    def script(connection):
        packet = first_packet(connection)
        if isinstance(packet, CancelRequest):
            cancels.append(packet)
            return
        play_login(connection)
        while connection.recv(65536):
            pass

    def ask(endpoint, pid, key):
        client = bench.client(endpoint, start=False)
        client.socket.sendall(cancel_request(pid, key))
        assert client.messages() == []

    mine = bench.open(script)
    other = bench.open(script, LeaseId("lse_02"))
    client = bench.client(mine)
    pid, key = client.ready()
    ask(mine, pid, b"nope")
    ask(mine, pid + 1, key)
    ask(other, pid, key)
    assert cancels == []
    ask(mine, pid, key)
    assert cancels == [CancelRequest(pid, key)]
    client.close()
    eventually(lambda: bench.endpoints.connections(LEASE) == 0)
    ask(mine, pid, key)
    assert len(cancels) == 1


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_an_end_is_told_to_every_client_and_nothing_is_left(bench):
    endpoint = bench.open(echo)
    clients = [bench.client(endpoint) for _ in range(3)]
    for client in clients:
        client.ready()
    assert bench.endpoints.close(LEASE, message="access of this coding task has ended") == 3
    for client in clients:
        error, before = end_of(client)
        assert before == []
        assert (error.severity, error.sqlstate) == ("FATAL", "57P01")
        assert error.untrusted_message == "terminating connection: access of this coding task has ended"
    assert not os.path.exists(endpoint.host)
    assert bench.endpoints.connections(LEASE) == 0
    for connection in bench._targets[0].accepted:
        eventually(lambda connection=connection: connection.fileno() == -1)


def test_a_client_that_goes_on_hears_it_once_more(bench):
    client = bench.client(bench.open(echo))
    client.ready()
    bench.endpoints.close(LEASE, message="over")
    client.until(b"E")
    for _ in range(3):
        client.socket.sendall(message(b"Q", b"SELECT 1\0"))
        time.sleep(0.01)
    assert [received.kind for received in client.messages()] == [b"E"]


def test_a_client_that_ignores_the_end_is_cut_a_moment_later(bench):
    client = bench.client(bench.open(echo))
    client.ready()
    bench.endpoints.close(LEASE, message="over")
    began = time.monotonic()
    assert len(client.messages()) == 1
    assert time.monotonic() - began < SOON


def test_at_the_end_of_the_process_every_client_is_told(bench):
    endpoints = [bench.open(echo, LeaseId(f"lse_{number}")) for number in range(3)]
    clients = [bench.client(endpoint) for endpoint in endpoints]
    for client in clients:
        client.ready()
    assert bench.endpoints.close_all(message="the broker stops") == 3
    assert [end_of(client)[0].sqlstate for client in clients] == ["57P01"] * 3
    assert not any(os.path.exists(endpoint.host) for endpoint in endpoints)


def test_nobody_connects_after_the_end(bench):
    endpoint = bench.open(echo)
    bench.endpoints.close(LEASE, message="over")
    with pytest.raises(FileNotFoundError):
        bench.client(endpoint)


def test_an_end_is_idempotent_and_an_unknown_lease_has_none(bench):
    bench.open(echo)
    assert [bench.endpoints.close(LEASE, message="over") for _ in range(2)] == [0, 0]
    assert bench.endpoints.close(LeaseId("lse_unknown"), message="over") == 0


def test_a_revocation_that_overtakes_the_opening_wins(bench):
    bench.endpoints.close(LEASE, message="over")
    with pytest.raises(Conflict):
        bench.open(echo)
    assert not os.path.exists(f"{bench.directory}/{LEASE}")


def test_a_lease_has_one_endpoint(bench):
    bench.open(echo)
    with pytest.raises(Conflict):
        bench.endpoints.open(bench.order("/x:1/orders", directory=f"{bench.directory}/again"))


def stop_within_a_row(rest_after):
    """A target that sends half a row and the rest only after ``rest_after`` is set."""

    def script(connection):
        log_in(connection)
        connection.sendall(ROW + ROW[:100])
        if rest_after.wait(PATIENCE):
            connection.sendall(ROW[100:] + ROW)

    return script


def test_in_the_middle_of_a_row_the_row_is_completed_first(bench):
    rest = threading.Event()
    client = bench.client(bench.open(stop_within_a_row(rest)))
    client.ready()
    assert client.message().body == b"x" * 5000
    ending = threading.Thread(target=bench.endpoints.close, args=(LEASE,), kwargs={"message": "over"})
    ending.start()
    eventually(lambda: not os.path.exists(f"{bench.directory}/{LEASE}"))
    rest.set()
    error, before = end_of(client)
    assert [received.body for received in before] == [b"x" * 5000]
    assert error.sqlstate == "57P01"
    ending.join(PATIENCE)


def test_a_target_that_hangs_within_a_row_delays_the_end_by_a_bounded_time(bench):
    never = threading.Event()
    client = bench.client(bench.open(stop_within_a_row(never)))
    client.ready()
    client.message()
    began = time.monotonic()
    assert bench.endpoints.close(LEASE, message="over") == 1
    assert time.monotonic() - began < SOON
    with pytest.raises(AssertionError, match="within a message"):
        client.messages()
    never.set()


def test_a_client_that_does_not_read_delays_the_end_by_a_bounded_time(bench):
    def script(connection):
        log_in(connection)
        while True:
            connection.sendall(ROW)

    client = bench.client(bench.open(script))
    client.ready()
    eventually(lambda: client.socket.recv(1, socket.MSG_PEEK))
    time.sleep(0.05)
    began = time.monotonic()
    assert bench.endpoints.close(LEASE, message="over") == 1
    assert time.monotonic() - began < SOON
    assert bench.endpoints.connections(LEASE) == 0


def test_a_client_that_is_still_starting_is_told_too_also_while_the_target_hangs(bench):
    endpoint = bench.open(silent)
    client = bench.client(endpoint)
    eventually(lambda: bench.endpoints.connections(LEASE) == 1)
    began = time.monotonic()
    assert bench.endpoints.close(LEASE, message="over") == 1
    assert time.monotonic() - began < SOON
    error, _ = end_of(client)
    assert error.sqlstate == "57P01"


def test_a_session_that_becomes_ready_during_the_end_does_not_survive(bench):
    arrived, go = threading.Event(), threading.Event()
    alive = []

    def script(connection):
        packet = first_packet(connection)
        assert isinstance(packet, Startup)
        arrived.set()
        go.wait(PATIENCE)
        play_login(connection)
        alive.append(True)

    client = bench.client(bench.open(script))
    assert arrived.wait(PATIENCE)
    bench.endpoints.close(LEASE, message="over")
    go.set()
    error, before = end_of(client)
    assert (error.sqlstate, before) == ("57P01", [])
    assert alive == []


def test_an_end_before_the_session_has_begun_leaves_nothing_open(bench):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    order = bench.order(bench.target(echo).address)

    async def begin_and_end():
        sessions = []
        route = make_route(parse_address(order.target.address), None)
        session = Session(Service(order, route, SystemEntropy(), sessions, Counter()), ours)
        task = asyncio.get_running_loop().create_task(session.run())
        await session.end(HangUp(error_response("57P01", "over")), task)

    asyncio.run_coroutine_threadsafe(begin_and_end(), bench.thread.loop).result(PATIENCE)
    with theirs:
        theirs.settimeout(PATIENCE)
        assert b"C57P01" in theirs.recv(1000)
        assert theirs.recv(1000) == b""


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_a_call_on_the_loops_own_thread_is_an_error_and_no_deadlock(bench):
    async def call():
        return bench.endpoints.connections(LEASE)

    with pytest.raises(Internal):
        asyncio.run_coroutine_threadsafe(call(), bench.thread.loop).result(PATIENCE)


def test_a_loop_that_has_ended_is_an_error_and_no_hang():
    thread = LoopThread()
    endpoints = PostgresEndpoints(thread.loop, entropy=SystemEntropy(), check_peer=lambda *_: None)
    thread.stop()
    with pytest.raises(Internal):
        endpoints.close(LEASE, message="over")


def test_many_threads_open_and_close_at_once(bench):
    target = bench.target(echo)
    failures = []

    def work(number):
        lease = LeaseId(f"lse_{number:02}")
        try:
            endpoint = bench.endpoints.open(bench.order(target.address, lease))
            client = bench.client(endpoint)
            client.ready()
            assert bench.endpoints.close(lease, message="over") == 1
            assert end_of(client)[0].sqlstate == "57P01"
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []


# ---- the secret ------------------------------------------------------------------------------------------------------


def test_the_secret_is_in_no_log_no_repr_and_no_message(bench, caplog):
    caplog.set_level(logging.DEBUG)
    for number, script in enumerate([echo, accept_anybody, ask_for_the_password, refuse_with("28P01"), first_packet]):
        lease = LeaseId(f"lse_{number:02}")
        endpoint = bench.open(script, lease)
        client = bench.client(endpoint)
        shown = repr(endpoint) + repr(bench.endpoints) + repr(bench.order("/x:1/orders"))
        if script is echo:
            client.ready()
            bench.endpoints.close(lease, message="over")
        shown += repr(client.messages())
        assert CANARY not in shown
    assert "target_refused" in caplog.text
    assert CANARY not in caplog.text


def test_an_unexpected_error_is_logged_by_its_kind_only(bench, caplog, monkeypatch):
    def explode(self, data):
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Login, "feed", explode)
    client = bench.client(bench.open(echo))
    assert client.messages() == []
    eventually(lambda: "session_broken" in caplog.text)
    assert "error=RuntimeError" in caplog.text
    assert CANARY not in caplog.text


def test_after_the_end_the_order_with_its_secret_is_forgotten(bench):
    order = bench.order(bench.target(echo).address)
    client = bench.client(bench.endpoints.open(order))
    client.ready()
    bench.endpoints.close(LEASE, message="over")
    eventually(lambda: gc.collect() is not None and sys.getrefcount(order) == 2)


def test_targets_are_described_by_their_address_alone(bench):
    target = Target("orders", "postgres", Environment.DEV, bench.target(echo).address, (), {}, {})
    assert bench.endpoints.open(bench.order("", target=target)).database == "orders"
    bench.endpoints.close(LEASE, message="over")


def test_the_stream_ends_cleanly_for_a_client_that_was_never_idle(bench):
    def script(connection):
        log_in(connection)
        while True:
            connection.sendall(ROW + ready_for_query())

    client = bench.client(bench.open(script))
    client.ready()
    for _ in range(50):
        client.message()
    ending = threading.Thread(target=bench.endpoints.close, args=(LEASE,), kwargs={"message": "over"})
    ending.start()
    error, _ = end_of(client)
    ending.join(PATIENCE)
    assert error.sqlstate == "57P01"
