"""The commands as a new user types them: real processes, a real PostgreSQL, nothing but the public command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from taskpass.core.errors import SandboxUnavailable
from taskpass.sandbox.detect import detect
from taskpass.testing.postgres import EmbeddedServer, available
from tests.missing import missing

PROGRAM = Path(sys.executable).with_name("taskpass")
CANARY = "c4n4ry-p4ssw0rd"
SECONDS = 60

pytestmark = pytest.mark.service

QUERY = """
import os, psycopg, sys
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    for table in sys.argv[1:]:
        try:
            with connection.transaction():
                print(table, connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except psycopg.Error as error:
            print(table, error.sqlstate)
"""


class Home:
    """A place for one broker: its directory, its sockets, a worktree, and the environment of a person who uses it."""

    def __init__(self):
        self.place = Path(tempfile.mkdtemp(prefix="tp", dir="/tmp"))
        self.place.chmod(0o755)
        self.directory = self.place / "broker"
        self.worktree = self.place / "work"
        (self.worktree / ".git").mkdir(parents=True)
        (self.worktree / "query.py").write_text(QUERY)
        (self.worktree / ".git/HEAD").write_text("ref: refs/heads/fix/T-1\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKPASS", "PG"))}
        self.environment = kept | {
            "TASKPASS_DIR": str(self.directory),
            "TASKPASS_RUNTIME_DIR": str(self.place / "r"),
            "PATH": f"{PROGRAM.parent}:{kept['PATH']}",
        }
        self.broker = None
        self.started = []

    def run(self, *words, stdin="", **more):
        return subprocess.run(
            [PROGRAM, *words], input=stdin, env=self.environment, cwd=self.worktree, capture_output=True, text=True,
            timeout=SECONDS, check=False, **more,
        )  # fmt: skip

    def start(self, *words):
        started = subprocess.Popen(
            [PROGRAM, *words], env=self.environment, cwd=self.worktree, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.started.append(started)
        return started

    def with_secret(self, option, *words, secret=None):
        """Run with a pipe on descriptor ``option``: a secret to read, or a place to write one to, which is returned."""
        reading, writing = os.pipe()
        try:
            if secret:
                os.write(writing, secret.encode())
            end = reading if secret else writing
            done = self.run(*words, option, str(end), pass_fds=[end])
            if secret:
                return done
            assert done.returncode == 0, done.stderr
            return os.read(reading, 1000).decode().strip()
        finally:
            os.close(reading)
            os.close(writing)

    def up(self):
        self.broker = self.start("up")
        wait_for(lambda: self.run("doctor", "--json").returncode in (0, 3))

    def down(self):
        if self.broker:
            self.broker.send_signal(signal.SIGTERM)
            self.broker.communicate(timeout=SECONDS)
        code = self.broker.returncode if self.broker else None
        self.broker = None
        return code

    def remove(self):
        self.down()
        for started in self.started:
            # Also what a test that failed left running.
            with started:
                started.kill()
        shutil.rmtree(self.place)


def wait_for(found, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@pytest.fixture(scope="module")
def server():
    """A server of this module's own: enrolling for staging closes the cluster's other databases."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    made = EmbeddedServer(16, durable=False)
    made.start()
    yield made
    made.stop()
    made.remove()


@pytest.fixture(scope="module")
def dsn(server):
    """A database of one's own, and the administrator's login for it."""
    with server.connect() as connection:
        connection.execute("CREATE DATABASE shop TEMPLATE template0 STRATEGY wal_log")
    with server.connect("shop") as connection:
        connection.execute("CREATE TABLE customers (id int PRIMARY KEY, email text)")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, amount int)")
        connection.execute("CREATE TABLE items (id int PRIMARY KEY)")
        connection.execute("INSERT INTO orders SELECT n, n FROM generate_series(1, 500) n")
    return f"postgresql://{server.superuser}:{server.password.reveal()}@{server.address('shop')}"


@pytest.fixture
def home():
    made = Home()
    yield made
    made.remove()


def leftovers(server):
    with server.connect() as connection:
        found = connection.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^(taskpass|tp)_'").fetchall()
    return {name for (name,) in found}


def files(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


INIT = ("init", "--postgres", "--environment", "staging", "--exclude", "public.customers")


@pytest.fixture(scope="module")
def enrolled(dsn):
    """A running broker with the database enrolled as staging, where a second person has to approve."""
    home = Home()
    done = home.run(*INIT, "--close-other-databases", "--name", "orders", "--admin-dsn-stdin", stdin=dsn)
    assert done.returncode == 0, done.stderr
    home.secret = home.with_secret("--secret-fd", "people", "add", "ben", "--group", "dba")
    policy = home.directory / "policy/staging.cedar"
    policy.write_text(policy.read_text().replace("@max_ttl(", '@approvers("dba")\n@quorum("1")\n@max_ttl('))
    home.up()
    yield home
    home.remove()


@pytest.fixture
def sandbox():
    try:
        return detect()
    except SandboxUnavailable as error:
        missing(f"no sandbox works here: {error.message}")


@pytest.mark.parametrize(
    ("words", "login", "said"),
    [
        ((), "postgresql://postgres:{canary}@{address}", "[target_auth]"),
        ((), "postgresql://postgres:{canary}@pgbouncer.example:6432/shop", "[pooler_address]"),
        ((), "postgresql://postgres:{canary}@127.0.0.1:1/shop", "[target_unavailable]"),
        ((), "postgresql://postgres:{canary}@{address}?options=x", "not used here"),
        ((), "this is no login {canary}", "[bad_dsn]"),
        ((), "{dsn}", "[target_unfit]"),
        (("--name", "Not A Name"), "{dsn}", "is not a name for a resource"),
        (("--table", "orders"), "{dsn}", "schema and table"),
    ],
)
def test_an_init_that_fails_says_why_shows_no_password_and_leaves_nothing(home, server, dsn, words, login, said):
    before = leftovers(server)
    text = login.format(canary=CANARY, address=server.address("shop"), dsn=dsn)
    done = home.run(*INIT, *words, "--admin-dsn-stdin", stdin=text)
    assert done.returncode != 0
    assert said in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not home.directory.exists()
    assert files(home.place) == ["work", "work/.git", "work/.git/HEAD", "work/query.py"]
    assert leftovers(server) == before


def test_an_enrolment_that_fails_late_opens_again_what_it_closed(home, server, dsn):
    """The rehearsal finds what nobody may have: a routine that runs as its owner and that everybody may call."""
    make = (
        "CREATE FUNCTION public.leak() RETURNS SETOF public.orders "
        "SECURITY DEFINER LANGUAGE sql AS 'TABLE public.orders'"
    )
    public = "SELECT datname FROM pg_database WHERE has_database_privilege('public', oid, 'CONNECT') ORDER BY 1"
    with server.connect("shop") as connection:
        connection.execute(make)
    with server.connect() as connection:
        before = connection.execute(public).fetchall()
    try:
        done = home.run(*INIT, "--close-other-databases", "--admin-dsn-stdin", stdin=dsn)
    finally:
        with server.connect("shop") as connection:
            connection.execute("DROP FUNCTION public.leak()")
    assert done.returncode == 1
    assert "[target_unfit]" in done.stderr
    assert "leak" in done.stdout
    assert not home.directory.exists()
    with server.connect() as connection:
        assert connection.execute(public).fetchall() == before
        assert connection.execute("SELECT 1 FROM pg_roles WHERE rolname ~ '^taskpass_'").fetchall() == []


def test_a_password_in_the_command_line_is_refused_before_anything_is_made(home):
    done = home.run("init", "--postgres", f"postgresql://a:{CANARY}@h/d")
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert not home.directory.exists()


def test_nothing_secret_lies_in_files_arguments_or_environment(enrolled, server):
    secrets = {server.password.reveal(), enrolled.secret}
    for path in enrolled.directory.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in secrets), path
    for name in ("cmdline", "environ"):
        text = Path(f"/proc/{enrolled.broker.pid}/{name}").read_bytes()
        assert not any(secret.encode() in text for secret in secrets)
    for path in enrolled.directory.rglob("*"):
        assert not path.stat().st_mode & 0o077, path


def test_init_again_changes_nothing_and_keeps_the_broker_logged_in(enrolled, dsn):
    before = (enrolled.directory / "taskpass.toml").read_bytes()
    done = enrolled.run(*INIT, "--name", "orders", "--admin-dsn-stdin", stdin=dsn)
    assert done.returncode == 0, done.stderr
    assert "orders is enrolled again" in done.stdout
    assert (enrolled.directory / "taskpass.toml").read_bytes() == before


def test_init_again_adds_an_owner_to_an_enrolled_database_and_leaves_the_rest(enrolled, server, dsn):
    with server.connect("shop") as connection:
        connection.execute("CREATE ROLE keeper; CREATE ROLE other_keeper; CREATE ROLE app_and_owner LOGIN")
    path = enrolled.directory / "taskpass.toml"
    before = path.read_bytes()
    again = ("--name", "orders", "--admin-dsn-stdin")
    try:
        refused = enrolled.run(*INIT, *again, "--migrate-owner", "app_and_owner", stdin=dsn)
        assert refused.returncode == 1
        assert "ALTER ROLE app_and_owner NOLOGIN" in refused.stdout
        assert path.read_bytes() == before
        assert enrolled.run(*INIT, *again, "--migrate-owner", "keeper", stdin=dsn).returncode == 0
        added = path.read_text().removeprefix(before.decode().rstrip())
        assert added.split("#")[0].split() == ["[resources.orders.access.migrate]", "owner", "=", '"keeper"']
        with server.connect("shop") as connection:
            owners = connection.execute("SELECT role FROM taskpass.owner").fetchall()
        assert owners == [("keeper",)]
        assert enrolled.run(*INIT, *again, "--migrate-owner", "keeper", stdin=dsn).returncode == 0
        assert path.read_bytes() == before.rstrip() + added.encode()
        other = enrolled.run(*INIT, *again, "--migrate-owner", "other_keeper", stdin=dsn)
        assert "[another_owner]" in other.stderr
        assert path.read_bytes() == before.rstrip() + added.encode()
    finally:
        path.write_bytes(before)


def test_the_same_cluster_is_refused_for_another_environment(enrolled, dsn):
    done = enrolled.run(
        "init", "--postgres", "--name", "live", "--environment", "production", "--admin-dsn-stdin", stdin=dsn
    )
    assert done.returncode == 2
    assert "[shared_cluster]" in done.stderr
    assert not (enrolled.directory / "credentials/live.cred").exists()


def test_check_and_doctor_find_nothing_fatal(enrolled):
    assert enrolled.run("check").returncode in (0, 2)
    rows = json.loads(enrolled.run("doctor", "--json").stdout)
    assert not [row for row in rows if row["state"] == "unknown"]
    assert {"check": "broker", "state": "ok"}.items() <= next(r for r in rows if r["check"] == "broker").items()


def test_a_person_narrows_and_the_database_holds_to_it(enrolled, sandbox):
    words = ("--resource", "orders", "--wait", "50s", "--", sys.executable, "query.py", "orders", "items", "customers")
    agent = enrolled.start("run", "--tool", "tester", "--ticket", "T-1", "--", str(PROGRAM), "exec", *words)
    listed = ("review", "--json", "--directory", str(enrolled.directory))
    pending = wait_for(lambda: json.loads(enrolled.run(*listed).stdout)["requests"])
    request = pending[0]["request"]
    card = enrolled.run("review", request, "--directory", str(enrolled.directory))
    assert '"T-1" (claimed)' in card.stdout
    assert "excluded by the operator" in card.stdout
    yes = ("--approve", "--drop", "public.items", "--as", "ben", "--directory", str(enrolled.directory))
    done = enrolled.with_secret("--secret-fd", "review", request, *yes, secret=enrolled.secret)
    assert done.returncode == 0, done.stderr
    out, err = agent.communicate(timeout=SECONDS)
    assert agent.returncode == 0, err
    assert out.split("\n") == ["orders 500", "items 42501", "customers 42501", ""]
    leases = json.loads(enrolled.run("lease", "ls", "--all", "--json").stdout)["leases"]
    assert leases[0]["state"] in ("closed", "cleaned")
    assert leases[0]["proof"]["answer"] == "AuthenticationOk,28000"


def test_a_denied_request_runs_nothing_and_is_90(enrolled, sandbox):
    words = ("--resource", "orders", "--wait", "50s", "--", "touch", "ran")
    agent = enrolled.start("run", "--tool", "tester", "--", str(PROGRAM), "exec", *words)
    listed = ("review", "--json", "--directory", str(enrolled.directory))
    request = wait_for(lambda: json.loads(enrolled.run(*listed).stdout)["requests"])[0]["request"]
    no = ("--deny", "--comment", "not today", "--as", "ben", "--directory", str(enrolled.directory))
    assert enrolled.with_secret("--secret-fd", "review", request, *no, secret=enrolled.secret).returncode == 0
    _, err = agent.communicate(timeout=SECONDS)
    assert agent.returncode == 90, err
    assert 'is denied: "not today"' in err
    assert not (enrolled.worktree / "ran").exists()


def test_the_record_verifies_with_the_key_and_a_changed_export_does_not(enrolled, tmp_path):
    key = json.loads(enrolled.run("keys", "ls", "--json").stdout)["keys"][0]["public"]
    report = enrolled.run("audit", "verify", "--trust", key, "--json")
    assert report.returncode == 0, report.stdout
    assert json.loads(report.stdout)["trusted"] is True
    export = enrolled.run("audit", "export").stdout
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(export)
    lines = export.split("\n")
    lines[2] = lines[2].replace("taskpass.local", "taskpasz.local").replace('\\"late\\":false', '\\"late\\":true')
    bad.write_text("\n".join(lines))
    assert enrolled.run("audit", "verify", "--trust", key, "--file", str(good)).returncode == 0
    broken = enrolled.run("audit", "verify", "--trust", key, "--file", str(bad))
    assert broken.returncode == 1
    assert "BROKEN at record 2" in broken.stdout


def test_a_dba_can_run_the_script_and_init_continues(home, server, dsn):
    with server.connect() as connection:
        connection.execute("CREATE DATABASE other TEMPLATE template0 STRATEGY wal_log")
    with server.connect("other") as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY)")
    printed = home.run("init", "--postgres", "--name", "things", "--print-sql")
    assert printed.returncode == 0, printed.stderr
    password = json.loads((home.directory / "credentials/things.cred").read_text())["password"]
    assert password not in printed.stdout + printed.stderr
    with server.connect("other", autocommit=True) as connection:
        connection.execute(printed.stdout)
    address = f"postgresql://{server.address('other')}"
    done = home.run("init", "--postgres", "--name", "things", "--login-stdin", stdin=address)
    assert done.returncode == 0, done.stderr
    assert json.loads(home.run("config", "show", "--json").stdout)["resources"][0]["resource"] == "things"


def test_a_second_broker_on_one_directory_is_refused(enrolled):
    done = enrolled.run("up")
    assert done.returncode == 1
    assert "[broker_running]" in done.stderr


def test_the_broker_stops_when_it_is_told_to(enrolled):
    assert enrolled.down() == 0
    enrolled.up()
