"""What a person decides: signatures, narrowing, who may, how long, and how often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from taskpass.audit.verify import verify
from taskpass.broker.request_access import cancel_request
from taskpass.broker.review_request import Ballot, count_votes, prepare_vote, vote
from taskpass.config.model import Human
from taskpass.core.approval import CHALLENGE_SECONDS, Approval, Method, Verdict
from taskpass.core.decision import Outcome
from taskpass.core.errors import Conflict, Denied, Expired, InvalidInput, OverBudget, Pending, TaskpassError
from taskpass.core.ids import ApprovalId
from taskpass.core.lease import LeaseState
from taskpass.core.manifest import Keep, is_within
from taskpass.core.request import RequestEvent, RequestState
from taskpass.core.scope import Verb
from taskpass.core.separation import Environment
from taskpass.keys import ed25519
from taskpass.testing.broker import ANA, BEN, CARL, DEV, DORA, EVE, PRODUCTION, STAGING, MemorySigner, reviewer_key

READ = frozenset({Verb.SELECT})


def asked(h, resource=STAGING, **wishes):
    agent = h.run()
    agent.open_task()
    request = agent.request(resource, **wishes)
    assert request.state is RequestState.PENDING
    return agent, request


def keep(request, **columns):
    """A narrowing: table name = column numbers that stay."""
    named = {item.name: item.oid for item in request.manifest.objects}
    return tuple(Keep(named[name], frozenset(numbers), READ) for name, numbers in columns.items())


def grants(h):
    with h.store.read() as unit:
        return unit.grants.list()


def test_an_approval_leads_to_a_lease_and_is_consumed(h):
    agent, request = asked(h)
    with pytest.raises(Pending):
        agent.issue(request)
    approved = h.vote(ANA, request, comment="fine")
    assert (approved.state, approved.comment) == (RequestState.APPROVED, "fine")
    issued = agent.issue(request)
    assert issued.lease.state is LeaseState.ACTIVE
    (grant,) = grants(h)
    with h.store.read() as unit:
        assert unit.approvals.consumed(grant.approvals[0]) == grant.id
    assert not grant.renewable
    assert h.events()[-4:] == ["approval.recorded", "request.approved", "lease.intended", "lease.activated"]


def test_every_signature_is_verified_again_from_the_chain_alone(h):
    agent, request = asked(h)
    h.vote(ANA, request)
    agent.issue(request)
    with h.store.read() as unit:
        installation = unit.installation.id
    keys = ed25519.PublicKeys([MemorySigner().public])
    report = verify(h.store.iterate_audit(), installation, keys, reviewers={ANA: h.people.humans[ANA].reviewer_key})
    assert report.ok
    assert report.approvals == 1


def test_narrowing_is_what_is_issued(h):
    agent, request = asked(h)
    h.vote(ANA, request, keeps=keep(request, orders=[1, 2]), lifetime=60)
    lease = agent.issue(request).lease
    session = agent.connect(lease)
    server = h.servers[STAGING]
    assert server.reads(session, "orders", "total")
    assert not server.reads(session, "orders", "note")
    assert not server.reads(session, "customers", "id")
    assert lease.expires_at - h.clock.now() <= 60_000


def test_two_who_narrow_differently_leave_what_both_agree_on(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))
    agent, request = asked(h)
    assert h.vote(ANA, request, keeps=keep(request, orders=[1, 2], customers=[1]), lifetime=300).state is (
        RequestState.PENDING
    )
    assert h.vote(BEN, request, keeps=keep(request, orders=[2, 3]), lifetime=120).state is RequestState.APPROVED
    agent.issue(request)
    (grant,) = grants(h)
    with h.store.read() as unit:
        votes = unit.approvals.of_request(request.id)
    assert len(grant.approvals) == 2
    assert all(is_within(grant.manifest, item.manifest) for item in votes)
    assert [[column.number for column in item.columns] for item in grant.manifest.objects] == [[2]]
    assert grant.ends_at - h.clock.now() == 120_000


def test_two_who_agree_on_nothing_leave_nothing(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))
    agent, request = asked(h)
    h.vote(ANA, request, keeps=keep(request, orders=[1]))
    assert h.vote(BEN, request, keeps=keep(request, customers=[1])).state is RequestState.PENDING
    with pytest.raises(Pending):
        agent.issue(request)


def test_nobody_can_widen(h):
    agent, request = asked(h, only=("public.orders",))
    oid = request.manifest.objects[0].oid
    wider = (Keep(oid, frozenset(range(1, 99)), READ), Keep(oid + 1, frozenset({1}), READ))
    h.vote(ANA, request, keeps=wider)
    agent.issue(request)
    (grant,) = grants(h)
    assert is_within(grant.manifest, request.manifest)
    agent, request = asked(h)
    with pytest.raises(InvalidInput):
        h.vote(ANA, request, lifetime=request.lifetime + 1)


def test_leaving_nothing_is_not_a_yes(h):
    _, request = asked(h)
    with pytest.raises(InvalidInput) as refused:
        h.vote(ANA, request, keeps=())
    assert refused.value.code == "nothing_left"


def test_each_group_must_be_represented(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba", "security"}))
    _, request = asked(h)
    assert h.vote(BEN, request).state is RequestState.PENDING
    assert h.vote(CARL, request).state is RequestState.APPROVED


def test_one_person_counts_once(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))
    _, request = asked(h)
    h.vote(ANA, request)
    with pytest.raises(Conflict):
        h.vote(ANA, request)
    assert h.stored_request(request.id).state is RequestState.PENDING


def test_a_no_ends_it(h):
    agent, request = asked(h)
    denied = h.vote(ANA, request, Verdict.DENY, comment="not now")
    assert (denied.state, denied.comment) == (RequestState.DENIED, "not now")
    with pytest.raises(Denied):
        agent.issue(request)
    with pytest.raises(Conflict):
        h.vote(BEN, request)
    assert h.leases() == []


@pytest.mark.parametrize("resource", [STAGING, PRODUCTION])
def test_the_sponsor_cannot_approve_although_in_the_group(h, resource):
    _, request = asked(h, resource)
    with pytest.raises(Denied) as refused:
        h.vote(DORA, request)
    assert refused.value.code == "self_approval"


def test_a_sponsors_own_yes_serves_disposable_targets_and_is_named_so(h):
    h.policy.answer(Environment.DEV, Outcome.NEEDS_APPROVAL, quorum=1, approvers=frozenset({"dba"}))
    agent, request = asked(h, DEV)
    assert h.vote(DORA, request).state is RequestState.APPROVED
    with h.store.read() as unit:
        assert unit.approvals.of_request(request.id)[0].method is Method.SELF_CONFIRMATION
    assert agent.issue(request).lease.state is LeaseState.ACTIVE


def test_a_self_confirmation_that_reached_the_store_of_staging_is_not_counted(h):
    """The second line of defence: the tally leaves it out even if the first one were gone."""
    _, request = asked(h)
    h.vote(ANA, request)
    with h.store.read() as unit:
        stored = unit.approvals.of_request(request.id)

    forged = [replace(item, method=Method.SELF_CONFIRMATION, approver=DORA) for item in stored]
    with h.store.write() as unit:
        unit.approvals.of_request = lambda request_id: forged
        counted = count_votes(h.broker, unit, request, unit.tasks.get(request.task), request.decision.obligations)
    assert not counted.sufficient


def test_who_is_in_none_of_the_groups_cannot_vote(h):
    _, request = asked(h)
    with pytest.raises(Denied) as refused:
        h.vote(EVE, request)
    assert refused.value.code == "not_an_approver"


def test_a_reviewer_secret_is_too_weak_for_production(h):
    _, request = asked(h, PRODUCTION)
    with pytest.raises(Denied) as refused:
        h.vote(ANA, request)
    assert refused.value.code == "method_too_weak"


def test_in_a_demo_store_a_reviewer_secret_serves_production(demo):
    agent, request = asked(demo, PRODUCTION)
    assert demo.vote(ANA, request).state is RequestState.APPROVED
    assert agent.issue(request).lease.state is LeaseState.ACTIVE


def test_production_asks_even_if_policy_permits(h):
    h.policy.answer(Environment.PRODUCTION, Outcome.PERMIT)
    agent = h.run()
    agent.open_task()
    assert agent.request(PRODUCTION).decision.code == "no_approvers"


def leaves_the_group(h):
    h.set_group("dba", BEN, DORA)


def has_another_key(h):
    h.set_human(Human(ANA, ("ana",), *reviewer_key(ANA, 2)[1:]))


def is_gone(h):
    h.change_people(replace(h.people, humans={k: v for k, v in h.people.humans.items() if k != ANA}))


def becomes_stricter(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))


def asks_another_group(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=1, approvers=frozenset({"dba", "security"}))
    h.set_group("security", CARL)


def has_another_snapshot(h):
    h.policy.version += 1


def permits_in_another_snapshot(h):
    h.policy.version += 1
    h.policy.answer(Environment.STAGING, Outcome.PERMIT)


@pytest.mark.parametrize(
    "change",
    [
        leaves_the_group,
        has_another_key,
        is_gone,
        becomes_stricter,
        asks_another_group,
        has_another_snapshot,
        permits_in_another_snapshot,
    ],
)
def test_what_changed_between_the_yes_and_the_issue_voids_the_yes(h, change):
    agent, request = asked(h)
    h.vote(ANA, request)
    change(h)
    with pytest.raises(Denied) as refused:
        agent.issue(request)
    assert refused.value.code == "approval_void"
    assert h.leases() == []
    assert h.usable() == set()


def test_another_epoch_voids_the_yes(h):
    agent, request = asked(h)
    h.vote(ANA, request)
    with h.store.inner.write() as unit:
        unit.raise_epoch(0)
    with pytest.raises(TaskpassError) as refused:
        agent.issue(request)
    assert refused.value.code in ("request_void", "approval_void")
    assert h.leases() == []


def test_a_yes_lapses(h):
    agent, request = asked(h)
    h.vote(ANA, request)
    h.clock.forward(15 * 60)
    with pytest.raises(Expired):
        agent.issue(request)
    assert h.leases() == []


def test_the_first_of_two_votes_does_not_count_longer_because_of_the_second(h):
    h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))
    agent, request = asked(h)
    h.vote(ANA, request)
    h.clock.forward(14 * 60)
    h.vote(BEN, request)
    h.clock.forward(2 * 60)
    with pytest.raises(Denied):
        agent.issue(request)


def test_the_life_of_what_was_approved_starts_at_the_approval(h):
    agent, request = asked(h, lifetime=600)
    h.vote(ANA, request)
    h.clock.forward(500)
    lease = agent.issue(request).lease
    assert lease.expires_at - h.clock.now() == 100_000


def test_an_unanswered_question_lapses_and_cannot_be_answered_any_more(h):
    agent, request = asked(h)
    h.clock.forward(15 * 60)
    with pytest.raises(Expired):
        h.vote(ANA, request)
    h.tick()
    assert h.stored_request(request.id).state is RequestState.EXPIRED
    with pytest.raises(Conflict):
        h.vote(ANA, request)
    with pytest.raises(Expired):
        agent.issue(request)


def test_a_question_that_was_taken_back_cannot_be_answered(h):
    agent, request = asked(h)
    cancel_request(h.broker, agent.caller, request.id)
    with pytest.raises(Conflict):
        h.vote(ANA, request)


def test_an_unused_yes_can_be_taken_back_by_its_requester(h):
    agent, request = asked(h)
    h.vote(ANA, request)
    cancel_request(h.broker, agent.caller, request.id)
    with pytest.raises(Expired):
        agent.issue(request)


def test_a_person_is_not_asked_without_end(h):
    agent = h.run()
    agent.open_task()
    for seconds in range(5):
        agent.request(STAGING, lifetime=60 + seconds)
    with pytest.raises(OverBudget) as refused:
        agent.request(STAGING, lifetime=600)
    assert refused.value.code == "too_many_pending"
    sibling = h.run()
    sibling.open_task("acme/other")
    with pytest.raises(OverBudget):
        sibling.request(STAGING)


def test_nobody_is_asked_while_the_clock_is_behind(h):
    agent = h.run()
    agent.open_task()
    h.clock.jump(-60)
    with pytest.raises(Conflict) as refused:
        agent.request(STAGING)
    assert refused.value.code == "clock_behind"


class TestChallenges:
    """A nonce is for one person, one verdict, one digest, once, and for a minute."""

    def sign(self, human, prepared):
        return ed25519.encode(reviewer_key(human)[0].sign(prepared.data))

    def cast(self, h, human, request, ballot, prepared, signature=None):
        return vote(
            h.broker,
            human,
            request.id,
            ballot,
            nonce=prepared.nonce,
            signature=signature or self.sign(human, prepared),
        )

    def test_once(self, h):
        h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=2, approvers=frozenset({"dba"}))
        _, request = asked(h)
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        self.cast(h, ANA, request, Ballot(Verdict.APPROVE), prepared)
        with pytest.raises(TaskpassError):
            self.cast(h, ANA, request, Ballot(Verdict.APPROVE), prepared)
        with h.store.read() as unit:
            assert len(unit.approvals.of_request(request.id)) == 1

    @pytest.mark.parametrize(
        "other",
        [Ballot(Verdict.DENY), Ballot(Verdict.APPROVE, lifetime=60)],
    )
    def test_for_what_it_was_made(self, h, other):
        _, request = asked(h)
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        with pytest.raises(Expired):
            self.cast(h, ANA, request, other, prepared)
        assert h.stored_request(request.id).state is RequestState.PENDING

    def test_not_for_another_request(self, h):
        agent, request = asked(h)
        other = agent.request(STAGING, only=("public.orders",))
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        with pytest.raises(Expired):
            self.cast(h, ANA, other, Ballot(Verdict.APPROVE), prepared)

    def test_not_for_another_human(self, h):
        _, request = asked(h)
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        with pytest.raises(Expired):
            self.cast(h, BEN, request, Ballot(Verdict.APPROVE), prepared)

    def test_not_after_a_minute(self, h):
        _, request = asked(h)
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        h.clock.forward(CHALLENGE_SECONDS)
        with pytest.raises(Expired):
            self.cast(h, ANA, request, Ballot(Verdict.APPROVE), prepared)

    def test_not_with_another_comment_than_was_signed(self, h):
        _, request = asked(h)
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        with pytest.raises(Denied) as refused:
            self.cast(h, ANA, request, Ballot(Verdict.APPROVE, comment="changed"), prepared)
        assert refused.value.code == "bad_signature"

    def test_not_with_another_persons_key(self, h):
        _, request = asked(h)
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        with pytest.raises(Denied):
            self.cast(h, ANA, request, Ballot(Verdict.APPROVE), prepared, self.sign(BEN, prepared))
        assert h.stored_request(request.id).state is RequestState.PENDING

    def test_a_person_without_a_key_signs_nothing(self, h):
        _, request = asked(h)
        h.set_human(Human(ANA, ("ana",)))
        prepared = prepare_vote(h.broker, ANA, request.id, Ballot(Verdict.APPROVE))
        with pytest.raises(Denied):
            self.cast(h, ANA, request, Ballot(Verdict.APPROVE), prepared)


def test_one_approval_issues_one_lease_however_often_it_is_used_at_once(h):
    agent, request = asked(h)
    h.vote(ANA, request)

    def attempt(_):
        try:
            return agent.issue(request)
        except TaskpassError as error:
            return error.code

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(attempt, range(50)))
    issued = [answer for answer in answers if not isinstance(answer, str)]
    assert len(issued) == 1
    assert set(answers) - set(issued) == {"already_used"}
    assert len(h.leases()) == len(grants(h)) == len(h.servers[STAGING].roles) == 1


def test_a_state_column_is_no_evidence(h):
    """A request that the row calls approved, without a vote, is not issued."""
    agent, request = asked(h)
    with h.store.inner.write() as unit:
        unit.requests.advance(request.id, RequestEvent.APPROVE, h.clock.now(), lapses_at=request.lapses_at)
    with pytest.raises(Denied) as refused:
        agent.issue(request)
    assert refused.value.code == "approval_void"


@pytest.mark.parametrize("forgery", ["signature of another", "signature over something else", "wider than signed"])
def test_a_vote_that_somebody_wrote_into_the_store_is_not_counted(h, forgery):
    """Issuing verifies the signature over the digest again; a row, even one with the right digest, is none."""
    agent, request = asked(h)
    ballot = Ballot(Verdict.APPROVE, keeps=keep(request, orders=[1]))
    prepared = prepare_vote(h.broker, ANA, request.id, ballot)
    signer = BEN if forgery == "signature of another" else ANA
    data = b"something else" if forgery == "signature over something else" else prepared.data
    wider = forgery == "wider than signed"
    with h.store.inner.write() as unit:
        unit.approvals.add(
            Approval(
                id=ApprovalId("apr_" + "0" * 26),
                request=request.id,
                approver=ANA,
                method=Method.REVIEWER_SECRET,
                verdict=Verdict.APPROVE,
                manifest=request.manifest if wider else prepared.manifest,
                lifetime=prepared.lifetime,
                digest=prepared.digest,
                nonce=prepared.nonce,
                signature=ed25519.encode(reviewer_key(signer)[0].sign(data)),
                key=reviewer_key(ANA)[1],
                created_at=h.clock.now(),
                expires_at=request.lapses_at,
            )
        )
        unit.requests.advance(request.id, RequestEvent.APPROVE, h.clock.now(), lapses_at=request.lapses_at)
    with pytest.raises(Denied) as refused:
        agent.issue(request)
    assert refused.value.code == "approval_void"
    assert h.leases() == []


def test_an_approved_lease_is_not_renewed(h):
    agent, request = asked(h, lifetime=60)
    h.vote(ANA, request)
    lease = agent.issue(request).lease
    h.settle(62)
    assert h.lease(lease.id).renewals == 0
    assert h.lease(lease.id).state in (LeaseState.CLOSED, LeaseState.CLEANED)
