from __future__ import annotations

import pytest

from taskpass.config.address import parse_address
from taskpass.core.errors import ConfigInvalid
from taskpass.wire.postgres.address import Address


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("db.acme.example:5432/orders", Address("db.acme.example", 5432, "orders"), False),
        ("/run/postgresql:5433/my db", Address("/run/postgresql", 5433, "my db"), True),
        ("127.0.0.1:5432/x", Address("127.0.0.1", 5432, "x"), True),
        ("localhost:5432/x", Address("localhost", 5432, "x"), True),
        ("[::1]:5432/x", Address("::1", 5432, "x"), True),
        ("[2001:db8::1]:5432/x", Address("2001:db8::1", 5432, "x"), False),
        ("10.0.0.7:5432/x/y", Address("10.0.0.7", 5432, "x/y"), False),
    ],
)
def test_addresses_are_read(text, address, local):
    assert parse_address(text) == address
    assert address.is_local is local


@pytest.mark.parametrize(
    "text", ["", "db", "db:5432", "db/orders", ":5432/x", "db:0/x", "db:x/y", "db:5432/" + "x" * 64]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigInvalid):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "direct"),
    [
        ("ep-cool-darkness-123-pooler.eu-central-1.aws.neon.tech:5432/db", "ep-cool-darkness-123.eu-central-1"),
        ("aws-0-eu-central-1.pooler.supabase.com:6543/postgres", "db.<project>.supabase.co:5432"),
        ("db.abc.supabase.co:6543/postgres", "db.abc.supabase.co:5432"),
        ("x.postgres.database.azure.com:6432/db", "x.postgres.database.azure.com:5432"),
        ("x-do-user-1.b.db.ondigitalocean.com:25061/db", ":25060"),
        ("orders.proxy-abc123.eu-west-1.rds.amazonaws.com:5432/db", "own endpoint"),
        ("pgbouncer:6432/db", "PostgreSQL server itself"),
        ("db-pooler.acme.example:5432/db", "PostgreSQL server itself"),
    ],
)
def test_a_poolers_address_is_refused_with_the_direct_one(text, direct):
    with pytest.raises(ConfigInvalid) as caught:
        parse_address(text)
    assert caught.value.code == "pooler_address"
    assert direct in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["ep-cool-darkness-123.eu-central-1.aws.neon.tech:5432/db", "db.abc.supabase.co:5432/postgres", "spooler:5432/x"],
)
def test_direct_addresses_of_the_same_vendors_pass(text):
    parse_address(text)
