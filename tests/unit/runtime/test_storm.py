"""Many leases that end together: nothing stays usable, each is proven by itself, no target waits for another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskpass.broker.take_back_many import MANY, close_many, take_back_many
from taskpass.core.budgets import Budgets
from taskpass.core.decision import Outcome
from taskpass.core.lease import LeaseState
from taskpass.core.separation import Environment
from taskpass.testing.broker import DEV, STAGING

CROWD = MANY + 8


@pytest.fixture
def crowd(h):
    """A crowd of leases on either target."""
    h.budgets = Budgets(leases=1000, leases_of_task=1000, requests=1000, record_bytes=10**9)
    h.policy.answer(Environment.STAGING, Outcome.PERMIT)
    h.start()
    agent = h.run()
    agent.open_task()
    return {resource: [agent.lease(resource, lifetime=600) for _ in range(CROWD)] for resource in (DEV, STAGING)}


def states(h, leases):
    return {h.lease(lease.id).state for lease in leases}


def test_all_that_run_out_together_are_closed_with_a_proof_each_and_then_cleaned(h, crowd):
    leases = [*crowd[DEV], *crowd[STAGING]]
    h.policy.answer(Environment.DEV, Outcome.DENY)  # Nothing is renewed.
    h.policy.answer(Environment.STAGING, Outcome.DENY)
    h.tick(601)
    h.tick(0.25)
    assert states(h, leases) <= {LeaseState.CLOSED, LeaseState.CLEANED}
    assert all(h.lease(lease.id).proof["answer"] == "AuthenticationOk,28000" for lease in leases)
    assert h.usable() == set()
    assert h.endpoints.open_orders == {}
    h.settle(8)
    assert states(h, leases) == {LeaseState.CLEANED}


def test_a_record_names_each_lease_of_a_bulk_and_is_found_by_each(h, crowd):
    ids = [lease.id for lease in crowd[DEV]]
    before = len(h.events())
    take_back_many(h.broker, ids, reason="revoked", actor="test")
    assert close_many(h.broker, ids) == CROWD
    assert h.events()[before:] == ["lease.closing", "lease.closed"]
    with h.store.read() as unit:
        for lease in ids:
            names = [record.body.partition('"event":"')[2].partition('"')[0] for record in unit.audit.about(lease)]
            assert names[-2:] == ["lease.closing", "lease.closed"]
            assert all(lease in record.body for record in unit.audit.about(lease))


def test_a_target_that_is_gone_delays_no_other_and_stays_a_debt_by_name(h, crowd):
    h.servers[DEV].down = True
    ids = [lease.id for resource in crowd for lease in crowd[resource]]
    take_back_many(h.broker, ids, reason="revoked", actor="test")
    h.tick(0.25)
    h.tick(0.25)
    assert states(h, crowd[STAGING]) <= {LeaseState.CLOSED, LeaseState.CLEANED}
    assert states(h, crowd[DEV]) == {LeaseState.CLOSING}
    assert {h.lease(lease.id).attempts for lease in crowd[DEV]} == {1}
    h.servers[DEV].down = False
    h.settle(12)
    assert states(h, crowd[DEV]) == {LeaseState.CLEANED}


def test_what_cannot_be_recorded_is_taken_back_all_the_same(h, crowd):
    ids = [lease.id for lease in crowd[DEV]]
    h.store.down = "store_readonly"
    take_back_many(h.broker, ids, reason="revoked", actor="test")
    assert not {lease.id for lease in crowd[DEV]} & h.endpoints.open_orders.keys()
    h.tick(1)
    assert not h.usable() & {lease.role for lease in crowd[DEV]}
    h.store.down = ""
    h.settle(12)
    assert states(h, crowd[DEV]) == {LeaseState.CLEANED}


def test_a_lease_that_is_not_proven_is_not_called_closed_because_the_others_are(h, crowd):
    odd, *others = [lease.id for lease in crowd[DEV]]
    take_back_many(h.broker, [odd, *others], reason="revoked", actor="test")
    issuer = h.broker.issuer_of(crowd[DEV][0].target)
    answers = issuer.close_many([lease.role for lease in crowd[DEV]], audit_head="1:sha256:00")
    del answers[h.lease(odd).role]
    silent = type("Silent", (), {"close_many": lambda self, roles, audit_head: answers, "target": issuer.target})()
    assert close_many(replace(h.broker, issuer_of=lambda target: silent), [odd, *others]) == CROWD - 1
    assert h.lease(odd).state is LeaseState.CLOSING
    assert states(h, crowd[DEV][1:]) == {LeaseState.CLOSED}
