from __future__ import annotations

import traceback

import pytest

from taskpass.core.errors import InvalidInput
from taskpass.core.secret import Secret
from taskpass.wire.postgres.login import Broken, Ready, Refused
from taskpass.wire.postgres.messages import (
    MAX_LOGIN_MESSAGE,
    authentication,
    backend_key_data,
    error_response,
    message,
    negotiate_protocol_version,
    parameter_status,
    ready_for_query,
    startup,
)
from tests.unit.wire.conversation import CANARY, NONCE, SESSION, ScramServer, converse, login


def test_it_opens_with_protocol_3_0_and_its_user_wins_over_parameters():
    client = login(parameters={"user": "postgres", "application_name": "lse_1"})
    assert client.start() == startup({"user": "tp_x", "application_name": "lse_1", "database": "orders"})
    assert client.start()[4:8] == b"\x00\x03\x00\x00"


def test_a_server_with_the_right_verifier_lets_us_in():
    client = login()
    outcome = converse(client, ScramServer())
    assert outcome == Ready(True, {"server_version": "18.4"}, 4711, b"key!")
    assert client.seen == (
        "AuthenticationSASL",
        "AuthenticationSASLContinue",
        "AuthenticationSASLFinal",
        "AuthenticationOk",
    )


def test_channel_binding_is_used_when_we_have_it_and_the_server_offers_it():
    server = ScramServer(mechanisms=("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"), binding=b"h" * 32)
    assert isinstance(converse(login(binding=b"h" * 32), server), Ready)


def test_bytes_after_the_first_ready_belong_to_the_session():
    client = login()
    converse(client, ScramServer(after=SESSION + b"S\0\0"))
    assert client.rest == b"S\0\0"
    assert client.feed(b"\0") == b""
    assert client.rest == b"S\0\0\0"


def test_acceptance_without_a_proof_is_reported_as_such():
    client = login()
    client.feed(SESSION)
    assert client.outcome == Ready(False, {"server_version": "18.4"}, 4711, b"key!")


def test_a_refusal_after_authentication_ok_is_told_apart_from_one_before():
    client = login()
    dead = authentication(0) + error_response("28000", "role is not permitted to log in")
    assert converse(client, ScramServer(after=dead)) == Refused(
        "28000", "FATAL", "role is not permitted to log in", sasl=True, after_authentication_ok=True
    )
    early = login()
    early.feed(error_response("28P01", "password authentication failed"))
    assert early.outcome == Refused(
        "28P01", "FATAL", "password authentication failed", sasl=False, after_authentication_ok=False
    )


def test_a_refusal_after_trust_does_not_count_as_proven():
    client = login()
    client.feed(authentication(0) + error_response("28000", "x"))
    assert client.outcome == Refused("28000", "FATAL", "x", sasl=False, after_authentication_ok=True)


@pytest.mark.parametrize("code", [2, 3, 5, 7, 9, 12, 99])
def test_other_methods_get_no_answer(code):
    client = login()
    assert client.feed(authentication(code, b"salt")) == b""
    assert isinstance(client.outcome, Broken)


def test_a_server_that_cannot_sign_the_exchange_is_not_believed():
    client = login()
    server = ScramServer()
    challenge = server.answer(client.feed(server.start()))
    client.feed(challenge)
    client.feed(authentication(12, b"v=" + b"A" * 43 + b"=") + SESSION)
    assert client.outcome == Broken("the server's signature is wrong")


def test_skipping_the_signature_is_not_accepted():
    client = login()
    server = ScramServer()
    client.feed(server.answer(client.feed(server.start())))
    client.feed(SESSION)
    assert client.outcome == Broken("expected AuthenticationSASLFinal, got AuthenticationOk")


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=other,s=AAAA,i=1",
        f"r={NONCE},s=AAAA,i=1".encode(),
        f"r={NONCE}x,s=!!,i=1".encode(),
        f"r={NONCE}x,s=AAAA,i=0".encode(),
        f"r={NONCE}x,s=AAAA,i=10001".encode(),
        f"r={NONCE}x,s=AAAA,i=-5".encode(),
        f"r={NONCE}x,s=AAAA".encode(),
        b"\xff\xff",
        b"",
    ],
)
def test_a_bad_challenge_gets_no_proof(challenge):
    client = login()
    client.feed(ScramServer().start())
    assert client.feed(authentication(11, challenge)) == b""
    assert isinstance(client.outcome, Broken)


def test_one_iteration_is_enough_for_a_secret_of_an_endpoint():
    client = login()
    client.feed(ScramServer().start())
    assert b"p=" in client.feed(authentication(11, f"r={NONCE}x,s=AAAA,i=1".encode()))


@pytest.mark.parametrize("length", [0, 3, 2**31 - 1, 2**31, 2**32 - 1, MAX_LOGIN_MESSAGE + 1])
def test_a_length_out_of_range_breaks_at_once(length):
    client = login()
    client.feed(b"R" + length.to_bytes(4, "big"))
    assert client.outcome == Broken("length of a server message is out of range")


@pytest.mark.parametrize(
    "after",
    [
        message(b"Z", b"T"),
        message(b"D", b"row"),
        backend_key_data(1, b"key"),
        backend_key_data(1, b"k" * 257),
        message(b"S", b"name without value\0"),
        message(b"S", b"name\0\xff\0"),
        message(b"E", b""),
        message(b"E", b"CXX\0\0"),
        authentication(0),
    ],
)
def test_nonsense_before_ready_breaks_the_login(after):
    client = login()
    client.feed(authentication(0) + after)
    assert isinstance(client.outcome, Broken)


def test_a_session_message_before_authentication_breaks_the_login():
    for early in (parameter_status("a", "b"), ready_for_query(), backend_key_data(1, b"abcd")):
        client = login()
        client.feed(early)
        assert client.outcome == Broken("expected an authentication message")


def test_what_a_hostile_server_can_make_us_keep_is_bounded():
    client = login()
    client.feed(authentication(0))
    for number in range(400):
        client.feed(parameter_status(str(number), "x" * 1000))
    assert client.outcome == Broken("the server sends too much during the login")


def test_notices_negotiation_and_long_keys_are_tolerated():
    client = login()
    client.feed(
        negotiate_protocol_version(["_pq_.x"])
        + authentication(0)
        + message(b"N", b"")
        + backend_key_data(-1, b"k" * 256)
        + ready_for_query()
    )
    assert client.outcome == Ready(False, {}, -1, b"k" * 256)


def test_a_hang_up_is_broken_but_does_not_change_an_outcome():
    client = login()
    client.eof()
    assert isinstance(client.outcome, Broken)
    done = login()
    done.feed(SESSION)
    done.eof()
    assert isinstance(done.outcome, Ready)


def test_the_secret_and_the_cancel_key_do_not_show():
    client = login()
    outcome = converse(client, ScramServer())
    assert CANARY not in repr(client) + repr(outcome) + repr(vars(client))
    assert "key!" not in repr(outcome)
    other = login(secret=Secret("sécret-" + CANARY))
    with pytest.raises(InvalidInput) as caught:
        other.feed(ScramServer().start())
    assert CANARY not in "".join(traceback.format_exception(caught.value))
