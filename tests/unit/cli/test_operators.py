from __future__ import annotations

import json

import pytest

from taskpass.cli.doctor import Row, State, rows_of_health, verdict
from taskpass.cli.entry import main

LEASE = {
    "lease": "lse_1",
    "task": "tsk_1",
    "state": "closed",
    "resource": "orders",
    "environment": "dev",
    "role": "tp_a_b",
    "delivery": "endpoint",
    "created_at": "2026-01-05T10:00:00.000Z",
    "expires_at": "2026-01-05T10:15:00.000Z",
    "closed_at": None,
    "renewals": 0,
    "reason": "revoked",
    "address": "db:5432/orders",
    "attempts": 1,
    "last_error": "",
    "incidents": 0,
    "proof": {"answer": "AuthenticationOk,28000", "took_ms": 9, "ended": 2},
}
HEALTH = {
    "version": "0.1.0",
    "installation": "abcdefgh",
    "epoch": 1,
    "demo": False,
    "latest_seen": "2026-01-05T10:00:00.000Z",
    "audit_head": {"seq": 3, "hash": "sha256:0"},
    "policy_snapshot": "sha256:1",
    "config_digest": "sha256:2",
    "leases": {},
    "debt": [],
    "late_records": 0,
    "resources": {"orders": {"environment": "dev", "fit": True, "error": None, "findings": []}},
    "foreign_roles": [],
    "unreachable": {},
    "store_is_copy": False,
    "reserve_held": True,
}


@pytest.fixture
def run(peoples_broker, directory):
    return lambda *words: main([*words, "--directory", str(directory)])


@pytest.mark.parametrize(
    ("option", "level"),
    [("--agent", "agent"), ("--task", "task"), ("--ticket", "ticket"), ("--resource", "resource")],
)
def test_revoke_takes_back_at_each_level(run, peoples_broker, capfd, option, level):
    peoples_broker.answers["revoke"] = {"dry_run": False, "leases": [LEASE]}
    assert run("revoke", option, "x", "--reason", "leak") == 0
    assert peoples_broker.named("revoke") == [{"level": level, "value": "x", "reason": "leak", "dry_run": False}]
    assert "proven by AuthenticationOk,28000 in 9 ms, 2 session(s) cut" in capfd.readouterr().out


def test_revoke_all_and_a_single_lease(run, peoples_broker):
    peoples_broker.answers["revoke"] = {"dry_run": False, "leases": []}
    assert run("revoke", "--all") == 0
    assert run("lease", "revoke", "lse_1") == 0
    assert [(p["level"], p["value"]) for p in peoples_broker.named("revoke")] == [("all", ""), ("lease", "lse_1")]


@pytest.mark.parametrize("words", [[], ["--all", "--task", "tsk_1"], ["--task", "a", "--agent", "b"]])
def test_revoke_wants_exactly_one_level(run, peoples_broker, words):
    assert run("revoke", *words) == 2
    assert not peoples_broker.calls


def test_a_dry_run_only_shows(run, peoples_broker, capfd):
    peoples_broker.answers["revoke"] = {"dry_run": True, "leases": [LEASE | {"state": "active"}]}
    assert run("revoke", "--all", "--dry-run") == 0
    assert peoples_broker.named("revoke")[0]["dry_run"] is True
    assert "WOULD END" in capfd.readouterr().out


def test_a_close_that_is_not_proven_is_an_exit_code(run, peoples_broker):
    peoples_broker.answers["revoke"] = {"dry_run": False, "leases": [LEASE | {"state": "closing"}]}
    assert run("revoke", "--all") == 1


@pytest.mark.parametrize(
    ("words", "method", "answer"),
    [
        (("task", "ls"), "tasks", {"tasks": []}),
        (("lease", "ls"), "leases", {"leases": [LEASE]}),
        (("lease", "ls", "--debt"), "leases", {"leases": []}),
    ],
)
def test_lists_print_json_as_it_came_or_words(run, peoples_broker, capfd, words, method, answer):
    peoples_broker.answers[method] = answer
    assert run(*words) == 0
    assert capfd.readouterr().out
    assert run(*words, "--json") == 0
    assert json.loads(capfd.readouterr().out) == answer


def test_a_write_off_needs_a_reason(run, peoples_broker):
    peoples_broker.answers["write_off"] = LEASE
    assert run("lease", "write-off", "lse_1") == 2
    assert run("lease", "write-off", "lse_1", "--reason", "the server is scrapped") == 0
    assert peoples_broker.named("write_off") == [{"lease": "lse_1", "reason": "the server is scrapped"}]


def states(health):
    return {(row.check, row.state) for row in rows_of_health(health) if row.state is not State.OK}


def test_a_healthy_broker_has_nothing_weaker():
    assert states(HEALTH) == set()


def test_the_brokers_that_share_the_store_are_listed_with_this_one_among_them():
    living = [{"broker": name, "machine": "m", "this": name == "brk_a"} for name in ("brk_a", "brk_b")]
    [row] = [row for row in rows_of_health({**HEALTH, "brokers": living}) if row.check == "brokers"]
    assert row.state is State.OK
    assert row.message == "2 on this store: brk_a on m (this one), brk_b on m"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"store_is_copy": True}, ("store", State.WEAKER)),
        ({"late_records": 2}, ("audit", State.WEAKER)),
        ({"disk_low": True}, ("disk", State.WEAKER)),
        ({"budgets": {"dora": {"leases": {"used": 10, "most": 10}}}}, ("budgets of dora", State.NOTE)),
        ({"reserve_held": False}, ("reserve", State.WEAKER)),
        ({"brokers": [{"broker": "brk_b", "machine": "m", "this": False}]}, ("brokers", State.WEAKER)),
        ({"debt": [LEASE]}, ("debt", State.WEAKER)),
        ({"foreign_roles": ["tp_x_y"]}, ("foreign role", State.NOTE)),
        ({"unreachable": {"orders": "down"}}, ("resource orders", State.UNKNOWN)),
        ({"resources": {"a": {"environment": "dev", "fit": None, "error": None}}}, ("resource a", State.UNKNOWN)),
        (
            {
                "resources": {
                    "a": {
                        "environment": "dev",
                        "fit": False,
                        "error": {"message": "m", "code": "c", "retryable": False},
                    }
                }
            },
            ("resource a", State.WEAKER),
        ),
        (
            {
                "resources": {
                    "a": {"environment": "dev", "fit": False, "error": {"message": "m", "code": "c", "retryable": True}}
                }
            },
            ("resource a", State.UNKNOWN),
        ),
    ],
)
def test_what_is_weaker_or_unknown_is_a_row(change, found):
    assert found in states(HEALTH | change)


@pytest.mark.parametrize(
    ("found", "code"),
    [([], 0), ([State.OK, State.NOTE], 0), ([State.OK, State.WEAKER], 3), ([State.WEAKER, State.UNKNOWN], 4)],
)
def test_the_exit_code_is_the_worst_that_was_found(found, code):
    assert verdict([Row("x", state, "") for state in found]) == code


def test_doctor_without_a_broker_counts_as_no(directory, capfd):
    assert main(["doctor", "--directory", str(directory)]) == 4
    assert "broker: no broker runs at" in capfd.readouterr().out
