"""What the store suite stands on: a place to open stores in, and records in any state that a test needs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest

from taskpass.audit.verify import verify
from taskpass.core.clock import Instant
from taskpass.core.errors import TaskpassError
from taskpass.core.grant import Grant
from taskpass.core.ids import ApprovalId, GrantId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.request import AccessRequest, RequestEvent, RequestState
from taskpass.core.task import Task
from taskpass.keys.base import Verifier
from taskpass.store.base import Store, Unit
from taskpass.testing.suites.records import NOW, Records

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


def proof_for(step: LeaseEvent) -> dict[str, Any]:
    return {"proof": PROOF} if step in (LeaseEvent.PROVEN, LeaseEvent.WRITE_OFF) else {}


def compete(count: int, attempt: Callable[[int], object]) -> list[object]:
    """What ``count`` threads got that ran ``attempt`` at once: a result or an error of ours."""

    def one(number: int) -> object:
        try:
            return attempt(number)
        except TaskpassError as error:
            return error

    with ThreadPoolExecutor(max_workers=count) as pool:
        return list(pool.map(one, range(count)))


class StoreFixtures:
    """Fixtures and helpers of the classes that make up the suite."""

    refused: type[Exception] = Exception
    """What ``Place.execute`` raises when the database refuses."""

    @pytest.fixture
    def store(self, place: Place) -> Store:
        return place.open()

    @pytest.fixture
    def records(self, store: Store) -> Records:
        with store.read() as unit:
            return Records(unit.installation.id)

    def refuses(self, place: Place, statement: str) -> None:
        with pytest.raises(self.refused):
            place.execute(statement)


def verified(place: Place, store: Store) -> int:
    """The number of records in a chain that verifies with the trusted key."""
    with store.read() as unit:
        installation = unit.installation.id
    report = verify(store.iterate_audit(), installation, place.verifier)
    assert report.ok, report.fault
    return report.seq


def add_task(store: Store, records: Records) -> Task:
    task = records.task()
    with store.write() as unit:
        unit.tasks.add(task)
    return task


def add_request(unit: Unit, records: Records) -> AccessRequest:
    task = records.task()
    request = records.request(task.id)
    unit.tasks.add(task)
    unit.requests.add(request)
    return request


def request_in(store: Store, records: Records, state: RequestState) -> AccessRequest:
    with store.write() as unit:
        request = add_request(unit, records)
        for step in TO_REQUEST[state]:
            request = unit.requests.advance(request.id, step, NOW)
    assert request.state is state
    return request


def unstored_grant(records: Records) -> Grant:
    return records.grant(records.request(records.task().id))


def add_lease(store: Store, records: Records) -> tuple[Task, AccessRequest, Grant, Lease]:
    with store.write() as unit:
        request = add_request(unit, records)
        grant = records.grant(request)
        lease = records.lease(grant)
        unit.grants.add(grant)
        unit.leases.add(lease)
        return unit.tasks.get(request.task), request, grant, lease


def lease_in(store: Store, records: Records, state: LeaseState) -> Lease:
    lease = add_lease(store, records)[3]
    with store.write() as unit:
        for step in TO_LEASE[state]:
            lease = unit.leases.advance(lease.id, step, NOW, **proof_for(step))
    assert lease.state is state
    return lease


def approved(store: Store, records: Records, grants: int) -> tuple[ApprovalId, list[GrantId]]:
    """An approval, and ``grants`` grants (of other requests) that could each try to use it."""
    made: list[GrantId] = []
    with store.write() as unit:
        request = add_request(unit, records)
        approval = records.approval(request.id)
        unit.approvals.add(approval)
        for _ in range(grants):
            grant = records.grant(add_request(unit, records))
            unit.grants.add(grant)
            made.append(grant.id)
    return approval.id, made
