"""The k-th write of the store fails, the k-th call of the target fails, for every k, over a whole story."""

from __future__ import annotations

from contextlib import suppress

import pytest

from taskpass.audit.verify import verify
from taskpass.broker.complete_task import complete_task
from taskpass.broker.release_lease import release_lease
from taskpass.core.approval import Verdict
from taskpass.core.errors import TaskpassError
from taskpass.core.lease import LeaseState
from taskpass.keys import ed25519
from taskpass.testing.broker import ANA, BEN, STAGING, MemorySigner

WRITES = 24
"""At least as many as the story has; a test holds the story to it."""
CALLS = 40


def story(h):
    """A permitted lease that is renewed and released, an approved one that ends with its task, a denied request."""
    with suppress(TaskpassError):
        agent = h.run()
        task = agent.open_task()
        steps = (
            lambda: _permitted(h, agent),
            lambda: _approved(h, agent),
            lambda: h.vote(BEN, agent.request(STAGING, only=("public.orders",)), Verdict.DENY),
        )
        for step in steps:
            with suppress(TaskpassError):
                step()
        complete_task(h.broker, task.id, actor="test", reason="completed")


def _permitted(h, agent):
    lease = agent.lease(lifetime=60)
    agent.connect(lease)
    for _ in range(3):
        h.tick(15)
    release_lease(h.broker, agent.caller, lease.id)


def _approved(h, agent):
    request = agent.request(STAGING, lifetime=60)
    h.vote(ANA, request)
    agent.connect(agent.issue(request).lease)
    h.tick()


def recover(h):
    """What an operator's morning looks like: everything answers again and some time passes."""
    h.store.fail_at = None
    for server in h.servers.values():
        server.fail_at = None
    h.settle(8)
    h.tick(61)
    h.settle(4)


def judge(h):
    assert h.unaccounted() == set(), "I1: usable without an active lease"
    with h.store.read() as unit:
        installation = unit.installation.id
        for lease in unit.leases.list():
            grant = unit.grants.get(lease.grant)
            request = unit.requests.get(grant.request)
            assert request.decision.outcome.word == "permit" or grant.approvals, "I2: neither permit nor approval"
    states = {lease.state for lease in h.leases()}
    assert states <= {LeaseState.CLEANED}, "I7: everything ends"
    assert all(server.roles == {} for server in h.servers.values())
    assert h.endpoints.open_orders == {}
    assert h.broker.late.pending() == 0
    report = verify(h.store.iterate_audit(), installation, ed25519.PublicKeys([MemorySigner().public]))
    assert report.ok, report.fault


def test_the_story_without_a_failure(h):
    story(h)
    assert {"lease.renewed", "request.denied", "request.approved", "task.completed"} <= set(h.events())
    assert h.store.writes <= WRITES
    assert sum(len(server.calls) for server in h.servers.values()) <= CALLS
    h.settle(3)
    judge(h)


@pytest.mark.parametrize("how", ["before", "during", "after"])
@pytest.mark.parametrize("k", range(1, WRITES + 1))
def test_after_a_failed_write_everything_ends(h, k, how):
    h.reserve = 0
    h.store.writes, h.store.fail_at, h.store.fail_how = 0, k, how
    story(h)
    assert h.unaccounted() == set()
    recover(h)
    _end_all(h)
    judge(h)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("k", range(1, CALLS // 2 + 1))
def test_after_a_failed_call_of_the_target_everything_ends(h, k, late):
    for server in h.servers.values():
        server.fail_at, server.fail_late = k, late
    story(h)
    assert _unowned(h) == set()
    assert h.endpoints.open_orders == {}
    recover(h)
    _end_all(h)
    judge(h)


@pytest.mark.parametrize("k", range(1, WRITES + 1))
def test_after_a_crash_at_any_write_everything_ends(h, k):
    h.reserve = 0
    h.store.writes = 0

    class Crash(BaseException):
        pass

    write = h.store.write

    def crashing():
        if h.store.writes + 1 >= k:
            h.store.unreadable = True
            raise Crash
        return write()

    h.store.write = crashing
    with suppress(Crash):
        story(h)
    h.restart()
    recover(h)
    _end_all(h)
    judge(h)


def _unowned(h):
    """Usable roles whose lease is neither active nor being closed again and again."""
    closing = {lease.role for lease in h.leases() if lease.state is LeaseState.CLOSING and lease.attempts}
    return h.unaccounted() - closing


def _end_all(h):
    """A task whose opening was answered with an error may be open: its end is due like any other."""
    with h.store.read() as unit:
        tasks = unit.tasks.list()
    for task in tasks:
        complete_task(h.broker, task.id, actor="test", reason="completed")
    h.settle(4)
