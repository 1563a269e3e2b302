"""What the two sockets offer, field by field: nothing is silently believed, and neither says what it must not."""

from __future__ import annotations

import ast
import json
from base64 import b64decode
from pathlib import Path

import pytest

import taskpass.wiring
from taskpass.broker.take_back import take_back
from taskpass.core.errors import InvalidInput, NotFound, TaskpassError
from taskpass.core.limits import BOUNDS
from taskpass.core.separation import Separation
from taskpass.keys import ed25519
from taskpass.server.agent_methods import AgentMethods
from taskpass.server.changed import Changed
from taskpass.server.people_methods import PeopleMethods
from taskpass.testing.broker import ANA, BOOT, DEV, DORA, STAGING, Caller, reviewer_key
from taskpass.testing.broker_parts import FakePeer

RESERVED = ["approved", "environment", "subject", "emergency", "callback", "separation", "context", "sponsor", "uid"]
REQ, LSE, TSK, RUN = (f"{kind}_{'0' * 26}" for kind in ("req", "lse", "tsk", "run"))

AGENT = {
    "hello": {},
    "open_task": {"repository": "acme/shop", "branch": "main", "ticket": "SHOP-1"},
    "list_resources": {},
    "request_access": {"resource": DEV, "access": "read", "tables": [], "ttl": 60, "reason": "why", "task": TSK},
    "request_status": {"request": REQ, "wait": 0},
    "cancel_request": {"request": REQ},
    "issue": {"request": REQ, "holder": "process"},
    "migration": {"lease": LSE, "after": 0, "wait": 0},
    "release": {"lease": LSE},
    "complete_task": {"task": TSK},
    "status": {"task": TSK},
}
"""Every method of the agents' sockets with all the fields that it has."""

PEOPLE = {
    "prepare_run": {"tool": "claude-code", "uid": 1000},
    "end_run": {"run": RUN},
    "requests": {"state": "pending"},
    "show_request": {"request": REQ},
    "challenge": {"human": ANA, "request": REQ, "verb": "approve", "keeps": [], "lifetime": 60, "comment": ""},
    "vote": {"human": ANA, "request": REQ, "verb": "approve", "nonce": "n", "signature": "s"},
    "tasks": {"all": True},
    "show_task": {"task": TSK},
    "complete_task": {"task": TSK},
    "leases": {"all": True, "debt": False},
    "show_lease": {"lease": LSE},
    "revoke": {"level": "all", "value": "", "dry_run": True, "reason": ""},
    "write_off": {"lease": LSE, "reason": "gone"},
    "survey_store": {},
    "adopt_store": {"mark": "sha256:0", "without": []},
    "drill": {"resource": "orders-dev"},
    "widenings": {"all": True},
    "show_widening": {"lease": LSE},
    "check_widening": {"lease": LSE},
    "widening_challenge": {"lease": LSE, "human": "dora@acme.example", "comment": "why"},
    "accept_widening": {"lease": LSE, "human": "dora@acme.example", "comment": "why", "nonce": "n", "signature": "s"},
    "people": {},
    "health": {},
}
DECIDING = {
    *("challenge", "vote", "revoke", "drill", "write_off", "adopt_store", "people", "health", "show_request"),
    *("widening_challenge", "accept_widening"),
    "requests",
}


@pytest.fixture
def agents(h):
    return AgentMethods(h.broker, changed=Changed())


@pytest.fixture
def people(h):
    return PeopleMethods(h.broker, changed=Changed(), health=lambda: {"pid": 1})


def operator(uid=1001):
    return FakePeer(Caller(1, uid, f"{BOOT}/host", Separation.NONE, None))


def test_every_method_is_in_these_tables(agents, people):
    assert AGENT.keys() == agents._methods.keys()
    assert PEOPLE.keys() == people._methods.keys()


def test_no_agent_method_decides_or_tells_about_people(agents):
    assert not DECIDING & AGENT.keys()
    assert not any(word in name for name in AGENT for word in ("approve", "vote", "challenge", "revoke", "human"))


@pytest.mark.parametrize("method", sorted((PEOPLE.keys() - AGENT.keys()) | {"approve", "__class__", "", "_hello"}))
def test_what_people_may_call_does_not_exist_for_agents(h, agents, method):
    with pytest.raises(InvalidInput) as refused:
        agents(method, PEOPLE.get(method, {}), FakePeer(h.run().caller))
    assert refused.value.code == "unknown_method"


@pytest.mark.parametrize("method", sorted(AGENT.keys() - PEOPLE.keys()))
def test_people_do_not_speak_for_agents(people, method):
    with pytest.raises(InvalidInput) as refused:
        people(method, AGENT[method], operator())
    assert refused.value.code == "unknown_method"


@pytest.mark.parametrize("field", [*RESERVED, "anything"])
@pytest.mark.parametrize("method", AGENT)
def test_agents_fields_that_a_method_does_not_have_are_refused(h, agents, method, field):
    peer = FakePeer(h.run().caller)
    before = h.events()
    with pytest.raises(InvalidInput) as refused:
        agents(method, {**AGENT[method], field: "x"}, peer)
    assert refused.value.code == "unknown_field"
    assert h.events() == before, "and nothing was done"


@pytest.mark.parametrize("method", PEOPLE)
def test_peoples_fields_that_a_method_does_not_have_are_refused(h, people, method):
    before = h.events()
    with pytest.raises(InvalidInput) as refused:
        people(method, {**PEOPLE[method], "approved": True}, operator())
    assert refused.value.code == "unknown_field"
    assert h.events() == before


@pytest.mark.parametrize("value", [[], {}, 1.5, True, 10**30, None])
@pytest.mark.parametrize(("table", "method"), [(AGENT, m) for m in AGENT] + [(PEOPLE, m) for m in PEOPLE])
def test_a_field_of_the_wrong_kind_is_an_answer_and_not_a_defect(h, agents, people, table, method, value):
    handler, peer = (agents, FakePeer(h.run().caller)) if table is AGENT else (people, operator())
    for field in table[method]:
        answer = _answer(handler, method, {**table[method], field: value}, peer)
        assert answer.get("code") != "internal"


def _answer(handler, method, params, peer):
    try:
        return handler(method, params, peer)
    except TaskpassError as error:
        return error.to_json()


def test_the_operators_socket_is_attested_as_the_operators_and_only_it_has_peoples_methods():
    """Every ``Line`` that serves people is attested by ``operator``; read from the composition root."""
    tree = ast.parse(Path(taskpass.wiring.__file__).read_text())
    lines = [
        [ast.unparse(argument) for argument in node.args]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Line"
    ]
    assert [(handler, attest) for _, handler, attest in lines if handler == "people"] == [
        ("people", "self.attestor.operator")
    ]
    assert all(attest != "self.attestor.operator" for _, handler, attest in lines if handler != "people")


def test_only_root_starts_an_agent_under_another_account(people):
    with pytest.raises(InvalidInput):
        people("prepare_run", {"tool": "claude-code", "uid": 1000}, operator(1001))


@pytest.mark.parametrize(
    "keep",
    [
        {},
        {"oid": 1},
        {"oid": "1", "columns": [1], "verbs": ["SELECT"]},
        {"oid": True, "columns": [1], "verbs": ["SELECT"]},
        {"oid": [1], "columns": [1], "verbs": ["SELECT"]},
        {"oid": 1, "columns": "12", "verbs": ["SELECT"]},
        {"oid": 1, "columns": [True], "verbs": ["SELECT"]},
        {"oid": 1, "columns": [[1]], "verbs": ["SELECT"]},
        {"oid": 1, "columns": [1], "verbs": ["DROP"]},
        {"oid": 1, "columns": [1], "verbs": [["SELECT"]]},
        {"oid": 1, "columns": [1], "verbs": ["SELECT"], "rows": 1},
    ],
)
def test_a_narrowing_that_is_not_exact_is_refused(people, keep):
    with pytest.raises(InvalidInput):
        people("challenge", {"human": ANA, "request": REQ, "verb": "approve", "keeps": [keep]}, operator())


def test_a_review_over_the_socket_is_an_approval(h, agents, people):
    peer = FakePeer(h.run().caller)
    agents("open_task", AGENT["open_task"], peer)
    asked = agents("request_access", {"resource": STAGING, "reason": "look"}, peer)
    assert asked["state"] == "pending"
    assert {item["limit"] for item in asked["capabilities"]["limits"]} == set(BOUNDS)
    assert "unlisted_nodes" not in asked["capabilities"]
    shown = people("show_request", {"request": asked["request"]}, operator())["capabilities"]
    assert (shown["level"], shown["unlisted_nodes"]) == ("read", 0)
    assert people("requests", {"state": "pending"}, operator())["requests"][0]["request"] == asked["request"]
    ballot = {"human": ANA, "request": asked["request"], "verb": "approve"}
    challenge = people("challenge", ballot, operator())
    signature = ed25519.encode(reviewer_key(ANA)[0].sign(b64decode(challenge["data"])))
    voted = people("vote", {**ballot, "nonce": challenge["nonce"], "signature": signature}, operator())
    assert (voted["state"], voted["sufficient"]) == ("approved", True)
    assert agents("request_status", {"request": asked["request"], "wait": 1}, peer)["state"] == "approved"
    lease = agents("issue", {"request": asked["request"], "holder": "task"}, peer)
    assert lease["state"] == "active"
    assert people("health", {}, operator())["leases"]["active"] == 1
    assert people("show_lease", {"lease": lease["lease"]}, operator())["connections"] == 1
    done = agents("complete_task", {}, peer)
    assert [item["state"] for item in done["leases"]] == ["closed"]


def test_a_lease_outside_a_run_is_held_by_a_process(h, agents):
    peer = FakePeer(h.agent().caller)
    agents("open_task", AGENT["open_task"], peer)
    asked = agents("request_access", {"resource": DEV}, peer)
    with pytest.raises(InvalidInput):
        agents("issue", {"request": asked["request"], "holder": "task"}, peer)
    agents("issue", {"request": asked["request"]}, peer)
    assert len(h.holders.watched) == 1


def test_status_without_a_task_says_so(h, agents):
    peer = FakePeer(h.run().caller)
    assert agents("status", {}, peer)["task"] is None
    with pytest.raises(NotFound):
        agents("status", {"task": TSK}, peer)


def test_waiting_is_bounded(h, agents):
    peer = FakePeer(h.run().caller)
    for wait in (-1, 46):
        with pytest.raises(InvalidInput):
            agents("request_status", {"request": REQ, "wait": wait}, peer)


def test_lists_say_when_there_is_more(h, people, monkeypatch):
    monkeypatch.setattr("taskpass.server.people_methods.MAX_LISTED", 2)
    agent = h.run()
    agent.open_task()
    for _ in range(3):
        agent.request(DEV)
    answer = people("requests", {}, operator())
    assert (len(answer["requests"]), answer["more"]) == (2, True)
    assert people("leases", {"all": True}, operator()) == {"leases": [], "more": False}


CANARIES = [
    "dora@",
    "ana@",
    "carl@",
    "dba",
    "security",
    "rule-canary",
    "db.canary.example",
    "orders-dev.cred",
    "human:",
    "OTHER-TICKET",
    "acme/other",
    "customers_pii_secret_reason",
]
"""People, groups, rules, addresses, credentials, and another task's words."""


def test_agents_are_told_nothing_about_people_rules_addresses_and_other_tasks(h, agents, people):
    """A whole life, every answer and every refusal of every agent method, searched for what they must not hold."""
    other = h.run(uid=1001)
    task = other.open_task("acme/other", "main", "OTHER-TICKET")
    other_lease = other.lease(DEV)
    other_request = other.request(DEV)
    told = []

    def say(method, **params):
        answer = _answer(agents, method, params, peer)
        told.append((method, json.dumps(answer)))
        return answer

    peer = FakePeer(h.run().caller)
    say("hello")
    say("list_resources")
    say("status")
    say("open_task", repository="acme/shop", branch="main", ticket="SHOP-1")
    asked = say("request_access", resource=STAGING, reason="look")
    say("issue", request=asked["request"])
    voted = h.vote(ANA, h.stored_request(asked["request"]))
    assert voted.state == "approved"
    say("request_status", request=asked["request"])
    lease = say("issue", request=asked["request"])
    say("issue", request=asked["request"])
    say("request_access", resource="no-such-database")
    say("request_access", resource=DEV, access="no-such-access")
    say("request_access", resource=DEV, task=task.id)
    say("issue", request=other_request.id)
    say("request_status", request=other_request.id)
    say("cancel_request", request=other_request.id)
    say("release", lease=other_lease.id)
    say("complete_task", task=task.id)
    say("migration", lease=other_lease.id)
    say("status")
    say("release", lease=lease["lease"])
    held = say("issue", request=say("request_access", resource=DEV)["request"])
    h.servers[DEV].down = True
    say("request_access", resource=DEV)
    say("release", lease=held["lease"])
    people("write_off", {"lease": held["lease"], "reason": "customers_pii_secret_reason"}, operator())
    say("release", lease=held["lease"])
    h.servers[DEV].down = False
    take_back(h.broker, [other_lease.id], reason="revoked", actor=f"human:{DORA}")
    say("complete_task")
    say("status")
    assert {method for method, _ in told} == AGENT.keys()
    found = [(method, canary) for method, text in told for canary in CANARIES if canary in text]
    assert found == []


def test_people_are_told_what_agents_are_not(h, people):
    """The counter-test: the canaries above are really there to be leaked."""
    agent = h.run()
    agent.open_task()
    request = agent.request(STAGING)
    h.vote(ANA, request)
    lease = agent.issue(request).lease
    take_back(h.broker, [lease.id], reason="revoked", actor="test")
    h.settle(3)
    text = json.dumps(
        [
            people("show_request", {"request": request.id}, operator()),
            people("show_lease", {"lease": lease.id}, operator()),
            people("people", {}, operator()),
        ]
    )
    for canary in ("dora@", "ana@", "dba", "rule-canary", "db.canary.example"):
        assert canary in text
