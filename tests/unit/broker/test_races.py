"""What happens in between: a revocation at every step of issuing, and restarts at every step of everything."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from taskpass.broker.complete_task import complete_task
from taskpass.broker.revoke import Selector, revoke
from taskpass.broker.take_back import close_lease, take_back
from taskpass.core.errors import TaskpassError
from taskpass.core.lease import LeaseState
from taskpass.testing.broker import DEV

STEPS = ["create", "created", "enable", "enabled", "open", "opened"]


def at(h, step, action):
    """Run ``action`` once when issuing reaches ``step``: before or after a call of the target or the endpoints."""
    armed = [True]

    def once(call, wanted):
        if call == wanted and armed:
            armed.clear()
            action()

    server = h.servers[DEV]
    if step in ("create", "enable"):
        server.before = lambda call: once(call, step)
    elif step in ("created", "enabled"):
        server.after = lambda call: once(call, step[:-1])
    elif step == "open":
        h.endpoints.before = lambda call: once(call, "open")
    else:
        opening = h.endpoints.open

        def open_then(order):
            endpoint = opening(order)
            once("opened", "opened")
            return endpoint

        h.endpoints.open = open_then


def nothing_left(h):
    assert h.usable() == set()
    assert h.endpoints.open_orders == {}
    assert not any(role.login for role in h.servers[DEV].roles.values())
    h.settle(3)
    assert h.servers[DEV].roles == {}
    assert {lease.state for lease in h.leases()} <= {LeaseState.CLEANED}


def finish(thread):
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("step", STEPS)
def test_a_revocation_during_issue_wins(h, step):
    """In a thread of its own, as it is in a broker: it may have to wait for the step that is going on."""
    agent = h.agent()
    agent.open_task()
    request = agent.request()
    revoking = threading.Thread(target=lambda: revoke(h.broker, Selector("all"), actor="human:ana"))

    def begin():
        revoking.start()
        until(lambda: any(lease.state is not LeaseState.INTENDED for lease in h.leases()) and closing(h))

    at(h, step, begin)
    with pytest.raises(TaskpassError):
        agent.issue(request)
    finish(revoking)
    nothing_left(h)


def closing(h):
    return all(lease.state in (LeaseState.CLOSING, LeaseState.CLOSED) for lease in h.leases())


def until(condition):
    gate = threading.Event()
    for _ in range(1000):
        if condition():
            return
        gate.wait(0.01)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("step", STEPS)
def test_the_end_of_the_task_during_issue_wins(h, step):
    agent = h.agent()
    task = agent.open_task()
    request = agent.request()
    ending = threading.Thread(target=lambda: complete_task(h.broker, task.id, actor="test", reason="completed"))

    def begin():
        ending.start()
        until(lambda: closing(h))

    at(h, step, begin)
    with pytest.raises(TaskpassError):
        agent.issue(request)
    finish(ending)
    nothing_left(h)


@pytest.mark.parametrize("step", STEPS)
def test_an_expiry_during_issue_wins(h, step):
    agent = h.agent()
    agent.open_task()
    request = agent.request(lifetime=30)
    h.servers[DEV].skew = -3600
    at(h, step, lambda: h.clock.forward(31))
    with pytest.raises(TaskpassError):
        agent.issue(request)
    nothing_left(h)


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_during_issue_leaves_nothing_after_the_restart(h, step):
    class Crash(BaseException):
        pass

    agent = h.agent()
    agent.open_task()
    request = agent.request()

    def crash():
        # A killed process tidies nothing up: neither store nor target hear of it again.
        h.store.down = h.store.down or "store_locked"
        h.store.unreadable = True
        raise Crash

    at(h, step, crash)
    with pytest.raises((Crash, TaskpassError)):
        agent.issue(request)
    server = h.servers[DEV]
    server.before = lambda call: None
    server.after = lambda call: None
    h.restart()
    h.settle(3)
    nothing_left(h)


@pytest.mark.parametrize("call", ["close", "sweep", "clean"])
@pytest.mark.parametrize("late", [False, True])
def test_a_crash_during_closing_is_taken_up_again(h, call, late):
    class Crash(BaseException):
        pass

    agent = h.agent()
    agent.open_task()
    lease = agent.lease()

    def crash(name):
        if name == call:
            raise Crash

    server = h.servers[DEV]
    if late:
        server.after = crash
    else:
        server.before = crash
    take_back(h.broker, [lease.id], reason="revoked", actor="test")
    with suppress(Crash):
        close_lease(h.broker, lease.id)
    h.settle(3)
    server.before = server.after = lambda name: None
    h.restart()
    h.settle(3)
    nothing_left(h)


def test_a_create_that_lands_after_everything_opens_nothing_and_is_removed(h):
    agent = h.agent()
    agent.open_task()
    server = h.servers[DEV]
    server.late_creates = True
    with pytest.raises(TaskpassError):
        agent.issue(agent.request())
    h.settle(3)
    assert [lease.state for lease in h.leases()] == [LeaseState.CLEANED]
    server.late_creates = False
    assert server.land_late_creates() == 1
    assert h.usable() == set()
    h.settle(31)
    assert server.roles == {}
    assert "orphan.closed" in h.events()


def test_closing_from_many_threads_closes_once(h):
    agent = h.agent()
    agent.open_task()
    lease = agent.lease()
    take_back(h.broker, [lease.id], reason="revoked", actor="test")
    threads = [threading.Thread(target=close_lease, args=(h.broker, lease.id)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        finish(thread)
    assert h.servers[DEV].calls.count("close") == 1
    assert h.events().count("lease.closed") == 1


def test_revoking_from_many_threads_records_one_end(h):
    agent = h.agent()
    agent.open_task()
    agent.lease()
    threads = [threading.Thread(target=lambda: revoke(h.broker, Selector("all"), actor="human:ana")) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        finish(thread)
    assert h.events().count("lease.closing") == 1
    assert h.usable() == set()


def test_locks_of_leases_do_not_pile_up(h):
    agent = h.agent()
    agent.open_task()
    for _ in range(3):
        lease = agent.lease()
        revoke(h.broker, Selector("lease", lease.id), actor="test")
    h.settle(3)
    assert h.broker.closing._locks == {}
    assert h.sweeper._busy == {}
    assert h.sweeper._clean_after == {}
    assert h.sweeper._close_after == {}
