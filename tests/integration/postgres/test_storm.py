"""Leases of two real servers end together, and one server stands still: nobody waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from bench.crowd import Crowd
from taskpass.broker.take_back_many import MANY
from taskpass.core.lease import LeaseState
from taskpass.testing.broker import DEV, STAGING
from taskpass.testing.postgres import available
from tests.missing import missing

pytestmark = pytest.mark.service

VERSION = 18


@contextlib.contextmanager
def standing_still(server):
    """All processes of a server are stopped: it accepts connections and data, as the kernel does, and never answers."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    processes = [server.pid, *map(int, children)]
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


@pytest.fixture
def crowd(tmp_path):
    if VERSION not in available():
        missing(f"PostgreSQL {VERSION} is not installed on this machine")
    with Crowd(tmp_path, leases=MANY, version=VERSION, more=[(STAGING, MANY)]) as made:
        yield made


def test_a_server_that_stands_still_delays_no_other_and_is_closed_when_it_goes_on(crowd):
    with standing_still(crowd.servers[STAGING]):
        crowd.clock.forward(crowd.lifetime)
        crowd.sweeper.start()
        crowd.wait(lambda states: states[LeaseState.CLOSED] + states[LeaseState.CLEANED] == MANY, DEV)
        assert crowd.usable(DEV) == 0
        assert crowd.counts(STAGING)[LeaseState.CLOSING] == MANY, "nothing is called proven that nobody answered for"
    crowd.wait(lambda states: states[LeaseState.CLOSED] + states[LeaseState.CLEANED] == MANY, STAGING)
    assert crowd.usable(STAGING) == 0
