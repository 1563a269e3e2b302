"""States and what never changes, also against hand-written statements: what every store must do."""

# ruff: noqa: S608 - hand-written statements are the point here, and an error is raised by a unit as a whole.

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskpass.core import machine
from taskpass.core.errors import IllegalTransition
from taskpass.core.lease import LEASE_TABLE, LeaseEvent, LeaseState
from taskpass.core.request import REQUEST_TABLE, RequestEvent, RequestState
from taskpass.core.task import TASK_TABLE, TaskEvent, TaskState
from taskpass.store.base import Store, Unit
from taskpass.testing.suites.records import Records
from taskpass.testing.suites.store_place import (
    LATER,
    Place,
    StoreFixtures,
    add_lease,
    add_task,
    lease_in,
    proof_for,
    request_in,
)


class StateSuite(StoreFixtures):
    @pytest.mark.parametrize("state", LeaseState)
    @pytest.mark.parametrize("step", LeaseEvent)
    def test_a_lease_moves_by_its_table_only(
        self, store: Store, records: Records, state: LeaseState, step: LeaseEvent
    ) -> None:
        lease = lease_in(store, records, state)
        after = LEASE_TABLE[state].get(step)
        with store.write() as unit:
            if after is None:
                with pytest.raises(IllegalTransition):
                    unit.leases.advance(lease.id, step, LATER, **proof_for(step))
            else:
                assert unit.leases.advance(lease.id, step, LATER, **proof_for(step)).state is after
        with store.read() as unit:
            assert unit.leases.get(lease.id).state is (after or state)

    @pytest.mark.parametrize("state", RequestState)
    @pytest.mark.parametrize("step", RequestEvent)
    def test_a_request_moves_by_its_table_only(
        self, store: Store, records: Records, state: RequestState, step: RequestEvent
    ) -> None:
        request = request_in(store, records, state)
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
        task = add_task(store, records)
        with store.write() as unit:
            done = unit.tasks.advance(task.id, TaskEvent.COMPLETE, LATER, reason="merged")
            assert (done.state, done.ended_at, done.reason) == (TaskState.COMPLETED, LATER, "merged")
            with pytest.raises(IllegalTransition):
                unit.tasks.advance(task.id, TaskEvent.COMPLETE, LATER, reason="again")

    @pytest.mark.parametrize("old", LeaseState)
    def test_the_database_refuses_steps_of_a_lease_that_the_table_lacks(
        self, place: Place, store: Store, records: Records, old: LeaseState
    ) -> None:
        lease = lease_in(store, records, old)
        for new in LeaseState:
            if (old.value, new.value) not in machine.pairs(LEASE_TABLE):
                self.refuses(place, f"UPDATE leases SET state = '{new}', proof = 'x' WHERE id = '{lease.id}'")
        with store.read() as unit:
            assert unit.leases.get(lease.id).state is old

    @pytest.mark.parametrize("old", RequestState)
    def test_the_database_refuses_steps_of_a_request_that_the_table_lacks(
        self, place: Place, store: Store, records: Records, old: RequestState
    ) -> None:
        request = request_in(store, records, old)
        for new in RequestState:
            if (old.value, new.value) not in machine.pairs(REQUEST_TABLE):
                self.refuses(place, f"UPDATE requests SET state = '{new}' WHERE id = '{request.id}'")

    def test_the_database_refuses_steps_of_a_task_that_the_table_lacks(
        self, place: Place, store: Store, records: Records
    ) -> None:
        task = add_task(store, records)
        for old in TaskState:
            for new in TaskState:
                if (old.value, new.value) not in machine.pairs(TASK_TABLE):
                    self.refuses(place, f"UPDATE tasks SET state = '{new}' WHERE id = '{task.id}'")
            if old is TaskState.OPEN:
                assert place.execute(f"UPDATE tasks SET state = 'completed' WHERE id = '{task.id}'") == 1

    def test_the_database_allows_the_steps_that_the_tables_have(
        self, place: Place, store: Store, records: Records
    ) -> None:
        for old, new in sorted(machine.pairs(LEASE_TABLE)):
            lease = lease_in(store, records, LeaseState(old))
            assert place.execute(f"UPDATE leases SET state = '{new}', proof = 'x' WHERE id = '{lease.id}'") == 1

    def test_an_unknown_state_is_refused_by_the_database(self, place: Place, store: Store, records: Records) -> None:
        lease = lease_in(store, records, LeaseState.ACTIVE)
        self.refuses(place, f"UPDATE leases SET state = 'immortal' WHERE id = '{lease.id}'")

    def test_a_record_begins_in_its_first_state_only(self, store: Store, records: Records) -> None:
        task, _, grant, _ = add_lease(store, records)
        adding: list[Callable[[Unit], None]] = [
            lambda unit: unit.tasks.add(records.task(state=TaskState.COMPLETED)),
            lambda unit: unit.requests.add(records.request(task.id, state=RequestState.APPROVED)),
            lambda unit: unit.leases.add(records.lease(grant, state=LeaseState.ACTIVE)),
        ]
        for add in adding:
            with pytest.raises(IllegalTransition), store.write() as unit:
                add(unit)

    def test_what_a_record_is_about_never_changes(self, place: Place, store: Store, records: Records) -> None:
        task, request, grant, lease = add_lease(store, records)
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
            self.refuses(place, f"UPDATE {table} SET {column} = '9' WHERE id = '{key}'")
        for table in ("tasks", "requests", "grants", "leases", "installation"):
            self.refuses(place, f"DELETE FROM {table}")
        for column in ("id", "demo", "created_at"):
            self.refuses(place, f"UPDATE installation SET {column} = {column}")
        self.refuses(place, "UPDATE installation SET latest_seen = latest_seen - 1")
        self.refuses(place, "UPDATE installation SET epoch = 0")
