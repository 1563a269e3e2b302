from __future__ import annotations

import json
import sys

import pytest

from taskpass.cli.entry import main
from taskpass.cli.exec import FOREIGN, environment
from taskpass.core.errors import Denied, NotProven, TargetUnavailable

LEASE = {
    "lease": "lse_1",
    "task": "tsk_1",
    "state": "active",
    "endpoint": {
        "host": "/run/x",
        "port": 5432,
        "database": "orders",
        "user": "tp_a_b",
        "dsn": "postgresql:///orders?host=/run/x",
    },
}
CLOSED = LEASE | {"state": "closed", "proof": {"answer": "AuthenticationOk,28000", "took_ms": 12, "ended": 1}}
SHOW = """
import json, os
print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(("PG", "DATABASE", "TASKPASS_TASK"))}))
"""


def request(state="approved", **more):
    return {
        "request": "req_1",
        "state": state,
        "resource": "orders",
        "environment": "dev",
        "access": "read",
        "lifetime": 900,
        "lapses_at": None,
        "code": "ok",
        "comment": "",
        "next": "",
        "granted": ["public.orders"],
        "dropped": ["public.customers"],
    } | more


@pytest.fixture
def broker(agents_broker):
    agents_broker.answers = {
        "open_task": {"task": "tsk_1"},
        "request_access": request(),
        "issue": LEASE,
        "release": CLOSED,
    }
    return agents_broker


def test_exec_gives_the_command_an_endpoint_and_gives_it_back(broker, capfd, monkeypatch):
    for name in FOREIGN:
        monkeypatch.setenv(name, "elsewhere")
    assert main(["exec", "--resource", "orders", "--access", "read", "--", sys.executable, "-c", SHOW]) == 0
    seen = json.loads(capfd.readouterr().out)
    assert seen == {
        "PGHOST": "/run/x",
        "PGPORT": "5432",
        "PGUSER": "tp_a_b",
        "PGDATABASE": "orders",
        "DATABASE_URL": LEASE["endpoint"]["dsn"],
        "TASKPASS_TASK": "tsk_1",
    }
    assert [name for name, _ in broker.calls] == ["open_task", "request_access", "issue", "release"]
    assert broker.named("issue") == [{"request": "req_1", "holder": "process"}]
    assert broker.named("release") == [{"lease": "lse_1"}]


SECRET = {
    "lease": "lse_1",
    "task": "tsk_1",
    "state": "active",
    "delivery": "bearer",
    "bearer": {"host": "::1", "port": 5433, "database": "a b", "user": "tp_a_b", "ca": "/ca.pem", "password": "s3cret"},
}


def test_a_secret_reaches_the_command_in_a_file_and_nowhere_else(broker, capfd, monkeypatch):
    broker.answers["issue"] = dict(SECRET, bearer=dict(SECRET["bearer"]))
    monkeypatch.setenv("PGSSLROOTCERT", "elsewhere")
    code = SHOW + "print(open(os.environ['PGPASSFILE']).read().strip())"
    assert main(["exec", "--resource", "orders", "--deliver", "secret", "--", sys.executable, "-c", code]) == 0
    environment, entry = capfd.readouterr().out.splitlines()
    seen = json.loads(environment)
    assert seen.pop("PGPASSFILE").startswith("/proc/self/fd/")
    assert seen == {
        "PGHOST": "::1",
        "PGPORT": "5433",
        "PGUSER": "tp_a_b",
        "PGDATABASE": "a b",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "DATABASE_URL": "postgresql:///a%20b?host=%3A%3A1&port=5433&user=tp_a_b",
        "TASKPASS_TASK": "tsk_1",
    }
    assert entry == "\\:\\:1:5433:a b:tp_a_b:s3cret"
    assert broker.named("request_access")[0]["delivery"] == "bearer"
    assert broker.named("release")


def test_a_delivery_that_does_not_exist_is_a_mistake(broker, capfd):
    assert main(["exec", "--resource", "orders", "--deliver", "password", "--", "true"]) == 2
    assert "--deliver is endpoint or secret" in capfd.readouterr().err
    assert broker.calls == [] or broker.named("request_access") == []


def test_a_password_of_another_server_does_not_reach_the_command():
    assert "PGPASSWORD" not in environment({"PGPASSWORD": "hunter2", "HOME": "/h"}, LEASE)
    assert environment({"HOME": "/h"}, LEASE)["HOME"] == "/h"


@pytest.mark.parametrize(("command", "code"), [(["exit 7"], 7), (["kill -9 $$"], 137)])
def test_the_commands_exit_code_passes_through(broker, command, code):
    assert main(["exec", "--resource", "orders", "--", "sh", "-c", *command]) == code
    assert broker.named("release")


def test_a_command_that_does_not_exist_is_127_and_the_access_is_given_back(broker):
    assert main(["exec", "--resource", "orders", "--", "/nonexistent/command"]) == 127
    assert broker.named("release")


def test_a_release_that_fails_is_told_and_does_not_change_the_exit_code(broker, capfd):
    broker.answers["release"] = NotProven("no proof yet")
    assert main(["exec", "--resource", "orders", "--", "true"]) == 0
    assert "lse_1 is taken back by the broker: no proof yet [not_proven]" in capfd.readouterr().err


def test_what_is_asked_for_is_what_was_typed(broker):
    words = [
        "--table",
        "public.a",
        "--table",
        "public.b",
        "--ttl",
        "5m",
        "--ticket",
        "T-1",
        "--repository",
        "r",
        "--branch",
        "b",
        "--reason",
        "why",
    ]
    assert main(["exec", "--resource", "orders", *words, "--", "true"]) == 0
    assert broker.named("open_task") == [{"repository": "r", "branch": "b", "ticket": "T-1"}]
    asked = {
        "resource": "orders",
        "access": "read",
        "tables": ["public.a", "public.b"],
        "reason": "why",
        "task": "tsk_1",
        "delivery": "endpoint",
        "ttl": 300,
        "connect": True,
    }
    assert broker.named("request_access") == [asked]


def test_a_selected_task_is_used_and_none_is_opened(broker, monkeypatch):
    monkeypatch.setenv("TASKPASS_TASK", "tsk_9")
    assert main(["exec", "--resource", "orders", "--", "true"]) == 0
    assert not broker.named("open_task")
    assert broker.named("request_access")[0]["task"] == "tsk_9"


def test_exec_waits_for_a_person_and_says_so(broker, capfd):
    broker.answers["request_access"] = request("pending")
    states = iter(["pending", "approved"])
    broker.answers["request_status"] = lambda params: request(next(states))
    assert main(["exec", "--resource", "orders", "--wait", "30s", "--", "true"]) == 0
    assert "a person must approve: request req_1" in capfd.readouterr().err
    assert all(1 <= params["wait"] <= 45 for params in broker.named("request_status"))


def test_an_approved_request_is_used_without_asking_again(broker):
    broker.answers["request_status"] = request("approved")
    assert main(["exec", "--request", "req_1", "--", "true"]) == 0
    assert not broker.named("request_access")


@pytest.mark.parametrize(
    ("state", "code", "ends_with"),
    [
        ("pending", 91, "next: run: taskpass wait req_1"),
        ("denied", 90, "next: ask for less"),
        ("expired", 92, "next: ask for less"),
        ("cancelled", 92, "next: ask for less"),
        ("fulfilled", 92, "next: ask for less"),
    ],
)
def test_a_request_that_cannot_be_used_runs_nothing(broker, capfd, tmp_path, state, code, ends_with):
    broker.answers["request_access"] = request(
        state, next="ask for less", comment="\033[2J" if state == "denied" else ""
    )
    broker.answers["request_status"] = request(state)
    assert main(["exec", "--resource", "orders", "--wait", "1s", "--", "touch", str(tmp_path / "ran")]) == code
    assert not (tmp_path / "ran").exists()
    assert not broker.named("issue")
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == ends_with
    assert "\033" not in said


@pytest.mark.parametrize("error", [Denied("no", code="not_permitted"), TargetUnavailable("away")])
def test_an_issue_that_fails_runs_nothing(broker, error, tmp_path):
    broker.answers["issue"] = error
    assert main(["exec", "--resource", "orders", "--", "touch", str(tmp_path / "ran")]) == error.exit_code
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("words", [[], ["--resource", "a", "--request", "b"]])
def test_exec_wants_one_of_resource_and_request(broker, words):
    assert main(["exec", *words, "--", "true"]) == 2


def test_no_broker_is_93_and_says_how_to_start_one(capfd, tmp_path, monkeypatch):
    monkeypatch.delenv("TASKPASS_SOCK", raising=False)
    monkeypatch.setenv("TASKPASS_RUNTIME_DIR", str(tmp_path))
    assert main(["exec", "--resource", "orders", "--", "true"]) == 93
    assert "taskpass up" in capfd.readouterr().err


@pytest.mark.parametrize(("state", "code"), [("approved", 0), ("pending", 91), ("denied", 90), ("expired", 92)])
@pytest.mark.parametrize("as_json", [True, False])
def test_request_answers_at_once_and_its_exit_code_says_where_it_stands(broker, capfd, state, code, as_json):
    broker.answers["request_access"] = request(state)
    assert main(["request", "--resource", "orders", *(["--json"] if as_json else [])]) == code
    out = capfd.readouterr().out
    if as_json:
        assert json.loads(out)["state"] == state
    else:
        assert "left out  public.customers" in out
    assert not broker.named("issue")


def test_wait_ends_at_its_limit(broker):
    broker.answers["request_status"] = request("pending")
    assert main(["wait", "req_1", "--timeout", "1s"]) == 91


def test_status_shows_what_there_is(broker, capfd):
    served = {"resource": "orders", "environment": "dev", "access": ["read"], "served": True}
    used = {"leases": {"used": 3, "most": 10}, "tasks": {"used": 0, "most": 100}}
    broker.answers["status"] = {"task": None, "separation": "none", "resources": [served], "budgets": used}
    assert main(["status"]) == 0
    shown = capfd.readouterr().out
    assert "orders    dev          read    yes" in shown
    assert "used: leases 3 of 10\n" in shown
    assert main(["status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["resources"] == [served]


def test_release_says_whether_it_is_proven(broker, capfd):
    assert main(["release", "lse_1"]) == 0
    assert "lse_1 is closed: proven by AuthenticationOk,28000 in 12 ms, 1 session(s) cut" in capfd.readouterr().out
    broker.answers["release"] = LEASE | {"state": "closing"}
    assert main(["release", "lse_1"]) == 0
    assert "not proven closed yet" in capfd.readouterr().out


def test_task_open_prints_the_id_alone_on_stdout(broker, capfd):
    assert main(["task", "open", "--ticket", "T-1"]) == 0
    assert capfd.readouterr().out == "tsk_1\n"


def test_task_complete_shows_each_proof(broker, capfd):
    broker.answers["complete_task"] = {"task": "tsk_1", "state": "completed", "leases": [CLOSED]}
    assert main(["task", "complete"]) == 0
    assert capfd.readouterr().out.splitlines()[0] == "task tsk_1 is completed"
    assert broker.named("complete_task") == [{}]


def test_the_claimed_repository_comes_from_the_checkout_without_any_login(broker, tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text('[remote "origin"]\n\turl = https://me:hunter2@git.example/acme/orders.git\n')
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/fix/T-1\n")
    assert main(["task", "open"]) == 0
    assert broker.named("open_task") == [
        {"repository": "https://git.example/acme/orders.git", "branch": "fix/T-1", "ticket": ""}
    ]
