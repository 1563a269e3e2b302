"""The turn to write: in order of arrival, and whoever takes access back never waits behind a flood."""

from __future__ import annotations

import threading
import time

import pytest

from taskpass.core.errors import StoreUnavailable
from taskpass.store.sqlite import SqliteDatabase
from taskpass.store.turn import Turn, reserve_this_thread
from taskpass.store.unit import RESERVED, SqlStore


def waiting(turn):
    return len(turn._reserved) + len(turn._others)


def begin(turn, name, order, *, reserved=False):
    """A thread that waits for its turn, writes its name down and lets go."""

    def work():
        if reserved:
            reserve_this_thread()
        assert turn.acquire(10)
        order.append(name)
        turn.release()

    before = waiting(turn)
    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 30
    while waiting(turn) == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return thread


def test_those_who_wait_come_in_order_and_a_reserved_thread_before_all_of_them():
    turn, order = Turn(), []
    assert turn.acquire(1)
    threads = [begin(turn, number, order) for number in range(20)]
    threads.append(begin(turn, "revoker", order, reserved=True))
    turn.release()
    for thread in threads:
        thread.join(30)
    assert order == ["revoker", *range(20)]


def test_one_that_gave_up_is_not_handed_the_turn():
    turn, order = Turn(), []
    assert turn.acquire(1)
    assert not turn.acquire(0.01)
    thread = begin(turn, "next", order)
    turn.release()
    thread.join(30)
    assert order == ["next"]
    assert turn.acquire(0.01)


def test_of_a_bounded_pool_connections_are_kept_for_the_reserved_lane(home):
    home.create().close()
    database = SqliteDatabase(home.path)
    database.connections = RESERVED + 1
    store, seen = SqlStore(database, signer=None, witness=None, timeout=0.05), []

    def revoke():
        reserve_this_thread()
        with store.read() as unit:
            seen.append(unit.installation.id)

    thread = threading.Thread(target=revoke)
    with store.read():
        with pytest.raises(StoreUnavailable), store.read():
            pass
        thread.start()
        thread.join(5)
    assert len(seen) == 1
    with store.read() as unit:
        assert unit.installation.id == seen[0]
    store.close()
