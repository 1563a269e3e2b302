"""``exec --deliver secret`` on real servers: a password that works with any client, lies nowhere, and ends.

The servers log every statement and every connection.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys

import psycopg
import pytest

from taskpass.testing.postgres import available
from taskpass.testing.stage import TASKPASS, Stage
from tests.acceptance.actors import PROVEN, Puppet, met, until
from tests.acceptance.test_canaries import LOUD
from tests.missing import missing

pytestmark = pytest.mark.service

VERSIONS = [version for version in (15, 16, 18) if version in available()]
PLAIN = "plain"
"""A database that policy has no ``@delivery("bearer")`` for."""

POLICY = """
@id("dev-read")
@delivery("bearer")
permit (principal, action == Taskpass::Action::"read", resource)
when { resource.env == Taskpass::Environment::"dev" };
"""

COMMAND = """
import json, os, subprocess, sys
import psycopg

file = os.environ["PGPASSFILE"]
password = open(file).read().splitlines()[0].split(":")[-1]
with psycopg.connect("", autocommit=True) as connection:
    by_psycopg = connection.execute("SELECT current_user, count(*) FROM shop.orders").fetchone()
psql = sys.argv[1] and subprocess.run(
    [sys.argv[1], "-XAtwc", "SELECT current_user"], capture_output=True, text=True, close_fds=False, timeout=30
)
try:
    os.write(os.open(file, os.O_RDWR), b"x")
    changed = True
except OSError:
    changed = False
seen = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try:
            if password.encode() in open(f"/proc/{pid}/{name}", "rb").read():
                seen.append(f"{pid} {name}")
        except OSError:
            pass
print(json.dumps({
    "password": password, "file": file, "user": os.environ["PGUSER"], "by_psycopg": by_psycopg,
    "by_psql": psql and [psql.stdout, psql.stderr], "changed": changed, "seen": seen, "environ": dict(os.environ),
}), flush=True)
sys.stdin.read()
"""


def name(version):
    return f"pg{version}"


@pytest.fixture(scope="module")
def stage():
    if not VERSIONS:
        missing("no PostgreSQL is installed on this machine")
    with Stage(durable=False) as made:
        for version in VERSIONS:
            made.start_server(name(version), version, rows=100, options=LOUD)
        made.start_server(PLAIN, VERSIONS[-1], rows=100)
        made.found("sam")
        made.set_broker("allow_root_agents = true")
        for version in VERSIONS:
            made.enrol(name(version), environment="dev")
        made.enrol(PLAIN, environment="preview")
        (made.directory / "policy/dev.cedar").write_text(POLICY)
        made.start_broker()
        yield made


class Exec:
    """``taskpass exec`` with a command that uses its access, tells what it saw, and waits."""

    def __init__(self, stage, version, psql=""):
        self.stage, self.server = stage, stage.servers[name(version)]
        words = ["exec", "--resource", name(version), "--access", "read", "--deliver", "secret"]
        self.process = subprocess.Popen(
            [*TASKPASS, *words, "--", sys.executable, "-I", "-c", COMMAND, psql],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=stage.environment(),
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert line, self.process.wait(30)
        self.seen = json.loads(line)
        (self.lease,) = stage.call("leases")["leases"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def session(self):
        """With the password, from a process that never was the holder."""
        place = {"host": self.server.host, "port": self.server.port, "dbname": "orders", "autocommit": True}
        return psycopg.connect(**place, user=self.seen["user"], password=self.seen["password"], connect_timeout=5)

    def logs_in(self):
        try:
            self.session().close()
        except psycopg.OperationalError:
            return False
        return True

    def closed(self):
        view = until(
            lambda: (
                (v := self.stage.call("show_lease", lease=self.lease["lease"]))["state"] in ("closed", "cleaned") and v
            ),
            what="the closing",
        )
        assert view["proof"]["answer"] == PROVEN
        return view


@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_logs_in_with_any_client_and_the_password_ends_with_it(stage, version):
    psql = shutil.which("psql") or ""
    with Exec(stage, version, psql) as used:
        assert used.seen["by_psycopg"] == [used.seen["user"], 100]
        assert used.seen["by_psql"] == ([used.seen["user"] + "\n", ""] if psql else "")
        assert used.logs_in(), "bearer: whoever has it gets in"
        assert not used.seen["changed"], "the file is sealed"
        with used.server.connect() as admin:
            query = "SELECT rolpassword FROM pg_authid WHERE rolname = %s"
            verifier = admin.execute(query, [used.seen["user"]]).fetchone()[0]
        assert verifier.startswith("SCRAM-SHA-256$4096:")
        assert used.lease["delivery"] == "bearer"
    assert used.closed()["delivery"] == "bearer"
    assert not used.logs_in()


def test_the_password_lies_nowhere(stage):
    with Exec(stage, VERSIONS[-1]) as used:
        pass
    used.closed()
    password = used.seen["password"].encode()
    assert len(password) >= 43
    assert used.seen["seen"] == [], "in no environment and no arguments, while it was good"
    assert not any(password.decode() in value for value in used.seen["environ"].values())
    assert used.seen["file"].startswith("/proc/self/fd/")
    assert password not in used.server.log_text().encode()
    assert password not in stage.log.read_bytes()
    assert password not in stage.taskpass("audit", "export").stdout.encode()
    for path in (path for path in stage.root.rglob("*") if path.is_file()):
        assert password not in path.read_bytes(), path


def test_the_record_says_bearer(stage):
    with Exec(stage, VERSIONS[-1]) as used:
        pass
    rows = json.loads(stage.taskpass("audit", "show", "--json", "--last", "1000").stdout)
    mine = [row for row in rows if row["event"] == "lease.intended" and row["subject"]["lease"] == used.lease["lease"]]
    assert [(row["data"]["delivery"], row["data"]["decision"]["obligations"]["delivery"]) for row in mine] == [
        ("bearer", "bearer")
    ]


def test_the_access_ends_when_its_holder_is_killed(stage):
    with Exec(stage, VERSIONS[-1]) as used:
        used.process.kill()
        used.closed()
        assert not used.logs_in()


def test_a_session_that_somebody_else_opened_with_the_password_is_cut_when_it_is_revoked(stage):
    with Exec(stage, VERSIONS[-1]) as used, used.session() as elsewhere:
        assert met(elsewhere) == "alive"
        stage.taskpass("lease", "revoke", used.lease["lease"])
        assert met(elsewhere) != "alive"
        used.closed()
        assert not used.logs_in()


def test_a_request_for_a_secret_is_used_later_as_it_was_asked(stage):
    resource = name(VERSIONS[-1])
    asked = stage.taskpass("request", "--resource", resource, "--deliver", "secret", "--json")
    words = ("sh", "-c", "grep -c :$PGUSER: $PGPASSFILE")
    done = stage.taskpass("exec", "--request", json.loads(asked.stdout)["request"], "--", *words)
    assert done.stdout == "1\n"


def test_a_database_whose_policy_does_not_permit_it_hands_no_secret_out(stage):
    done = stage.taskpass("exec", "--resource", PLAIN, "--deliver", "secret", "--", "true", check=False)
    assert done.returncode == 90
    assert "[endpoint_only]" in done.stderr


def test_it_works_inside_a_run(stage, sandboxed):
    with Puppet(stage) as puppet:
        words = ("exec", "--resource", name(VERSIONS[-1]), "--deliver", "secret", "--", "sh", "-c")
        code, out, err = puppet.taskpass(*words, 'exec "$0" -I -c "$1" "" </dev/null', sys.executable, COMMAND)
        assert code == 0, err
        seen = json.loads(out)
    assert seen["by_psycopg"] == [seen["user"], 100]
    assert seen["seen"] == []
