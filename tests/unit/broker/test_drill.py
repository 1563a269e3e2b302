"""A drill: an access that is played to its proof, judged from the client's side, recorded, and leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from taskpass.broker.drill import drill, end_stale_drills, subject_of
from taskpass.broker.drill_lease import SPONSOR, TOOL
from taskpass.broker.drill_schedule import drill_due
from taskpass.broker.owners import DEAD_AFTER, Owners
from taskpass.broker.take_back import close_lease
from taskpass.broker.take_over import be_seen, say_goodbye, take_over
from taskpass.core.decision import Outcome
from taskpass.core.errors import Conflict, Denied, StoreUnavailable
from taskpass.core.lease import LeaseState
from taskpass.issuers.base import Taken
from taskpass.testing.broker import DEV, PRODUCTION, STAGING
from taskpass.testing.fake_drill import FakeDrill
from taskpass.testing.unkind_issuer import PROOF

STEPS = ["fit", "issue", "control", "open", "revoke", "ended", "clean"]


def recorded(h, resource):
    with h.store.read() as unit:
        record = unit.audit.latest(subject_of(resource))
    return json.loads(record.body)["data"] if record else None


def nothing_left(h, resource):
    server = h.servers[resource]
    return not server.usable() and all(lease.state is LeaseState.CLEANED for lease in h.leases())


def test_a_drill_plays_an_access_to_its_proof_and_leaves_nothing(h):
    drilled = drill(h.broker, STAGING, actor="human:dora")
    assert drilled.passed
    assert [step.name for step in drilled.steps] == STEPS
    assert {met.kind for met in drilled.clients} >= {"idle", "transaction", "cursor", "statement", "reconnecting"}
    assert h.lease(drilled.lease).proof["answer"] == PROOF
    assert nothing_left(h, STAGING)
    assert h.servers[STAGING].roles == {}
    with h.store.read() as unit:
        assert unit.tasks.list(state=None)[0].reason == "drill_ended"


def test_what_happened_is_in_the_record_from_start_to_end(h):
    drilled = drill(h.broker, STAGING, actor="human:dora")
    assert h.events() == [
        "drill.started",
        "lease.intended",
        "lease.activated",
        "lease.closing",
        "lease.closed",
        "lease.cleaned",
        "task.completed",
        "drill.finished",
    ]
    assert recorded(h, STAGING) == drilled.to_json()


@pytest.mark.parametrize(
    ("resource", "outcome", "reads"),
    [
        (DEV, Outcome.PERMIT, True),
        (DEV, Outcome.NEEDS_APPROVAL, False),
        (DEV, Outcome.DENY, False),
        (STAGING, Outcome.PERMIT, True),
        (PRODUCTION, Outcome.PERMIT, False),
    ],
)
def test_a_drill_reads_no_more_than_policy_permits_it_without_asking_anybody(h, resource, outcome, reads):
    environment = h.broker.resource(resource).environment
    h.policy.answer(environment, outcome, approvers=frozenset({"dba"} if outcome is Outcome.NEEDS_APPROVAL else ()))
    asked = []
    decide = h.policy.decide
    h.policy.decide = lambda question: asked.append(question) or decide(question)
    drilled = drill(h.broker, resource, actor="broker")
    assert drilled.passed
    assert bool(drilled.reads) is reads
    assert ("create" in h.servers[resource].calls) is reads
    assert ("rehearse" in h.servers[resource].calls) is not reads
    assert [(q.task.principal.tool, len(q.manifest.objects)) for q in asked] == [(TOOL, 1)]


def test_an_unknown_resource_is_refused(h):
    with pytest.raises(Denied):
        drill(h.broker, "nowhere", actor="broker")
    assert h.events() == []


def test_a_target_that_does_not_answer_is_a_recorded_failure(h):
    h.servers[DEV].down = True
    drilled = drill(h.broker, DEV, actor="broker")
    assert (drilled.passed, drilled.error.code) == (False, "target_unavailable")
    assert recorded(h, DEV)["code"] == "target_unavailable"
    assert drilled.lease is None


def test_a_closing_that_is_not_proven_fails_the_drill_and_is_retried(h):
    h.servers[DEV].unprovable = True
    drilled = drill(h.broker, DEV, actor="broker")
    assert drilled.error.code == "drill_not_proven"
    assert [step.name for step in drilled.steps if not step.passed] == ["revoke"]
    assert h.lease(drilled.lease).state is LeaseState.CLOSING
    h.servers[DEV].unprovable = False
    h.settle()
    assert nothing_left(h, DEV)


def test_a_revoker_that_lies_is_found_out_by_the_clients(h, monkeypatch):
    issuer = h.broker.issuers[DEV]
    monkeypatch.setattr(type(issuer), "close", lambda self, role, *, audit_head: Taken(PROOF, {"x": 2}))
    drilled = drill(h.broker, DEV, actor="broker")
    assert drilled.error.code == "drill_still_works"
    assert "idle" in drilled.error.message
    assert "password" in drilled.error.message


def test_a_server_that_asks_for_no_password_fails_the_control(h, monkeypatch):
    server = h.servers[DEV]
    login = server.login
    monkeypatch.setattr(server, "login", lambda role, password: login(role, server.roles[role].password))
    drilled = drill(h.broker, DEV, actor="broker")
    assert drilled.error.code == "probe_control"
    assert nothing_left(h, DEV) or (h.settle() is None and nothing_left(h, DEV))


def test_an_account_that_cannot_be_removed_fails_the_drill(h):
    h.servers[DEV].block_all = True
    drilled = drill(h.broker, DEV, actor="broker")
    assert drilled.error.code == "drill_not_clean"
    assert h.servers[DEV].usable() == set()


def test_one_drill_of_a_resource_runs_at_a_time(h):
    seen = []

    def in_between(call):
        if call == "close" and not seen:
            with pytest.raises(Conflict) as refused:
                drill(h.broker, DEV, actor="broker")
            seen.append(refused.value.code)

    h.servers[DEV].before = in_between
    assert drill(h.broker, DEV, actor="broker").passed
    assert seen == ["drill_running"]
    assert h.events().count("drill.finished") == 1


@pytest.mark.parametrize("call", ["rehearse", "create", "enable", "close", "clean"])
@pytest.mark.parametrize("late", [False, True])
def test_a_broker_that_dies_in_a_drill_leaves_nothing_usable(h, call, late):
    """As kill -9 would leave it: nothing after that call happens in this process."""
    resource = DEV if call in ("create", "enable") else STAGING

    class Killed(BaseException):
        pass

    def die(name):
        if name == call:
            h.store.down = "store_locked"
            h.servers[resource].down = True
            raise Killed

    setattr(h.servers[resource], "after" if late else "before", die)
    with pytest.raises(Killed):
        drill(h.broker, resource, actor="broker")
    h.servers[resource].before = h.servers[resource].after = lambda name: None
    h.servers[resource].down = False
    h.restart()
    assert end_stale_drills(h.broker) == 1
    h.settle(30)
    assert nothing_left(h, resource)
    assert h.servers[resource].roles == {}
    assert drill(h.broker, resource, actor="broker").passed


def test_a_defect_in_a_client_leaves_nothing_usable(h, monkeypatch):
    def broken(self):
        raise RuntimeError

    monkeypatch.setattr("taskpass.testing.fake_drill.FakeDrill.open", broken)
    with pytest.raises(RuntimeError):
        drill(h.broker, DEV, actor="broker")
    h.settle()
    assert nothing_left(h, DEV)


def test_a_store_that_is_away_in_the_middle_leaves_nothing_usable(h, monkeypatch):
    opened = FakeDrill.open

    def away(self):
        kinds = opened(self)
        h.store.down, h.store.unreadable = "store_unavailable", True
        return kinds

    monkeypatch.setattr(FakeDrill, "open", away)
    with pytest.raises(StoreUnavailable):
        drill(h.broker, DEV, actor="broker")
    assert h.servers[DEV].usable() == set()
    h.store.down, h.store.unreadable = "", False
    h.settle(200)
    assert nothing_left(h, DEV)


def test_drills_count_against_nobody(h):
    agent = h.agent()
    agent.open_task()
    h.servers[DEV].unprovable = True
    assert not drill(h.broker, DEV, actor="broker").passed
    h.servers[DEV].unprovable = False
    assert agent.lease(DEV).state is LeaseState.ACTIVE
    assert SPONSOR not in h.people.humans


def pair(h, other_machine="laptop"):
    """Two brokers on the store, both seen now, and long enough there to judge each other."""
    made = [
        replace(h.broker, owners=Owners(name, lambda: h.clock.now() / 1000), machine=machine)
        for name, machine in (("brk_a", "laptop"), ("brk_b", other_machine))
    ]
    for each in made:
        be_seen(each)
    h.clock.forward(DEAD_AFTER)
    return made


@pytest.mark.parametrize("machine", ["laptop", "elsewhere"])
def test_a_broker_that_starts_leaves_the_drill_of_another_one_alone_and_plays_none_beside_it(h, machine):
    first, second = pair(h, machine)
    seen = []

    def in_between(call):
        if call == "close" and not seen:
            seen.append(end_stale_drills(second))
            seen.append(take_over(second))
            with pytest.raises(Conflict) as refused:
                drill(second, DEV, actor="broker")
            seen.append(refused.value.code)

    h.servers[DEV].before = in_between
    assert drill(first, DEV, actor="broker").passed
    assert seen == [0, 0, "drill_running"]


@pytest.mark.parametrize("ending", [end_stale_drills, take_over])
def test_the_drill_of_a_broker_that_died_is_ended_by_another_one(h, ending):
    first, second = pair(h, "elsewhere")

    class Killed(BaseException):
        pass

    def die(call):
        if call == "close":
            h.servers[DEV].down, h.store.down = True, "store_locked"
            raise Killed

    h.servers[DEV].before = die
    with pytest.raises(Killed):
        drill(first, DEV, actor="broker")
    h.servers[DEV].before, h.servers[DEV].down, h.store.down = (lambda _: None), False, ""
    ending(second)
    with h.store.read() as unit:
        assert [task.reason for task in unit.tasks.list()] == [""], "it may live"
    say_goodbye(first)
    ending(second)
    with h.store.read() as unit:
        assert [task.reason for task in unit.tasks.list()] == ["drill_broke_off"]
        [lease] = unit.leases.list()
    close_lease(second, lease.id)
    assert h.servers[DEV].usable() == set()
    assert drill(second, DEV, actor="broker").passed


def test_one_of_several_brokers_plays_what_is_due(h):
    config = replace(h.broker.config, broker=replace(h.broker.config.broker, drill_every=3600))
    first, second = (replace(each, config=config) for each in pair(h))
    assert drill_due(second) == 0
    assert drill_due(first) == 3
    say_goodbye(first)
    h.clock.forward(3600)
    be_seen(second)
    assert drill_due(second) == 3
