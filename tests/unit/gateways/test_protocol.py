from __future__ import annotations

import pytest

from taskpass.core.ids import RoleName
from taskpass.gateways.postgres.protocol import Cancel, ClientStart, Connect, HangUp, Say, explain, welcome
from taskpass.wire.postgres.login import Broken, Ready, Refused
from taskpass.wire.postgres.messages import (
    Framer,
    backend_key_data,
    cancel_request,
    gssenc_request,
    negotiate_protocol_version,
    read_error,
    ssl_request,
    startup,
)

SESSION = {"user": "tp_x", "database": "orders"}


def start():
    return ClientStart(RoleName("tp_x"), "orders")


def error_of(step):
    assert isinstance(step, HangUp)
    framer = Framer()
    framer.push(step.data)
    received = framer.take()
    assert received is not None
    assert framer.rest == b""
    assert received.kind == b"E"
    return read_error(received.body)


def refused(packet):
    return error_of(start().feed(packet))


def test_a_client_of_the_lease_is_connected_with_the_parameters_that_may_pass():
    step = start().feed(startup({**SESSION, "application_name": "psql", "DateStyle": "ISO"}))
    assert step == Connect({"application_name": "psql", "DateStyle": "ISO"}, b"")


def test_encryption_is_declined_once_of_each_kind_and_then_the_session_starts():
    client = start()
    assert client.feed(gssenc_request()) == Say(b"N")
    assert client.feed(ssl_request()) == Say(b"N")
    assert isinstance(client.feed(startup(SESSION)), Connect)


def test_asking_for_encryption_again_ends_it():
    client = start()
    client.feed(ssl_request())
    assert client.feed(ssl_request()) == HangUp()


@pytest.mark.parametrize("request_bytes", [ssl_request(), gssenc_request()])
def test_bytes_sent_along_with_an_encryption_request_end_it(request_bytes):
    assert start().feed(request_bytes + startup(SESSION)) == HangUp()


def test_a_cancel_request_is_handed_on_as_such():
    assert start().feed(cancel_request(7, b"key!")) == Cancel(7, b"key!")


@pytest.mark.parametrize("user", ["postgres", "", "TP_X", "tp_x "])
def test_another_user_is_refused(user):
    error = refused(startup({**SESSION, "user": user}))
    assert (error.severity, error.sqlstate) == ("FATAL", "28000")
    assert "serves the role tp_x only" in error.untrusted_message


def test_no_user_at_all_is_refused():
    assert refused(startup({"database": "orders"})).sqlstate == "28000"


def test_another_database_is_refused_also_the_one_that_the_protocol_defaults_to():
    assert refused(startup({**SESSION, "database": "payments"})).sqlstate == "3D000"
    assert refused(startup({"user": "tp_x"})).sqlstate == "3D000"


@pytest.mark.parametrize(
    "name", ["options", "replication", "role", "session_authorization", "search_path", "ROLE", "row_security"]
)
def test_a_parameter_that_is_not_on_the_list_is_refused_by_name(name):
    error = refused(startup({**SESSION, name: "x"}))
    assert (error.severity, error.sqlstate) == ("FATAL", "42501")
    assert f"start-up parameter {name} is not accepted" in error.untrusted_message


def test_newer_minor_versions_and_protocol_options_are_negotiated_down():
    packet = bytearray(startup({**SESSION, "_pq_.future": "1"}))
    packet[6:8] = b"\0\x02"
    assert start().feed(bytes(packet)) == Connect({}, negotiate_protocol_version(["_pq_.future"]))


def test_another_major_version_is_refused():
    packet = bytearray(startup(SESSION))
    packet[4:6] = b"\0\x02"
    assert refused(bytes(packet)).sqlstate == "0A000"


def test_a_broken_packet_is_refused_with_words():
    assert refused(b"\xff\xff\xff\xff").sqlstate == "08P01"


def test_what_comes_after_the_start_up_message_belongs_to_the_session():
    client = start()
    client.feed(startup(SESSION) + b"Q...")
    assert client.rest == b"Q..."


def test_every_split_of_the_packets_gives_the_same_steps():
    packet = startup(SESSION)
    for cut in range(1, len(packet)):
        client = start()
        assert client.feed(packet[:cut]) is None
        assert client.feed(packet[cut:]) == Connect({}, b"")


def test_only_a_login_that_was_proven_is_a_session():
    assert explain(Ready(True, {}, 1, b"key!")) is None
    assert error_of(explain(Ready(False, {}, 1, b"key!"))).sqlstate == "28000"
    assert error_of(explain(Broken("x"))).sqlstate == "08P01"


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("53300", "too many connections"),
        ("28P01", "access has ended"),
        ("28000", "access has ended"),
        ("57P03", "does not accept connections now"),
        ("3D000", "refused the connection (SQLSTATE 3D000)"),
    ],
)
def test_a_refusal_keeps_its_sqlstate_and_never_the_targets_own_words(sqlstate, words):
    error = error_of(explain(Refused(sqlstate, "FATAL", "SERVER TEXT", True, True)))
    assert error.sqlstate == sqlstate
    assert words in error.untrusted_message
    assert "SERVER TEXT" not in error.untrusted_message


def test_the_client_hears_what_it_would_have_heard_from_the_target():
    framer = Framer()
    framer.push(welcome(Ready(True, {"TimeZone": "UTC"}, 7, b"key!")))
    kinds = []
    while (received := framer.take()) is not None:
        kinds.append(received.kind)
    assert kinds == [b"R", b"S", b"K", b"Z"]


def test_a_target_without_a_cancel_key_gives_none():
    assert backend_key_data(0, b"") not in welcome(Ready(True, {}, 0, b""))
