"""Taking back: it always happens, it is proven or retried, and it wins against everything that goes on meanwhile."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest

from taskpass.broker.complete_task import complete_task, end_leases
from taskpass.broker.debt import TARGET_LIMIT, owed
from taskpass.broker.reconcile import take_back_unserved
from taskpass.broker.release_lease import release_lease
from taskpass.broker.renew_lease import end_wider_leases, renew_leases
from taskpass.broker.revoke import Selector, revoke, select
from taskpass.broker.runs import end_run
from taskpass.broker.take_back import BACKOFF_CAP, WRITTEN_OFF, close_lease, take_back, write_off
from taskpass.core.decision import Outcome
from taskpass.core.errors import Conflict, Denied, InvalidInput, NotAuthenticated, StoreUnavailable, TaskpassError
from taskpass.core.lease import LeaseState
from taskpass.core.separation import Environment
from taskpass.core.task import TaskState
from taskpass.testing.broker import ANA, DEV, PRODUCTION, STAGING

CLOSED = (LeaseState.CLOSED, LeaseState.CLEANED)


def leased(h, resource=DEV, **wishes):
    agent = h.run()
    agent.open_task()
    lease = agent.lease(resource, **wishes)
    return agent, lease, agent.connect(lease)


def revoke_all(h):
    return revoke(h.broker, Selector("all"), actor="human:ana", reason="test")


class TestRevoking:
    @pytest.mark.parametrize("level", ["lease", "task", "agent", "ticket", "resource", "all"])
    def test_works_at_every_level_and_shows_first_what_it_means(self, h, level):
        agent, lease, session = leased(h)
        other = h.run(uid=1001, tool="codex")
        other.open_task("acme/other", "main", "OTHER-1")
        if level != "all":
            kept = other.lease(DEV) if level != "resource" else None
        value = {
            "lease": lease.id,
            "task": lease.task,
            "agent": "claude-code",
            "ticket": "SHOP-1",
            "resource": DEV,
            "all": "",
        }[level]
        selector = Selector(level, value)
        assert [item.id for item in select(h.broker, selector)] == [lease.id]
        assert session.alive
        assert [item.state for item in revoke(h.broker, selector, actor="human:ana")] == [LeaseState.CLOSED]
        assert not session.alive
        if level not in ("all", "resource"):
            assert h.lease(kept.id).state is LeaseState.ACTIVE
        assert "revoke.ordered" in h.events()
        assert agent

    @pytest.mark.parametrize("selector", [("all", "x"), ("lease", ""), ("everything", "x")])
    def test_refuses_what_it_does_not_understand(self, selector):
        with pytest.raises(InvalidInput):
            Selector(*selector)

    def test_is_the_same_when_repeated(self, h):
        leased(h)
        revoke_all(h)
        assert revoke_all(h) == []
        assert h.events().count("lease.closing") == 1

    def test_cuts_the_endpoint_at_once_even_if_the_target_does_not_answer(self, h):
        _, lease, _ = leased(h)
        h.servers[DEV].down = True
        (left,) = revoke_all(h)
        assert h.endpoints.open_orders == {}
        assert left.state is LeaseState.CLOSING
        assert left.attempts == 1
        assert left.last_error.startswith("target_unavailable")
        assert lease.id == left.id

    def test_one_endpoint_that_does_not_close_keeps_no_other_open(self, h):
        agent = h.run()
        agent.open_task()
        leases = [agent.lease() for _ in range(3)]
        sessions = [agent.connect(lease) for lease in leases]
        h.endpoints.broken = True
        revoke_all(h)
        assert {h.lease(lease.id).state for lease in leases} == {LeaseState.CLOSED}
        assert not any(session.alive for session in sessions)

    @pytest.mark.parametrize("away", [False, True])
    def test_an_endpoint_that_did_not_close_is_tried_again_until_nothing_is_left(self, h, away):
        _, lease, _ = leased(h)
        h.endpoints.broken = True
        h.servers[DEV].down = away
        revoke_all(h)
        assert lease.id in h.endpoints.open_orders
        h.endpoints.broken = False
        h.settle(3)
        assert h.endpoints.open_orders == {}

    def test_names_the_orderer_even_if_that_is_all_that_can_be_recorded(self, h):
        leased(h)
        revoke_all(h)
        (record,) = [r for r in h.store.iterate_audit() if '"event":"revoke.ordered"' in r.body]
        assert '"actor":"human:ana"' in record.body

    def test_of_many_waits_for_a_locked_store_once(self, h):
        agents = [h.run(uid) for uid in (1000, 1001)]
        for agent in agents:
            agent.open_task()
            for _ in range(3):
                agent.lease()
        h.store.down = "store_locked"
        h.store.writes = 0
        taken = take_back(h.broker, [lease.id for lease in h.leases()], reason="revoked", actor="test")
        assert len(taken) == 6
        assert h.endpoints.open_orders == {}
        assert h.store.writes == 1

    def test_of_many_waits_for_a_dead_target_a_few_times_and_leaves_the_rest_to_the_sweeper(self, h):
        for uid in (1000, 1001, 1002, 1003, 1004):
            agent = h.run(uid)
            agent.open_task()
            for _ in range(3):
                agent.lease()
        h.servers[DEV].down = True
        before = h.servers[DEV].calls.count("close")
        left = revoke_all(h)
        assert {lease.state for lease in left} == {LeaseState.CLOSING}
        assert h.servers[DEV].calls.count("close") - before < 15
        h.servers[DEV].down = False
        h.settle(5)
        assert h.usable() == set()


class TestClosing:
    def test_is_retried_with_capped_backoff_until_it_is_proven_and_never_given_up(self, h):
        _, lease, _ = leased(h)
        h.servers[DEV].down = True
        revoke_all(h)
        attempts = []
        for _ in range(300):
            h.tick(1)
            attempts.append(h.lease(lease.id).attempts)
        assert h.lease(lease.id).state is LeaseState.CLOSING
        tries = [second for second in range(1, len(attempts)) if attempts[second] != attempts[second - 1]]
        gaps = [later - earlier for earlier, later in pairwise(tries)]
        assert gaps[:4] == [4, 8, 16, 32]
        assert max(gaps) <= BACKOFF_CAP + 1
        assert gaps[-1] >= BACKOFF_CAP - 1, "it is paced"
        h.servers[DEV].down = False
        for _ in range(BACKOFF_CAP + 1):
            h.tick(1)
        assert h.lease(lease.id).state in CLOSED
        assert h.events().count("lease.close_unproven") == 1

    def test_is_not_believed_without_proof(self, h):
        _, lease, session = leased(h)
        h.servers[DEV].unprovable = True
        revoke_all(h)
        assert not session.alive
        assert h.lease(lease.id).state is LeaseState.CLOSING
        assert h.lease(lease.id).proof == {}
        h.servers[DEV].unprovable = False
        h.settle(3)
        assert h.lease(lease.id).state in CLOSED

    def test_of_what_is_gone_already_is_success(self, h):
        _, lease, _ = leased(h)
        h.servers[DEV].roles.clear()
        (closed,) = revoke_all(h)
        assert closed.state is LeaseState.CLOSED
        assert closed.proof["absent"] is True
        assert lease.id == closed.id

    def test_leaves_alone_what_nobody_took_back(self, h):
        _, lease, session = leased(h)
        assert close_lease(h.broker, lease.id) is None
        assert session.alive
        assert h.lease(lease.id).state is LeaseState.ACTIVE

    def test_paces_a_defect_like_a_failure(self, h):
        _, lease, _ = leased(h)

        def defect(call):
            if call == "close":
                raise RuntimeError("a driver's exception that should not be here")

        h.servers[DEV].before = defect
        revoke_all(h)
        assert h.lease(lease.id).last_error == "internal: a defect while closing: RuntimeError"
        assert h.lease(lease.id).retry_at is not None

    def test_of_many_on_a_dead_target_does_not_delay_another_target(self, h):
        agents = [h.run(uid) for uid in (1000, 1001, 1002, 1003)]
        for number, agent in enumerate(agents):
            agent.open_task(f"acme/{number}")
            for _ in range(2):
                agent.lease()
        h.policy.answer(Environment.STAGING, Outcome.PERMIT)
        last = agents[0].lease(STAGING)
        h.servers[DEV].down = True
        take_back(h.broker, [lease.id for lease in h.leases()], reason="revoked", actor="test")
        h.tick(1)
        assert h.lease(last.id).state is LeaseState.CLOSED


class TestCleaning:
    def test_that_is_blocked_is_retried_and_never_delays_closed(self, h):
        _, lease, _ = leased(h)
        h.servers[DEV].block_all = True
        (closed,) = revoke_all(h)
        assert closed.state is LeaseState.CLOSED
        h.settle(40)
        assert h.lease(lease.id).state is LeaseState.CLOSED
        h.servers[DEV].block_all = False
        h.settle(31)
        assert h.lease(lease.id).state is LeaseState.CLEANED

    def test_ends_with_a_late_sweep_whose_finding_is_an_incident(self, h):
        _, lease, _ = leased(h)
        h.tick()
        revoke_all(h)
        server = h.servers[DEV]
        role = server.roles[lease.role]
        role.login, role.password = True, "survivor"
        survivor = server.login(lease.role, "survivor")
        h.settle(3)
        assert not survivor.alive
        assert h.lease(lease.id).incidents == 1
        assert "lease.incident" in h.events()
        assert h.usable() == set()

    def test_closes_again_what_the_late_sweep_found_open(self, h):
        _, lease, _ = leased(h)
        h.tick()
        revoke_all(h)
        server = h.servers[DEV]
        server.block_all = True
        role = server.roles[lease.role]
        role.login, role.password = True, "survivor"
        server.login(lease.role, "survivor")
        h.settle(3)
        assert not role.login
        assert role.password is None

    def test_loses_no_incident_when_the_store_cannot_be_written(self, h):
        _, lease, _ = leased(h)
        h.tick()
        revoke_all(h)
        server = h.servers[DEV]
        role = server.roles[lease.role]
        role.login, role.password = True, "survivor"
        server.login(lease.role, "survivor")
        server.before = lambda call: setattr(h.store, "down", "store_readonly") if call == "sweep" else None
        h.settle(3)
        assert h.usable() == set()
        assert "lease.incident" not in h.events()
        server.before = lambda call: None
        h.store.down = ""
        h.settle(3)
        assert h.lease(lease.id).incidents == 1
        (record,) = [r for r in h.store.iterate_audit() if '"event":"lease.incident"' in r.body]
        assert '"late":true' in record.body


class TestWritingOff:
    def test_says_that_nothing_was_proven(self, h):
        _, lease, _ = leased(h)
        h.servers[DEV].down = True
        revoke_all(h)
        gone = write_off(h.broker, lease.id, actor="human:ana", reason="the server was scrapped")
        assert gone.state is LeaseState.CLOSED
        assert gone.proof["answer"] == WRITTEN_OFF
        assert h.events()[-1] == "lease.written_off"

    def test_is_refused_for_production(self, demo):
        agent = demo.run()
        agent.open_task()
        request = agent.request(PRODUCTION)
        demo.vote(ANA, request)
        lease = agent.issue(request).lease
        demo.servers[PRODUCTION].down = True
        revoke_all(demo)
        with pytest.raises(Denied) as refused:
            write_off(demo.broker, lease.id, actor="human:ana", reason="x")
        assert refused.value.code == "needs_two_people"
        assert demo.lease(lease.id).state is LeaseState.CLOSING

    @pytest.mark.parametrize("taken", [False, True])
    def test_is_refused_while_nothing_has_failed(self, h, taken):
        _, lease, _ = leased(h)
        if taken:
            take_back(h.broker, [lease.id], reason="revoked", actor="test")
        with pytest.raises(Conflict):
            write_off(h.broker, lease.id, actor="human:ana", reason="x")

    @pytest.mark.parametrize("how", ["down", "unprovable"])
    def test_does_not_hide_a_target_that_comes_back(self, h, how):
        _, lease, _ = leased(h)
        server = h.servers[DEV]
        h.tick()
        setattr(server, how, True)
        revoke_all(h)
        write_off(h.broker, lease.id, actor="human:ana", reason="x")
        setattr(server, how, False)
        assert lease.role in server.roles
        h.settle(31)
        assert server.roles == {}
        assert h.lease(lease.id).state is LeaseState.CLEANED
        assert {"orphan.found", "orphan.closed"} <= set(h.events())


class TestDebt:
    def test_stops_whoever_caused_it_and_nobody_else(self, h):
        agent, lease, _ = leased(h)
        h.servers[DEV].unprovable = True
        revoke_all(h)
        with h.broker.store.read() as unit:
            assert [item.id for item, _ in owed(unit)] == [lease.id]
        with pytest.raises(Denied) as refused:
            agent.request()
        assert refused.value.code == "revocation_debt"
        sibling = h.run()
        sibling.open_task()
        with pytest.raises(Denied):
            sibling.request()
        elsewhere = h.run()
        elsewhere.open_task("acme/other")
        with pytest.raises(Denied) as refused:
            elsewhere.request()
        assert refused.value.code == "revocation_debt", "another name of a repository leaves no debt behind"
        other = h.run(uid=1001)
        other.open_task()
        other.request()

    def test_also_stops_what_was_approved_before(self, h):
        agent, _, _ = leased(h)
        request = agent.request()
        h.servers[DEV].unprovable = True
        revoke_all(h)
        with pytest.raises(Denied) as refused:
            agent.issue(request)
        assert refused.value.code == "revocation_debt"

    def test_of_many_stops_the_target_for_everybody_and_is_over_when_they_are_proven(self, h):
        held = []
        for number in range(TARGET_LIMIT):
            agent = h.run(uid=1000 + number % 3)
            agent.open_task(f"acme/{number}")
            held.append((agent.caller, agent.lease().id))
        h.servers[DEV].unprovable = True
        for caller, lease in held:
            release_lease(h.broker, caller, lease)
        bystander = h.run(uid=1003)
        bystander.open_task()
        with pytest.raises(Denied) as refused:
            bystander.request()
        assert refused.value.code == "target_debt"
        bystander.request(STAGING)
        h.servers[DEV].unprovable = False
        h.settle(3)
        bystander.request()

    def test_is_not_made_by_cleaning_that_is_late(self, h):
        agent, _, _ = leased(h)
        h.servers[DEV].block_all = True
        revoke_all(h)
        h.settle(5)
        agent.request()


class TestExpiry:
    def test_ends_a_lease_at_its_time(self, h):
        agent = h.agent()
        agent.open_task()
        lease = agent.lease(lifetime=60)
        session = agent.connect(lease)
        h.clock.forward(59)
        h.tick()
        assert session.alive
        h.clock.forward(1)
        h.tick()
        assert not session.alive
        assert h.lease(lease.id).reason == "expired"

    def test_happens_although_the_clock_was_set_back(self, h):
        agent = h.agent()
        agent.open_task()
        lease = agent.lease(lifetime=60)
        other = agent.lease(lifetime=3600)
        h.servers[DEV].skew = 3600
        h.clock.forward(61)
        with h.store.write() as unit:
            h.broker.now(unit)
        h.clock.jump(-3600)
        h.tick()
        assert h.lease(lease.id).state is LeaseState.CLOSED
        assert h.lease(other.id).state is LeaseState.ACTIVE

    def test_closing_is_retried_although_the_clock_was_set_back(self, h):
        _, lease, _ = leased(h)
        h.servers[DEV].down = True
        revoke_all(h)
        h.clock.jump(-7200)
        h.servers[DEV].down = False
        h.settle(5)
        assert h.lease(lease.id).state is LeaseState.CLEANED

    def test_nothing_is_issued_while_the_clock_is_behind(self, h):
        agent = h.agent()
        agent.open_task()
        request = agent.request()
        h.clock.jump(-10)
        with pytest.raises(Conflict) as refused:
            agent.issue(request)
        assert refused.value.code == "clock_behind"
        assert h.leases() == []

    def test_a_clock_that_jumps_forward_only_shortens(self, h):
        _, lease, session = leased(h)
        h.clock.jump(48 * 3600)
        h.tick()
        h.tick(1)
        assert not session.alive
        assert h.lease(lease.id).state in CLOSED
        h.clock.jump(-48 * 3600)
        h.tick(1)
        assert h.usable() == set()

    @pytest.mark.parametrize("step", ["create", "enable"])
    def test_while_a_lease_is_made_leaves_nothing(self, h, step):
        agent = h.agent()
        agent.open_task()
        request = agent.request(lifetime=30)
        h.servers[DEV].before = lambda call: h.clock.forward(31) if call == step else None
        h.servers[DEV].skew = -3600
        with pytest.raises(TaskpassError):
            agent.issue(request)
        h.settle(2)
        assert h.usable() == set()
        assert h.endpoints.open_orders == {}

    @pytest.mark.parametrize("step", ["create", "enable"])
    def test_a_clock_set_back_while_a_lease_is_made_prolongs_nothing(self, h, step):
        agent = h.agent()
        agent.open_task()
        request = agent.request(lifetime=60)
        end = h.clock.now() + 60_000
        server = h.servers[DEV]
        armed = [True]

        def set_back(call):
            if call == step and armed:
                armed.clear()
                h.clock.jump(-3600)
                server.skew += 3600

        server.before = set_back
        lease = agent.issue(request).lease
        assert server.roles[lease.role].valid_until <= end

    def test_time_that_making_a_lease_takes_is_taken_from_its_life(self, h):
        agent = h.agent()
        agent.open_task()
        request = agent.request(lifetime=60)
        end = h.clock.now() + 60_000
        server = h.servers[DEV]
        server.after = lambda call: h.clock.forward(40) if call == "create" else None
        lease = agent.issue(request).lease
        assert server.roles[lease.role].valid_until <= end


class TestRenewal:
    def test_goes_on_inside_a_run_while_policy_permits_and_each_time_is_recorded(self, h):
        _, lease, session = leased(h, lifetime=60)
        h.settle(120)
        assert session.alive
        renewed = h.lease(lease.id)
        assert renewed.renewals >= 2
        assert h.events().count("lease.renewed") == renewed.renewals
        assert renewed.expires_at - h.clock.now() <= 60_000

    def test_is_recorded_before_the_target_is_told(self, h):
        leased(h, lifetime=60)
        h.trace.clear()
        h.settle(45)
        lines = [line for line in h.trace if line in ("audit lease.renewed", "target.enable")]
        assert lines[:2] == ["audit lease.renewed", "target.enable"]

    def test_is_paced_by_the_life_that_policy_allows_now(self, h):
        _, lease, session = leased(h, lifetime=900)
        h.policy.answer(Environment.DEV, Outcome.PERMIT, max_ttl=30)
        h.clock.forward(891)
        h.settle(60)
        assert session.alive
        assert h.lease(lease.id).renewals <= 4

    def test_ends_with_the_task_at_most(self, h):
        agent, lease, session = leased(h, lifetime=3600)
        for _ in range(49):
            h.tick(600)
        with h.store.read() as unit:
            task = unit.tasks.get(lease.task)
        assert h.lease(lease.id).expires_at <= task.expires_at
        assert not session.alive
        assert task.state is TaskState.COMPLETED
        assert agent

    def test_is_not_for_what_runs_outside_a_run(self, h):
        agent = h.agent()
        agent.open_task()
        lease = agent.lease(lifetime=60)
        h.settle(62)
        assert h.lease(lease.id).renewals == 0
        assert h.usable() == set()

    @pytest.mark.parametrize("outcome", [Outcome.DENY, Outcome.NEEDS_APPROVAL])
    def test_ends_when_policy_permits_no_more(self, h, outcome):
        _, lease, session = leased(h, lifetime=60)
        h.policy.answer(Environment.DEV, outcome, approvers=frozenset({"dba"}))
        h.settle(62)
        assert h.lease(lease.id).renewals == 0
        assert not session.alive
        assert h.events().count("lease.renewal_refused") == 1

    def test_ends_when_the_manifest_changed(self, h):
        _, lease, session = leased(h, lifetime=60)
        h.servers[DEV].table("new_in_scope")
        h.settle(62)
        assert h.lease(lease.id).renewals == 0
        assert not session.alive

    def test_ends_when_the_store_turns_out_to_be_a_copy(self, h):
        _, lease, session = leased(h, lifetime=60)
        h.servers[DEV].audit_seq = 10**6
        h.settle(62)
        assert h.lease(lease.id).renewals == 0
        assert not session.alive

    def test_is_not_done_while_the_clock_is_behind(self, h):
        _, lease, _ = leased(h, lifetime=60)
        h.clock.forward(50)
        with h.store.write() as unit:
            h.broker.now(unit)
        h.clock.jump(-6)
        renew_leases(h.broker)
        assert h.lease(lease.id).renewals == 0

    def test_that_the_target_was_not_told_of_is_told_again(self, h):
        _, lease, session = leased(h, lifetime=60)
        server = h.servers[DEV]
        armed = [True]

        def lose(call):
            if call == "enable" and armed:
                armed.clear()
                server.down = True

        server.before = lose
        h.settle(41)
        assert h.lease(lease.id).renewals == 1
        assert server.roles[lease.role].valid_until < h.lease(lease.id).expires_at
        server.down = False
        h.settle(2)
        assert server.roles[lease.role].valid_until >= h.lease(lease.id).expires_at - 1000
        assert session.alive

    def test_of_one_target_does_not_depend_on_another_target(self, h):
        h.policy.answer(Environment.STAGING, Outcome.PERMIT)
        agent, lease, _ = leased(h, lifetime=60)
        other = agent.lease(STAGING, lifetime=60)
        h.servers[STAGING].down = True
        h.settle(61)
        assert h.lease(lease.id).renewals >= 1
        assert h.lease(other.id).state is LeaseState.CLOSING

    def test_that_a_revocation_overtakes_does_not_open_the_role_again(self, h):
        _, lease, session = leased(h, lifetime=60)
        server = h.servers[DEV]
        h.clock.forward(45)
        armed = [True]

        def revoked(call):
            if call == "resolve" and armed:
                armed.clear()
                revoke_all(h)

        server.before = revoked
        renew_leases(h.broker)
        assert not session.alive
        assert not server.roles[lease.role].login
        assert h.lease(lease.id).state is LeaseState.CLOSED

    def test_does_not_open_again_what_was_taken_back_and_is_not_recorded_yet(self, h):
        _, lease, session = leased(h, lifetime=60)
        h.clock.forward(45)
        h.store.down = "store_readonly"
        with suppress(StoreUnavailable):
            revoke_all(h)
        h.store.down = ""
        assert h.lease(lease.id).state is LeaseState.ACTIVE
        assert renew_leases(h.broker) == 0
        assert not session.alive
        assert h.usable() == set()


class TestWider:
    @pytest.mark.parametrize(
        "change",
        [
            lambda server: server.attach("orders", "customers"),
            lambda server: server.attach("orders", "customers_pii"),
            lambda server: server.rename("orders", "orders_old"),
            lambda server: server.rename("customers", "customers_pii_2") or server.rename("customers_pii", "customers"),
        ],
    )
    def test_a_lease_whose_objects_came_to_mean_more_is_taken_back(self, h, change):
        _, lease, session = leased(h)
        change(h.servers[DEV])
        h.settle(17)
        assert not session.alive
        assert h.lease(lease.id).reason == "wider_than_manifest"

    def test_a_new_column_and_a_new_table_widen_nothing(self, h):
        _, lease, session = leased(h)
        h.servers[DEV].add_column("orders", "card")
        h.servers[DEV].table("new_in_scope")
        assert end_wider_leases(h.broker) == 0
        assert session.alive
        assert not h.servers[DEV].reads(session, "orders", "card")
        assert lease.id

    def test_leases_with_the_same_rights_are_one_question_to_the_target_and_end_together(self, h):
        agent, lease, _ = leased(h)
        same, other = agent.lease(), agent.lease(only=("public.orders",))
        server, asked = h.servers[DEV], []
        server.before = asked.append
        assert end_wider_leases(h.broker) == 0
        assert asked.count("resolve") == 2
        server.attach("orders", "customers_pii")
        assert end_wider_leases(h.broker) == 3
        assert {h.lease(x.id).reason for x in (lease, same, other)} == {"wider_than_manifest"}

    def test_one_dead_target_hides_no_other(self, h):
        h.policy.answer(Environment.STAGING, Outcome.PERMIT)
        agent, lease, _ = leased(h)
        agent.lease(STAGING)
        h.servers[STAGING].down = True
        h.servers[DEV].attach("orders", "customers_pii")
        assert end_wider_leases(h.broker) == 1
        assert h.lease(lease.id).state is LeaseState.CLOSING


def test_threads_that_close_what_was_revoked_go_before_others_at_the_store(h):
    _, lease, _ = leased(h)
    prepared = []
    broker = replace(h.broker, reserve_thread=lambda: prepared.append(threading.current_thread().name))
    end_leases(broker, [lease.id], reason="revoked", actor="test")
    assert prepared
    assert all(name.startswith("close") for name in prepared)


class TestRuns:
    def test_the_end_of_a_run_ends_all_that_it_held(self, h):
        agent, lease, session = leased(h)
        end_run(h.broker, agent.caller.run, reason="process_ended")
        assert not session.alive
        assert h.lease(lease.id).state is LeaseState.CLOSED
        assert h.runs.served == set()
        end_run(h.broker, agent.caller.run, reason="process_ended")
        assert h.events().count("run.ended") == 1

    def test_nothing_is_opened_in_a_run_that_has_ended(self, h):
        agent, _, _ = leased(h)
        request = agent.request()
        end_run(h.broker, agent.caller.run, reason="process_ended")
        for attempt in (agent.open_task, agent.request, lambda: agent.issue(request)):
            with pytest.raises(NotAuthenticated) as refused:
                attempt()
            assert refused.value.code == "run_ended"

    def test_a_crash_in_the_middle_of_the_end_is_mended(self, h):
        agent, _, _ = leased(h)
        with h.store.write() as unit:
            unit.runs.end(agent.caller.run, h.clock.now())
        h.restart()
        h.settle(3)
        with h.store.read() as unit:
            assert unit.tasks.list(state=TaskState.OPEN) == []
        assert h.usable() == set()

    def test_a_run_whose_end_cannot_be_recorded_holds_nothing_and_is_ended_later(self, h):
        agent, lease, session = leased(h)
        h.store.down = "store_readonly"
        end_run(h.broker, agent.caller.run, reason="process_ended")
        assert not session.alive
        assert h.usable() == set()
        h.store.down = ""
        h.settle(3)
        assert h.lease(lease.id).state in CLOSED
        with h.store.read() as unit:
            assert unit.runs.get(agent.caller.run).ended_at is not None
            assert unit.tasks.list(state=TaskState.OPEN) == []


OUTAGES = ["store_full", "store_readonly", "store_locked"]


class TestStoreThatCannotBeWritten:
    """F26, F30: nothing new is issued; taking back works and is recorded late."""

    @pytest.mark.parametrize("code", OUTAGES)
    def test_issues_nothing(self, h, code):
        agent = h.agent()
        agent.open_task()
        request = agent.request()
        h.reserve = 0
        h.store.down = code
        with pytest.raises(StoreUnavailable):
            agent.issue(request)
        with pytest.raises(StoreUnavailable):
            agent.request()
        assert h.servers[DEV].roles == {}

    @pytest.mark.parametrize("code", OUTAGES)
    @pytest.mark.parametrize(
        "end",
        [
            lambda h, agent, lease: revoke_all(h),
            lambda h, agent, lease: release_lease(h.broker, agent.caller, lease.id),
            lambda h, agent, lease: complete_task(h.broker, lease.task, actor="test", reason="completed"),
            lambda h, agent, lease: h.clock.forward(3600),
        ],
        ids=["revoke", "release", "complete", "expire"],
    )
    def test_takes_back_all_the_same_and_records_it_late(self, h, code, end):
        agent = h.agent()
        agent.open_task()
        lease = agent.lease()
        session = agent.connect(lease)
        h.reserve = 0
        h.store.down = code
        with suppress(StoreUnavailable):
            end(h, agent, lease)
        h.settle(2)
        assert not session.alive
        assert h.usable() == set()
        assert h.endpoints.open_orders == {}
        h.settle(40)
        assert h.broker.late.pending() <= 3, "an outage does not make the book grow"
        h.store.down = ""
        h.settle(3)
        assert h.lease(lease.id).state in CLOSED
        late = [record.body for record in h.store.iterate_audit() if '"late":true' in record.body]
        assert len([body for body in late if lease.id in body and "revoke.ordered" not in body]) == 2
        assert h.broker.late.pending() == 0

    def test_uses_the_reserve_for_taking_back_only(self, h):
        agent = h.agent()
        agent.open_task()
        request, other = agent.request(), agent.request()
        lease = agent.issue(request).lease
        h.store.down = "store_full"
        with pytest.raises(StoreUnavailable):
            agent.issue(other)
        assert h.reserve == 1
        revoke_all(h)
        assert h.reserve == 0
        assert h.lease(lease.id).state is LeaseState.CLOSED
        assert not any('"late":true' in record.body for record in h.store.iterate_audit())

    @pytest.mark.parametrize(
        "end",
        [
            lambda h, lease: revoke_all(h),
            lambda h, lease: take_back(h.broker, [lease.id], reason="process_ended", actor="broker"),
            lambda h, lease: complete_task(h.broker, lease.task, actor="test", reason="completed"),
            lambda h, lease: h.clock.forward(3600),
            lambda h, lease: take_back_unserved(h.broker),
        ],
        ids=["revoke", "process-end", "complete", "expire", "going-down"],
    )
    def test_that_cannot_even_be_read_takes_back_what_this_process_made(self, h, end):
        _, lease, session = leased(h)
        h.store.down, h.store.unreadable = "store_down", True
        with suppress(StoreUnavailable):
            end(h, lease)
        h.settle(2)
        assert (session.alive, h.usable(), h.endpoints.open_orders) == (False, set(), {})
        h.settle(40)
        assert h.broker.late.pending() <= 3, "an outage does not make the book grow"
        h.store.down, h.store.unreadable = "", False
        h.settle(3)
        assert h.lease(lease.id).state in CLOSED
        assert h.broker.late.pending() == 0
        assert h.broker.remembered.all() == []

    def test_that_goes_away_between_the_order_and_the_proof_does_not_delay_the_proof(self, h):
        _, lease, session = leased(h)
        take_back(h.broker, [lease.id], reason="process_ended", actor="broker")
        h.store.down, h.store.unreadable = "store_down", True
        h.settle(2)
        assert (session.alive, h.usable()) == (False, set())
        h.store.down, h.store.unreadable = "", False
        h.settle(3)
        assert h.lease(lease.id).state in CLOSED

    def test_that_cannot_even_be_read_says_who_pulled_the_plug_later(self, h):
        leased(h)
        h.store.down, h.store.unreadable = "store_down", True
        assert [lease.state for lease in revoke_all(h)] == [LeaseState.CLOSED]
        h.store.down, h.store.unreadable = "", False
        h.settle(3)
        order = [r.body for r in h.store.iterate_audit() if '"event":"revoke.ordered"' in r.body]
        assert len(order) == 1
        assert '"late":true' in order[0]

    def test_that_cannot_even_be_read_issues_nothing(self, h):
        agent = h.agent()
        agent.open_task()
        request = agent.request()
        h.store.down, h.store.unreadable = "store_down", True
        with pytest.raises(StoreUnavailable):
            agent.issue(request)
        assert h.usable() == set()

    def test_what_this_process_did_not_make_is_cut_and_found_again(self, h):
        _, lease, _ = leased(h)
        h.broker.remembered.forget(lease.id)
        h.store.down, h.store.unreadable = "store_corrupt", True
        with pytest.raises(StoreUnavailable):
            take_back(h.broker, [lease.id], reason="process_ended", actor="broker")
        assert h.endpoints.open_orders == {}

    def test_lapses_and_renews_nothing_and_the_clockwork_goes_on(self, h):
        _, lease, session = leased(h, lifetime=60)
        h.store.down = "store_readonly"
        h.reserve = 0
        h.settle(65)
        assert h.lease(lease.id).renewals == 0
        assert not session.alive
        h.store.down = ""
        h.settle(5)
        assert h.lease(lease.id).state in CLOSED
