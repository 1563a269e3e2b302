"""Asking and connecting in one call: the same records and the same refusals as in two."""

from __future__ import annotations

import pytest

from taskpass.core.decision import Outcome
from taskpass.core.errors import Denied, ManifestChanged
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.core.separation import Environment
from taskpass.testing.broker import DEV, PRODUCTION, STAGING


def test_what_policy_permits_comes_with_its_lease_and_the_same_records_in_the_same_order(h):
    agent = h.agent()
    agent.open_task()
    before = len(h.events())
    request, issued = agent.acquire()
    assert issued is not None
    assert issued.lease.state is LeaseState.ACTIVE
    assert request.state is h.stored_request(request.id).state is RequestState.FULFILLED
    assert agent.connect(issued.lease).alive
    in_one = h.events()[before:]
    other = h.agent()
    before = len(h.events())
    other.issue(other.request())
    assert [e for e in h.events()[before:] if e != "task.opened"] == in_one


def test_what_a_person_decides_waits_and_nothing_is_made(h):
    agent = h.agent()
    agent.open_task()
    request, issued = agent.acquire(PRODUCTION)
    assert (request.state, issued) == (RequestState.PENDING, None)
    assert h.leases() == []


def test_what_policy_denies_is_recorded_and_nothing_is_made(h):
    h.policy.answer(Environment.STAGING, Outcome.DENY)
    agent = h.agent()
    agent.open_task()
    request, issued = agent.acquire(STAGING)
    assert (request.state, issued) == (RequestState.DENIED, None)
    assert h.stored_request(request.id).state is RequestState.DENIED
    assert h.leases() == []


def test_the_rights_are_recomputed_while_granting(h):
    agent = h.agent()
    agent.open_task()
    server = h.servers[DEV]
    resolve = h.broker.issuer(DEV).resolve

    def then_renamed(scope):
        manifest = resolve(scope)
        server.rename("orders", "orders_2")
        return manifest

    h.broker.issuer(DEV).resolve = then_renamed
    with pytest.raises(ManifestChanged):
        agent.acquire()
    h.settle(3)
    assert h.usable() == set()


def test_an_unknown_resource_is_refused_as_everywhere(h):
    agent = h.agent()
    agent.open_task()
    with pytest.raises(Denied):
        agent.acquire("nope")
