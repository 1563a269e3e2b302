"""One sponsor that uses up all it may in every way: refused with codes, and nobody else is (threats.md, item 22)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from taskpass.broker.disk import FLOOR
from taskpass.broker.request_access import cancel_request
from taskpass.broker.revoke import Selector, revoke
from taskpass.core.budgets import Budgets
from taskpass.core.errors import OverBudget, StoreUnavailable
from taskpass.core.lease import UNENDED
from taskpass.core.request import RequestState
from taskpass.server.changed import Changed
from taskpass.server.people_methods import PeopleMethods
from taskpass.testing.broker import ANA, BEN, DEV, DORA, STAGING


def until_refused(call):
    """How often it worked, and the code that ended it."""
    times = 0
    while True:
        try:
            call()
        except OverBudget as error:
            return times, error.code
        times += 1
        assert times < 500


def use_all_of_it(h):
    """Every budget to its end, those that shut the whole party out last; the codes."""
    h.budgets = limits = Budgets(tasks=12)
    h.start()
    codes = set()

    def meets(code, call, most):
        times, refused = until_refused(call)
        assert refused == code
        assert times <= most
        codes.add(code)

    agent, lifetimes = h.run(), itertools.count(60)
    agent.open_task()

    def ask_and_take_back():
        with h.store.read() as unit:
            mine = unit.requests.list(state=RequestState.PENDING)
        for request in mine:
            cancel_request(h.broker, agent.caller, request.id)
        agent.request(STAGING, lifetime=next(lifetimes))

    agents = [h.run() for _ in range(4)]
    for each in agents:
        each.open_task()
    for each in agents:
        meets("too_many_leases", each.lease, limits.leases_of_task)
    meets("too_many_pending", lambda: agent.request(STAGING, lifetime=next(lifetimes)), limits.pending)
    meets("too_many_prompts", ask_and_take_back, limits.prompts)
    meets("too_many_new_tasks", lambda: h.run().open_task(), limits.tasks)
    meets("too_much_text", lambda: agent.request(reason="x" * 900), limits.text_bytes // 900 + 1)
    return codes


def test_another_sponsor_is_served_while_one_is_refused_everything(h):
    assert len(use_all_of_it(h)) == 5
    other = h.run(uid=1001)
    other.open_task()
    lease = other.lease()
    session = other.connect(lease)
    assert h.servers[DEV].reads(session, "orders", "id")
    asked = other.request(STAGING)
    assert asked.state is RequestState.PENDING
    h.vote(BEN, asked)
    assert other.issue(asked).lease.id


def test_on_a_disk_that_is_nearly_full_people_decide_and_take_back_and_agents_get_nothing_new(h):
    agent = h.run()
    agent.open_task()
    lease, asked, permitted = agent.lease(), agent.request(STAGING), agent.request()
    h.broker = replace(h.broker, free_disk=lambda: FLOOR - 1)
    for new in (agent.request, lambda: agent.issue(permitted), agent.acquire, h.run().open_task):
        with pytest.raises(StoreUnavailable) as told:
            new()
        assert told.value.code == "disk_low"
    assert h.vote(ANA, asked).state is RequestState.APPROVED
    revoke(h.broker, Selector("lease", lease.id), actor="test", reason="")
    assert h.lease(lease.id).state not in UNENDED
    assert PeopleMethods(h.broker, changed=Changed(), health=dict)("health", {}, None)["disk_low"]
    h.broker = replace(h.broker, free_disk=lambda: FLOOR)
    agent.request()


def test_people_see_few_questions_and_health_and_take_all_of_it_back(h):
    use_all_of_it(h)
    with h.store.read() as unit:
        assert unit.requests.count_pending(DORA) <= Budgets().pending
    people = PeopleMethods(h.broker, changed=Changed(), health=dict)
    health = people("health", {}, None)
    assert health["leases"]["active"] == Budgets().leases
    budgets = health["budgets"][DORA]
    assert {name for name, of in budgets.items() if of["used"] >= of["most"]} >= {"leases", "prompts", "text_bytes"}
    revoke(h.broker, Selector("all", ""), actor="test", reason="")
    h.settle(5)
    assert h.usable() == set()
    assert not [lease for lease in h.leases() if lease.state in UNENDED]
