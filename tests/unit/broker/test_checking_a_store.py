"""``store check``: every way in which the rows of a store can disagree with each other or the record is named."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest

from taskpass.broker.complete_task import complete_task, end_leases
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.core.task import TaskState
from taskpass.store.check import check
from taskpass.testing.broker import ANA, STAGING, make_harness


class Altered:
    """``inner``, of which one attribute or what one method returns was changed past the broker."""

    def __init__(self, inner, path, change):
        self._inner, self._change = inner, change
        self._name, _, self._rest = path.partition(".")

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name != self._name:
            return found
        if self._rest:
            return Altered(found, self._rest, self._change)
        if callable(found):
            return lambda *words, **named: self._change(found(*words, **named))
        return self._change(found)


class AlteredStore:
    def __init__(self, store, path, change):
        self._store, self._path, self._change = store, path, change

    @contextmanager
    def read(self):
        with self._store.read() as unit:
            yield Altered(unit, self._path, self._change)


@pytest.fixture(scope="module")
def full(new_store, tmp_path_factory):
    """A closed lease that a person approved, an active one, a request that waits, and a task that ended."""
    h = make_harness(tmp_path_factory.mktemp("full"), template=new_store)
    agent = h.run()
    agent.open_task()
    agent.lease()
    approved = h.vote(ANA, agent.request(STAGING, only=("public.orders",)))
    closed = agent.issue(approved).lease
    end_leases(h.broker, [closed.id], reason="released", actor="agent")
    agent.request(STAGING)
    other = h.run()
    complete_task(h.broker, other.open_task("acme/other").id, actor="agent", reason="completed")
    yield h.store
    h.stop()


def each(where, **changes):
    """``where`` holds for the rows that change."""
    return lambda rows: [replace(row, **changes) if where(row) else row for row in rows]


def without(where):
    return lambda rows: [row for row in rows if not where(row)]


def every(_):
    return True


def event(name):
    return lambda record: f'"event":"{name}"' in record.body


def is_active(lease):
    return lease.state is LeaseState.ACTIVE


def is_closed(lease):
    return lease.state in (LeaseState.CLOSED, LeaseState.CLEANED)


def is_fulfilled(request):
    return request.state is RequestState.FULFILLED


def test_a_store_that_only_the_broker_wrote_agrees_in_everything(full):
    found = check(full)
    assert found.problems == ()
    assert (found.leases, found.grants, found.requests, found.tasks) == (2, 2, 3, 2)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("leases.list", without(is_active), "stands in the record and not in the store"),
        ("audit.records", without(lambda r: '"event":"lease.' in r.body), "the record has nothing of it"),
        ("leases.list", each(is_closed, state=LeaseState.ACTIVE), "is active; the record says"),
        ("leases.list", each(is_active, state=LeaseState.CLOSED), "is closed; the record says active"),
        ("leases.list", each(is_active, grant="grt_none"), "has no grant"),
        ("leases.list", each(is_active, manifest_digest="sha256:0"), "other rights than its grant"),
        ("leases.list", each(is_active, task="tsk_other"), "is of another task"),
        ("leases.list", each(is_closed, proof={}), "without a proof"),
        ("grants.list", each(every, request="req_none"), "has no request"),
        ("requests.list", each(is_fulfilled, state=RequestState.PENDING), "is of a request that is pending"),
        ("grants.list", each(every, task="tsk_other"), "or of another task"),
        ("approvals.of_request", lambda _: [], "which is no yes to its request"),
        ("approvals.consumed", lambda _: None, "is not marked as used by"),
        ("approvals.consumed", lambda _: "grt_other", "is not marked as used by"),
        ("audit.records", without(event("request.decided")), "is not in the record"),
        ("requests.list", each(lambda r: not is_fulfilled(r), state=RequestState.FULFILLED), "has no grant"),
        ("requests.list", each(is_fulfilled, state=RequestState.EXPIRED), "is expired and has grant"),
        ("tasks.list", without(lambda t: t.state is not TaskState.OPEN), "stands in the record and not in the store"),
        ("audit.records", without(event("task.opened")), "is not in the record"),
        (
            "tasks.list",
            each(lambda t: t.state is TaskState.OPEN, state=TaskState.COMPLETED),
            "the record says otherwise",
        ),
        ("audit.records", without(event("task.completed")), "the record says otherwise"),
        ("installation", lambda i: replace(i, epoch=i.epoch - 1), "the record has one of epoch 1"),
    ],
)
def test_every_disagreement_is_named(full, path, change, said):
    problems = check(AlteredStore(full, path, change)).problems
    assert any(said in problem for problem in problems), problems
