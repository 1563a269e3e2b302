"""Runs, tasks, requests, approvals, challenges and leases: what every store must do."""

# ruff: noqa: S608, PT012 - hand-written statements are the point here, and an error is raised by a unit as a whole.

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from taskpass.core.aftermath import AftermathEvent, AftermathState, Ran
from taskpass.core.clock import Instant
from taskpass.core.decision import Delivery
from taskpass.core.errors import Conflict, Expired, IllegalTransition, InvalidInput, NotFound
from taskpass.core.ids import GrantId, HumanId, TaskId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.request import RequestEvent, RequestState
from taskpass.core.task import TaskEvent, TaskState
from taskpass.core.widening import Change, Widening
from taskpass.store.base import Store
from taskpass.testing.suites.records import NOW, REVIEWER, SPONSOR, Records
from taskpass.testing.suites.store_place import (
    LATER,
    PROOF,
    Place,
    StoreFixtures,
    add_lease,
    add_request,
    add_task,
    approved,
    compete,
    lease_in,
    request_in,
)


def _active(store: Store, records: Records, *, renewable: bool = False, **fields: Any) -> Lease:
    with store.write() as unit:
        grant = records.grant(add_request(unit, records), renewable=renewable)
        lease = records.lease(grant, **fields)
        unit.grants.add(grant)
        unit.leases.add(lease)
        return unit.leases.advance(lease.id, LeaseEvent.CREATED, NOW)


class AggregateSuite(StoreFixtures):
    # Runs and tasks

    def test_a_run_is_bound_once_and_not_after_its_end(self, store: Store, records: Records) -> None:
        first, second = records.run(), records.run()
        with store.write() as unit:
            unit.runs.add(first)
            unit.runs.add(second)
            unit.runs.bind(first.id, namespace="boot/1", separation="sandbox")
            assert unit.runs.get(first.id).namespace == "boot/1"
            with pytest.raises(Conflict):
                unit.runs.bind(first.id, namespace="boot/2", separation="sandbox")
            unit.runs.end(second.id, LATER)
            unit.runs.end(second.id, Instant(LATER + 1))
            assert unit.runs.get(second.id).ended_at == LATER
            with pytest.raises(Conflict):
                unit.runs.bind(second.id, namespace="boot/3", separation="sandbox")
            assert unit.runs.unended() == [unit.runs.get(first.id)]

    def test_tasks_are_listed_newest_first_and_by_state_and_run(self, store: Store, records: Records) -> None:
        run = records.run()
        old, new = records.task(run=run.id), records.task(opened_at=LATER)
        with store.write() as unit:
            unit.runs.add(run)
            unit.tasks.add(old)
            unit.tasks.add(new)
            assert unit.tasks.list() == [new, old]
            assert unit.tasks.list(limit=1) == [new]
            assert unit.tasks.list(run=run.id) == [old]
            assert unit.tasks.list(state=TaskState.COMPLETED) == []
            assert unit.tasks.sponsors() == [SPONSOR]
            for task in (old, new):
                unit.tasks.advance(task.id, TaskEvent.COMPLETE, LATER, reason="")
            assert unit.tasks.sponsors() == []

    def test_children_are_the_open_tasks_that_name_a_parent(self, store: Store, records: Records) -> None:
        top = records.task()
        child = records.task(parents=(top.id,))
        grandchild = records.task(parents=(top.id, child.id))
        with store.write() as unit:
            for task in (top, child, grandchild):
                unit.tasks.add(task)
            assert unit.tasks.children(top.id) == [child, grandchild]
            assert unit.tasks.children(child.id) == [grandchild]
            unit.tasks.advance(grandchild.id, TaskEvent.COMPLETE, LATER, reason="")
            assert unit.tasks.children(child.id) == []
            assert unit.tasks.children(TaskId("tsk_")) == []

    def test_there_is_one_open_unattached_task_of_a_sponsor_machine_and_repository(
        self, store: Store, records: Records
    ) -> None:
        first, second = records.task(repository="r"), records.task(repository="r")
        with store.write() as unit:
            unit.tasks.add(first)
            assert unit.tasks.find_unattached(SPONSOR, "laptop", "r") == first
            assert unit.tasks.find_unattached(SPONSOR, None, "r") == first
            assert unit.tasks.find_unattached(SPONSOR, "laptop", "R") is None
            assert unit.tasks.find_unattached(HumanId("else@example"), "laptop", "r") is None
        with pytest.raises(Conflict), store.write() as unit:
            unit.tasks.add(second)
        with store.write() as unit:
            unit.tasks.advance(first.id, TaskEvent.COMPLETE, LATER, reason="")
            assert unit.tasks.find_unattached(SPONSOR, "laptop", "r") is None
            unit.tasks.add(second)

    # Requests, approvals, challenges

    def test_requests_lapse_when_their_time_has_come(self, store: Store, records: Records) -> None:
        task = add_task(store, records)
        request = records.request(task.id, lapses_at=LATER)
        with store.write() as unit:
            unit.requests.add(request)
            assert unit.requests.lapsing(Instant(LATER - 1)) == []
            assert unit.requests.lapsing(LATER) == [request]
            end = Instant(LATER + 5)
            approved = unit.requests.advance(request.id, RequestEvent.APPROVE, LATER, comment="ok", lapses_at=end)
            assert (approved.decided_at, approved.comment, approved.lapses_at) == (LATER, "ok", end)
            assert unit.requests.lapsing(LATER) == []
            assert unit.requests.lapsing(end) == [approved]
            unit.requests.advance(request.id, RequestEvent.LAPSE, end)
            assert unit.requests.lapsing(end) == []

    def test_pending_requests_are_counted_by_sponsor(self, store: Store, records: Records) -> None:
        mine, other = records.task(), records.task(sponsor=HumanId("else@example"))
        with store.write() as unit:
            for task in (mine, other):
                unit.tasks.add(task)
                unit.requests.add(records.request(task.id))
            decided = records.request(mine.id)
            unit.requests.add(decided)
            unit.requests.advance(decided.id, RequestEvent.DENY, LATER)
            assert unit.requests.count_pending(SPONSOR) == 1
            assert len(unit.requests.list(task=mine.id)) == 2
            assert [r.id for r in unit.requests.list(state=RequestState.DENIED)] == [decided.id]

    def test_a_human_votes_once_on_a_request(self, store: Store, records: Records) -> None:
        request = request_in(store, records, RequestState.PENDING)
        with store.write() as unit:
            unit.approvals.add(records.approval(request.id))
        with pytest.raises(Conflict), store.write() as unit:
            unit.approvals.add(records.approval(request.id))
        with store.write() as unit:
            unit.approvals.add(records.approval(request.id, approver=HumanId("cy@example")))
            assert len(unit.approvals.of_request(request.id)) == 2

    def test_a_vote_never_changes(self, place: Place, store: Store, records: Records) -> None:
        request = request_in(store, records, RequestState.PENDING)
        with store.write() as unit:
            unit.approvals.add(records.approval(request.id))
        for column in ("verdict", "signature", "manifest", "digest", "expires_at", "approver"):
            self.refuses(place, f"UPDATE approvals SET {column} = '9'")
        self.refuses(place, "DELETE FROM approvals")

    def test_an_approval_is_used_once(self, place: Place, store: Store, records: Records) -> None:
        approval, grants = approved(store, records, 2)
        with store.write() as unit:
            unit.approvals.consume([approval], grants[0])
            assert unit.approvals.consumed(approval) == grants[0]
        with pytest.raises(Conflict), store.write() as unit:
            unit.approvals.consume([approval], grants[1])
        self.refuses(place, f"UPDATE approval_uses SET \"grant\" = '{grants[1]}'")
        self.refuses(place, "DELETE FROM approval_uses")

    def test_an_approval_may_be_used_up_before_its_grant_is_added(self, store: Store, records: Records) -> None:
        approval, _ = approved(store, records, 0)
        request = request_in(store, records, RequestState.APPROVED)
        grant = records.grant(request)
        with store.write() as unit:
            unit.approvals.consume([approval], grant.id)
            unit.grants.add(grant)
        with pytest.raises(Conflict), store.write() as unit:
            other = records.approval(request.id)
            unit.approvals.add(other)
            unit.approvals.consume([other.id], GrantId("grt_none"))

    def test_fifty_uses_of_one_approval_at_once_succeed_once(
        self, place: Place, store: Store, records: Records
    ) -> None:
        approval, grants = approved(store, records, 50)
        handles = [store, place.open()]

        def use(number: int) -> GrantId:
            with handles[number % 2].write() as unit:
                unit.approvals.consume([approval], grants[number])
            return grants[number]

        results = compete(50, use)
        won = [result for result in results if isinstance(result, str)]
        assert len(won) == 1
        assert all(isinstance(result, Conflict) for result in results if result not in won)
        with store.read() as unit:
            assert unit.approvals.consumed(approval) == won[0]

    def test_fifty_uses_of_one_challenge_at_once_succeed_once(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            unit.challenges.add("n", verb="approve", subject="req_1", human=REVIEWER, expires_at=LATER)
        handles = [store, place.open()]

        def take(number: int) -> bool:
            with handles[number % 2].write() as unit:
                unit.challenges.take("n", verb="approve", subject="req_1", human=REVIEWER, now=NOW)
            return True

        results = compete(50, take)
        assert results.count(True) == 1
        assert sum(isinstance(result, Expired) for result in results) == 49

    @pytest.mark.parametrize(
        "wrong",
        [{"verb": "deny"}, {"subject": "req_2"}, {"human": "else@example"}, {"now": LATER}, {"now": LATER + 1}],
        ids=str,
    )
    def test_a_challenge_serves_its_own_purpose_and_time_only(self, store: Store, wrong: dict[str, Any]) -> None:
        right: dict[str, Any] = {"verb": "approve", "subject": "req_1", "human": REVIEWER, "now": NOW}
        with store.write() as unit:
            unit.challenges.add("n", verb="approve", subject="req_1", human=REVIEWER, expires_at=LATER)
        with pytest.raises(Expired), store.write() as unit:
            unit.challenges.take("n", **(right | wrong))
        with store.write() as unit:
            unit.challenges.take("n", **right)
        with pytest.raises(Expired), store.write() as unit:
            unit.challenges.take("n", **right)

    # Leases

    def test_a_lease_keeps_when_and_why_it_was_taken_back(self, store: Store, records: Records) -> None:
        lease = lease_in(store, records, LeaseState.ACTIVE)
        end = Instant(LATER + 9)
        with store.write() as unit:
            renewed = unit.leases.advance(lease.id, LeaseEvent.RENEW, NOW, expires_at=end, renewals=1)
            assert (renewed.state, renewed.expires_at, renewed.renewals) == (LeaseState.ACTIVE, end, 1)
            closing = unit.leases.advance(lease.id, LeaseEvent.TAKE_BACK, LATER, reason="revoked")
            assert (closing.closing_at, closing.reason) == (LATER, "revoked")
            closed = unit.leases.advance(lease.id, LeaseEvent.PROVEN, end, proof=PROOF)
            assert (closed.closing_at, closed.closed_at, closed.proof) == (LATER, end, PROOF)

    def test_a_lease_is_closed_with_a_proof_only(self, place: Place, store: Store, records: Records) -> None:
        lease = lease_in(store, records, LeaseState.CLOSING)
        without: tuple[dict[str, Any], ...] = ({}, {"proof": {}})
        for proof in without:
            with pytest.raises(InvalidInput), store.write() as unit:
                unit.leases.advance(lease.id, LeaseEvent.PROVEN, LATER, **proof)
        self.refuses(place, f"UPDATE leases SET state = 'closed' WHERE id = '{lease.id}'")

    def test_fields_that_are_not_bookkeeping_cannot_be_noted(self, store: Store, records: Records) -> None:
        lease = lease_in(store, records, LeaseState.CLOSING)
        with store.write() as unit:
            noted = unit.leases.note(lease.id, attempts=3, retry_at=LATER, last_error="no answer", incidents=1)
            assert (noted.attempts, noted.retry_at, noted.last_error, noted.incidents) == (3, LATER, "no answer", 1)
            assert noted.state is LeaseState.CLOSING
            for field in ("state", "role", "expires_at", "proof", "nonsense"):
                with pytest.raises(InvalidInput):
                    unit.leases.note(lease.id, **{field: "x"})
                if field not in ("expires_at", "proof"):
                    with pytest.raises(InvalidInput):
                        unit.leases.advance(lease.id, LeaseEvent.RENEW, NOW, **{field: "x"})

    def test_leases_whose_end_has_come_are_expiring(self, store: Store, records: Records) -> None:
        made = {state: lease_in(store, records, state) for state in LeaseState}
        with store.read() as unit:
            end = made[LeaseState.ACTIVE].expires_at
            assert unit.leases.expiring(Instant(end - 1)) == []
            found = {lease.id for lease in unit.leases.expiring(end)}
        assert found == {made[LeaseState.INTENDED].id, made[LeaseState.ACTIVE].id}

    def test_closing_leases_are_due_until_proven_and_wait_for_their_retry(self, store: Store, records: Records) -> None:
        made = {state: lease_in(store, records, state) for state in LeaseState}
        closing = made[LeaseState.CLOSING].id
        with store.write() as unit:
            assert [lease.id for lease in unit.leases.due(NOW)] == [closing]
            unit.leases.note(closing, retry_at=LATER)
            assert unit.leases.due(Instant(LATER - 1)) == []
            assert [lease.id for lease in unit.leases.due(LATER)] == [closing]

    def test_leases_are_listed_by_what_they_belong_to(self, store: Store, records: Records) -> None:
        task, _, grant, lease = add_lease(store, records)
        add_lease(store, records)
        with store.read() as unit:
            assert unit.leases.list(task=task.id) == unit.leases.list(grant=grant.id) == [lease]
            assert len(unit.leases.list(resource="orders")) == 2
            assert unit.leases.list(resource="other") == unit.leases.list(states=[]) == []
            assert len(unit.leases.list(states=[LeaseState.INTENDED], limit=1)) == 1

    def test_leases_count_as_live_until_they_are_closed(self, store: Store, records: Records) -> None:
        for state in LeaseState:
            lease_in(store, records, state)
        with store.read() as unit:
            assert unit.leases.count_live() == unit.leases.count_live(sponsor=SPONSOR) == 3
            assert unit.leases.count_live(sponsor=HumanId("else@example")) == 0
            task = unit.leases.list(states=[LeaseState.CLOSING])[0].task
            assert unit.leases.count_live(task=task, sponsor=SPONSOR) == 1
            assert unit.leases.count_live(sponsor=SPONSOR, delivery=Delivery.ENDPOINT) == 3
            assert unit.leases.count_live(sponsor=SPONSOR, delivery=Delivery.BEARER) == 0

    def test_rights_that_leases_used_are_counted_once_for_a_sponsor_on_a_machine(
        self, store: Store, records: Records
    ) -> None:
        leases = [lease_in(store, records, state) for state in (LeaseState.CLEANED, LeaseState.ACTIVE)]
        with store.read() as unit:
            machine = unit.tasks.get(leases[0].task).principal.machine
            assert unit.leases.rights(SPONSOR, machine, since=NOW) == {leases[0].manifest_digest: NOW}
            assert unit.leases.rights(SPONSOR, "other", since=NOW) == {}
            assert unit.leases.rights(HumanId("else@example"), machine, since=NOW) == {}
            assert unit.leases.rights(SPONSOR, machine, since=LATER) == {}

    def test_many_leases_are_looked_at_without_reading_each(self, store: Store, records: Records) -> None:
        made = {state: lease_in(store, records, state) for state in LeaseState}
        live = [LeaseState.INTENDED, LeaseState.ACTIVE]
        with store.write() as unit:
            assert set(unit.leases.ids(live)) == {made[state].id for state in live}
            assert unit.leases.ids([]) == []
            assert unit.leases.count_by_state() == dict.fromkeys(LeaseState, 1)
            assert unit.leases.targets(live) == [made[LeaseState.ACTIVE].target]
            assert unit.leases.targets([]) == []
            assert unit.leases.unproven() == []
            owed = unit.leases.note(made[LeaseState.CLOSING].id, attempts=1)
            assert unit.leases.unproven() == [owed]
            unit.leases.note(made[LeaseState.ACTIVE].id, attempts=1)
            assert unit.leases.unproven(limit=0) == []

    def test_active_leases_are_alike_by_target_manifest_and_scope(self, store: Store, records: Records) -> None:
        same = [lease_in(store, records, LeaseState.ACTIVE).id for _ in range(2)]
        target = replace(add_lease(store, records)[3].target, address="other.example:5432/orders")
        other = _active(store, records, target=target)
        lease_in(store, records, LeaseState.INTENDED)
        with store.read() as unit:
            assert sorted(map(sorted, unit.leases.alike())) == sorted([sorted(same), [other.id]])

    def test_whether_a_grant_is_renewable_comes_back_as_it_was(self, store: Store, records: Records) -> None:
        for renewable in (True, False):
            with store.write() as unit:
                grant = records.grant(add_request(unit, records), renewable=renewable)
                unit.grants.add(grant)
            with store.read() as unit:
                assert unit.grants.get(grant.id).renewable is renewable

    def test_a_lease_is_renewable_in_the_last_third_of_the_asked_lifetime(self, store: Store, records: Records) -> None:
        lease = _active(store, records, renewable=True)
        lease_in(store, records, LeaseState.ACTIVE)
        with store.write() as unit:
            grant = unit.grants.get(lease.grant)
            assert lease.expires_at < grant.ends_at
            third = Instant(lease.expires_at - unit.requests.get(grant.request).lifetime * 1000 // 3)
            assert unit.leases.renewable(Instant(third - 1), noted="untold") == []
            assert unit.leases.renewable(third, noted="untold") == [lease]
            noted = unit.leases.note(lease.id, last_error="untold")
            assert unit.leases.renewable(NOW, noted="untold") == [noted]

    def test_a_lease_is_claimed_once_by_many(self, place: Place, store: Store, records: Records) -> None:
        lease = lease_in(store, records, LeaseState.ACTIVE)
        handles = [store, place.open(), place.open()]

        def claim(number: int) -> bool:
            with handles[number % 3].write() as unit:
                unit.leases.advance(lease.id, LeaseEvent.TAKE_BACK, LATER, reason=str(number))
            return True

        results = compete(24, claim)
        assert results.count(True) == 1
        assert sum(isinstance(result, IllegalTransition) for result in results) == 23

    def test_no_update_is_lost(self, place: Place, store: Store, records: Records) -> None:
        lease = lease_in(store, records, LeaseState.CLOSING)
        handles = [store, place.open()]

        def count(number: int) -> bool:
            with handles[number % 2].write() as unit:
                unit.leases.note(lease.id, attempts=unit.leases.get(lease.id).attempts + 1)
            return True

        assert compete(40, count) == [True] * 40
        with store.read() as unit:
            assert unit.leases.get(lease.id).attempts == 40

    # What migrations left

    def test_what_a_migration_left_blocks_its_database_until_it_is_decided(
        self, store: Store, records: Records
    ) -> None:
        lease = lease_in(store, records, LeaseState.INTENDED)
        with store.write() as unit:
            made = records.aftermath(lease)
            unit.aftermaths.add(made)
            assert unit.aftermaths.get(lease.id) == made
            assert unit.aftermaths.blocking(made.cluster, made.database) == [made]
            assert unit.aftermaths.blocking(made.cluster, made.database + 1) == []
            assert unit.aftermaths.blocking("1", made.database) == []
        left = (Widening("grant", "SELECT on relation public.orders to PUBLIC", Change.ADDED),)
        with store.write() as unit:
            assert unit.aftermaths.note(lease.id, ran=Ran.COMMITTED, looked_at=LATER).ran is Ran.COMMITTED
            found = unit.aftermaths.advance(lease.id, AftermathEvent.FOUND, widening=left)
            assert (found.state, found.widening, found.before) == (AftermathState.WIDENED, left, {})
            assert unit.aftermaths.blocking(made.cluster, made.database) == [found]
            done = unit.aftermaths.advance(
                lease.id, AftermathEvent.ACCEPT, decided_by="ben", decided_at=LATER, comment="ok"
            )
            assert unit.aftermaths.blocking(made.cluster, made.database) == []
            assert unit.aftermaths.list(states=[AftermathState.ACCEPTED], task=made.task) == [done]
        with pytest.raises(IllegalTransition), store.write() as unit:
            unit.aftermaths.advance(lease.id, AftermathEvent.UNDO)
        with pytest.raises(InvalidInput), store.write() as unit:
            unit.aftermaths.note(lease.id, widening=())

    def test_a_file_is_kept_once_by_the_digest_of_its_bytes(self, store: Store) -> None:
        text = "SELECT 'ä\u202e';\r\n"
        with store.write() as unit:
            unit.scripts.add("sha256:01", text)
            unit.scripts.add("sha256:01", text)
            assert unit.scripts.get("sha256:01") == text
        with pytest.raises(NotFound), store.read() as unit:
            unit.scripts.get("sha256:02")
