"""Two broker processes on one PostgreSQL store: either answers any call, and either finishes the other's work.

The store was a file at first, and was moved while the broker lay killed with a lease open.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskpass.broker.take_back_many import MANY
from taskpass.testing.postgres import available
from taskpass.testing.stage import TASKPASS
from tests.acceptance.actors import PROVEN, RESOURCE, Small, connect, met, one_line, until
from tests.missing import missing

pytestmark = pytest.mark.service

WRITING_KEY = 0x7461736B70617373
"""The advisory lock under which a store on PostgreSQL is written."""


class Second(Small):
    """Another broker on the store, the targets and the configuration of ``first``, in a directory of its own."""

    def __init__(self, first):
        super().__init__()
        self.root, self.servers, self.founder = first.root / "second", first.servers, first.founder
        self.root.mkdir(mode=0o700)
        self.runtime.mkdir(mode=0o700)
        self.taskpass("init", "--join", str(first.directory), "--as", "b")
        if "[budgets]" not in (self.directory / "taskpass.toml").read_text():
            self.set_budgets()
        self.taskpass("init", "--own-login", "--name", RESOURCE, "--admin-dsn-stdin", stdin=first.admin(RESOURCE))


@contextlib.contextmanager
def unwritable(stage):
    """The new database, in which nobody has a turn to write meanwhile."""
    with stage.server.connect("taskpass_store") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (WRITING_KEY,))
        yield


def killed_while_moving(stage, store, login):
    """``taskpass store move`` as a process that is killed when the old store is sealed and nothing has arrived."""
    with unwritable(stage):
        words = [*TASKPASS, "store", "move", store, "--login-stdin"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(words, env=stage.environment(), **pipes) as mover:
            mover.stdin.write(login.encode())
            mover.stdin.close()
            with stage.server.connect() as connection:
                waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                until(lambda: connection.execute(waits).fetchone()[0], what="the move waiting for its turn")
            mover.kill()


class Move:
    """What was seen while the store of ``stage`` moved: a lease was open, and the broker and a first move killed."""

    def __init__(self, stage):
        store, login = stage.store_database(stage.server)
        words = ("store", "move", store, "--login-stdin", "--json")
        self.while_it_ran = stage.taskpass(*words, stdin=login, check=False)
        with stage.agent() as client:
            self.lease = stage.lease(client)
            stage.stop_broker(kill=True)
        self.before = stage.events()
        killed_while_moving(stage, store, login)
        self.while_cut_off = stage.taskpass("up", check=False)
        self.said = json.loads(stage.taskpass(*words, stdin=login).stdout)
        self.store, self.password = store, login.partition(":")[2]
        stage.start_broker()


@pytest.fixture(scope="module")
def moved():
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as stage:
        stage.prepare()
        yield stage, Move(stage)


@pytest.fixture(scope="module")
def two(moved):
    first, _ = moved
    second = Second(first)
    second.start_broker()
    try:
        yield first, second
    finally:
        second.stop_broker()


def test_a_lease_that_was_open_when_the_store_moved_is_known_there_and_closed_with_proof(moved):
    stage, move = moved
    one_line(move.while_it_ran, "broker_running", 1)
    one_line(move.while_cut_off, "store_moved", 1)
    assert (move.said["moved"], move.said["open_leases"], move.said["rows"]["leases"]) == (True, 1, 1)
    assert stage.proven(move.lease)["reason"] == "broker_restarted"
    assert stage.usable() == []
    config = (stage.directory / "taskpass.toml").read_text()
    assert f'store = "{move.store}"' in config
    assert move.password not in config
    events, known = stage.events(), len(move.before)
    assert events[:known] == move.before
    assert (events[known]["event"], events[known]["actor"]) == ("store.moved", "human:sam")
    stage.verify()


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
        both = second.call("health")["brokers"]
        assert sorted(each["this"] for each in both) == [False, True]
        assert both != first.call("health")["brokers"]
        assert second.taskpass("revoke", "--all").returncode == 0
        second.proven(lease)
        assert met(session) != "alive"
        assert first.shown(lease)["proof"] == second.shown(lease)["proof"]
        until(lambda: not os.path.exists(lease["endpoint"]["host"]), what="the endpoint of the first broker gone")
    assert first.usable() == []


def test_each_enters_the_target_with_a_login_of_its_own_and_replaces_its_password(brokers):
    def replaced(stage):
        login = stage.call("health")["logins"][RESOURCE]
        return login["error"] is None and login["age_seconds"] is not None

    for stage in brokers:
        until(lambda stage=stage: replaced(stage), what="the password replaced")
    with brokers[0].server.connect("orders") as connection:
        logins = connection.execute("SELECT login::text FROM taskpass.broker ORDER BY 1").fetchall()
    assert [name.removeprefix(logins[0][0]) for (name,) in logins] == ["", "_b"]


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


def test_both_close_in_bulk_at_once_and_the_store_is_whole_afterwards(brokers):
    known = len(brokers[0].events())
    with brokers[0].server.connect("orders") as admin:
        admin.execute("UPDATE taskpass.ceiling SET most_live = 1000")

    def give(number):
        return [brokers[number].lease(clients[number], repository=f"crowd-{number}")["lease"] for _ in range(MANY)]

    def end(number):
        task = brokers[number].shown({"lease": leases[number][0]})["task"]
        return clients[number].call("complete_task", {"task": task}, timeout=60)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        clients = [stack.enter_context(stage.agent()) for stage in brokers]
        leases = list(pool.map(give, (0, 1)))
        done = list(pool.map(end, (0, 1)))
    for mine, view in zip(leases, done, strict=True):
        assert {each["lease"]: each["proof"]["answer"] for each in view["leases"]} == dict.fromkeys(mine, PROVEN)
    closed = [x["data"] for x in brokers[1].events()[known:] if x["event"] == "lease.closed"]
    in_bulks = [sorted(each["lease"] for each in data["leases"]) for data in closed if "leases" in data]
    assert sorted(itertools.chain(*in_bulks)) == sorted(itertools.chain(*leases)), "each is recorded once, in a bulk"
    assert brokers[0].usable() == []
    brokers[0].verify()
    assert brokers[0].taskpass("store", "check", check=False).returncode == 0


def test_a_second_broker_on_one_directory_is_refused(brokers):
    first, _ = brokers
    refused = first.taskpass("up", check=False)
    assert "[broker_running]" in refused.stderr
