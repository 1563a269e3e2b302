"""What every store must do, whatever its engine. See ``store.base`` for the contract.

Derive a class from ``StoreSuite`` and give it a fixture ``place``: a fresh store that can be opened more than once.
"""

# ruff: noqa: S608, PT012 - hand-written statements are the point here, and an error is raised by a unit as a whole.

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import pytest

from taskpass.audit.verify import verify
from taskpass.core import machine
from taskpass.core.audit import GENESIS
from taskpass.core.clock import Instant
from taskpass.core.errors import Conflict, Expired, IllegalTransition, InvalidInput, NotFound, TaskpassError
from taskpass.core.grant import Grant
from taskpass.core.ids import ApprovalId, GrantId, HumanId, RequestId, TaskId
from taskpass.core.lease import LEASE_TABLE, Lease, LeaseEvent, LeaseState
from taskpass.core.request import REQUEST_TABLE, AccessRequest, RequestEvent, RequestState
from taskpass.core.task import TASK_TABLE, Task, TaskEvent, TaskState
from taskpass.keys.base import Verifier
from taskpass.store.base import Store, Unit
from taskpass.testing.suites.records import NOW, REVIEWER, SPONSOR, Records, event

LATER = Instant(NOW + 60_000)
PROOF: dict[str, object] = {"answer": "AuthenticationOk,28000"}

TO_LEASE: dict[LeaseState, tuple[LeaseEvent, ...]] = {
    LeaseState.INTENDED: (),
    LeaseState.ACTIVE: (LeaseEvent.CREATED,),
    LeaseState.CLOSING: (LeaseEvent.TAKE_BACK,),
    LeaseState.CLOSED: (LeaseEvent.TAKE_BACK, LeaseEvent.PROVEN),
    LeaseState.CLEANED: (LeaseEvent.TAKE_BACK, LeaseEvent.PROVEN, LeaseEvent.CLEANED),
}
TO_REQUEST: dict[RequestState, tuple[RequestEvent, ...]] = {
    RequestState.PENDING: (),
    RequestState.APPROVED: (RequestEvent.APPROVE,),
    RequestState.FULFILLED: (RequestEvent.APPROVE, RequestEvent.FULFIL),
    RequestState.DENIED: (RequestEvent.DENY,),
    RequestState.CANCELLED: (RequestEvent.CANCEL,),
    RequestState.EXPIRED: (RequestEvent.LAPSE,),
}


class Place(Protocol):
    """A store that was created and can be opened again and again; every handle is closed at the end of the test."""

    @property
    def verifier(self) -> Verifier:
        """For the key that the handles sign with."""
        ...

    def open(self) -> Store: ...
    def execute(self, statement: str) -> int:
        """Run a hand-written statement past the store; the number of rows changed. Raises what the driver raises."""
        ...


def _proof(step: LeaseEvent) -> dict[str, Any]:
    return {"proof": PROOF} if step in (LeaseEvent.PROVEN, LeaseEvent.WRITE_OFF) else {}


def _compete(count: int, attempt: Callable[[int], object]) -> list[object]:
    """What ``count`` threads got that ran ``attempt`` at once: a result or an error of ours."""

    def one(number: int) -> object:
        try:
            return attempt(number)
        except TaskpassError as error:
            return error

    with ThreadPoolExecutor(max_workers=count) as pool:
        return list(pool.map(one, range(count)))


class StoreSuite:
    """Behaviour that callers rely on. Method names are the sentences."""

    refused: type[Exception] = Exception
    """What ``Place.execute`` raises when the database refuses."""

    @pytest.fixture
    def store(self, place: Place) -> Store:
        return place.open()

    @pytest.fixture
    def records(self, store: Store) -> Records:
        with store.read() as unit:
            return Records(unit.installation.id)

    # What is put in comes out

    def test_every_record_comes_back_as_it_was_put_in(self, store: Store, records: Records) -> None:
        run = records.run()
        task = records.task(run=run.id, parents=(TaskId("tsk_0"),))
        request = records.request(task.id)
        approval = records.approval(request.id)
        grant = records.grant(request, approvals=(approval.id,))
        lease = records.lease(grant)
        with store.write() as unit:
            unit.runs.add(run)
            unit.tasks.add(task)
            unit.requests.add(request)
            unit.approvals.add(approval)
            unit.grants.add(grant)
            unit.leases.add(lease)
        with store.read() as unit:
            assert unit.runs.get(run.id) == run
            assert unit.tasks.get(task.id) == task
            assert unit.requests.get(request.id) == request
            assert unit.approvals.of_request(request.id) == [approval]
            assert unit.grants.get(grant.id) == unit.grants.of_request(request.id) == grant
            assert unit.leases.get(lease.id) == lease
            assert unit.leases.get(lease.id).target == lease.target

    def test_hostile_text_comes_back_unchanged(self, store: Store, records: Records) -> None:
        for text in ("'; DROP TABLE leases; --", "\u202egnp", "🙂" * 500, "a\nb\tc\x7f", "%_\\", '{"x": 1}'):
            task = records.task(repository=text)
            with store.write() as unit:
                unit.tasks.add(task)
                assert unit.tasks.get(task.id).repository.value == text
                assert unit.tasks.find_unattached(SPONSOR, "laptop", text) == task

    def test_what_cannot_be_stored_is_refused_whole(self, store: Store, records: Records) -> None:
        for task in (records.task(repository="\ud800"), records.task(expires_at=Instant(2**63))):
            with pytest.raises(InvalidInput), store.write() as unit:
                unit.audit.append(event(), NOW)
                unit.tasks.add(task)
            with store.read() as unit:
                assert unit.audit.head() == (0, GENESIS)
                with pytest.raises(NotFound):
                    unit.tasks.get(task.id)

    def test_an_absent_record_is_not_found(self, store: Store, records: Records) -> None:
        with store.write() as unit:
            for absent in (
                lambda: unit.runs.get(records.run().id),
                lambda: unit.tasks.get(TaskId("tsk_none")),
                lambda: unit.requests.get(RequestId("req_none")),
                lambda: unit.grants.get(GrantId("grt_none")),
                lambda: unit.leases.get(records.lease(_grant(records)).id),
                lambda: unit.leases.note(records.lease(_grant(records)).id, attempts=1),
                lambda: unit.tasks.advance(TaskId("tsk_none"), TaskEvent.COMPLETE, NOW, reason=""),
                lambda: unit.approvals.consume([ApprovalId("apr_none")], GrantId("grt_none")),
            ):
                with pytest.raises(NotFound):
                    absent()
            assert unit.grants.of_request(RequestId("req_none")) is None
            assert unit.approvals.consumed(ApprovalId("apr_none")) is None

    def test_a_second_record_of_the_same_id_is_a_conflict(self, store: Store, records: Records) -> None:
        _, _, grant, lease = _lease(store, records)
        adding: list[Callable[[Unit], None]] = [
            lambda unit: unit.leases.add(lease),
            lambda unit: unit.leases.add(replace(records.lease(grant), role=lease.role)),
            lambda unit: unit.grants.add(grant),
            lambda unit: unit.grants.add(replace(grant, id=GrantId("grt_other"))),
        ]
        for add in adding:
            with pytest.raises(Conflict), store.write() as unit:
                add(unit)

    def test_a_record_that_refers_to_nothing_is_a_conflict(self, store: Store, records: Records) -> None:
        with pytest.raises(Conflict), store.write() as unit:
            unit.requests.add(records.request(TaskId("tsk_none")))
        with pytest.raises(Conflict), store.write() as unit:
            unit.tasks.add(records.task(run=records.run().id))

    # Units of work

    def test_an_error_undoes_the_whole_unit(self, store: Store, records: Records) -> None:
        task = records.task()
        with pytest.raises(ZeroDivisionError), store.write() as unit:
            unit.tasks.add(task)
            unit.audit.append(event(), NOW)
            unit.see_time(LATER)
            raise ZeroDivisionError
        with store.read() as unit:
            assert unit.audit.head() == (0, GENESIS)
            assert unit.installation.latest_seen == NOW
            with pytest.raises(NotFound):
                unit.tasks.get(task.id)

    def test_a_failed_unit_cannot_go_on(self, store: Store, records: Records) -> None:
        task = records.task()
        with pytest.raises(TaskpassError), store.write() as unit:
            unit.audit.append(event(), NOW)
            unit.tasks.add(task)
            with pytest.raises(Conflict):
                unit.tasks.add(task)
        with store.read() as unit:
            assert unit.audit.head() == (0, GENESIS)

    def test_a_unit_is_over_after_its_block(self, store: Store) -> None:
        with store.write() as unit:
            pass
        with pytest.raises(TaskpassError):
            unit.audit.append(event(), NOW)

    def test_a_reading_unit_cannot_write(self, store: Store, records: Records) -> None:
        with store.read() as unit:
            with pytest.raises(TaskpassError):
                unit.tasks.add(records.task())
            with pytest.raises(TaskpassError):
                unit.audit.append(event(), NOW)

    def test_a_read_sees_one_state_while_another_handle_writes(self, place: Place, records: Records) -> None:
        reader, writer = place.open(), place.open()
        with reader.read() as before:
            assert before.audit.head()[0] == 0
            with writer.write() as unit:
                unit.audit.append(event(), NOW)
            assert before.audit.head()[0] == 0
        with reader.read() as after:
            assert after.audit.head()[0] == 1

    # States

    @pytest.mark.parametrize("state", LeaseState)
    @pytest.mark.parametrize("step", LeaseEvent)
    def test_a_lease_moves_by_its_table_only(
        self, store: Store, records: Records, state: LeaseState, step: LeaseEvent
    ) -> None:
        lease = _lease_in(store, records, state)
        after = LEASE_TABLE[state].get(step)
        with store.write() as unit:
            if after is None:
                with pytest.raises(IllegalTransition):
                    unit.leases.advance(lease.id, step, LATER, **_proof(step))
            else:
                assert unit.leases.advance(lease.id, step, LATER, **_proof(step)).state is after
        with store.read() as unit:
            assert unit.leases.get(lease.id).state is (after or state)

    @pytest.mark.parametrize("state", RequestState)
    @pytest.mark.parametrize("step", RequestEvent)
    def test_a_request_moves_by_its_table_only(
        self, store: Store, records: Records, state: RequestState, step: RequestEvent
    ) -> None:
        request = _request_in(store, records, state)
        after = REQUEST_TABLE[state].get(step)
        with store.write() as unit:
            if after is None:
                with pytest.raises(IllegalTransition):
                    unit.requests.advance(request.id, step, LATER)
            else:
                assert unit.requests.advance(request.id, step, LATER).state is after
        with store.read() as unit:
            assert unit.requests.get(request.id).state is (after or state)

    def test_a_task_completes_once(self, store: Store, records: Records) -> None:
        task = _task(store, records)
        with store.write() as unit:
            done = unit.tasks.advance(task.id, TaskEvent.COMPLETE, LATER, reason="merged")
            assert (done.state, done.ended_at, done.reason) == (TaskState.COMPLETED, LATER, "merged")
            with pytest.raises(IllegalTransition):
                unit.tasks.advance(task.id, TaskEvent.COMPLETE, LATER, reason="again")

    @pytest.mark.parametrize("old", LeaseState)
    def test_the_database_refuses_steps_of_a_lease_that_the_table_lacks(
        self, place: Place, store: Store, records: Records, old: LeaseState
    ) -> None:
        lease = _lease_in(store, records, old)
        for new in LeaseState:
            if (old.value, new.value) not in machine.pairs(LEASE_TABLE):
                self._refuses(place, f"UPDATE leases SET state = '{new}', proof = 'x' WHERE id = '{lease.id}'")
        with store.read() as unit:
            assert unit.leases.get(lease.id).state is old

    @pytest.mark.parametrize("old", RequestState)
    def test_the_database_refuses_steps_of_a_request_that_the_table_lacks(
        self, place: Place, store: Store, records: Records, old: RequestState
    ) -> None:
        request = _request_in(store, records, old)
        for new in RequestState:
            if (old.value, new.value) not in machine.pairs(REQUEST_TABLE):
                self._refuses(place, f"UPDATE requests SET state = '{new}' WHERE id = '{request.id}'")

    def test_the_database_refuses_steps_of_a_task_that_the_table_lacks(
        self, place: Place, store: Store, records: Records
    ) -> None:
        task = _task(store, records)
        for old in TaskState:
            for new in TaskState:
                if (old.value, new.value) not in machine.pairs(TASK_TABLE):
                    self._refuses(place, f"UPDATE tasks SET state = '{new}' WHERE id = '{task.id}'")
            if old is TaskState.OPEN:
                assert place.execute(f"UPDATE tasks SET state = 'completed' WHERE id = '{task.id}'") == 1

    def test_the_database_allows_the_steps_that_the_tables_have(
        self, place: Place, store: Store, records: Records
    ) -> None:
        for old, new in sorted(machine.pairs(LEASE_TABLE)):
            lease = _lease_in(store, records, LeaseState(old))
            assert place.execute(f"UPDATE leases SET state = '{new}', proof = 'x' WHERE id = '{lease.id}'") == 1

    def test_an_unknown_state_is_refused_by_the_database(self, place: Place, store: Store, records: Records) -> None:
        lease = _lease_in(store, records, LeaseState.ACTIVE)
        self._refuses(place, f"UPDATE leases SET state = 'immortal' WHERE id = '{lease.id}'")

    def test_a_record_begins_in_its_first_state_only(self, store: Store, records: Records) -> None:
        task, _, grant, _ = _lease(store, records)
        adding: list[Callable[[Unit], None]] = [
            lambda unit: unit.tasks.add(records.task(state=TaskState.COMPLETED)),
            lambda unit: unit.requests.add(records.request(task.id, state=RequestState.APPROVED)),
            lambda unit: unit.leases.add(records.lease(grant, state=LeaseState.ACTIVE)),
        ]
        for add in adding:
            with pytest.raises(IllegalTransition), store.write() as unit:
                add(unit)

    def test_what_a_record_is_about_never_changes(self, place: Place, store: Store, records: Records) -> None:
        task, request, grant, lease = _lease(store, records)
        for table, key, column in (
            ("tasks", task.id, "sponsor"),
            ("tasks", task.id, "id"),
            ("requests", request.id, "manifest"),
            ("requests", request.id, "digest"),
            ("grants", grant.id, "manifest"),
            ("grants", grant.id, "ends_at"),
            ("leases", lease.id, "role"),
            ("leases", lease.id, "target"),
        ):
            self._refuses(place, f"UPDATE {table} SET {column} = '9' WHERE id = '{key}'")
        for table in ("tasks", "requests", "grants", "leases", "installation"):
            self._refuses(place, f"DELETE FROM {table}")
        for column in ("id", "demo", "created_at"):
            self._refuses(place, f"UPDATE installation SET {column} = 1")
        self._refuses(place, "UPDATE installation SET latest_seen = latest_seen - 1")
        self._refuses(place, "UPDATE installation SET epoch = 0")

    def _refuses(self, place: Place, statement: str) -> None:
        with pytest.raises(self.refused):
            place.execute(statement)

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
        task = _task(store, records)
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
        request = _request_in(store, records, RequestState.PENDING)
        with store.write() as unit:
            unit.approvals.add(records.approval(request.id))
        with pytest.raises(Conflict), store.write() as unit:
            unit.approvals.add(records.approval(request.id))
        with store.write() as unit:
            unit.approvals.add(records.approval(request.id, approver=HumanId("cy@example")))
            assert len(unit.approvals.of_request(request.id)) == 2

    def test_a_vote_never_changes(self, place: Place, store: Store, records: Records) -> None:
        request = _request_in(store, records, RequestState.PENDING)
        with store.write() as unit:
            unit.approvals.add(records.approval(request.id))
        for column in ("verdict", "signature", "manifest", "digest", "expires_at", "approver"):
            self._refuses(place, f"UPDATE approvals SET {column} = '9'")
        self._refuses(place, "DELETE FROM approvals")

    def test_an_approval_is_used_once(self, place: Place, store: Store, records: Records) -> None:
        approval, grants = _approved(store, records, 2)
        with store.write() as unit:
            unit.approvals.consume([approval], grants[0])
            assert unit.approvals.consumed(approval) == grants[0]
        with pytest.raises(Conflict), store.write() as unit:
            unit.approvals.consume([approval], grants[1])
        self._refuses(place, f"UPDATE approval_uses SET \"grant\" = '{grants[1]}'")
        self._refuses(place, "DELETE FROM approval_uses")

    def test_an_approval_may_be_used_up_before_its_grant_is_added(self, store: Store, records: Records) -> None:
        approval, _ = _approved(store, records, 0)
        request = _request_in(store, records, RequestState.APPROVED)
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
        approval, grants = _approved(store, records, 50)
        handles = [store, place.open()]

        def use(number: int) -> GrantId:
            with handles[number % 2].write() as unit:
                unit.approvals.consume([approval], grants[number])
            return grants[number]

        results = _compete(50, use)
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

        results = _compete(50, take)
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
        lease = _lease_in(store, records, LeaseState.ACTIVE)
        end = Instant(LATER + 9)
        with store.write() as unit:
            renewed = unit.leases.advance(lease.id, LeaseEvent.RENEW, NOW, expires_at=end, renewals=1)
            assert (renewed.state, renewed.expires_at, renewed.renewals) == (LeaseState.ACTIVE, end, 1)
            closing = unit.leases.advance(lease.id, LeaseEvent.TAKE_BACK, LATER, reason="revoked")
            assert (closing.closing_at, closing.reason) == (LATER, "revoked")
            closed = unit.leases.advance(lease.id, LeaseEvent.PROVEN, end, proof=PROOF)
            assert (closed.closing_at, closed.closed_at, closed.proof) == (LATER, end, PROOF)

    def test_a_lease_is_closed_with_a_proof_only(self, place: Place, store: Store, records: Records) -> None:
        lease = _lease_in(store, records, LeaseState.CLOSING)
        without: tuple[dict[str, Any], ...] = ({}, {"proof": {}})
        for proof in without:
            with pytest.raises(InvalidInput), store.write() as unit:
                unit.leases.advance(lease.id, LeaseEvent.PROVEN, LATER, **proof)
        self._refuses(place, f"UPDATE leases SET state = 'closed' WHERE id = '{lease.id}'")

    def test_fields_that_are_not_bookkeeping_cannot_be_noted(self, store: Store, records: Records) -> None:
        lease = _lease_in(store, records, LeaseState.CLOSING)
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
        made = {state: _lease_in(store, records, state) for state in LeaseState}
        with store.read() as unit:
            end = made[LeaseState.ACTIVE].expires_at
            assert unit.leases.expiring(Instant(end - 1)) == []
            found = {lease.id for lease in unit.leases.expiring(end)}
        assert found == {made[LeaseState.INTENDED].id, made[LeaseState.ACTIVE].id}

    def test_closing_leases_are_due_until_proven_and_wait_for_their_retry(self, store: Store, records: Records) -> None:
        made = {state: _lease_in(store, records, state) for state in LeaseState}
        closing = made[LeaseState.CLOSING].id
        with store.write() as unit:
            assert [lease.id for lease in unit.leases.due(NOW)] == [closing]
            unit.leases.note(closing, retry_at=LATER)
            assert unit.leases.due(Instant(LATER - 1)) == []
            assert [lease.id for lease in unit.leases.due(LATER)] == [closing]

    def test_leases_are_listed_by_what_they_belong_to(self, store: Store, records: Records) -> None:
        task, _, grant, lease = _lease(store, records)
        _lease(store, records)
        with store.read() as unit:
            assert unit.leases.list(task=task.id) == unit.leases.list(grant=grant.id) == [lease]
            assert len(unit.leases.list(resource="orders")) == 2
            assert unit.leases.list(resource="other") == unit.leases.list(states=[]) == []
            assert len(unit.leases.list(states=[LeaseState.INTENDED], limit=1)) == 1

    def test_leases_count_as_live_until_they_are_closed(self, store: Store, records: Records) -> None:
        for state in LeaseState:
            _lease_in(store, records, state)
        with store.read() as unit:
            assert unit.leases.count_live() == unit.leases.count_live(sponsor=SPONSOR) == 3
            assert unit.leases.count_live(sponsor=HumanId("else@example")) == 0
            task = unit.leases.list(states=[LeaseState.CLOSING])[0].task
            assert unit.leases.count_live(task=task, sponsor=SPONSOR) == 1

    def test_a_lease_is_claimed_once_by_many(self, place: Place, store: Store, records: Records) -> None:
        lease = _lease_in(store, records, LeaseState.ACTIVE)
        handles = [store, place.open(), place.open()]

        def claim(number: int) -> bool:
            with handles[number % 3].write() as unit:
                unit.leases.advance(lease.id, LeaseEvent.TAKE_BACK, LATER, reason=str(number))
            return True

        results = _compete(24, claim)
        assert results.count(True) == 1
        assert sum(isinstance(result, IllegalTransition) for result in results) == 23

    def test_no_update_is_lost(self, place: Place, store: Store, records: Records) -> None:
        lease = _lease_in(store, records, LeaseState.CLOSING)
        handles = [store, place.open()]

        def count(number: int) -> bool:
            with handles[number % 2].write() as unit:
                unit.leases.note(lease.id, attempts=unit.leases.get(lease.id).attempts + 1)
            return True

        assert _compete(40, count) == [True] * 40
        with store.read() as unit:
            assert unit.leases.get(lease.id).attempts == 40

    # Time

    def test_the_latest_time_seen_never_goes_back(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            assert unit.see_time(LATER) == LATER
            assert unit.see_time(NOW) == LATER
            assert unit.installation.latest_seen == LATER
        with place.open().read() as unit:
            assert unit.installation.latest_seen == LATER

    # Audit

    def test_records_are_chained_and_signed(self, place: Place, store: Store) -> None:
        for number in range(3):
            with store.write() as unit:
                first = unit.audit.append(event(number), NOW)
                second = unit.audit.append(event(number), NOW)
                assert (second.seq, second.prev) == (first.seq + 1, first.hash)
                assert unit.audit.head() == (second.seq, second.hash)
        assert _check(place, store) == 6

    def test_many_threads_and_handles_make_one_chain(self, place: Place, store: Store) -> None:
        handles = [store, place.open(), place.open()]

        def append(number: int) -> bool:
            for _ in range(4):
                with handles[number % 3].write() as unit:
                    unit.audit.append(event(number), NOW)
            return True

        assert _compete(12, append) == [True] * 12
        assert _check(place, store) == 48

    def test_audit_records_never_change(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            record = unit.audit.append(event(task="tsk_1"), NOW)
            unit.audit.append(event(), NOW)
        for column in ("body", "hash", "prev", "signature", "key", "seq"):
            self._refuses(place, f"UPDATE audit SET {column} = '9' WHERE seq = 1")
        self._refuses(place, "DELETE FROM audit WHERE seq = 2")
        self._refuses(place, "UPDATE audit_subjects SET subject = 'x'")
        columns = "(seq, body, prev, hash, signature, key)"
        self._refuses(place, f"INSERT INTO audit {columns} VALUES (2, 'b', '{record.hash}', 'h', 's', 'k')")
        self._refuses(place, f"INSERT INTO audit {columns} VALUES (4, 'b', '{record.hash}', 'h', 's', 'k')")
        self._refuses(place, f"INSERT INTO audit {columns} VALUES (3, 'b', '{record.hash}', 'h', 's', 'k')")
        assert _check(place, store) == 2

    def test_records_are_found_by_what_they_are_about(self, store: Store) -> None:
        with store.write() as unit:
            first = unit.audit.append(event(1, task="tsk_1", lease="lse_1", again="tsk_1"), NOW)
            second = unit.audit.append(event(2, task="tsk_1", lease="lse_2"), NOW)
            unit.audit.append(event(3), NOW)
            assert unit.audit.about("tsk_1") == [first, second]
            assert unit.audit.about("lse_2") == [second]
            assert unit.audit.about("tsk_1", limit=1) == [first]
            assert unit.audit.about("tsk_") == []
            assert unit.audit.records(after=1, limit=1) == [second]

    def test_an_event_that_cannot_be_digested_is_refused_whole(self, store: Store) -> None:
        with pytest.raises(InvalidInput), store.write() as unit:
            unit.audit.append(event(), NOW)
            unit.audit.append(replace(event(), data={"x": 0.5}), NOW)
        assert list(store.iterate_audit()) == []

    def test_all_records_are_read_in_order_over_batches(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            for number in range(1005):
                unit.audit.append(event(number), NOW)
        assert [record.seq for record in store.iterate_audit()] == list(range(1, 1006))
        assert [record.seq for record in store.iterate_audit(after=1003)] == [1004, 1005]


def _check(place: Place, store: Store) -> int:
    """The number of records in a chain that verifies with the trusted key."""
    with store.read() as unit:
        installation = unit.installation.id
    report = verify(store.iterate_audit(), installation, place.verifier)
    assert report.ok, report.fault
    return report.seq


def _task(store: Store, records: Records) -> Task:
    task = records.task()
    with store.write() as unit:
        unit.tasks.add(task)
    return task


def _request(unit: Unit, records: Records) -> AccessRequest:
    task = records.task()
    request = records.request(task.id)
    unit.tasks.add(task)
    unit.requests.add(request)
    return request


def _request_in(store: Store, records: Records, state: RequestState) -> AccessRequest:
    with store.write() as unit:
        request = _request(unit, records)
        for step in TO_REQUEST[state]:
            request = unit.requests.advance(request.id, step, NOW)
    assert request.state is state
    return request


def _grant(records: Records) -> Grant:
    return records.grant(records.request(records.task().id))


def _lease(store: Store, records: Records) -> tuple[Task, AccessRequest, Grant, Lease]:
    with store.write() as unit:
        request = _request(unit, records)
        grant = records.grant(request)
        lease = records.lease(grant)
        unit.grants.add(grant)
        unit.leases.add(lease)
        return unit.tasks.get(request.task), request, grant, lease


def _lease_in(store: Store, records: Records, state: LeaseState) -> Lease:
    lease = _lease(store, records)[3]
    with store.write() as unit:
        for step in TO_LEASE[state]:
            lease = unit.leases.advance(lease.id, step, NOW, **_proof(step))
    assert lease.state is state
    return lease


def _approved(store: Store, records: Records, grants: int) -> tuple[ApprovalId, list[GrantId]]:
    """An approval, and ``grants`` grants (of other requests) that could each try to use it."""
    made: list[GrantId] = []
    with store.write() as unit:
        request = _request(unit, records)
        approval = records.approval(request.id)
        unit.approvals.add(approval)
        for _ in range(grants):
            grant = records.grant(_request(unit, records))
            unit.grants.add(grant)
            made.append(grant.id)
    return approval.id, made
