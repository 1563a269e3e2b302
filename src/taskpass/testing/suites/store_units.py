"""Units of work, time and the audit log: what every store must do."""

# ruff: noqa: S608, PT012 - hand-written statements are the point here, and an error is raised by a unit as a whole.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from taskpass.core.audit import ADOPTED, GENESIS, Event
from taskpass.core.clock import Instant
from taskpass.core.errors import Conflict, InvalidInput, NotFound, TaskpassError
from taskpass.core.ids import ApprovalId, GrantId, RequestId, TaskId
from taskpass.core.task import TaskEvent
from taskpass.store.base import Owner, Store, Unit
from taskpass.testing.suites.records import NOW, SPONSOR, Records, event
from taskpass.testing.suites.store_place import (
    LATER,
    Place,
    StoreFixtures,
    add_lease,
    compete,
    unstored_grant,
    verified,
)


class UnitSuite(StoreFixtures):
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
                lambda: unit.leases.get(records.lease(unstored_grant(records)).id),
                lambda: unit.leases.note(records.lease(unstored_grant(records)).id, attempts=1),
                lambda: unit.tasks.advance(TaskId("tsk_none"), TaskEvent.COMPLETE, NOW, reason=""),
                lambda: unit.approvals.consume([ApprovalId("apr_none")], GrantId("grt_none")),
            ):
                with pytest.raises(NotFound):
                    absent()
            assert unit.grants.of_request(RequestId("req_none")) is None
            assert unit.approvals.consumed(ApprovalId("apr_none")) is None

    def test_a_second_record_of_the_same_id_is_a_conflict(self, store: Store, records: Records) -> None:
        _, _, grant, lease = add_lease(store, records)
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

    # Time

    def test_the_latest_time_seen_never_goes_back(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            assert unit.see_time(LATER) == LATER
            assert unit.see_time(NOW) == LATER
            assert unit.installation.latest_seen == LATER
        with place.open().read() as unit:
            assert unit.installation.latest_seen == LATER

    # Owners

    def test_a_broker_lives_until_it_is_not_seen_or_says_that_it_ended(self, store: Store) -> None:
        with store.write() as unit:
            for broker in ("brk_1", "brk_1", "brk_2"):
                unit.owners.beat(broker, "laptop")
        with store.read() as unit:
            assert unit.owners.alive(60) == {"brk_1", "brk_2"}
            assert unit.owners.machines(60) == {"brk_1": "laptop", "brk_2": "laptop"}
            assert unit.owners.alive(-60) == frozenset()
        with store.write() as unit:
            unit.owners.end("brk_1")
            assert unit.owners.alive(60) == {"brk_2"}
            unit.owners.beat("brk_1", "laptop")
            assert unit.owners.alive(60) == {"brk_1", "brk_2"}

    def test_every_change_of_owner_raises_the_token_and_none_lowers_it(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            for broker in ("brk_1", "brk_2"):
                unit.owners.beat(broker, "laptop")
            assert unit.owners.of(["lse_1"]) == {}
            assert [unit.owners.give("lse_1", broker) for broker in ("brk_1", "brk_2", "brk_2")] == [1, 2, 3]
            assert unit.owners.of(["lse_1", "lse_2"]) == {"lse_1": Owner("brk_2", 3)}
        self.refuses(place, "UPDATE owners SET token = 3, broker = 'brk_1'")
        self.refuses(place, "UPDATE owners SET token = 1")
        with pytest.raises(TaskpassError), store.write() as unit:
            unit.owners.give("lse_1", "brk_never_seen")

    # Audit

    def test_records_are_chained_and_signed(self, place: Place, store: Store) -> None:
        for number in range(3):
            with store.write() as unit:
                first = unit.audit.append(event(number), NOW)
                second = unit.audit.append(event(number), NOW)
                assert (second.seq, second.prev) == (first.seq + 1, first.hash)
                assert unit.audit.head() == (second.seq, second.hash)
        assert verified(place, store) == 6

    def test_many_threads_and_handles_make_one_chain(self, place: Place, store: Store) -> None:
        handles = [store, place.open(), place.open()]

        def append(number: int) -> bool:
            for _ in range(4):
                with handles[number % 3].write() as unit:
                    unit.audit.append(event(number), NOW)
            return True

        assert compete(12, append) == [True] * 12
        assert verified(place, store) == 48

    def test_audit_records_never_change(self, place: Place, store: Store) -> None:
        with store.write() as unit:
            record = unit.audit.append(event(task="tsk_1"), NOW)
            unit.audit.append(event(), NOW)
        for column in ("body", "hash", "prev", "signature", "key", "seq"):
            self.refuses(place, f"UPDATE audit SET {column} = '9' WHERE seq = 1")
        self.refuses(place, "DELETE FROM audit WHERE seq = 2")
        self.refuses(place, "UPDATE audit_subjects SET subject = 'x'")
        columns = "(seq, body, prev, hash, signature, key)"
        self.refuses(place, f"INSERT INTO audit {columns} VALUES (2, 'b', '{record.hash}', 'h', 's', 'k')")
        self.refuses(place, f"INSERT INTO audit {columns} VALUES (4, 'b', '{record.hash}', 'h', 's', 'k')")
        self.refuses(place, f"INSERT INTO audit {columns} VALUES (3, 'b', '{record.hash}', 'h', 's', 'k')")
        assert verified(place, store) == 2

    def test_only_an_adoption_leaves_numbers_out(self, place: Place, store: Store) -> None:
        adoption = Event(ADOPTED, "human:ana", {}, {"last": 1, "highest": 9})
        with store.write() as unit:
            first = unit.audit.append(event(), NOW)
        with pytest.raises(TaskpassError), store.write() as unit:
            unit.audit.append(event(), NOW, above=9)
        with store.write() as unit:
            unit.raise_epoch(1)
            assert unit.audit.append(adoption, NOW, above=9).prev == first.hash
            assert unit.audit.append(event(), NOW, above=1).seq == 11
        assert [record.seq for record in store.iterate_audit()] == [1, 10, 11]
        assert verified(place, store) == 11

    def test_records_are_found_by_what_they_are_about(self, store: Store) -> None:
        with store.write() as unit:
            first = unit.audit.append(event(1, task="tsk_1", lease="lse_1", again="tsk_1"), NOW)
            second = unit.audit.append(event(2, task="tsk_1", lease="lse_2"), NOW)
            unit.audit.append(event(3), NOW)
            assert unit.audit.about("tsk_1") == [first, second]
            assert unit.audit.about("lse_2") == [second]
            assert unit.audit.about("tsk_1", limit=1) == [first]
            assert unit.audit.about("tsk_") == []
            assert [unit.audit.latest(name) for name in ("tsk_1", "lse_1", "tsk_")] == [second, first, None]
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
