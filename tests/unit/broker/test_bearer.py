"""A secret instead of an endpoint: only where policy says so, never in production, and kept by nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskpass.broker import issue_lease
from taskpass.broker.complete_task import complete_task
from taskpass.core.decision import Delivery, Outcome
from taskpass.core.errors import Denied, ObligationUnmet
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.core.scope import Level, Scope
from taskpass.core.separation import Environment
from taskpass.testing.broker import ANA, DEV, PRODUCTION, STAGING

BEARER = Delivery.BEARER


@pytest.fixture
def permitted(h):
    h.policy.answer(Environment.DEV, Outcome.PERMIT, delivery=BEARER)
    agent = h.agent()
    agent.open_task()
    return agent


def test_a_secret_is_handed_out_where_policy_permits_it_and_the_holder_asks(h, permitted):
    _, issued = permitted.acquire(delivery=BEARER)
    assert issued.endpoint is None
    assert issued.lease.delivery is BEARER
    assert h.endpoints.open_orders == {}
    assert (issued.bearer.user, issued.bearer.database) == (issued.lease.role, DEV)
    session = h.server_of(issued.lease.target).login(issued.lease.role, issued.bearer.password.reveal())
    complete_task(h.broker, issued.lease.task, actor="test", reason="completed")
    assert h.lease(issued.lease.id).state is LeaseState.CLOSED
    assert not session.alive


def test_whoever_does_not_ask_for_a_secret_gets_an_endpoint(h, permitted):
    _, issued = permitted.acquire()
    assert issued.bearer is None
    assert issued.lease.delivery is Delivery.ENDPOINT
    assert issued.lease.id in h.endpoints.open_orders


def test_a_secret_that_policy_does_not_permit_is_a_recorded_deny(h):
    agent = h.agent()
    agent.open_task()
    request, issued = agent.acquire(delivery=BEARER)
    assert issued is None
    assert (request.state, request.decision.code) == (RequestState.DENIED, "endpoint_only")


def test_production_hands_no_secret_out_whatever_policy_says(h):
    duties = {"delivery": BEARER, "quorum": 1, "approvers": frozenset({"dba"})}
    h.policy.answer(Environment.PRODUCTION, Outcome.NEEDS_APPROVAL, **duties)
    agent = h.run()
    agent.open_task()
    request = agent.request(PRODUCTION, delivery=BEARER)
    assert (request.state, request.decision.code) == (RequestState.DENIED, "endpoint_only")


def test_production_hands_no_secret_out_even_if_the_decision_says_so(h, permitted, monkeypatch):
    """The second line: the floor is taken away, and issuing still refuses."""
    request = permitted.request(delivery=BEARER)
    with pytest.raises(ObligationUnmet) as refused:
        issue_lease._demand_deliverable(replace(request, environment=Environment.PRODUCTION), request.decision)
    assert refused.value.code == "bearer_in_production"


def test_an_owner_s_login_is_never_handed_out(h, permitted, monkeypatch):
    """Neither when it is asked for, nor, the second line, when it is issued."""
    scope = Scope(DEV, "migrate", Level.MIGRATE, (), owner="orders_owner")
    request = replace(permitted.request(delivery=BEARER), scope=scope)
    monkeypatch.setattr(type(h.broker.resource(DEV)), "scope", lambda self, *_, **__: scope)
    for refusing in (
        lambda: permitted.request(delivery=BEARER),
        lambda: issue_lease._demand_deliverable(request, request.decision),
    ):
        with pytest.raises(ObligationUnmet) as refused:
            refusing()
        assert refused.value.code == "bearer_for_migration"


def test_what_is_approved_is_the_delivery_too(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, delivery=BEARER, approvers=frozenset({"dba"}))
    agent = h.run()
    agent.open_task()
    secret, endpoint = agent.request(STAGING, delivery=BEARER), agent.request(STAGING)
    assert secret.decision.obligations.delivery is BEARER
    assert secret.digest != endpoint.digest
    h.vote(ANA, secret)
    issued = agent.issue(h.stored_request(secret.id))
    assert issued.bearer is not None


def test_a_secret_that_policy_permits_no_more_is_not_issued(h, permitted):
    request = permitted.request(delivery=BEARER)
    h.policy.answer(Environment.DEV, Outcome.PERMIT)
    with pytest.raises(Denied) as refused:
        permitted.issue(request)
    assert refused.value.code == "endpoint_only"
    assert h.leases() == []


def test_a_lease_with_a_secret_is_not_renewed(h):
    h.policy.answer(Environment.DEV, Outcome.PERMIT, delivery=BEARER)
    agent = h.run()
    agent.open_task()
    _, issued = agent.acquire(delivery=BEARER)
    with h.store.read() as unit:
        assert not unit.grants.get(issued.lease.grant).renewable


def test_a_secret_for_a_socket_that_the_sandbox_hides_is_refused(h, monkeypatch):
    h.policy.answer(Environment.DEV, Outcome.PERMIT, delivery=BEARER)
    agent = h.run()
    agent.open_task()
    offered = replace(h.broker.resource(DEV), address="/var/run/postgresql:5432/orders")
    monkeypatch.setattr(type(h.broker), "resource", lambda self, name: offered)
    with pytest.raises(ObligationUnmet) as refused:
        agent.request(delivery=BEARER)
    assert refused.value.code == "bearer_unusable"
    assert agent.request().state is RequestState.APPROVED


def test_the_record_says_bearer_and_holds_no_secret(h, permitted):
    _, issued = permitted.acquire(delivery=BEARER)
    password = issued.bearer.password.reveal()
    bodies = [record.body for record in h.store.iterate_audit()]
    intended = next(body for body in bodies if '"lease.intended"' in body)
    assert intended.count('"delivery":"bearer"') == 2, "the lease and its decision"
    assert not any(password in body for body in bodies)
    assert password not in repr(issued)
    for path in h.directory.iterdir():
        assert password.encode() not in path.read_bytes()
