"""Every way in which access ends, with real processes: the command, its death, the clock, the task, the run, a person.

After each of them the target itself refuses the role, and that is in the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from taskpass.testing.stage import TASKPASS
from tests.acceptance.actors import RESOURCE, Puppet, connect, met, one_line, refused, until

pytestmark = pytest.mark.service

EXEC = (*TASKPASS, "exec", "--resource", RESOURCE, "--")


def started(stage, *command, **more):
    return subprocess.Popen(
        [*EXEC, *command], env=stage.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=stage.root, **more,
    )  # fmt: skip


def only_lease(stage):
    (lease,) = until(lambda: stage.call("leases")["leases"], what="a lease")
    return lease


# ---- exec: the command and its process ----


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("no-such-program-anywhere",), 127),
        (("/",), 126),
    ],
)
def test_exec_gives_the_exit_code_of_its_command_and_takes_the_access_back(stage, agent, command, code):
    process = started(stage, *command)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert stage.call("leases")["leases"] == []
    newest = stage.call("leases", all=True)["leases"]
    assert {lease["state"] for lease in newest} <= {"closed", "cleaned"}


def test_exec_passes_stdin_and_stdout_through_byte_by_byte_and_shows_no_secret(stage, agent):
    data = bytes(range(256)) * 500
    done = subprocess.run([*EXEC, "cat"], input=data, env=stage.environment(), capture_output=True, timeout=30)
    assert done.stdout == data
    shown = subprocess.run([*EXEC, "env"], env=stage.environment(), capture_output=True, text=True, timeout=30).stdout
    assert "DATABASE_URL=postgresql://" in shown
    assert "PGPASSWORD" not in shown
    (url,) = [line for line in shown.splitlines() if line.startswith("DATABASE_URL=")]
    assert "password" not in url
    assert ":" not in url.split("//", 1)[1].split("?")[0]


def test_exec_forwards_a_signal_and_lets_the_command_end_in_its_own_way(stage, agent):
    process = started(stage, "sh", "-c", 'trap "echo got; exit 9" TERM; echo ready; while :; do sleep 0.05; done')
    assert process.stdout.readline() == "ready\n"
    lease = only_lease(stage)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("got\n", 9)
    assert stage.proven(lease)["reason"] == "released"


def test_exec_that_is_killed_loses_the_access_although_its_command_lives_on(stage, agent):
    process = started(stage, "sh", "-c", 'echo "$DATABASE_URL"; cat')
    lease = {"endpoint": {"dsn": process.stdout.readline().strip()}, **only_lease(stage)}
    with connect(lease) as session:
        assert met(session, "SELECT count(*) FROM shop.orders") == "alive"
        process.kill()
        process.wait()
        assert stage.proven(lease)["reason"] == "process_ended"
        assert met(session) != "alive"
    assert refused(lease)
    process.communicate()  # ends the command, which had outlived us until here


# ---- a person ends it ----


@pytest.mark.parametrize("level", ["lease", "task", "agent", "ticket", "resource", "all"])
def test_revoke_shows_first_and_then_ends_what_it_names_and_nothing_else(stage, agent, level):
    ticket = f"T-{level}"
    lease, other = stage.lease(agent, ticket=ticket), stage.lease(agent, ticket="T-other")
    session, others = connect(lease), connect(other)
    words = {
        "lease": ("lease", "revoke", lease["lease"]),
        "task": ("revoke", "--task", lease["task"]),
        "agent": ("revoke", "--agent", stage.call("show_task", task=lease["task"])["principal"]),
        "ticket": ("revoke", "--ticket", ticket),
        "resource": ("revoke", "--resource", RESOURCE),
        "all": ("revoke", "--all"),
    }[level]
    wide = level in ("resource", "all")
    shown = stage.taskpass(*words, "--dry-run", "--reason", "drill").stdout
    assert lease["lease"] in shown
    assert (other["lease"] in shown) == wide
    assert stage.shown(lease)["state"] == "active"
    assert met(session) == "alive"
    done = json.loads(stage.taskpass(*words, "--json").stdout)
    assert {item["state"] for item in done["leases"]} <= {"closed", "cleaned"}
    assert stage.proven(lease)["reason"] == "revoked"
    assert met(session) == "57P01"
    assert met(others) == ("57P01" if wide else "alive")
    assert refused(lease)


def test_releasing_and_completing_end_it_with_proof(stage, agent):
    lease = stage.lease(agent)
    assert "proven by AuthenticationOk,28000" in stage.taskpass("release", lease["lease"]).stdout
    assert stage.proven(lease)["reason"] == "released"
    first, second = stage.lease(agent, repository="two"), stage.lease(agent, repository="two")
    said = stage.taskpass("task", "complete", first["task"]).stdout
    assert said.count("proven by AuthenticationOk,28000") == 2
    assert stage.proven(second)["reason"] == "task_ended"


# ---- time ends it ----


def test_a_lease_that_runs_out_cuts_the_query_that_is_running(stage, agent):
    lease = stage.lease(agent, ttl=2)
    session, told = connect(lease), []
    asleep = threading.Thread(target=lambda: told.append(met(session, "SELECT pg_sleep(60)")))
    asleep.start()
    asleep.join(15)
    assert told == ["57P01"]
    assert stage.proven(lease)["reason"] == "expired"


def test_a_lease_that_ran_out_by_the_targets_clock_is_proven_closed(stage):
    with stage.agent() as client:
        lease = stage.lease(client, ttl=2)
        stage.stop_broker(kill=True)
    with stage.server.connect() as connection:
        past = "SELECT rolvaliduntil < clock_timestamp() FROM pg_roles WHERE rolname = %s"
        until(lambda: connection.execute(past, [lease["role"]]).fetchone() == (True,), what="VALID UNTIL passing")
    stage.start_broker()
    stage.proven(lease)


@pytest.mark.parametrize("ttl", ["0", "-5", "0s", "soon", "9h", "999999999999", "1e3", "٣", "", "15m15m"])
def test_a_lifetime_that_makes_no_sense_is_refused_in_one_line(stage, agent, ttl):
    before = {lease["lease"] for lease in stage.call("leases", all=True)["leases"]}
    done = stage.taskpass("exec", "--resource", RESOURCE, f"--ttl={ttl}", "--", "true", check=False)
    one_line(done, "bad_ttl", 2)
    assert {lease["lease"] for lease in stage.call("leases", all=True)["leases"]} == before


# ---- the run ends it ----


def test_a_parent_task_ends_its_child(stage, sandboxed):
    with Puppet(stage) as puppet:
        child = puppet.call("open_task", repository="inner", branch="b", ticket="T-2")
        assert puppet.task in child["parents"]
        inner = puppet.call(
            "issue", request=puppet.call("request_access", resource=RESOURCE, task=child["task"])["request"]
        )
        outer = puppet.lease()
        puppet.connect(inner, "inner")
        puppet.call("complete_task", task=puppet.task)
        for lease in (inner, outer):
            assert stage.proven(lease)["reason"] == "task_ended"
        assert stage.call("show_task", task=child["task"])["reason"] == "parent_ended"
        with pytest.raises(Exception, match=r"terminat|closed"):
            puppet.query("SELECT 1", "inner")


def test_a_run_that_is_killed_takes_everything_of_it_along(stage, sandboxed):
    puppet = Puppet(stage)
    lease = puppet.lease()
    puppet.connect(lease)
    beats = stage.root / "work/beats"
    # It leaves its parent's session and process group, as a daemon does.
    puppet.do("start", "daemon", ["setsid", "sh", "-c", "while :; do echo x >> beats; sleep 0.05; done"])
    until(lambda: beats.exists() and beats.stat().st_size > 4, what="the daemon's first beats")
    puppet.process.kill()
    assert stage.proven(lease)["reason"] in ("process_ended", "task_ended")
    assert stage.call("show_task", task=puppet.task)["state"] == "completed"
    puppet.end()
    _stands_still(beats)
    assert refused(lease)


def test_a_daemon_of_a_run_that_ended_cannot_go_on_with_its_endpoint(stage, sandboxed):
    beats = stage.root / "work/uses"
    with Puppet(stage) as puppet:
        lease = puppet.lease()
        loop = (
            "import psycopg, sys, time\n"
            "while True:\n"
            "    with psycopg.connect(sys.argv[1]) as c: c.execute('SELECT count(*) FROM shop.orders')\n"
            "    open('uses', 'a').write('x'); time.sleep(0.05)"
        )
        puppet.do("start", "daemon", ["setsid", sys.executable, "-c", loop, lease["endpoint"]["dsn"]])
        until(lambda: beats.exists() and beats.stat().st_size > 2, what="the daemon's first queries")
    stage.proven(lease)
    _stands_still(beats)
    assert not os.path.exists(lease["endpoint"]["host"])


def _stands_still(path):
    size, quiet_since = path.stat().st_size, time.monotonic()
    while time.monotonic() - quiet_since < 0.4:
        time.sleep(0.05)
        assert path.stat().st_size == size


def test_inside_a_run_a_lease_renews_itself_until_its_manifest_changes(stage, sandboxed):
    with Puppet(stage) as puppet:
        lease = puppet.lease(ttl=4)
        puppet.connect(lease)
        until(lambda: stage.shown(lease)["renewals"] >= 1, what="the first renewal")
        assert stage.shown(lease)["state"] == "active"
        assert puppet.query() == [["500"]]
        with stage.server.connect("orders") as connection:
            connection.execute("ALTER TABLE shop.orders ADD COLUMN later integer")
        try:
            assert stage.proven(lease)["reason"] in ("expired", "wider_than_manifest")
        finally:
            with stage.server.connect("orders") as connection:
                connection.execute("ALTER TABLE shop.orders DROP COLUMN later")
        events = [r["event"] for r in stage.events() if r["subject"].get("lease") == lease["lease"]]
        assert "lease.renewed" in events
        assert "lease.renewal_refused" in events
        with pytest.raises(Exception, match=r"terminat|closed"):
            puppet.query()


# ---- what programs read ----


def test_every_json_answer_is_one_document(stage, agent):
    lease = stage.lease(agent)
    for words in (
        ("status", "--task", lease["task"]),
        ("request", "--resource", RESOURCE),
        ("task", "ls"),
        ("task", "show", lease["task"]),
        ("lease", "ls", "--all"),
        ("lease", "show", lease["lease"]),
        ("revoke", "--all", "--dry-run"),
        ("review", "--directory", str(stage.directory)),
        ("audit", "show"),
        ("audit", "verify"),
        ("doctor",),
        ("check",),
        ("config", "show"),
        ("keys", "ls"),
        ("people", "ls"),
        ("policy", "check"),
        ("policy", "test"),
    ):
        done = stage.taskpass(*words, "--json", check=False)
        assert json.loads(done.stdout) is not None, words
        assert done.stderr == "", words


@pytest.mark.parametrize("no_color", [True, False])
def test_colour_is_for_terminals_that_want_it(stage, no_color):
    environment = {k: v for k, v in stage.environment().items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    leader, follower = pty.openpty()
    subprocess.run(
        [*TASKPASS, "doctor"], env=environment | ({"NO_COLOR": "1"} if no_color else {}), stdin=subprocess.DEVNULL,
        stdout=follower, stderr=follower, check=False, timeout=30,
    )  # fmt: skip
    os.close(follower)
    said = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(leader, 65536):
            said += chunk
    os.close(leader)
    assert b"broker" in said
    assert (b"\x1b" in said) is not no_color
    assert "\x1b" not in stage.taskpass("doctor", check=False).stdout
