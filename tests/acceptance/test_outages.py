"""What happens to people's access when something else is down: the database, the broker, the store, the disk.

Real servers, a real broker process, the public commands. The rule everywhere: nothing new is issued in doubt, taking
back goes on, and whoever asks is told in one line.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import threading
import time

import pytest

from taskpass.core.errors import StoreUnavailable, TargetUnavailable, TaskpassError
from taskpass.testing.stage import TASKPASS
from tests.acceptance.actors import RESOURCE, Puppet, Small, connect, met, one_line, refused, until

pytestmark = pytest.mark.service

ROOT = pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount")


@pytest.fixture
def down(stage):
    """The database is down until the test starts it, or ends."""
    stage.server.stop()
    yield stage.server
    stage.server.start()


def row(stage, check):
    """The worst row of that name."""
    order = ["ok", "note", "weaker", "unknown"]
    return max((row for row in stage.doctor()[1] if row["check"] == check), key=lambda row: order.index(row["state"]))


# ---- the database ----


def test_a_broker_that_starts_without_its_database_says_so_and_serves_when_it_is_back(stage):
    stage.stop_broker()
    stage.server.stop()
    stage.start_broker()
    code, _ = stage.doctor()
    assert code == 4
    assert row(stage, f"resource {RESOURCE}")["message"].endswith("[target_unavailable]")
    one_line(stage.taskpass("request", "--resource", RESOURCE, check=False), "target_unavailable", 1)
    stage.server.start()
    broker = stage.broker.pid
    with stage.agent() as client:
        lease = until(lambda: stage.lease(client), what="serving again")
        with connect(lease) as connection:
            assert met(connection, "SELECT count(*) FROM shop.orders") == "alive"
        client.call("release", {"lease": lease["lease"]})
    assert stage.broker.pid == broker
    assert f"resource {RESOURCE}: serves dev" in stage.taskpass("doctor", check=False).stdout


def test_a_database_that_is_down_refuses_a_request_in_one_line(stage, agent, down):
    one_line(stage.taskpass("request", "--resource", RESOURCE, check=False), "target_unavailable", 1)
    one_line(stage.taskpass("exec", "--resource", RESOURCE, "--", "true", check=False), "target_unavailable", 1)
    assert row(stage, f"resource {RESOURCE}")["message"].endswith("[target_unavailable]")


def test_a_database_that_goes_down_before_the_issue_leaves_nothing_behind(stage, agent, down):
    down.start()
    request = stage.ask(agent)
    down.stop()
    with pytest.raises(TargetUnavailable):
        agent.call("issue", {"request": request["request"]})
    down.start()
    until(lambda: not stage.call("leases")["leases"], what="the failed issue closed")
    assert stage.usable() == []
    assert stage.call("health")["debt"] == []
    stage.lease(agent)


def test_a_session_that_loses_its_database_reads_a_clean_error_and_the_lease_serves_the_next_one(stage, agent):
    lease = stage.lease(agent)
    ended, crashed = connect(lease), connect(lease)
    stage.server.stop()
    try:
        assert met(ended) in ("57P01", "OperationalError")
        assert re.search(r"the target cannot be reached", refused(lease))
        stage.server.start()
        assert met(crashed) in ("57P01", "OperationalError")
        again = connect(lease)
        stage.server.crash()
        started = time.monotonic()
        assert met(again) != "alive"
        assert time.monotonic() - started < 15
    finally:
        stage.server.start()
    with connect(lease) as connection:
        assert met(connection, "SELECT count(*) FROM shop.orders") == "alive"
    agent.call("release", {"lease": lease["lease"]})
    stage.proven(lease)


def test_a_revocation_that_the_database_cannot_answer_is_a_debt_until_it_is_proven(stage, agent, down):
    down.start()
    lease = stage.lease(agent, repository="debtor")
    session = connect(lease)
    down.stop()
    done = stage.taskpass("revoke", "--task", lease["task"], check=False)
    assert done.returncode == 1
    assert "not proven closed yet" in done.stdout
    assert refused(lease)
    assert met(session) != "alive"
    listed = stage.taskpass("lease", "ls", "--debt").stdout
    assert lease["lease"] in listed
    assert "closing" in listed
    debt = row(stage, "debt")
    assert debt["state"] == "weaker"
    assert "1 closing(s)" in debt["message"]
    with pytest.raises(TaskpassError) as told:
        stage.ask(agent, repository="debtor")
    assert told.value.code == "revocation_debt"
    with pytest.raises(TaskpassError) as told:
        stage.ask(agent, repository="a name that leaves no debt behind")
    assert told.value.code == "revocation_debt"
    down.start()
    back = time.monotonic()
    view = stage.proven(lease)
    assert time.monotonic() - back < 20
    assert view["attempts"] >= 1
    assert "no debt" in stage.taskpass("lease", "ls", "--debt").stdout
    until(lambda: stage.ask(agent, repository="debtor"), what="the debtor asks again")
    assert {"lease.close_unproven", "lease.closed"} <= {
        record["event"] for record in stage.events() if record["subject"].get("lease") == lease["lease"]
    }


# ---- the broker ----


def test_a_broker_that_is_told_to_stop_closes_everything_with_proof_first(stage):
    with stage.agent() as client:
        leases = [stage.lease(client) for _ in range(10)]
        sessions = [connect(lease) for lease in leases for _ in range(2)]
        asleep = threading.Thread(target=met, args=(sessions[0], "SELECT pg_sleep(60)"))
        asleep.start()
        stage.stop_broker()
        asleep.join(30)
        assert not asleep.is_alive()
    assert stage.usable() == []
    assert {met(session) for session in sessions} <= {"57P01", "OperationalError"}
    closed = [r for r in stage.events() if r["event"] == "lease.closed"]
    assert {lease["lease"] for lease in leases} <= {record["subject"]["lease"] for record in closed}
    stage.verify()
    stage.start_broker()
    for lease in leases:
        stage.proven(lease)


def test_a_killed_broker_takes_its_sessions_along_and_the_next_one_proves_the_end(stage):
    with stage.agent() as client:
        lease = stage.lease(client)
        idle, working = connect(lease), connect(lease)
        told = []
        asleep = threading.Thread(target=lambda: told.append(met(working, "SELECT pg_sleep(60)")))
        asleep.start()
        until(lambda: "pg_sleep" in str(_queries(stage)), what="the query runs")
        stage.stop_broker(kill=True)
        asleep.join(30)
        assert told == ["OperationalError"]
        assert met(idle) != "alive"
        assert refused(lease)
    asked = {name: sessions for name, _, sessions in stage.roles()}
    assert asked[lease["role"]] <= 1, "the idle session ends by itself; the one in a query at the next start"
    stage.start_broker()
    view = stage.proven(lease)
    assert view["reason"] == "broker_restarted"
    assert stage.usable() == []
    assert row(stage, "debt")["state"] == "ok"


def _queries(stage):
    with stage.server.connect("orders") as connection:
        return connection.execute("SELECT query FROM pg_stat_activity WHERE usename LIKE 'tp\\_%'").fetchall()


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_run_goes_on_after_the_broker_was_restarted(stage, sandboxed, kill):
    with Puppet(stage) as puppet:
        lease = puppet.lease()
        puppet.connect(lease)
        assert puppet.query() == [["500"]]
        stage.stop_broker(kill=kill)
        with pytest.raises(Exception, match="broker"):
            puppet.call("status")
        stage.start_broker()
        stage.proven(lease)
        with pytest.raises(Exception, match=r"closed|terminat"):
            puppet.query()
        again = puppet.lease()
        puppet.connect(again, "again")
        assert puppet.query(name="again") == [["500"]]
        assert again["task"] == lease["task"]
    stage.proven(again)


# ---- the store ----


@contextlib.contextmanager
def locked(stage):
    """Another process's write lock on the store, as a backup program or a curious person would hold it."""
    holder = sqlite3.connect(stage.directory / "taskpass.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def test_a_store_that_is_locked_for_a_while_only_delays(stage, agent):
    with contextlib.ExitStack() as lock:
        lock.enter_context(locked(stage))
        timer = threading.Timer(1.5, lock.close)
        timer.start()
        assert stage.ask(agent)["state"] == "approved"
        timer.join()


def test_a_store_that_stays_locked_issues_nothing_and_taking_back_goes_on_and_is_recorded_late(stage, agent):
    lease, other = stage.lease(agent), stage.lease(agent)
    session = connect(lease)
    with locked(stage):
        with pytest.raises(StoreUnavailable) as told:
            stage.ask(agent)
        assert told.value.code == "store_locked"
        assert told.value.retryable
        revoking = subprocess.Popen([*TASKPASS, "revoke", "--task", lease["task"]], env=stage.environment())
        # Its turn among the writers, and one wait for the lock: then it is cut without a record.
        until(lambda: met(session) != "alive", 40, "the endpoint cut")
        until(lambda: lease["role"] not in {name for name, *_ in stage.usable()}, what="the role closed")
    revoking.wait(60)
    stage.proven(lease)
    late = [r for r in stage.events() if r["subject"].get("lease") == lease["lease"] and r["late"]]
    assert {r["event"] for r in late} >= {"lease.closing", "lease.closed"}
    assert stage.shown(other)["state"] == "active"
    stage.verify()


def test_a_store_that_is_locked_at_start_is_refused_in_one_line(stage):
    stage.stop_broker()
    with locked(stage):
        one_line(stage.taskpass("up", check=False), "store_locked", 1)
    stage.start_broker()


def test_a_damaged_store_is_refused_at_start_in_one_line_and_left_as_it_is(stage):
    stage.stop_broker()
    store = stage.directory / "taskpass.db"
    good = {path: path.read_bytes() for path in stage.directory.glob("taskpass.db*")}
    bad = bytearray(store.read_bytes())
    bad[4096:] = bytes(byte ^ 0x5A for byte in bad[4096:])
    store.write_bytes(bad)
    one_line(stage.taskpass("up", check=False), "store_corrupt", 1)
    assert store.read_bytes() == bytes(bad)
    store.write_bytes(b"this is no database" * 400)
    one_line(stage.taskpass("up", check=False), "store_corrupt", 1)
    for path in stage.directory.glob("taskpass.db*"):
        path.unlink()
    one_line(stage.taskpass("up", check=False), "store_missing", 1)
    for path, content in good.items():
        path.write_bytes(content)
        path.chmod(0o600)
    stage.start_broker()


@ROOT
def test_a_store_on_a_read_only_disk_is_refused_at_start_in_one_line(stage):
    stage.stop_broker()
    place = str(stage.directory)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, place, *TASKPASS, "up"]
    done = subprocess.run(words, capture_output=True, text=True, env=stage.environment(), timeout=60, check=False)
    stage.start_broker()
    if "mount:" in done.stderr:
        pytest.skip("this machine does not let us mount")
    one_line(done, "directory_unusable", 2)


# ---- the disk ----


@pytest.fixture
def small_disk():
    """A stage whose broker's directory lies on a disk of 64 MiB."""
    with Small(durable=False) as made:
        disk = made.root / "disk"
        disk.mkdir(mode=0o700)
        words = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(disk)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("this machine does not let us mount")
        try:
            made.broker_place = disk / "broker"
            yield made.prepare()
        finally:
            made.stop_broker()
            subprocess.run(["umount", "-l", str(disk)], check=False)


@ROOT
def test_a_full_disk_issues_nothing_and_revoking_works_and_is_recorded(small_disk):
    stage = small_disk
    with stage.agent() as client:
        leases = [stage.lease(client) for _ in range(3)]
        sessions = [connect(lease) for lease in leases]
        filler = stage.directory / "filler"
        _fill(filler)
        with pytest.raises(StoreUnavailable) as refused:
            stage.ask(client)
        assert refused.value.code == "disk_low"
        assert stage.taskpass("revoke", "--task", leases[0]["task"], "--reason", "full disk").returncode == 0
        stage.proven(leases[0])
        assert met(sessions[0]) != "alive"
        _fill(filler)
        stage.taskpass("revoke", "--all", check=False)
        until(lambda: not stage.usable(), what="every role closed")
        assert {met(session) for session in sessions} == {"57P01"} or "alive" not in {met(s) for s in sessions}
        assert row(stage, "reserve")["state"] == "weaker"
        filler.unlink()
        for lease in leases:
            stage.proven(lease)
        until(lambda: row(stage, "reserve")["state"] == "ok", what="the reserve restored")
        assert stage.call("health")["late_records"] == 0
        stage.lease(client)
    ordered = [record["data"] for record in stage.events() if record["event"] == "revoke.ordered"]
    assert "full disk" in {order["reason"] for order in ordered}
    stage.verify()


def _fill(path):
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_nothing_of_this_module_left_a_half_made_thing(stage):
    """The last word: the record verifies, nothing is usable, no debt, no incident."""
    stage.quiet()
    assert stage.usable() == []
    assert stage.call("health")["debt"] == []
    assert [lease for lease in stage.call("leases", all=True)["leases"] if lease["incidents"]] == []
    stage.verify()


def test_a_store_put_back_from_yesterday_issues_nothing_and_takes_its_own_back(stage):
    """The last test that uses this installation: two histories have written to one target afterwards."""
    with stage.agent() as client:
        old = stage.lease(client)
        stage.stop_broker(kill=True)
        yesterday = _files(stage)
        stage.start_broker()
        for _ in range(3):
            client.call("release", {"lease": stage.lease(client)["lease"]})
        stage.stop_broker()
        today = _files(stage)
        _put(stage, {path: content for path, content in yesterday.items() if path.name != "audit-head"})
        stage.start_broker()
        with pytest.raises(TaskpassError) as told:
            stage.ask(client)
        assert told.value.code == "store_restored"
        assert row(stage, "store")["state"] == "weaker"
        assert stage.doctor()[0] in (3, 4)
        assert stage.taskpass("revoke", "--all").returncode == 0
        until(lambda: stage.shown(old)["state"] in ("closed", "cleaned"), what="its own lease closed")
        assert stage.usable() == []
        stage.stop_broker()
        stage.start_broker()
        with pytest.raises(TaskpassError) as told:
            stage.ask(client)
        assert told.value.code == "store_restored", "a restart forgives nothing"
        stage.stop_broker()
        _put(stage, today)
        stage.start_broker()
        assert row(stage, "store")["state"] == "ok"
        stage.verify()


def _files(stage):
    paths = [*stage.directory.glob("taskpass.db*"), stage.directory / "audit-head"]
    return {path: path.read_bytes() for path in paths}


def _put(stage, files):
    for path in stage.directory.glob("taskpass.db*"):
        path.unlink()
    for path, content in files.items():
        path.write_bytes(content)
        path.chmod(0o600)
