"""Two broker processes on one PostgreSQL store: either answers any call, and either finishes the other's work."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from taskpass.testing.postgres import available
from tests.acceptance.actors import RESOURCE, Small, connect, met, until
from tests.missing import missing

pytestmark = pytest.mark.service


class Second(Small):
    """Another broker on the store, the targets and the configuration of ``first``, in a directory of its own."""

    def __init__(self, first):
        super().__init__()
        self.root, self.servers, self.founder = first.root / "second", first.servers, first.founder
        self.root.mkdir(mode=0o700)
        self.runtime.mkdir(mode=0o700)
        skipped = shutil.ignore_patterns("run", "reserve", "audit-head")
        shutil.copytree(first.directory, self.directory, ignore=skipped)


@pytest.fixture(scope="module")
def two():
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as first:
        server = first.start_server(RESOURCE, 16, rows=500)
        first.found_on_postgres("sam", server)
        first.set_broker("allow_root_agents = true")
        first.enrol(RESOURCE, environment="dev", exclude=["shop.customers"])
        first.start_broker()
        second = Second(first)
        second.start_broker()
        try:
            yield first, second
        finally:
            second.stop_broker()


@pytest.fixture
def brokers(two):
    for stage in two:
        if stage.broker is None or stage.broker.poll() is not None:
            stage.start_broker()
    yield two
    two[0].quiet()


def test_either_shows_and_takes_back_what_the_other_serves(brokers):
    first, second = brokers
    with first.agent() as client:
        lease = first.lease(client)
        session = connect(lease)
        assert met(session, "SELECT count(*) FROM shop.orders") == "alive"
        assert second.shown(lease)["state"] == "active", "starting beside it took nothing back"
        assert second.taskpass("revoke", "--all").returncode == 0
        second.proven(lease)
        assert met(session) != "alive"
        assert first.shown(lease)["proof"] == second.shown(lease)["proof"]
        until(lambda: not os.path.exists(lease["endpoint"]["host"]), what="the endpoint of the first broker gone")
    assert first.usable() == []


def test_what_a_killed_broker_served_is_finished_by_the_other(brokers):
    first, second = brokers
    with second.agent() as client, first.agent() as other:
        lease, kept = second.lease(client), first.lease(other)
        kept_session = connect(kept)
        second.stop_broker(kill=True)
        assert first.proven(lease)["reason"] == "broker_gone"
        assert met(kept_session, "SELECT count(*) FROM shop.orders") == "alive", "and nothing of its own"
        until(lambda: first.shown(lease)["state"] == "cleaned", what="cleaned by the other")
    first.verify()


def test_a_broker_that_was_paused_changes_nothing_that_was_taken_over(brokers):
    first, second = brokers
    with second.agent() as client:
        lease = second.lease(client)
        second.broker.send_signal(signal.SIGSTOP)
        try:
            proof = first.proven(lease)["proof"]
        finally:
            second.broker.send_signal(signal.SIGCONT)
        until(lambda: second.call("health"), what="the paused broker back")
        until(lambda: not os.path.exists(lease["endpoint"]["host"]), what="its endpoint gone")
        assert first.shown(lease)["proof"] == proof
    until(lambda: second.shown(lease)["state"] == "cleaned", what="cleaned once")
    events = [x["event"] for x in first.events() if x["subject"].get("lease") == lease["lease"]]
    assert events.count("lease.closed") == 1
    assert events.count("lease.cleaned") == 1
    assert first.usable() == []
    first.verify()
    assert first.taskpass("store", "check", check=False).returncode == 0


def test_a_second_broker_on_one_directory_is_refused(brokers):
    first, _ = brokers
    refused = first.taskpass("up", check=False)
    assert "[broker_running]" in refused.stderr
