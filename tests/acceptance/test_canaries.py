"""Secrets are in their holders' hands only (I6): known ones are searched for everywhere after a whole story was played.

The server logs every statement and every connection. The agent's account looks at everything that it can read during a
lease and tries each string that could be a password.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
from pathlib import Path

import psycopg
import pytest

from taskpass.core.errors import TaskpassError
from taskpass.core.secret import Secret
from taskpass.testing.postgres import available
from taskpass.testing.stage import Person
from tests.acceptance.actors import RESOURCE, Puppet, Small, connect, met
from tests.missing import missing

pytestmark = pytest.mark.service

WRONG = "c4nary-of-a-wrong-reviewer"
LOUD = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_min_error_statement": "debug5",
    "log_error_verbosity": "verbose",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
}
ASKS = """
@id("dev-asks")
@title("A person is asked about the ticket T-ask")
@approvers("dba")
@quorum("1")
forbid (principal, action, resource)
when { context.task has ticket && context.task.ticket.value == "T-ask" }
unless { context.approved };
"""
LOOKS_LIKE_A_SECRET = re.compile(r"(?<![A-Za-z0-9_=+/-])[A-Za-z0-9_-]{43}=?(?![A-Za-z0-9_=+/-])")


@pytest.fixture(scope="module")
def played():
    """A stage after a whole story: issue, use, renew, fail, close, review, restart; what was printed is kept."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as made, _core_files_allowed():
        made.prepare(options=LOUD, serve=False)
        policy = made.directory / "policy/dev.cedar"
        policy.write_text(policy.read_text() + ASKS)
        made.start_broker()
        made.printed = _play(made)
        yield made
        made.quiet()


@contextlib.contextmanager
def _core_files_allowed():
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def _play(stage):
    printed = []

    def said(*words, **more):
        done = stage.taskpass(*words, check=False, **more)
        printed.append(done.stdout + done.stderr)

    with stage.agent() as client:
        lease = stage.lease(client)
        assert met(connect(lease), "SELECT count(*) FROM shop.orders") == "alive"
        with pytest.raises(TaskpassError):
            client.call("issue", {"request": "req_01m86z7ejqm3zvmxqcps0ncrre"})
        asked = stage.ask(client, ticket="T-ask", reason="a person decides")
        assert asked["state"] == "pending"
        with contextlib.suppress(Exception):
            stage.review(asked["request"], Person("sam", Secret(WRONG)), "--approve")
        printed.append(stage.review(asked["request"], stage.founder, "--approve").stdout)
        approved = client.call("issue", {"request": asked["request"]})
        assert met(connect(approved)) == "alive"
        server = stage.server
        admin = f"postgresql://{server.superuser}:{server.password.reveal()}@{server.address('orders')}"
        said("init", "--postgres", "--name", "again", "--environment", "dev", "--admin-dsn-stdin", stdin=admin)
        said("init", "--postgres", "--name", "bad", "--admin-dsn-stdin", stdin=admin.replace("/orders", "/nowhere"))
        said("init", "--postgres", admin)
        said("exec", "--resource", RESOURCE, "--", "env")
        server.stop()
        said("request", "--resource", RESOURCE)
        said("revoke", "--task", approved["task"])
        server.start()
        stage.proven(approved)
        stage.stop_broker(kill=True)
        stage.start_broker()
        stage.proven(lease)
        stage.lease(client)
    for words in (
        ("doctor",),
        ("lease", "ls", "--all"),
        ("task", "ls", "--all"),
        ("check",),
        ("audit", "show"),
        ("config", "show"),
        ("people", "ls"),
        ("keys", "ls"),
        ("review", "--directory", str(stage.directory)),
    ):
        said(*words, "--json")
    said("audit", "export")
    return "\n".join(printed)


def secrets_of(stage):
    (credential,) = (stage.directory / "credentials").glob("*")
    return {
        "the administrator's password": stage.server.password.reveal(),
        "the broker's password": json.loads(credential.read_text())["password"],
        "the reviewer's secret": stage.founder.secret.reveal(),
        "a wrong reviewer's secret": WRONG,
    }


def hits(stage, text):
    data = text if isinstance(text, bytes) else text.encode()
    return [what for what, secret in secrets_of(stage).items() if secret.encode() in data]


def test_nothing_secret_was_printed_or_logged(played):
    assert hits(played, played.printed) == []
    assert hits(played, played.log.read_bytes()) == []
    assert hits(played, played.server.log_text()) == []


def test_the_database_log_holds_verifiers_only(played):
    """With every statement logged: what follows PASSWORD is a SCRAM verifier, a parameter of one, or nothing."""
    log = played.server.log_text()
    assert "taskpass.issue" in log
    assert "SCRAM-SHA-256$" in log
    written = re.findall(r"(?i)\bpassword\s+('[^']*'|%L|\S+)", log)
    literal = [found for found in written if found.startswith("'")]
    initdb = [found for found in literal if not found.startswith("'SCRAM-SHA-256$")]
    assert initdb == []
    assert LOOKS_LIKE_A_SECRET.findall(_without_verifiers(log)) == []


def _without_verifiers(text):
    return re.sub(r"SCRAM-SHA-256\$[^\s']+", "", text)


def test_nothing_secret_lies_in_files_but_the_brokers_own_login_in_its_one_place(played):
    places = [played.directory, played.runtime, played.root]
    found = {}
    for path in {path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()}:
        for what in hits(played, path.read_bytes()):
            found.setdefault(path, []).append(what)
    (credential,) = (played.directory / "credentials").glob("*")
    assert found == {credential: ["the broker's password"]}
    assert credential.stat().st_mode & 0o777 == 0o600
    cores = [path for path in (*played.root.rglob("core*"), *Path.cwd().glob("core*")) if path.is_file()]
    assert cores == []


def test_nothing_secret_stands_in_arguments_or_environments_of_any_process(played):
    """The server's own processes are the administrator's side; their arguments are looked at all the same."""
    for place in Path("/proc").iterdir():
        if not place.name.isdigit() or int(place.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                assert hits(played, (place / name).read_bytes()) == [], place


def test_no_core_file_could_hold_the_brokers_memory(played):
    """The stage is started with core files allowed, where this process may allow them."""
    limits = Path(f"/proc/{played.broker.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4] == "0"


_SCAN = """
import json, os, re, sys
found, seen = set(), 0
pattern = re.compile(rb"[!-~]{8,100}")
token = re.compile(rb"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{40,50}=?(?![A-Za-z0-9_-])")
def look(data):
    found.update(m.decode() for m in pattern.findall(data))
for top in sys.argv[1:]:
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path) and os.path.getsize(path) < 2**20:
                    look(open(path, "rb").read())
            except OSError: pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try: look(open(f"/proc/{pid}/{name}", "rb").read().replace(b"\\0", b"\\n"))
        except OSError: pass
    try:
        maps, memory = open(f"/proc/{pid}/maps"), open(f"/proc/{pid}/mem", "rb", 0)
    except OSError: continue
    for line in maps:
        span, rights = line.split()[:2]
        if "rw" not in rights or "[v" in line: continue
        start, end = (int(x, 16) for x in span.split("-"))
        if end - start > 2**26: continue
        try:
            memory.seek(start); data = memory.read(end - start)
        except (OSError, ValueError, OverflowError): continue
        found.update(m.decode() for m in re.findall(token, data))
print(json.dumps(sorted(found)))
"""


def test_an_agent_that_searches_everything_it_can_read_finds_nothing_that_logs_in(played, sandboxed):
    stage = played
    with Puppet(stage) as puppet:
        lease = puppet.lease()
        puppet.connect(lease)
        assert puppet.query() == [["500"]]
        places = [str(stage.root), str(stage.directory), str(stage.runtime), str(stage.server.directory), "/run"]
        code, out, err = puppet.do("run", "", [sys.executable, "-I", "-c", _SCAN, *places])
        assert code == 0, err
        strings = json.loads(out)
        assert hits(stage, out) == []
        likely = [s for s in strings if len(s) <= 64][:3000]
        candidates = sorted(likely, key=lambda s: -bool(LOOKS_LIKE_A_SECRET.fullmatch(s)))[:150]
        assert candidates
        assert [s for s in candidates if _logs_in(stage, lease["role"], s)] == []


def _logs_in(stage, role, password):
    try:
        psycopg.connect(
            host=stage.server.host,
            port=stage.server.port,
            dbname="orders",
            user=role,
            password=password,
            connect_timeout=20,
        ).close()
    except psycopg.OperationalError:
        return False
    return True
