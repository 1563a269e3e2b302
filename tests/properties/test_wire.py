"""Bytes from a peer that nobody trusts: cut anywhere, mutated anywhere, or made up."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from taskpass.core.ids import RoleName
from taskpass.gateways.postgres.boundary import Boundary
from taskpass.gateways.postgres.protocol import Cancel, ClientStart, Connect, HangUp, Say
from taskpass.wire.postgres.login import MAX_LOGIN, Broken, Ready, Refused
from taskpass.wire.postgres.messages import (
    MAX_FIRST_PACKET,
    MAX_LOGIN_MESSAGE,
    authentication,
    error_response,
    message,
    parameter_status,
    ready_for_query,
    ssl_request,
    startup,
)
from tests.unit.wire.conversation import CANARY, SESSION, ScramServer, converse, login

CUTS = st.lists(st.integers(0, 2000), max_size=30)
NASTY_LENGTHS = st.sampled_from([0, 1, 3, 4, 5, 2**31 - 1, 2**31, 2**32 - 1, MAX_LOGIN_MESSAGE, MAX_FIRST_PACKET])
ENDINGS = st.sampled_from(
    [SESSION, authentication(0) + error_response("28000", "no"), error_response("53300", "full"), message(b"Z", b"E")]
)


def cut_at(data, places):
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(CUTS, ENDINGS)
def test_any_chunking_of_a_login_gives_the_same_outcome(places, ending):
    whole, pieces = login(), login()
    expected = converse(whole, ScramServer(after=ending))
    assert converse(pieces, ScramServer(after=ending), cut=lambda data: cut_at(data, places)) == expected
    assert (pieces.seen, pieces.rest) == (whole.seen, whole.rest)


@given(CUTS)
def test_any_chunking_of_a_start_up_gives_the_same_step(places):
    packet = startup({"user": "tp_x", "database": "orders", "application_name": "é" * 100})
    client = ClientStart(RoleName("tp_x"), "orders")
    steps = [step for piece in cut_at(packet, places) if (step := client.feed(piece)) is not None]
    assert steps == [Connect({"application_name": "é" * 100}, b"")]


def framed(kinds, bodies, lengths):
    """Messages whose declared length is now and then not the one that is sent."""
    return st.builds(
        lambda kind, body, length: message(kind, body) if length is None else kind + length.to_bytes(4, "big") + body,
        kinds,
        bodies,
        st.one_of(st.none(), st.none(), lengths),
    )


KINDS = st.sampled_from([b"R", b"S", b"K", b"Z", b"E", b"N", b"v", b"D", b"\0"])
BODIES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda code, rest: code.to_bytes(4, "big") + rest,
        st.sampled_from([0, 3, 5, 10, 11, 12]),
        st.one_of(st.binary(max_size=60), st.sampled_from([b"SCRAM-SHA-256\0\0", b"r=fixedclientnonceX,s=AAAA,i=1"])),
    ),
)


@given(st.lists(st.one_of(framed(KINDS, BODIES, NASTY_LENGTHS), st.binary(max_size=40)), max_size=12))
@example([authentication(10, b"SCRAM-SHA-256\0\0"), authentication(11, b"r=fixedclientnonceX,s=AAAA,i=1"), SESSION])
def test_no_server_can_break_the_login_other_than_in_words(pieces):
    client = login()
    client.start()
    sent = b"".join(client.feed(piece) for piece in pieces)
    client.eof()
    assert isinstance(client.outcome, Ready | Refused | Broken)
    assert CANARY.encode() not in sent
    if isinstance(client.outcome, Ready):
        assert not client.outcome.sasl, "nobody without the verifier is believed to have it"


@given(st.integers(1, MAX_LOGIN_MESSAGE), st.integers(1, 50))
def test_what_a_server_can_make_the_login_keep_is_bounded(size, count):
    client = login()
    client.feed(authentication(0))
    for number in range(count):
        client.feed(parameter_status(f"p{number}", "x" * (size - 8)) if size > 8 else message(b"N", b""))
    kept = sum(len(value) for value in vars(client)["_parameters"].values()) + len(client.rest)
    assert kept <= MAX_LOGIN + MAX_LOGIN_MESSAGE or client.outcome is not None


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_no_client_can_break_the_start_up_other_than_in_words(pieces):
    client = ClientStart(RoleName("tp_x"), "orders")
    for piece in pieces:
        step = client.feed(piece)
        assert step is None or isinstance(step, Say | HangUp | Cancel | Connect)
        if isinstance(step, HangUp | Cancel | Connect):
            return
        assert len(client.rest) <= MAX_FIRST_PACKET


@given(NASTY_LENGTHS, st.binary(max_size=100))
def test_a_first_packet_of_any_declared_length_is_judged_by_its_length_first(length, body):
    step = ClientStart(RoleName("tp_x"), "orders").feed(length.to_bytes(4, "big") + body)
    if not 8 <= length <= MAX_FIRST_PACKET:
        assert isinstance(step, HangUp)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=6))
def test_only_the_lease_itself_is_ever_connected(pairs):
    parameters = {name: value for name, value in pairs if name and "\0" not in name + value}
    step = ClientStart(RoleName("tp_x"), "orders").feed(startup(parameters))
    if isinstance(step, Connect):
        assert (parameters.get("user"), parameters.get("database")) == ("tp_x", "orders")


@given(st.binary(min_size=1, max_size=200))
def test_nothing_may_come_along_with_an_encryption_request(early):
    assert ClientStart(RoleName("tp_x"), "orders").feed(ssl_request() + early) == HangUp()


@given(st.lists(st.binary(max_size=40), max_size=12), CUTS, st.integers(0, 600))
def test_a_boundary_is_found_where_messages_end_however_the_stream_is_cut(bodies, places, stop):
    stream = b"".join(message(b"D", body) for body in bodies) + ready_for_query()
    ends, at = {0}, 0
    for body in [*bodies, b"I"]:
        at += 5 + len(body)
        ends.add(at)
    stop = min(stop, len(stream))
    boundary = Boundary()
    for piece in cut_at(stream[:stop], places):
        boundary.follow(piece)
    assert boundary.reached is (stop in ends)
    nearest = min(end for end in ends if end >= stop)
    assert boundary.next_in(stream[stop:]) == nearest - stop


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_a_boundary_follows_any_bytes(pieces):
    boundary = Boundary()
    for piece in pieces:
        boundary.next_in(piece)
        boundary.follow(piece)
