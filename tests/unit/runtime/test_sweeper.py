"""The clockwork with real threads and real time: nothing that hangs holds up anything else."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

from taskpass.broker.take_back import take_back
from taskpass.core.decision import Outcome
from taskpass.core.lease import LeaseState
from taskpass.core.separation import Environment
from taskpass.runtime.sweeper import PER_TARGET, Sweeper
from taskpass.testing.broker import DEV, STAGING
from taskpass.testing.broker_parts import Inline


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


@contextmanager
def sweeping(h, *hanging):
    """A running sweeper. Calls of the dev target that are named in ``hanging`` do not answer until the block ends.

    Gives the sweeper and a semaphore that counts the calls that hang.
    """
    free, waiting = threading.Event(), threading.Semaphore(0)

    def hang(call):
        if call in hanging:
            waiting.release()
            assert free.wait(30)

    h.servers[DEV].before = hang
    sweeper = Sweeper(h.broker, h.fitness, restore_reserve=lambda: True)
    sweeper.start()
    try:
        yield sweeper, waiting
    finally:
        h.servers[DEV].before = lambda call: None
        free.set()
        sweeper.stop()


@pytest.fixture
def both(h):
    """A lease on either target, of agents whose debts are apart. The second one cannot be renewed."""
    h.policy.answer(Environment.STAGING, Outcome.PERMIT)
    agents = [h.run(), h.agent(uid=1001)]
    for agent in agents:
        agent.open_task()
    return agents[0].lease(DEV, lifetime=60), agents[1].lease(STAGING, lifetime=60)


def test_what_is_taken_back_is_closed_and_cleaned_by_itself(h, both):
    with sweeping(h) as (sweeper, _):
        take_back(h.broker, [lease.id for lease in both], reason="revoked", actor="test")
        sweeper.wake()
        until(lambda: all(h.lease(lease.id).state is LeaseState.CLEANED for lease in both))


def test_a_target_that_hangs_while_closing_delays_no_other(h, both):
    slow, quick = both
    with sweeping(h, "close") as (_, waiting):
        take_back(h.broker, [slow.id], reason="revoked", actor="test")
        assert waiting.acquire(timeout=30)
        take_back(h.broker, [quick.id], reason="revoked", actor="test")
        until(lambda: h.lease(quick.id).state is LeaseState.CLEANED)
        assert h.lease(slow.id).state is LeaseState.CLOSING
    assert h.lease(slow.id).state in (LeaseState.CLOSED, LeaseState.CLEANED)


def test_many_hanging_closes_of_one_target_leave_threads_to_the_others(h):
    h.policy.answer(Environment.STAGING, Outcome.PERMIT)
    agents = [h.run(uid) for uid in (1000, 1001, 1002, 1003)]
    slow = []
    for number, agent in enumerate(agents):
        agent.open_task(f"acme/{number}")
        slow += [agent.lease(DEV) for _ in range(3)]
    other = h.run(uid=1004)
    other.open_task("acme/other")
    quick = other.lease(STAGING)
    assert len(slow) > PER_TARGET
    with sweeping(h, "close") as (_, waiting):
        take_back(h.broker, [lease.id for lease in slow], reason="revoked", actor="test")
        for _ in range(PER_TARGET):
            assert waiting.acquire(timeout=30)
        take_back(h.broker, [quick.id], reason="revoked", actor="test")
        until(lambda: h.lease(quick.id).state is LeaseState.CLEANED)


@pytest.mark.parametrize("call", ["resolve", "inventory", "preflight", "clean", "sweep"])
def test_a_target_that_hangs_holds_up_neither_expiry_nor_closing(h, both, call):
    stuck, quick = both
    for server in h.servers.values():
        server.skew = 3600
    h.clock.jump(45)
    with sweeping(h, call):
        if call in ("clean", "sweep"):
            take_back(h.broker, [stuck.id], reason="revoked", actor="test")
        h.clock.jump(20)
        until(lambda: h.lease(quick.id).state in (LeaseState.CLOSED, LeaseState.CLEANED))
        until(lambda: h.lease(stuck.id).state in (LeaseState.CLOSED, LeaseState.CLEANED))


def test_a_job_that_hangs_is_not_started_twice(h, both):
    h.clock.jump(45)
    with sweeping(h, "resolve") as (_, waiting):
        assert waiting.acquire(timeout=30)
        time.sleep(2.5)
        # Renewal and the look at manifests may each be waiting once; every second would add one otherwise.
        assert not (waiting.acquire(timeout=0.1) and waiting.acquire(timeout=0.1))


def test_a_defect_in_one_step_stops_no_other(h, both):
    lease, _ = both

    def broken(now):
        raise RuntimeError("a defect")

    with sweeping(h) as (sweeper, _):
        sweeper._jobs = tuple(
            job if job.name != "expire" else type(job)("expire", job.every, lambda: broken(0)) for job in sweeper._jobs
        )
        take_back(h.broker, [lease.id], reason="revoked", actor="test")
        until(lambda: h.lease(lease.id).state is LeaseState.CLEANED)


def test_stopping_waits_for_a_close_that_runs(h, both):
    lease, _ = both
    with sweeping(h, "close") as (sweeper, waiting):
        take_back(h.broker, [lease.id], reason="revoked", actor="test")
        assert waiting.acquire(timeout=30)
        stopping = threading.Thread(target=sweeper.stop)
        stopping.start()
        stopping.join(0.3)
        assert stopping.is_alive()
    stopping.join(30)
    assert not stopping.is_alive()
    assert h.lease(lease.id).state is LeaseState.CLOSED


def test_stopping_closes_what_was_taken_back_last(h, both):
    sweeper = Sweeper(h.broker, h.fitness, restore_reserve=lambda: True)
    sweeper.start()
    take_back(h.broker, [lease.id for lease in both], reason="broker_restarted", actor="broker")
    sweeper.stop()
    assert {h.lease(lease.id).state for lease in both} <= {LeaseState.CLOSED, LeaseState.CLEANED}


def test_the_reserve_is_restored_only_when_nothing_waits_to_be_recorded(h, both):
    asked = []
    sweeper = Sweeper(
        h.broker,
        h.fitness,
        restore_reserve=lambda: asked.append(1),
        monotonic=h.clock.monotonic,
        executor=lambda threads, name: Inline(),
    )
    h.reserve, h.store.down = 0, "store_full"
    take_back(h.broker, [both[0].id], reason="revoked", actor="test")
    sweeper.tick()
    assert asked == []
    h.store.down = ""
    h.clock.forward(1)
    sweeper.tick()
    assert asked == [1]
    sweeper.stop()


def test_the_clockwork_itself_goes_before_others_at_the_store(h):
    prepared = []
    sweeper = Sweeper(
        h.broker,
        h.fitness,
        restore_reserve=lambda: True,
        reserve_thread=lambda: prepared.append(threading.current_thread().name),
    )
    sweeper.start()
    sweeper.stop()
    assert prepared == ["sweeper"]
