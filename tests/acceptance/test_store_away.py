"""A store on PostgreSQL that goes away under a running broker: real processes, as a person would see it."""

from __future__ import annotations

import json
import time

import psycopg
import pytest

from taskpass.client.line import LineClient
from taskpass.core.errors import TaskpassError
from taskpass.testing.postgres import EmbeddedServer, available
from taskpass.testing.stage import Stage
from tests.missing import missing

RESOURCE = "orders-dev"


@pytest.fixture
def away():
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with EmbeddedServer(16, durable=False) as store, Stage(durable=False) as stage:
        stage.start_server(RESOURCE, 16, rows=100)
        stage.found_on_postgres("sam", store)
        stage.set_broker("allow_root_agents = true")
        stage.enrol(RESOURCE, environment="dev", exclude=["shop.customers"])
        stage.start_broker()
        yield stage, store


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_while_the_store_is_away_nothing_is_issued_and_the_plug_can_be_pulled(away):
    stage, store = away
    with LineClient(stage.runtime / "line.sock") as client:
        task = client.call("open_task", {"repository": "r", "branch": "main", "ticket": "T-1"}, timeout=20)["task"]
        asked = client.call("request_access", {"resource": RESOURCE, "task": task}, timeout=20)
        lease = client.call("issue", {"request": asked["request"]}, timeout=20)
        session = psycopg.connect(lease["endpoint"]["dsn"], connect_timeout=5)
        session.execute("SELECT count(*) FROM shop.orders")

        store.stop()
        with pytest.raises(TaskpassError) as refused:
            client.call("request_access", {"resource": RESOURCE, "task": task}, timeout=30)
        assert refused.value.code == "store_down"
        doctor = stage.taskpass("doctor", check=False)
        assert "store_down" in doctor.stdout
        revoked = stage.taskpass("revoke", "--all", check=False)
        assert revoked.returncode == 0, revoked.stderr
        with pytest.raises(psycopg.Error):
            session.execute("SELECT 1")
    with stage.servers[RESOURCE].connect("orders") as connection:
        until(lambda: connection.execute(_OPEN).fetchone() == (0,))

    store.start()
    until(lambda: stage.call("health").get("late_records") == 0 and not stage.call("leases")["leases"])
    verified = stage.taskpass("audit", "verify", check=False)
    assert verified.returncode == 0, verified.stdout
    assert "0 written late" not in verified.stdout
    password = json.loads((stage.directory / "credentials/store").read_text())["password"]
    assert password not in stage.log.read_text() + doctor.stdout + revoked.stdout + store.log_text()


_OPEN = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'tp\\_%' AND rolcanlogin"
