"""Who plays in the acceptance tests: callers outside any run, a puppet in a real sandbox, and waiting with an end."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import subprocess
import sys
import time

import psycopg

from taskpass.client.line import LineClient
from taskpass.core.errors import TaskpassError
from taskpass.testing.stage import TASKPASS, Stage

RESOURCE = "orders-dev"
PROVEN = "AuthenticationOk,28000"
PATIENCE = 30.0

_numbers = itertools.count(1)


def until(found, seconds=PATIENCE, what="it"):
    """The first value of ``found()`` that is true; errors of ours count as not yet."""
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            value = found()
        except TaskpassError as error:
            value, last = None, error
        if value:
            return value
        time.sleep(0.03)
    raise AssertionError(f"{what} did not happen in {seconds:.0f} s: {last}")


class Small(Stage):
    """One small dev database on a server that need not last, and one person: quick, and enough for most tests."""

    def prepare(self, *, options=None, serve=True, secret=None):
        self.start_server(RESOURCE, 16, rows=500, options=options)
        self.found("sam")
        self.set_broker("allow_root_agents = true")
        self.set_budgets()
        self.enrol(RESOURCE, environment="dev", exclude=["shop.customers"])
        if serve:
            self.start_broker()
        return self

    @property
    def server(self):
        return self.servers[RESOURCE]

    def agent(self):
        """A caller outside any run: this process, and everything that it is given ends with it."""
        return LineClient(self.runtime / "line.sock")

    def ask(self, client, *, repository=None, resource=RESOURCE, **more):
        job = {"repository": repository or f"repo-{next(_numbers)}", "branch": "main", "ticket": more.pop("ticket", "")}
        task = client.call("open_task", job)["task"]
        return client.call("request_access", {"resource": resource, "task": task, **more})

    def lease(self, client, **more):
        """A lease of a new task (unless ``repository`` names one); the broker's answer with its endpoint."""
        return client.call("issue", {"request": self.ask(client, **more)["request"]})

    def shown(self, lease):
        return self.call("show_lease", lease=lease["lease"])

    def proven(self, lease, seconds=PATIENCE):
        """The lease once it is closed with the target's own refusal of the role."""
        view = until(
            lambda: (v := self.shown(lease))["state"] in ("closed", "cleaned") and v, seconds, "a proven closing"
        )
        assert view["proof"]["answer"] == PROVEN, view
        return view

    def roles(self):
        """(name, may log in, sessions) of each lease's role in the target."""
        with self.server.connect("orders") as connection:
            return connection.execute(
                "SELECT r.rolname::text, r.rolcanlogin, count(a.pid) FROM pg_roles r LEFT JOIN pg_stat_activity a"
                " ON a.usesysid = r.oid WHERE r.rolname LIKE 'tp\\_%' GROUP BY 1, 2"
            ).fetchall()

    def usable(self):
        return [row for row in self.roles() if row[1] or row[2]]

    def events(self):
        """The audit record as ``audit show`` reads it from the store, also while no broker runs."""
        return json.loads(self.taskpass("audit", "show", "--json", "--last", "100000").stdout)

    def verify(self):
        done = self.taskpass("audit", "verify", check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def doctor(self):
        """Exit code and rows of ``taskpass doctor``."""
        done = self.taskpass("doctor", "--json", check=False)
        return done.returncode, json.loads(done.stdout)

    def quiet(self):
        """Nothing is open and nothing is owed."""
        self.taskpass("revoke", "--all", check=False)
        until(lambda: not self.call("leases")["leases"], what="everything closed")


opened = []
"""Connections of the test that runs; the fixtures close them."""


def connect(lease):
    connection = psycopg.connect(lease["endpoint"]["dsn"], autocommit=True, connect_timeout=10)
    opened.append(connection)
    return connection


def met(connection, statement="SELECT 1"):
    """The SQLSTATE (or the error's kind) that ``statement`` meets, or ``alive``."""
    try:
        connection.execute(statement)
    except psycopg.Error as error:
        return error.sqlstate or type(error).__name__
    return "alive"


def refused(lease):
    """What a new connection to the endpoint is told; empty if it is let in."""
    try:
        connect(lease).close()
    except psycopg.OperationalError as error:
        return str(error).strip() or "refused"
    return ""


def one_line(done, code, exit_code):
    """The shape of every failure: one line with a stable code, at most one with what to do next, no traceback."""
    lines = done.stderr.splitlines()
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    errors = [line for line in lines if line.startswith("taskpass: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].endswith(f"[{code}]"), done.stderr
    assert all(line.startswith(("taskpass: ", "next: ")) for line in lines), done.stderr
    assert len(lines) <= 2, done.stderr
    assert "Traceback" not in done.stderr


_PUPPET = """
import json, os, subprocess, sys
import psycopg
from taskpass.client.line import LineClient
from taskpass.config.paths import agent_socket
from taskpass.core.errors import TaskpassError

client, held, started = LineClient(agent_socket()), {}, {}

def do(what, name, argument):
    if what == "call":
        return client.call(name, argument)
    if what == "connect":
        held[name] = psycopg.connect(argument, autocommit=True, connect_timeout=10)
        return held[name].info.backend_pid
    if what == "query":
        return [[str(value) for value in row] for row in held[name].execute(argument).fetchall()]
    if what == "run":
        done = subprocess.run(argument, capture_output=True, text=True, check=False)
        return [done.returncode, done.stdout, done.stderr]
    if what == "start":
        started[name] = subprocess.Popen(argument, stdin=subprocess.DEVNULL)
        return started[name].pid
    if what == "environ":
        return dict(os.environ)
    raise ValueError(what)

for line in sys.stdin:
    try:
        answer = {"answer": do(*json.loads(line))}
    except TaskpassError as error:
        answer = {"code": error.code, "message": error.message}
    except psycopg.Error as error:
        answer = {"code": error.sqlstate or type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Refused(Exception):
    """What the puppet met: ``code`` is an error code of ours or a SQLSTATE."""

    def __init__(self, answer):
        super().__init__(f"{answer['code']}: {answer['message']}")
        self.code = answer["code"]


class Puppet:
    """A program in the sandbox of ``taskpass run`` that does what it is told, line by line."""

    def __init__(self, stage, *words):
        work = stage.root / "work"
        work.mkdir(exist_ok=True)
        work.chmod(0o777)  # As root the agent has an account of its own.
        self.log = stage.root / "puppet.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*TASKPASS, "run", "--tool", "puppet", *words, "--", sys.executable, "-I", "-c", _PUPPET],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=stage.environment(), cwd=work,
            )  # fmt: skip
        try:
            self.task = self.call("status")["task"]
        except BaseException:
            self.end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.process.stdout.close()

    def do(self, what, name="", argument=None):
        self.process.stdin.write(json.dumps([what, name, argument]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        assert line, f"the puppet is gone: {self.log.read_text()[-800:]}"
        answer = json.loads(line)
        if "code" in answer:
            raise Refused(answer)
        return answer["answer"]

    def call(self, method, **params):
        return self.do("call", method, params)

    def lease(self, resource=RESOURCE, **more):
        request = self.call("request_access", resource=resource, task=self.task, **more)
        return self.call("issue", request=request["request"])

    def connect(self, lease, name="c"):
        return self.do("connect", name, lease["endpoint"]["dsn"])

    def query(self, statement="SELECT count(*) FROM shop.orders", name="c"):
        return self.do("query", name, statement)

    def taskpass(self, *words):
        return self.do("run", "", [*TASKPASS, *words])
