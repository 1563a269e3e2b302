from __future__ import annotations

import pytest

from taskpass.core.errors import InvalidInput
from taskpass.wire.postgres.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port", "database", "local"),
    [
        ("db.example:5432/orders", "db.example", 5432, "orders", False),
        ("127.0.0.1:5432/a b", "127.0.0.1", 5432, "a b", True),
        ("localhost:1/x", "localhost", 1, "x", True),
        ("[::1]:5432/orders", "::1", 5432, "orders", True),
        ("[2001:db8::1]:5432/orders", "2001:db8::1", 5432, "orders", False),
        ("10.0.0.1:5432/orders", "10.0.0.1", 5432, "orders", False),
        ("/var/run/postgresql:5432/orders", "/var/run/postgresql", 5432, "orders", True),
    ],
)
def test_an_address_has_a_host_a_port_and_a_database(text, host, port, database, local):
    found = parse_address(text)
    assert found == Address(host, port, database)
    assert found.is_local is local


@pytest.mark.parametrize(
    "text",
    [
        "",
        "orders",
        "db:5432",
        "db:5432/",
        "db/orders",
        "db:0/orders",
        "db:65536/orders",
        "db:x/orders",
        "::1:5432/orders",
        "/dir/orders",
        "db:5432/or\0ders",
        "[db]:5432/orders",
        "a:b:5432/orders",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidInput):
        parse_address(text)


def test_a_unix_socket_has_a_path_and_tcp_has_none():
    assert parse_address("/s:5432/x").socket_path == "/s/.s.PGSQL.5432"
    assert parse_address("h:5432/x").socket_path is None
