"""Migrations and what they leave: looked at before and after, whatever fails in between; accepted by signature only."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace

import pytest

from taskpass.audit.verify import verify
from taskpass.broker.aftermath import accept_widening, prepare_acceptance, settle
from taskpass.broker.release_lease import release_lease
from taskpass.core import digest
from taskpass.core.aftermath import AftermathState, Ran
from taskpass.core.approval import Method
from taskpass.core.audit import Event
from taskpass.core.decision import Outcome
from taskpass.core.errors import Conflict, Expired, TargetUnavailable, TaskpassError
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.core.separation import Environment
from taskpass.core.widening import Change, Item, snapshot
from taskpass.keys import ed25519
from taskpass.testing.broker import ANA, BEN, CARL, DEV, DORA, EVE, PRODUCTION, STAGING, MemorySigner, reviewer_key
from tests.unit.audit.chains import rechained

DOOR = Item("grant", "TRIGGER on orders to app", counts=frozenset({Change.ADDED}))
FILE = "ALTER TABLE orders ADD state text"


class Died(BaseException):
    """kill -9: nothing after it runs."""


def server(h, resource=DEV):
    return h.servers[resource]


def open_door(h, resource=DEV, item=DOOR):
    server(h, resource).doors = {**server(h, resource).doors, **snapshot([item])}


def hands_on(h, resource=DEV, uid=1000):
    agent = h.agent(uid)
    agent.open_task(f"acme/{resource}/{uid}")
    return agent, agent.lease(resource, access="migrate")


def aftermath(h, lease):
    with h.store.read() as unit:
        return unit.aftermaths.get(lease.id)


def wide(h, resource=DEV):
    """A hands-on migration that left a door open; its lease."""
    agent, lease = hands_on(h, resource)
    open_door(h, resource)
    release_lease(h.broker, agent.caller, lease.id)
    assert aftermath(h, lease).state is AftermathState.WIDENED
    return lease


def wide_in_staging(h):
    """A file that a person approved and that left a door open."""
    agent = h.agent()
    agent.open_task()
    request = agent.request(STAGING, access="migrate", file=FILE)
    h.vote(ANA, request)
    server(h, STAGING).runs = lambda text: (open_door(h, STAGING), Ran.COMMITTED)[1]
    lease = agent.issue(request).lease
    assert aftermath(h, lease).state is AftermathState.WIDENED
    return lease


def accept(h, human, lease, *, by=None, comment="seen"):
    nonce, data, _ = prepare_acceptance(h.broker, human, lease.id, comment)
    signature = ed25519.encode(reviewer_key(by or human)[0].sign(data))
    return accept_widening(h.broker, human, lease.id, comment, nonce=nonce, signature=signature)


def break_at(h, call, number=1, error=None, resource=DEV):
    """The ``number``-th ``call`` from now on raises ``error``."""
    seen = []

    def before(name):
        seen.extend([name] if name == call else [])
        if len(seen) == number and name == call:
            raise error or TargetUnavailable("the target does not answer")

    server(h, resource).before = before


def refused(call):
    with pytest.raises(TaskpassError) as caught:
        call()
    return caught.value.code


# ---- the look before and the look afterwards ----


def test_without_a_look_before_nothing_can_log_in_and_nothing_is_left(h):
    agent = h.agent()
    agent.open_task()
    request = agent.request(DEV, access="migrate")
    break_at(h, "snapshot")
    assert refused(lambda: agent.issue(request)) == "target_unavailable"
    assert h.usable() == set()
    assert "create" not in server(h).calls
    with h.store.read() as unit:
        assert unit.aftermaths.list() == []
    h.settle()
    assert [lease.state for lease in h.unended()] == []


@pytest.mark.parametrize("moment", ["snapshot", "create", "enable"])
def test_a_crash_while_a_migration_is_being_made_blocks_nothing_for_long(h, moment):
    agent = h.agent()
    agent.open_task()
    request = agent.request(DEV, access="migrate")
    break_at(h, moment, error=Died())
    with pytest.raises(Died):
        agent.issue(request)
    server(h).before = lambda call: None
    h.restart()
    h.settle(15)
    assert h.usable() == set()
    hands_on(h, uid=1001)


def test_a_crash_between_the_looks_compares_with_the_catalogue_of_before_it(h):
    _, lease = hands_on(h)
    open_door(h)
    h.restart()
    h.settle(15)
    found = aftermath(h, lease)
    assert (found.state, [each.key for each in found.widening]) == (AftermathState.WIDENED, [DOOR.key])
    assert not aftermath(h, lease).before
    assert h.unended() == []


def test_a_crash_after_the_proof_and_before_the_look_is_looked_at_by_the_next_process(h):
    agent, lease = hands_on(h)
    open_door(h)
    break_at(h, "snapshot", error=Died())
    with pytest.raises(Died):
        release_lease(h.broker, agent.caller, lease.id)
    assert (h.lease(lease.id).state, aftermath(h, lease).state) == (LeaseState.CLOSED, AftermathState.OPEN)
    server(h).before = lambda call: None
    h.restart()
    h.settle(15)
    assert aftermath(h, lease).state is AftermathState.WIDENED


def test_what_cannot_be_looked_at_blocks_and_says_why_until_it_was_looked_at(h):
    agent, lease = hands_on(h)
    server(h).before = lambda call: _away() if call == "snapshot" else None
    release_lease(h.broker, agent.caller, lease.id)
    found = aftermath(h, lease)
    assert found.state is AftermathState.OPEN
    assert found.error.startswith("target_unavailable")
    assert refused(lambda: agent.lease(DEV)) == "widened"
    server(h).before = lambda call: None
    h.settle(15)
    assert (aftermath(h, lease).state, aftermath(h, lease).error) == (AftermathState.CLEAN, "")
    assert agent.lease(DEV).state is LeaseState.ACTIVE


def _away():
    raise TargetUnavailable("the target does not answer")


def test_one_database_has_one_migration_at_a_time_and_reading_goes_on(h):
    hands_on(h)
    other = h.agent(1001)
    other.open_task("acme/other")
    assert refused(lambda: other.lease(DEV, access="migrate")) == "migrating"
    assert other.lease(DEV).state is LeaseState.ACTIVE


def test_what_was_there_before_is_nobody_s_widening(h):
    open_door(h)
    agent, lease = hands_on(h)
    release_lease(h.broker, agent.caller, lease.id)
    assert aftermath(h, lease).state is AftermathState.CLEAN


def test_a_door_that_is_closed_again_blocks_no_more_and_cannot_be_accepted_then(h):
    lease = wide(h)
    server(h).doors = {}
    settle(h.broker, lease.id)
    assert aftermath(h, lease).state is AftermathState.UNDONE
    assert refused(lambda: accept(h, BEN, lease)) == "already_decided"


# ---- hands-on ----


def test_hands_on_is_refused_in_production_whatever_a_policy_or_a_person_says(demo):
    h = demo
    h.policy.answer(Environment.PRODUCTION, Outcome.PERMIT)
    agent = h.agent()
    agent.open_task()
    assert agent.request(PRODUCTION, access="migrate").decision.code == "hands_on_refused"
    h.policy.answer(Environment.PRODUCTION, Outcome.NEEDS_APPROVAL, quorum=1, approvers=frozenset({"dba"}))
    asked = agent.request(PRODUCTION, access="migrate", reason="please")
    assert (asked.state, asked.decision.code) == (RequestState.DENIED, "hands_on_refused")
    request = agent.request(PRODUCTION, access="migrate", file=FILE)
    h.vote(BEN, request)
    assert agent.issue(request).endpoint is None
    assert server(h, PRODUCTION).scripts == [FILE]


# ---- accepting ----


def test_nobody_accepts_who_could_not_have_approved(h):
    lease = wide_in_staging(h)
    assert refused(lambda: accept(h, CARL, lease)) == "not_an_approver"
    assert refused(lambda: accept(h, EVE, lease)) == "not_an_approver"
    assert refused(lambda: accept(h, DORA, lease)) == "self_approval"
    assert aftermath(h, lease).state is AftermathState.WIDENED
    assert accept(h, BEN, lease).state is AftermathState.ACCEPTED


def test_an_approver_who_left_the_group_meanwhile_cannot_accept(h):
    lease = wide_in_staging(h)
    h.set_group("dba", ANA)
    assert refused(lambda: accept(h, BEN, lease)) == "not_an_approver"


def test_a_group_without_members_lets_nobody_accept(h):
    lease = wide_in_staging(h)
    h.set_group("dba")
    for human in (ANA, BEN, CARL, EVE):
        assert refused(lambda human=human: accept(h, human, lease)) == "not_an_approver"


def test_in_dev_the_sponsor_confirms_alone_and_it_is_called_that(h):
    lease = wide(h)
    assert accept(h, DORA, lease).decided_by == DORA
    assert recorded(h)["data"]["method"] == Method.SELF_CONFIRMATION.value


def test_a_signature_by_another_key_or_used_twice_accepts_nothing(h):
    lease = wide_in_staging(h)
    assert refused(lambda: accept(h, BEN, lease, by=ANA)) == "bad_signature"
    nonce, data, _ = prepare_acceptance(h.broker, BEN, lease.id, "seen")
    signature = ed25519.encode(reviewer_key(BEN)[0].sign(data))
    other = lambda: accept_widening(h.broker, BEN, lease.id, "else", nonce=nonce, signature=signature)  # noqa: E731
    assert refused(other) == "bad_signature"
    h.clock.forward(61)
    with pytest.raises(Expired):
        accept_widening(h.broker, BEN, lease.id, "seen", nonce=nonce, signature=signature)
    assert aftermath(h, lease).state is AftermathState.WIDENED


def test_what_still_runs_cannot_be_accepted(h):
    _, lease = hands_on(h)
    with pytest.raises(Conflict):
        accept(h, BEN, lease)


def test_what_nobody_can_look_at_any_more_a_person_may_take_upon_themselves(h):
    agent, lease = hands_on(h)
    server(h).before = lambda call: _away() if call == "snapshot" else None
    release_lease(h.broker, agent.caller, lease.id)
    assert accept(h, BEN, lease).state is AftermathState.ACCEPTED
    assert agent.lease(DEV).state is LeaseState.ACTIVE


# ---- the record ----


def recorded(h):
    bodies = [json.loads(record.body) for record in h.store.iterate_audit()]
    (found,) = [body for body in bodies if body["event"] == "migration.accepted"]
    return found


def verified(h, records, *, ben=None):
    with h.store.read() as unit:
        installation = unit.installation.id
    keys = ed25519.PublicKeys([MemorySigner().public])
    return verify(records, installation, keys, reviewers={BEN: ben or h.people.humans[BEN].reviewer_key})


def test_the_signature_of_an_acceptance_is_verified_again_from_the_chain_alone(h):
    lease = wide_in_staging(h)
    accept(h, BEN, lease)
    report = verified(h, h.store.iterate_audit())
    assert (report.ok, report.approvals, report.unsigned) == (True, 2, 0)
    other = verified(h, h.store.iterate_audit(), ben="else")
    assert other.fault.what == "its acceptance is signed with a key that is not the approver's"


def _flipped(text):
    """``text`` in base64 with one bit of its first byte changed."""
    raw = bytearray(b64decode(text))
    raw[0] ^= 1
    return ed25519.encode(bytes(raw))


CHANGES = {
    "signature": _flipped,
    "nonce": lambda text: text.swapcase(),
    "comment": lambda text: "fine",
    "digest": lambda text: "sha256:" + "0" * 64,
    "widening": lambda items: [],
    "public_key": lambda text: None,
}


@pytest.mark.parametrize("name", CHANGES)
def test_whoever_holds_the_broker_s_key_cannot_change_one_byte_of_what_was_accepted(h, name):
    """The chain and its signatures are made again as the broker would; only the person's signature is not theirs."""
    accept(h, BEN, wide_in_staging(h))
    with h.store.read() as unit:
        installation = unit.installation
    records, bad = list(h.store.iterate_audit()), 0
    for number, record in enumerate(records):
        body = json.loads(record.body)
        if body["event"] == "migration.accepted":
            body["data"][name] = CHANGES[name](body["data"][name])
            records[number] = replace(record, body=digest.canonical(body).decode())
            bad = record.seq
    report = verified(h, rechained(records, signer=MemorySigner(), installation=installation.id))
    assert report.fault.seq == bad
    assert "acceptance" in report.fault.what


def test_a_signed_verdict_is_no_acceptance_and_an_acceptance_no_verdict(h):
    accept(h, BEN, wide_in_staging(h))
    body = recorded(h)
    data = {**body["data"], "verb": "accept_widening", "approver": BEN}
    with h.store.write() as unit:
        unit.audit.append(Event("approval.recorded", body["actor"], body["subject"], data), h.clock.now())
    assert verified(h, h.store.iterate_audit()).fault.what == "its approval does not carry what was signed"
