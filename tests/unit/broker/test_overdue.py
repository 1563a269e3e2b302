"""Sessions over a limit of their lease: ended by the clockwork, recorded, and the lease lives on."""

from __future__ import annotations

import json

from taskpass.core.lease import LeaseState
from taskpass.issuers.base import Overdue
from taskpass.runtime.sweeper import WATCH_EVERY
from taskpass.testing.broker import DEV


def recorded(h):
    bodies = [json.loads(record.body) for record in h.store.iterate_audit()]
    return [body for body in bodies if body["event"] == "session.over_limit"]


def leased(h):
    agent = h.run()
    agent.open_task()
    return agent.lease()


def test_a_session_over_a_limit_is_recorded_and_its_lease_lives_on(h):
    lease = leased(h)
    h.servers[DEV].overdue = [Overdue(lease.id, "statement_seconds", 1)]
    h.settle(WATCH_EVERY + 1)
    (event,) = recorded(h)
    assert event["subject"] == {"lease": lease.id, "task": lease.task}
    assert event["data"] == {"resource": DEV, "limit": "statement_seconds", "node": 1}
    assert h.lease(lease.id).state is LeaseState.ACTIVE


def test_a_target_without_a_live_lease_is_left_in_peace(h):
    h.settle(2 * WATCH_EVERY)
    assert "end_overdue" not in h.servers[DEV].calls


def test_a_session_of_a_lease_that_the_store_does_not_know_is_recorded_too(h):
    leased(h)
    h.servers[DEV].overdue = [Overdue("lse_" + "7" + "0" * 25, "idle_seconds")]
    h.settle(WATCH_EVERY + 1)
    assert [event["data"]["limit"] for event in recorded(h)] == ["idle_seconds"]
