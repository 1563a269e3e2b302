"""Level ``write`` through the verbs: who is asked, what is held back, and what an acceptance by name is worth."""

from __future__ import annotations

import json

import pytest

from taskpass.broker.renew_lease import end_wider_leases
from taskpass.core.decision import Outcome
from taskpass.core.errors import InvalidInput, ManifestChanged, Pending
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.core.scope import Verb
from taskpass.core.separation import Environment
from taskpass.server.views import request_view
from taskpass.testing.broker import ANA, BEN, DEV, STAGING

PII = "public.customers_pii"


def cascading(h, resource):
    """``orders`` whose rows take rows of the excluded table along."""
    server = h.servers[resource]
    server.named("orders").cascades = [server.named("customers_pii").oid]
    return server


def verbs_of(manifest, name="orders"):
    return next(item.verbs for item in manifest.objects if item.name == name)


def asked(h, resource=STAGING):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=1, approvers=frozenset({"dba"}))
    agent = h.agent()
    agent.open_task()
    return agent, agent.request(resource, access="write")


def granted(h, lease):
    with h.store.read() as unit:
        return unit.grants.get(lease.grant).manifest


def event(h, name):
    bodies = [json.loads(record.body) for record in h.store.iterate_audit()]
    return [body["data"] for body in bodies if body["event"] == name][-1]


def test_a_permitted_write_has_every_verb_but_what_is_held_back(h):
    cascading(h, DEV)
    agent = h.agent()
    agent.open_task()
    lease = agent.lease(DEV, access="write")
    assert verbs_of(granted(h, lease)) == {Verb.SELECT, Verb.INSERT, Verb.UPDATE}
    assert granted(h, lease).accepted == ()


def test_a_write_to_staging_waits_for_a_person(h):
    agent, request = asked(h)
    assert request.state is RequestState.PENDING
    with pytest.raises(Pending):
        agent.issue(request)


def test_a_yes_without_a_name_leaves_the_verb_held_back(h):
    cascading(h, STAGING)
    agent, request = asked(h)
    h.vote(BEN, request)
    lease = agent.issue(request).lease
    assert Verb.DELETE not in verbs_of(granted(h, lease))
    assert event(h, "approval.recorded")["accepted"] == []


def test_a_yes_by_name_is_signed_recorded_and_issued(h):
    cascading(h, STAGING)
    agent, request = asked(h)
    h.vote(BEN, request, accept=(PII,))
    lease = agent.issue(request).lease
    assert lease.state is LeaseState.ACTIVE
    assert Verb.DELETE in verbs_of(granted(h, lease))
    recorded = event(h, "approval.recorded")
    assert recorded["accepted"] == [PII]
    assert recorded["manifest"]["accepted"] == [PII]
    assert recorded["digest"] != request.digest
    assert event(h, "lease.intended")["accepted"] == [PII]


@pytest.mark.parametrize("name", ["public.orders", "*", "", "customers_pii", "PUBLIC.CUSTOMERS_PII"])
def test_a_name_that_nothing_is_held_back_for_is_no_vote(h, name):
    cascading(h, STAGING)
    _, request = asked(h)
    with pytest.raises(InvalidInput) as caught:
        h.vote(BEN, request, accept=(name,))
    assert caught.value.code == "nothing_held"
    assert h.stored_request(request.id).state is RequestState.PENDING


def test_what_one_of_two_approvers_accepts_is_not_accepted(h):
    cascading(h, STAGING)
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))
    h.set_group("dba", BEN, ANA)
    agent = h.agent()
    agent.open_task()
    request = agent.request(STAGING, access="write")
    h.vote(BEN, request, accept=(PII,))
    h.vote(ANA, request)
    lease = agent.issue(request).lease
    assert Verb.DELETE not in verbs_of(granted(h, lease))
    assert granted(h, lease).accepted == ()


def test_a_cascade_that_appears_after_the_yes_is_issued_never(h):
    agent, request = asked(h)
    h.vote(BEN, request)
    cascading(h, STAGING)
    with pytest.raises(ManifestChanged):
        agent.issue(request)
    assert not h.usable()


def test_policy_decides_again_on_what_an_approver_accepted(h):
    cascading(h, STAGING)
    agent, request = asked(h)
    h.vote(BEN, request, accept=(PII,))
    decide, seen = h.policy.decide, []

    def noting(question):
        seen.append(verbs_of(question.manifest))
        return decide(question)

    h.policy.decide = noting
    agent.issue(request)
    assert seen == [frozenset(Verb)]


def test_a_lease_whose_verb_would_be_held_back_by_now_is_taken_back(h):

    agent, request = asked(h)
    h.vote(BEN, request)
    lease = agent.issue(request).lease
    assert end_wider_leases(h.broker) == 0
    cascading(h, STAGING)
    assert end_wider_leases(h.broker) == 1
    assert h.lease(lease.id).state is not LeaseState.ACTIVE


def test_a_lease_with_an_acceptance_is_not_taken_for_wider(h):

    cascading(h, STAGING)
    agent, request = asked(h)
    h.vote(BEN, request, accept=(PII,))
    agent.issue(request)
    assert end_wider_leases(h.broker) == 0


def test_the_agent_is_told_what_is_held_back(h):

    cascading(h, STAGING)
    _, request = asked(h)
    assert request_view(request)["held_back"] == ["public.orders: DELETE"]
