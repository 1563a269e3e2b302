"""Level ``write`` with real processes: enrolled, asked for, held back, accepted by name, issued, ended."""

from __future__ import annotations

import json

import pytest

from taskpass.testing.postgres import available
from taskpass.testing.stage import Stage
from tests.missing import missing

NAME = "orders"
ASKS = """
@id("dev-write-asks")
@approvers("dba")
@quorum("1")
forbid (principal, action == Taskpass::Action::"write", resource) unless { context.approved };
"""
CASCADE = (
    "ALTER TABLE shop.orders DROP CONSTRAINT orders_customer_id_fkey",
    "ALTER TABLE shop.customers ADD COLUMN main_order integer REFERENCES shop.orders (id) ON DELETE CASCADE",
    "UPDATE shop.customers SET main_order = 7 WHERE id = 1",
)
LOST = "SELECT count(*) FROM shop.customers WHERE id = 1"


@pytest.fixture(scope="module")
def stage():
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Stage(durable=False) as made:
        server = made.start_server(NAME, 16, rows=100)
        with server.connect("orders") as connection:
            connection.execute("ALTER TABLE shop.items DROP CONSTRAINT items_order_id_fkey")
            connection.execute("ALTER TABLE shop.payments DROP CONSTRAINT payments_order_id_fkey")
            for statement in CASCADE:
                connection.execute(statement.encode())
        made.found("sam")
        made.set_broker("allow_root_agents = true")
        made.enrol(NAME, environment="dev", exclude=["shop.customers"], more=["--access", "read", "--access", "write"])
        made.start_broker()
        yield made


def psql(stage, statement, *words):
    words = words or ("--resource", NAME, "--access", "write")
    found = stage.taskpass("exec", *words, "--", "psql", "-XAtqc", statement, check=False)
    return found.stdout.strip() or found.stderr.strip()


def rows(stage, query):
    with stage.servers[NAME].connect("orders") as connection:
        return connection.execute(query.encode()).fetchone()[0]


def test_an_agent_writes_where_nobody_is_asked_and_what_is_excluded_is_held_back(stage):
    assert psql(stage, "UPDATE shop.orders SET note = 'mine' WHERE id = 5 RETURNING note") == "mine"
    assert rows(stage, "SELECT note FROM shop.orders WHERE id = 5") == "mine"
    assert "permission denied" in psql(stage, "DELETE FROM shop.orders WHERE id = 7")
    reading = ("--resource", NAME, "--access", "read")
    assert "read-only" in psql(stage, "UPDATE shop.orders SET note = 'x' WHERE id = 6", *reading)
    assert rows(stage, LOST) == 1


def test_what_is_held_back_is_given_by_name_recorded_and_gone_with_the_lease(stage):
    (stage.directory / "policy/mine.cedar").write_text(ASKS)
    stage.stop_broker()
    stage.start_broker()
    asked = stage.taskpass("request", "--resource", NAME, "--access", "write", "--json", check=False)
    view = json.loads(asked.stdout)
    assert (view["state"], view["held_back"]) == ("pending", ["shop.orders: DELETE"])
    shown = stage.taskpass("review", view["request"], "--directory", str(stage.directory)).stdout
    assert "--accept shop.customers" in shown
    stage.review(view["request"], stage.founder, "--approve", "--accept", "shop.customers")
    assert psql(stage, "DELETE FROM shop.orders WHERE id = 7 RETURNING id", "--request", view["request"]) == "7"
    assert rows(stage, LOST) == 0
    records = json.loads(stage.taskpass("audit", "show", "--json", "--directory", str(stage.directory)).stdout)
    accepted = {record["event"]: record["data"].get("accepted") for record in records}
    assert accepted["approval.recorded"] == accepted["lease.intended"] == ["shop.customers"]
    (lease, *_) = stage.call("leases", all=True)["leases"]
    assert lease["state"] in ("closed", "cleaned")
