"""What one sponsor may use: each budget refuses, says when to try again, and gives room back; others notice nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskpass.broker.open_task import open_task
from taskpass.broker.refusals import record_refusals
from taskpass.broker.release_lease import release_lease
from taskpass.broker.request_access import cancel_request
from taskpass.core.approval import Verdict
from taskpass.core.budgets import COOL_DOWN, WINDOW, Budgets, window_start
from taskpass.core.decision import Delivery, Outcome
from taskpass.core.errors import Denied, InvalidInput, OverBudget
from taskpass.core.request import RequestState
from taskpass.core.separation import Environment, Separation
from taskpass.testing.broker import ANA, DEV, DORA, STAGING


def limited(h, **limits):
    h.budgets = replace(Budgets(), **limits)
    h.start()


def refused(call, *args, **kwargs):
    with pytest.raises(OverBudget) as told:
        call(*args, **kwargs)
    assert told.value.retry_after > 0
    assert f"try again in {told.value.retry_after} s" in told.value.hint
    return told.value


@pytest.fixture
def agent(h):
    made = h.run()
    made.open_task()
    return made


def test_requests_are_counted_over_a_window_and_room_comes_back_when_the_refusal_says(h):
    limited(h, requests=3)
    agent = h.run()
    agent.open_task()
    for _ in range(3):
        agent.request()
        h.clock.forward(10)
    told = refused(agent.request)
    assert told.code == "too_many_requests"
    h.clock.forward(told.retry_after - 2)
    assert refused(agent.request).code == "too_many_requests"
    h.clock.forward(2)
    agent.request()


@pytest.mark.parametrize("names", [{"repository": "acme/other"}, {"branch": "b"}, {"child": "reviewer"}])
def test_no_name_that_an_agent_chooses_brings_a_fresh_budget(h, names):
    limited(h, requests=1)
    agent = h.run()
    agent.open_task()
    agent.request()
    task = agent.open_task(**names)
    assert refused(agent.request, task_id=task.id).code == "too_many_requests"
    sibling = h.run()
    sibling.open_task(**({} if "child" in names else names))
    assert refused(sibling.request).code == "too_many_requests"


def test_the_budget_of_one_sponsor_is_not_the_budget_of_another(h):
    limited(h, requests=1)
    agent, other = h.run(), h.run(uid=1001)
    for each in (agent, other):
        each.open_task()
        each.request()
    refused(agent.request)
    refused(other.request)


def test_a_flood_of_refused_calls_leaves_two_records_with_their_number(h):
    limited(h, requests=1)
    agent = h.run()
    agent.open_task()
    agent.request()
    before = len(h.events())
    for _ in range(500):
        refused(agent.request)
    assert h.events()[before:] == ["budget.refused"]
    h.clock.forward(WINDOW)
    record_refusals(h.broker)
    with h.store.read() as unit:
        last = unit.audit.records(after=unit.audit.head()[0] - 1)[0].body
    assert '"code":"too_many_requests"' in last
    assert '"repeated":499' in last
    assert len(h.events()) == before + 2


def test_a_flood_of_refusals_for_other_reasons_is_counted_too(h):
    bare = h.agent(uid=1004, separation=Separation.NONE)
    bare.open_task()
    before = len(h.events())
    for _ in range(50):
        with pytest.raises(Denied):
            bare.request(STAGING)
    assert h.events()[before:] == ["request.refused"]
    agent = h.run()
    agent.open_task()
    request = agent.request()
    h.policy.answer(Environment.DEV, Outcome.DENY)
    before = len(h.events())
    for _ in range(50):
        with pytest.raises(Denied):
            agent.issue(request)
    assert h.events()[before:] == ["lease.refused"]


def test_words_of_agents_are_a_budget(h):
    limited(h, text_bytes=4000)
    agent = h.run()
    agent.open_task()
    for _ in range(2):
        agent.request(reason="ä" * 1000)
    assert refused(agent.request, reason="short").code == "too_much_text"


def test_what_the_record_has_to_hold_is_a_budget(h, agent):
    limited(h, record_bytes=20_000)
    agent = h.run()
    agent.open_task()
    with h.store.read() as unit:
        start, _ = unit.audit.head()
    for _ in range(3):
        release_lease(h.broker, agent.caller, agent.lease().id)
    h.settle(3)
    assert refused(agent.request).code == "too_much_record"
    with h.store.read() as unit:
        written = sum(len(record.body.encode()) for record in unit.audit.records(after=start))
        used = unit.requests.used(DORA, h.machine, since=window_start(h.clock.now()))
    assert written <= used.record_bytes, "what is counted is no less than what was written"


def test_people_are_asked_so_often_and_no_more_however_often_a_question_is_taken_back(h):
    limited(h, prompts=3)
    agent = h.run()
    agent.open_task()
    for seconds in range(3):
        request = agent.request(STAGING, lifetime=60 + seconds)
        cancel_request(h.broker, agent.caller, request.id)
    assert refused(agent.request, STAGING, lifetime=100).code == "too_many_prompts"
    assert agent.request(DEV).state is RequestState.APPROVED


def test_opening_tasks_is_a_budget(h):
    limited(h, tasks=2)
    agent = h.agent()
    agent.open_task("one")
    agent.open_task("two")
    agent.open_task("two")
    told = refused(agent.open_task, "three")
    assert told.code == "too_many_new_tasks"
    assert "task.opened" in h.events()
    other = h.agent(uid=1001)
    open_task(h.broker, other.caller, repository="r", branch="b", ticket="")


def test_the_same_question_of_one_task_is_asked_once(h, agent):
    first = agent.request(STAGING, reason="the first words")
    again = agent.request(STAGING, reason="other words")
    assert again.id == first.id
    other = h.run()
    other.open_task()
    assert other.request(STAGING).id != first.id


def test_a_policys_no_is_recorded_once_while_it_is_fresh_and_never_outlives_the_policy(h, agent):
    h.policy.answer(Environment.DEV, Outcome.DENY)
    first = agent.request()
    assert first.state is RequestState.DENIED
    assert agent.request().id == first.id
    h.policy.answer(Environment.DEV, Outcome.PERMIT)
    assert agent.request().state is RequestState.APPROVED
    h.policy.answer(Environment.DEV, Outcome.DENY)
    h.clock.forward(WINDOW + 1)
    assert agent.request().id != first.id


class TestCoolDown:
    @pytest.fixture
    def denied(self, h, agent):
        request = agent.request(STAGING)
        h.vote(ANA, request, verdict=Verdict.DENY)
        return agent

    def test_after_a_no_the_same_is_not_asked_again_for_ten_minutes(self, h, denied):
        for wish in ({}, {"lifetime": 60}, {"reason": "please"}):
            assert refused(denied.request, STAGING, **wish).code == "cooling_down"
        told = refused(denied.request, STAGING)
        h.clock.forward(told.retry_after)
        assert denied.request(STAGING).state is RequestState.PENDING
        assert told.retry_after <= COOL_DOWN + 1

    def test_another_task_run_or_repository_does_not_avoid_it(self, h, denied):
        for names in ({}, {"repository": "acme/other"}):
            sibling = h.run()
            sibling.open_task(**names)
            assert refused(sibling.request, STAGING).code == "cooling_down"

    def test_another_sponsor_is_not_held_back_by_it(self, h, denied):
        other = h.run(uid=1001)
        other.open_task()
        assert other.request(STAGING).state is RequestState.PENDING

    def test_asking_for_less_is_what_a_no_invites(self, h, denied):
        assert denied.request(STAGING, only=("public.orders",)).state is RequestState.PENDING


def test_a_lease_budget_says_when_the_first_lease_ends(h, agent):
    for seconds in (600, 300, 500):
        agent.lease(lifetime=seconds)
    told = refused(agent.issue, agent.request())
    assert told.code == "too_many_leases"
    assert told.retry_after == 301


def test_different_sets_of_rights_are_a_budget_and_the_same_ones_are_not(h):
    limited(h, rights=1)
    agent = h.run()
    agent.open_task()
    agent.lease(only=("public.orders",))
    agent.lease(only=("public.orders",))
    told = refused(agent.issue, agent.request(only=("public.customers",)))
    assert told.code == "too_many_rights"
    h.clock.forward(told.retry_after)
    h.settle()
    agent.lease(only=("public.customers",))


def test_more_tables_at_once_than_allowed_are_refused_before_anything_is_recorded(h):
    limited(h, objects=1)
    agent = h.run()
    agent.open_task()
    before = h.events()
    with pytest.raises(InvalidInput) as told:
        agent.request()
    assert told.value.code == "too_many_objects"
    assert h.events() == before
    agent.lease(only=("public.orders",))


def test_the_endpoint_is_told_whose_connections_it_counts(h):
    limited(h, connections=7)
    agent = h.run()
    agent.open_task()
    order = h.endpoints.open_orders[agent.lease().id]
    assert (order.party, order.connections) == (DORA, 7)


def test_secrets_that_were_handed_out_count_as_all_the_connections_they_may_open(h):
    limited(h, connections=12)
    h.policy.answer(Environment.DEV, Outcome.PERMIT, delivery=Delivery.BEARER)
    agent = h.agent()
    agent.open_task()
    for _ in range(2):
        agent.lease(delivery=Delivery.BEARER)
    told = refused(agent.issue, agent.request(delivery=Delivery.BEARER))
    assert told.code == "too_many_connections"
    agent.lease()
