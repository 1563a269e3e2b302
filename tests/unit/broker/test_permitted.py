"""What policy permits by itself: from the question to nothing left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskpass.broker.complete_task import complete_task
from taskpass.broker.issue_lease import issue_lease
from taskpass.broker.open_task import MAX_OPEN
from taskpass.broker.release_lease import release_lease
from taskpass.broker.request_access import cancel_request
from taskpass.broker.take_back import take_back
from taskpass.core.budgets import same_party
from taskpass.core.decision import Outcome
from taskpass.core.errors import (
    Conflict,
    Denied,
    Expired,
    InvalidInput,
    ManifestChanged,
    NotAuthenticated,
    NotFound,
)
from taskpass.core.ids import RequestId, TaskId
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.core.separation import Environment, Separation
from taskpass.core.task import TaskState
from taskpass.testing.broker import DEV, PRODUCTION, STAGING
from taskpass.testing.unkind_issuer import LoginRefused


def test_a_permitted_request_becomes_a_lease_that_works_and_ends_with_its_task(h):
    agent = h.agent()
    task = agent.open_task()
    request = agent.request()
    assert (request.state, request.decision.outcome) == (RequestState.APPROVED, Outcome.PERMIT)
    issued = agent.issue(request)
    assert issued.lease.state is LeaseState.ACTIVE
    assert issued.endpoint.user == issued.lease.role
    session = agent.connect(issued.lease)
    server = h.servers[DEV]
    assert server.reads(session, "orders", "total")
    assert not server.reads(session, "customers_pii", "passport")
    assert h.stored_request(request.id).state is RequestState.FULFILLED

    done = complete_task(h.broker, task.id, actor="test", reason="completed")

    assert done.task.state is TaskState.COMPLETED
    assert [lease.state for lease in done.leases] == [LeaseState.CLOSED]
    assert done.leases[0].proof["answer"] == "AuthenticationOk,28000"
    assert not session.alive
    assert h.endpoints.open_orders == {}
    h.settle(3)
    assert h.lease(issued.lease.id).state is LeaseState.CLEANED
    assert server.roles == {}


def test_every_effect_has_its_record_before_it(h):
    """I3: the order in which records became durable and effects were visible."""
    agent = h.agent()
    task = agent.open_task()
    request = agent.request()
    agent.issue(request)
    complete_task(h.broker, task.id, actor="test", reason="completed")
    h.settle(3)
    wanted = [
        "audit task.opened",
        "audit request.decided",
        "audit lease.intended",
        "target.create",
        "audit lease.activated",
        "target.enable",
        "endpoint.open",
        "audit task.completed",
        "audit lease.closing",
        "endpoint.close",
        "target.close",
        "audit lease.closed",
        "target.sweep",
        "target.clean",
        "audit lease.cleaned",
    ]
    assert [line for line in h.trace if line in wanted] == wanted


def test_a_request_serves_one_lease(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    agent.issue(request)
    with pytest.raises(Conflict) as refused:
        agent.issue(request)
    assert refused.value.code == "already_used"
    assert len(h.leases()) == 1


def test_a_lease_outside_a_run_can_end_with_the_process_that_asked(h):
    agent = h.agent()
    agent.open_task()
    issued = agent.issue(agent.request(), until_process_ends=True)
    assert h.holders.watched[issued.lease.id] == agent.caller


def test_a_process_that_ends_while_its_lease_is_made_leaves_nothing(h):
    h.holders.ended = lambda lease: take_back(h.broker, [lease], reason="process_ended", actor="broker")
    agent = h.agent()
    agent.open_task()
    h.holders.dead.add(agent.caller.pid)
    with pytest.raises(Conflict):
        agent.issue(agent.request(), until_process_ends=True)
    assert h.usable() == set()
    assert h.endpoints.open_orders == {}
    assert h.leases()[0].state is LeaseState.CLOSED


def test_releasing_closes_at_once(h):
    agent = h.agent()
    agent.open_task()
    lease = agent.lease()
    session = agent.connect(lease)
    released = release_lease(h.broker, agent.caller, lease.id)
    assert released.state is LeaseState.CLOSED
    assert not session.alive
    assert h.usable() == set()


def test_an_unknown_resource_and_one_that_is_not_offered_are_refused_alike(h):
    agent = h.agent()
    agent.open_task()
    with pytest.raises(Denied) as refused:
        agent.request("no-such-database")
    assert "no such resource" in refused.value.message
    assert h.events() == ["task.opened"]


def test_what_belongs_to_others_is_reported_exactly_like_what_is_not(h):
    owner, other = h.run(), h.run(uid=1001)
    owner.open_task()
    other.open_task()
    pending, lease = owner.request(STAGING), owner.lease()
    absent_request = RequestId("req_" + "0" * 26)
    absent_lease = type(lease.id)("lse_" + "0" * 26)

    def answer(call, *arguments):
        with pytest.raises(NotFound) as refused:
            call(h.broker, other.caller, *arguments)
        return refused.value.to_json()

    def issue(broker, caller, request_id):
        return issue_lease(broker, caller, request_id, until_process_ends=False)

    assert answer(cancel_request, pending.id) == answer(cancel_request, absent_request)
    assert answer(issue, pending.id) == answer(issue, absent_request)
    assert answer(release_lease, lease.id) == answer(release_lease, absent_lease)
    assert h.lease(lease.id).state is LeaseState.ACTIVE


def test_another_task_name_selects_among_ones_own_only(h):
    owner, other = h.run(), h.run(uid=1001)
    task = owner.open_task()
    other.open_task()
    with pytest.raises(NotFound) as refused:
        other.request(task_id=task.id)
    with pytest.raises(NotFound) as absent:
        other.request(task_id=TaskId("tsk_" + "0" * 26))
    assert refused.value.to_json() == absent.value.to_json()


def test_an_account_of_nobody_opens_nothing(h):
    with pytest.raises(NotAuthenticated):
        h.agent(uid=4711).open_task()
    assert h.events() == []


def test_outside_a_run_there_is_one_task_for_a_sponsor_and_repository(h):
    first = h.agent().open_task("acme/shop", "one", "SHOP-1")
    second = h.agent().open_task("acme/shop", "two", "SHOP-2")
    other = h.agent().open_task("acme/other")
    assert first.id == second.id != other.id


def test_several_open_tasks_must_be_told_apart(h):
    agent = h.agent()
    agent.open_task("acme/shop")
    agent.open_task("acme/other")
    with pytest.raises(Conflict) as refused:
        agent.request()
    assert refused.value.code == "which_task"


def test_tasks_do_not_multiply_without_end(h):
    agent = h.run()
    for number in range(MAX_OPEN):
        agent.open_task(branch=f"b{number}")
    with pytest.raises(Conflict) as refused:
        agent.open_task(branch="one too many")
    assert refused.value.code == "too_many_tasks"


def test_tasks_opened_inside_a_run_are_children_of_its_own_task_and_end_with_it(h):
    agent = h.run()
    root = agent.open_task(branch="root")
    children = [agent.open_task(branch=f"child {number}") for number in range(3)]
    assert all(child.principal.parents == (root.id,) for child in children)
    assert all(child.expires_at <= root.expires_at for child in children)
    lease = agent.lease(task_id=children[1].id)
    complete_task(h.broker, root.id, actor="test", reason="completed")
    assert h.lease(lease.id).state is LeaseState.CLOSED
    with h.store.read() as unit:
        assert unit.tasks.list(state=TaskState.OPEN) == []
        assert {unit.tasks.get(child.id).reason for child in children} == {"parent_ended"}


def test_a_sub_agent_has_an_identity_and_a_task_of_its_own_and_ends_with_its_parent(h):
    agent = h.run()
    root = agent.open_task()
    first, second = (agent.open_task(child="reviewer") for _ in range(2))
    assert len({root.id, first.id, second.id}) == 3
    assert agent.open_task().id == root.id, "the same words name the run's own task, not its sub-agent's"
    assert len({task.principal.spiffe_id for task in (root, first, second)}) == 3
    assert first.principal.sponsor == root.principal.sponsor
    assert same_party(first, root), "a new name brings no fresh limits"
    kept, lease = agent.lease(task_id=root.id), agent.lease(task_id=first.id)
    complete_task(h.broker, first.id, actor="test", reason="completed")
    assert h.lease(lease.id).state is LeaseState.CLOSED
    assert h.lease(kept.id).state is LeaseState.ACTIVE
    other = agent.lease(task_id=second.id)
    complete_task(h.broker, root.id, actor="test", reason="completed")
    assert {h.lease(item.id).state for item in (kept, other)} == {LeaseState.CLOSED}


class TestAChildNeverGetsMore:
    """Its name is its own claim: a rule for that name opens nothing that the run's agent is refused."""

    @pytest.fixture
    def agent(self, h):
        decide = h.policy.decide

        def by_tool(question):
            decision = decide(question)
            if question.task.principal.tool == "trusted":
                return replace(decision, outcome=Outcome.PERMIT, code="test_permit")
            return decision

        h.policy.decide = by_tool
        return h.run()

    @pytest.mark.parametrize(
        ("outcome", "state"),
        [(Outcome.DENY, RequestState.DENIED), (Outcome.NEEDS_APPROVAL, RequestState.PENDING)],
    )
    def test_when_it_asks(self, h, agent, outcome, state):
        agent.open_task()
        child = agent.open_task(child="trusted")
        h.policy.answer(Environment.DEV, outcome, approvers=frozenset({"dba"}))
        assert agent.request(task_id=child.id).state is state

    def test_when_it_is_issued(self, h, agent):
        agent.open_task()
        request = agent.request(task_id=agent.open_task(child="trusted").id)
        h.policy.answer(Environment.DEV, Outcome.DENY)
        with pytest.raises(Denied):
            agent.issue(request)

    def test_when_it_is_renewed(self, h, agent):
        agent.open_task()
        lease = agent.lease(lifetime=60, task_id=agent.open_task(child="trusted").id)
        h.policy.answer(Environment.DEV, Outcome.DENY)
        h.settle(62)
        assert h.lease(lease.id).renewals == 0

    def test_in_duties(self, h, agent):
        agent.open_task()
        decide = h.policy.decide

        def longer_for_the_child(question):
            decision = decide(question)
            seconds = 3600 if question.task.principal.parents else 60
            return replace(decision, obligations=replace(decision.obligations, max_ttl=seconds))

        h.policy.decide = longer_for_the_child
        assert agent.request(lifetime=3600, task_id=agent.open_task(child="trusted").id).lifetime == 60


def test_outside_a_run_there_are_no_sub_agents(h):
    with pytest.raises(Conflict) as refused:
        h.agent().open_task(child="reviewer")
    assert refused.value.code == "no_run"


def test_a_sub_agent_that_comes_first_is_still_under_the_runs_own_task(h):
    """Nothing that names itself is the root of a run."""
    agent = h.run()
    child = agent.open_task(child="trusted")
    (root_id,) = child.principal.parents
    with h.store.read() as unit:
        root = unit.tasks.get(root_id)
    assert (root.principal.tool, root.principal.parents) == ("claude-code", ())
    complete_task(h.broker, root_id, actor="test", reason="completed")
    with h.store.read() as unit:
        assert unit.tasks.get(child.id).state is TaskState.COMPLETED


def test_a_child_that_was_opened_while_its_parent_ended_ends_too(h):
    agent = h.run()
    root = agent.open_task(branch="root")
    opened = []
    agent.lease(task_id=root.id)
    first = h.store.write

    def opening_late():
        if not opened:
            opened.append(None)
            opened.append(agent.open_task(branch="late"))
        return first()

    h.store.write = opening_late
    complete_task(h.broker, root.id, actor="test", reason="completed")
    with h.store.read() as unit:
        assert unit.tasks.get(opened[1].id).state is TaskState.COMPLETED


def test_a_slow_target_under_one_child_delays_no_other_childs_end(h):
    agent = h.run()
    root = agent.open_task(branch="root")
    tasks = [agent.open_task(branch=f"c{number}") for number in range(2)]
    leases = [agent.lease(task_id=task.id) for task in tasks]
    seen = []
    h.servers[DEV].before = lambda call: seen.append(set(h.endpoints.open_orders)) if call == "close" else None
    complete_task(h.broker, root.id, actor="test", reason="completed")
    assert seen == [set(), set()], "every endpoint is cut before any target is waited for"
    assert {h.lease(lease.id).state for lease in leases} == {LeaseState.CLOSED}


@pytest.mark.parametrize("resource", [STAGING, PRODUCTION])
def test_without_separation_only_disposable_targets_are_served_and_the_refusal_is_recorded(h, resource):
    agent = h.agent(separation=Separation.NONE)
    agent.open_task()
    assert agent.request(DEV).state is RequestState.APPROVED
    with pytest.raises(Denied) as refused:
        agent.request(resource)
    assert refused.value.code == "separation"
    assert h.events()[-1] == "request.refused"


def test_a_process_outside_the_sandbox_is_not_the_task_that_was_opened_in_it(h):
    inside = h.run()
    task = inside.open_task()
    outside = h.agent(separation=Separation.NONE, run=inside.caller.run)
    with pytest.raises(NotAuthenticated):
        outside.request(task_id=task.id)


def test_nothing_left_to_grant_is_a_recorded_denial(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request(only=("public.nothing",))
    assert (request.state, request.decision.code) == (RequestState.DENIED, "nothing_to_grant")
    assert h.events()[-1] == "request.decided"


@pytest.mark.parametrize("lifetime", [0, -1, 8 * 3600 + 1])
def test_a_lifetime_outside_the_bounds_is_refused(h, lifetime):
    agent = h.agent()
    agent.open_task()
    with pytest.raises(InvalidInput):
        agent.request(lifetime=lifetime)


def test_asking_for_less_gives_less(h):
    agent = h.agent()
    agent.open_task()
    lease = agent.lease(only=("public.orders",))
    session = agent.connect(lease)
    assert h.servers[DEV].reads(session, "orders", "id")
    assert not h.servers[DEV].reads(session, "customers", "id")


@pytest.mark.parametrize(
    "change",
    [
        lambda server: server.rename("customers", "archive"),
        lambda server: server.recreate("customers"),
        lambda server: server.add_column("customers", "passport"),
        lambda server: server.table("new_in_scope"),
        lambda server: server.attach("customers", "customers_pii"),
        lambda server: server.drop("customers"),
    ],
)
def test_another_catalogue_at_issue_leaves_nothing_usable(h, change):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    change(h.servers[DEV])
    with pytest.raises(ManifestChanged):
        agent.issue(request)
    assert h.usable() == set()
    assert h.endpoints.open_orders == {}
    assert h.leases()[0].state is LeaseState.CLOSED
    with pytest.raises(Conflict):
        agent.issue(request)


def test_a_policy_that_has_changed_its_mind_is_heard_at_issue_and_recorded(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    h.policy.answer(h.broker.resource(DEV).environment, Outcome.DENY)
    with pytest.raises(Denied):
        agent.issue(request)
    assert h.events()[-1] == "lease.refused"
    assert h.leases() == []


def test_a_permit_that_became_a_question_is_not_issued_without_votes(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    h.policy.answer(h.broker.resource(DEV).environment, Outcome.NEEDS_APPROVAL, approvers=frozenset({"dba"}))
    with pytest.raises(Denied) as refused:
        agent.issue(request)
    assert refused.value.code == "approval_void"


def test_a_task_that_has_ended_issues_nothing(h):
    agent = h.run()
    root = agent.open_task(branch="root")
    child = agent.open_task(branch="child")
    request = agent.request(task_id=child.id)
    complete_task(h.broker, child.id, actor="test", reason="completed")
    assert h.stored_request(request.id).state is RequestState.CANCELLED
    with pytest.raises(NotFound):
        agent.issue(request)
    assert h.usable() == set()
    assert root.id


def test_a_task_ends_every_request_however_many_there_are(h):
    agent = h.agent()
    task = agent.open_task()
    h.budgets = replace(h.budgets, requests=1000)
    h.start()
    requests = [agent.request() for _ in range(205)]
    complete_task(h.broker, task.id, actor="test", reason="completed")
    assert {h.stored_request(request.id).state for request in requests} == {RequestState.CANCELLED}


def test_a_task_ends_by_itself_with_all_it_holds(h):
    agent = h.run()
    task = agent.open_task()
    lease = agent.lease()
    h.tick(8 * 3600 + 1)
    h.settle(2)
    with h.store.read() as unit:
        assert unit.tasks.get(task.id).reason == "expired"
    assert h.lease(lease.id).state in (LeaseState.CLOSED, LeaseState.CLEANED)
    assert h.usable() == set()


def test_an_unused_approval_lapses(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    h.clock.forward(15 * 60)
    with pytest.raises(Expired):
        agent.issue(request)
    h.tick(1)
    assert h.stored_request(request.id).state is RequestState.EXPIRED
    assert "request.lapsed" in h.events()


def test_a_cancelled_request_is_not_issued(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    cancel_request(h.broker, agent.caller, request.id)
    with pytest.raises(Expired):
        agent.issue(request)


def test_a_task_has_a_budget_of_open_leases(h):
    agent = h.agent()
    agent.open_task()
    for _ in range(3):
        agent.lease()
    request = agent.request()
    with pytest.raises(Conflict) as refused:
        agent.issue(request)
    assert refused.value.code == "too_many_leases"
    release_lease(h.broker, agent.caller, h.leases()[0].id)
    agent.issue(request)


def test_the_credential_works_for_nobody_who_does_not_hold_it(h):
    agent = h.agent()
    agent.open_task()
    lease = agent.lease()
    with pytest.raises(LoginRefused):
        h.servers[DEV].login(lease.role, "a guess")


def test_what_was_permitted_in_an_earlier_epoch_is_not_issued_in_a_later_one(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    with h.store.inner.write() as unit:
        unit.raise_epoch(0)
    with pytest.raises(Conflict) as refused:
        agent.issue(request)
    assert refused.value.code == "request_void"
    assert h.leases() == []


def test_a_life_that_policy_has_shortened_meanwhile_is_the_one_that_is_issued(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request(lifetime=900)
    h.policy.answer(h.broker.resource(DEV).environment, Outcome.PERMIT, max_ttl=60)
    lease = agent.issue(request).lease
    assert lease.expires_at - h.clock.now() == 60_000


def test_nothing_is_asked_for_longer_than_the_task_lasts(h):
    agent = h.agent()
    agent.open_task()
    h.clock.forward(8 * 3600 - 600)
    assert agent.request(lifetime=3600).lifetime == 600


def test_a_task_that_ends_while_policy_decides_asks_nothing(h):
    agent = h.agent()
    task = agent.open_task()
    decide = h.policy.decide

    def meanwhile(question):
        complete_task(h.broker, task.id, actor="test", reason="completed")
        return decide(question)

    h.policy.decide = meanwhile
    with pytest.raises(Expired):
        agent.request()
    with h.store.read() as unit:
        assert unit.requests.list() == []
