"""A store that is put back from a backup, and the person who adopts it: real server, real broker, public commands."""

from __future__ import annotations

import contextlib
import json
import re

import psycopg
import pytest

from taskpass.core.errors import TaskpassError
from tests.acceptance.actors import RESOURCE, connect, one_line, until

pytestmark = pytest.mark.service

OWN = "the agents own password"


def backup(stage):
    paths = [*stage.directory.glob("taskpass.db*"), stage.directory / "audit-head"]
    return {path: path.read_bytes() for path in paths}


def restore(stage, files):
    for path in stage.directory.glob("taskpass.db*"):
        path.unlink()
    for path, content in files.items():
        path.write_bytes(content)
        path.chmod(0o600)


def check(stage):
    done = stage.taskpass("store", "check", "--json", check=False)
    return done.returncode, [row for row in json.loads(done.stdout) if row["state"] != "ok"]


@contextlib.contextmanager
def direct(stage, role):
    """A session of ``role`` with its own password, past the endpoint."""
    with psycopg.connect(
        f"postgresql://{stage.server.address('orders')}", user=role, password=OWN, connect_timeout=10
    ) as session:
        yield session


def lets_in(stage, role):
    try:
        with direct(stage, role) as session:
            return session.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def told(stage, client):
    """The code with which a request is refused."""
    try:
        stage.ask(client)
    except TaskpassError as error:
        return error.code
    return ""


def verified(stage):
    log = stage.root / "server.log"
    log.write_text(stage.server.log_text())
    done = stage.taskpass("audit", "verify", "--json", "--server-log", str(log), check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    return report


@pytest.fixture
def restored(stage):
    """The backup of before a lease is back; the role of that lease is forgotten, and open under its own password."""
    with stage.agent() as client:
        client.call("release", {"lease": stage.lease(client)["lease"]})
    stage.quiet()
    assert check(stage) == (0, [])
    stage.stop_broker()
    files = backup(stage)
    stage.start_broker()
    with stage.agent() as client:
        before = stage.lease(client)
        role = stage.shown(before)["role"]
        connect(before).execute(f"BEGIN READ WRITE; ALTER ROLE CURRENT_USER PASSWORD '{OWN}'; COMMIT")
        stage.stop_broker(kill=True)
    assert lets_in(stage, role)
    restore(stage, files)
    stage.start_broker()
    return role


def test_a_restored_store_issues_nothing_until_a_person_adopts_it_and_nothing_forgotten_stays_open(stage, restored):
    installation = stage.call("health")["installation"]
    with stage.agent() as client:
        assert told(stage, client) == "store_restored"
        code, rows = check(stage)
        assert code == 1
        assert any(f"{restored} stands there" in row["message"] for row in rows)
        assert any(RESOURCE in row["check"] and "it has seen" in row["message"] for row in rows)
        assert lets_in(stage, restored), "a copy closes nothing that it does not know"

        one_line(stage.taskpass("store", "adopt", "--json", check=False), "not_confirmed", 2)
        one_line(stage.taskpass("store", "adopt", "--json", "--yes", "0000000z", check=False), "not_confirmed", 2)
        assert lets_in(stage, restored)

        done = stage.taskpass("store", "adopt", "--json", "--yes", installation)
        adopted = json.loads(done.stdout)
        assert adopted["survey"]["lost"] > 0
        assert adopted["adopted"]["closed"] == [restored]
        assert adopted["adopted"]["left"] == []
        assert not lets_in(stage, restored)
        assert stage.usable() == []

        lease = stage.lease(client)
        with connect(lease) as session:
            assert session.execute("SELECT count(*) FROM shop.orders").fetchone() == (500,)
        client.call("release", {"lease": lease["lease"]})
    report = verified(stage)
    [adoption] = report["adoptions"]
    assert adoption["strays"], "anchors of the lost history are in the server's log"
    assert any("adopted a restored store" in note for note in report["notes"])
    until(lambda: check(stage) == (0, []), what="a whole store")
    one_line(stage.taskpass("store", "adopt", "--yes", installation, check=False), "store_not_restored", 2)


def test_the_person_sees_what_the_backup_does_not_know(stage, restored):
    shown = stage.taskpass("store", "adopt", check=False)
    assert re.search(r"ends with record \d+; \d+ to \d+ are lost", shown.stdout)
    assert f"{RESOURCE}: {restored} is closed, with proof" in shown.stdout
    assert lets_in(stage, restored)
    installation = stage.call("health")["installation"]
    stage.server.stop()
    refused = stage.taskpass("store", "adopt", "--json", "--yes", installation, check=False)
    one_line(refused, "adoption_incomplete", 1)
    without = stage.taskpass("store", "adopt", "--json", "--yes", installation, "--without", RESOURCE, check=False)
    assert without.returncode == 3, without.stderr
    stage.server.start()
    with stage.agent() as client:
        # A target that was left out and remembers more goes on refusing.
        until(lambda: told(stage, client) == "store_restored", what="the target looked at again")
    assert stage.taskpass("store", "adopt", "--yes", installation).returncode == 0
    assert not lets_in(stage, restored)
    verified(stage)
