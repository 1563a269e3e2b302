from __future__ import annotations

import pytest

from taskpass.wire.postgres.messages import (
    MAX_FIRST_PACKET,
    CancelRequest,
    Framer,
    GssEncRequest,
    Malformed,
    Message,
    SslRequest,
    Startup,
    authentication,
    cancel_request,
    error_response,
    gssenc_request,
    negotiate_protocol_version,
    read_error,
    ready_for_query,
    ssl_request,
    startup,
    take_first_packet,
)


def take(data):
    return take_first_packet(bytearray(data))


def test_each_first_packet_is_read_back_as_it_was_written():
    assert take(startup({"user": "u", "database": "d"})) == Startup(3, 0, {"user": "u", "database": "d"})
    assert take(ssl_request()) == SslRequest()
    assert take(gssenc_request()) == GssEncRequest()
    assert take(cancel_request(-7, b"k" * 32)) == CancelRequest(-7, b"k" * 32)


def test_a_packet_is_taken_only_when_complete_and_the_rest_stays():
    buffer = bytearray(ssl_request() + b"more")
    assert take_first_packet(buffer) == SslRequest()
    assert buffer == b"more"
    for cut in range(8):
        assert take(ssl_request()[:cut]) is None


@pytest.mark.parametrize("length", [0, 3, 4, 7, MAX_FIRST_PACKET + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_length_out_of_range_is_refused_before_the_body_comes(length):
    with pytest.raises(Malformed):
        take(length.to_bytes(4, "big"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"user",
        b"user\0",
        b"user\0x\0",
        b"user\0x\0y\0\0",
        b"user\0\xff\0\0",
        b"user\0a\0user\0b\0\0",
        b"\0x\0\0",
    ],
)
def test_malformed_start_up_parameters_are_refused(body):
    packet = b"\0\x03\0\0" + body
    with pytest.raises(Malformed):
        take((len(packet) + 4).to_bytes(4, "big") + packet)


def test_an_empty_list_and_an_empty_value_are_legal():
    assert take(startup({})) == Startup(3, 0, {})
    assert take(startup({"application_name": ""})) == Startup(3, 0, {"application_name": ""})


def test_an_encryption_request_with_a_body_and_a_cancel_without_a_key_are_refused():
    for packet in (ssl_request()[4:] + b"x", cancel_request(1, b"abc")[4:], cancel_request(1, b"k" * 257)[4:]):
        with pytest.raises(Malformed):
            take((len(packet) + 4).to_bytes(4, "big") + packet)


def test_the_framer_gives_whole_messages_only():
    framer = Framer()
    framer.push(authentication(0)[:5])
    assert framer.take() is None
    framer.push(authentication(0)[5:] + ready_for_query() + b"E")
    assert [framer.take(), framer.take(), framer.take()] == [
        Message(b"R", b"\0\0\0\0"),
        Message(b"Z", b"I"),
        None,
    ]
    assert framer.rest == b"E"


def test_an_error_is_read_back_and_words_cannot_end_a_field():
    framer = Framer()
    framer.push(error_response("57P01", "over\0Mfake\nline", hint="ask again"))
    received = framer.take()
    assert received is not None
    error = read_error(received.body)
    assert (error.severity, error.sqlstate, error.untrusted_message) == ("FATAL", "57P01", "over Mfake line")


def test_negotiation_lists_what_is_ignored():
    assert negotiate_protocol_version(["_pq_.a"]) == b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.a\0"


def test_a_nul_in_a_parameter_is_refused():
    with pytest.raises(Malformed):
        startup({"user": "a\0b"})
