from __future__ import annotations

from dataclasses import replace

import pytest

from taskpass.audit import approvals
from taskpass.audit.anchors import Anchor
from taskpass.audit.verify import verify
from taskpass.audit.witness import Head
from taskpass.broker.review_request import _recorded
from taskpass.core.approval import Method, challenge
from taskpass.core.audit import ADOPTED, Event
from taskpass.core.errors import InvalidInput, StoreUnavailable
from taskpass.core.ids import InstallationId, TaskId
from taskpass.core.secret import Secret
from taskpass.keys import reviewer
from taskpass.keys.ed25519 import PublicKeys
from taskpass.store.base import Installation
from taskpass.testing.suites.records import NOW, REVIEWER, Counting, Records, event
from tests.unit.audit.chains import HOME, KEY, OTHER, TRUSTED, chain, rechained

SECRET = Secret("0000-0000-0000-0000-0000-0001")
PUBLIC, SALT = reviewer.verifier(SECRET, reviewer.new_salt(Counting()))


def verdict(**changes):
    """The event that the broker records of a verdict that REVIEWER signed; ``changes`` are made after signing."""
    digest = "sha256:" + "5" * 64
    data = challenge(verb="approve", digest_=digest, approver=REVIEWER, nonce="n1", comment="ok")
    records = Records(HOME.id)
    request = records.request(TaskId("tsk_1"))
    approval = records.approval(
        request.id,
        digest=digest,
        nonce="n1",
        comment="ok",
        key=PUBLIC,
        signature=reviewer.sign(SECRET, SALT, data),
    )
    recorded = _recorded(approval, request)
    assert recorded.name == approvals.EVENT
    return replace(recorded, data={**recorded.data, **changes})


def log(*events):
    return chain(len(events), events=events)


def test_without_a_trusted_key_the_result_is_a_self_check_only():
    records = chain(3, signer=OTHER)
    own = verify(records, HOME.id, None, own_keys=PublicKeys([OTHER.public]))
    assert (own.ok, own.trusted, own.signed) == (True, False, True)
    assert own.notes[0].startswith("self-check only")
    none = verify(records, HOME.id, None)
    assert (none.ok, none.trusted, none.signed) == (True, False, False)
    assert "signatures were not checked" in none.notes[1]


def test_the_keys_that_came_with_the_log_never_replace_the_trusted_one():
    report = verify(chain(3, signer=OTHER), HOME.id, TRUSTED, own_keys=PublicKeys([OTHER.public]))
    assert report.fault.seq == 1
    assert "trusted key" in report.fault.what


def test_that_nothing_outside_was_compared_is_said():
    records = chain(2)
    last = records[-1]
    assert any("cut off" in note for note in verify(records, HOME.id, TRUSTED).notes)
    assert verify(records, HOME.id, TRUSTED, [Anchor(1, records[0].hash, "line 1")]).notes == ()
    assert verify(records, HOME.id, TRUSTED, witness=Head(2, last.hash, last.signature, last.key)).notes == ()


def test_a_log_over_a_change_of_keys_needs_both_to_be_trusted():
    old = chain(2)
    records = old + chain(2, signer=OTHER, head=(2, old[-1].hash))
    assert verify(records, HOME.id, PublicKeys([KEY.public, OTHER.public])).seq == 4
    assert verify(records, HOME.id, TRUSTED).fault.seq == 3


def test_an_empty_log_is_good_unless_something_stands_outside():
    assert verify([], HOME.id, TRUSTED).ok
    assert verify([], HOME.id, TRUSTED, [Anchor(1, "sha256:" + "0" * 64, "line 1")]).fault.seq == 1


def test_the_log_of_another_installation_is_refused():
    other = Installation(InstallationId("0000000y"), 1, False, NOW, NOW)
    assert verify(chain(2, home=other), HOME.id, TRUSTED).fault.seq == 1


def test_an_epoch_that_goes_back_is_named():
    new = replace(HOME, epoch=2)
    first = chain(2, home=new)
    records = first + chain(1, home=HOME, head=(2, first[-1].hash))
    report = verify(records, HOME.id, TRUSTED)
    assert (report.seq, report.fault.seq) == (2, 3)
    assert "epoch" in report.fault.what


def test_an_older_log_of_the_same_broker_is_noticed_by_the_head_outside():
    records = chain(5)
    last = records[-1]
    report = verify(records[:3], HOME.id, TRUSTED, witness=Head(last.seq, last.hash, last.signature, last.key))
    assert report.fault.seq == 4
    assert "outside the database" in report.fault.what


def test_a_head_outside_that_nobody_signed_is_said():
    records = chain(2)
    report = verify(records, HOME.id, TRUSTED, witness=Head(1, records[0].hash, "bm8=", KEY.key_id))
    assert report.ok
    assert "not signed" in report.notes[0]


def test_two_anchors_of_one_record_must_both_agree():
    records = chain(2)
    right, wrong = Anchor(1, records[0].hash, "line 1"), Anchor(1, records[1].hash, "line 2")
    report = verify(records, HOME.id, TRUSTED, [right, wrong])
    assert report.fault.seq == 1
    assert "line 2" in report.fault.what


def test_late_records_are_counted():
    report = verify(log(event(), replace(event(), late=True)), HOME.id, TRUSTED)
    assert report.late == 1


def test_a_person_s_signature_is_verified_again():
    report = verify(log(event(), verdict()), HOME.id, TRUSTED, reviewers={REVIEWER: PUBLIC})
    assert (report.ok, report.approvals, report.unsigned) == (True, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:" + "6" * 64},
        {"nonce": "n2"},
        {"approver": "else@example"},
        {"verb": "deny"},
        {"comment": "OK"},
        {"signature": "bm8="},
        {"signature": ""},
        {"public_key": "bm8="},
        {"public_key": None},
        {"method": Method.SELF_CONFIRMATION.value, "signature": "bm8="},
    ],
    ids=str,
)
def test_a_verdict_that_is_not_what_the_person_signed_is_named(change):
    report = verify(log(event(), verdict(**change)), HOME.id, TRUSTED)
    assert report.fault.seq == 2
    assert "approval" in report.fault.what


def test_a_verdict_by_a_key_that_is_not_the_person_s_is_named():
    report = verify(log(verdict()), HOME.id, TRUSTED, reviewers={REVIEWER: "else"})
    assert "not the approver's" in report.fault.what


def test_a_self_confirmation_without_a_signature_is_the_broker_s_word():
    data = {"method": Method.SELF_CONFIRMATION.value, "signature": "", "approver": "ana@example"}
    report = verify(log(Event(approvals.EVENT, "ana", {}, data)), HOME.id, TRUSTED)
    assert (report.ok, report.approvals, report.unsigned) == (True, 0, 1)


def test_a_log_that_cannot_be_read_further_is_bad_there():
    def torn(error):
        yield from chain(2)
        raise error

    for error in (InvalidInput("line 4 cannot be read"), StoreUnavailable("damaged", code="store_corrupt")):
        assert verify(torn(error), HOME.id, TRUSTED).fault.seq == 3
    with pytest.raises(StoreUnavailable):
        verify(torn(StoreUnavailable("busy", code="store_locked")), HOME.id, TRUSTED)


@pytest.mark.parametrize("body", ["{}", "[]", "1", "x", '{"seq":1,"v":1}', "[" * 100_000])
def test_a_signed_record_of_an_unknown_shape_is_bad(body):
    records = rechained([replace(chain(1)[0], body=body)], signer=KEY)
    assert verify(records, HOME.id, TRUSTED).fault.seq == 1


def test_the_report_says_it_all_in_json():
    shown = verify(chain(1), HOME.id, None).to_json()
    assert shown["ok"] is True
    assert shown["trusted"] is False
    assert shown["fault"] is None
    assert verify(chain(2)[1:], HOME.id, TRUSTED).to_json()["fault"]["seq"] == 1


# A restored store that was adopted


def adopted(last=3, highest=7, *, epoch=2, said=None):
    """A log that was cut off after ``last``, adopted above ``highest``, and went on for two records."""
    before = chain(last)
    head = (highest, before[-1].hash)
    what = Event(ADOPTED, "human:ana", {"store": HOME.id}, said or {"last": last, "highest": highest})
    return before + chain(1, home=replace(HOME, epoch=epoch), head=head, events=[what])


def continued(records, count=2):
    return records + chain(count, home=replace(HOME, epoch=2), head=(records[-1].seq, records[-1].hash))


def test_an_adoption_leaves_out_the_numbers_that_were_lost_and_is_told():
    report = verify(continued(adopted()), HOME.id, TRUSTED)
    assert (report.ok, report.seq) == (True, 10)
    assert report.to_json()["adoptions"] == [{"seq": 8, "last": 3, "highest": 7, "actor": "human:ana", "strays": []}]
    assert any("human:ana adopted a restored store; records 4 to 7 are lost" in note for note in report.notes)


@pytest.mark.parametrize(
    "records",
    [
        adopted(said={"last": 2, "highest": 7}),
        adopted(said={"last": 3, "highest": 8}),
        adopted(said={"last": 3, "highest": "7"}),
        adopted(said={"last": 3}),
        adopted(epoch=1),
        chain(3) + chain(1, head=(7, chain(3)[-1].hash), events=[event(last=3, highest=7)]),
    ],
    ids=["another last", "another highest", "no number", "no highest", "same epoch", "another event"],
)
def test_a_gap_that_no_adoption_declares_is_a_fault(records):
    assert verify(records, HOME.id, TRUSTED).fault.seq in (4, 8)


def test_anchors_of_the_lost_history_are_counted_and_no_fault_and_later_ones_hold_again():
    records = continued(adopted())
    lost = [Anchor(2, "sha256:" + "2" * 64, "log:1"), Anchor(5, "sha256:" + "5" * 64, "log:2")]
    good = [Anchor(1, records[0].hash, "log:0"), Anchor(9, records[-2].hash, "log:9")]
    report = verify(records, HOME.id, TRUSTED, lost + good)
    assert (report.ok, report.anchored, report.adoptions[0].strays) == (True, 9, (2, 5))
    assert any("2 anchors of the lost history" in note for note in report.notes)
    for late in (Anchor(9, "sha256:" + "9" * 64, "log:9"), Anchor(10, "sha256:" + "9" * 64, "log:9")):
        assert verify(records, HOME.id, TRUSTED, [*lost, late]).fault.seq == late.seq


def test_an_anchor_that_no_adoption_explains_is_a_fault_at_its_record_and_not_later():
    records = chain(6)
    report = verify(
        records, HOME.id, TRUSTED, [Anchor(2, "sha256:" + "2" * 64, "log:1"), Anchor(4, records[3].hash, "x")]
    )
    assert (report.seq, report.head, report.fault.seq, report.anchored) == (1, records[0].hash, 2, 1)


def test_the_witness_of_the_lost_history_is_no_fault_once_the_store_was_adopted():
    records = continued(adopted())
    for seq in (2, 5):
        old = Head(seq, "sha256:" + "5" * 64, "", KEY.key_id)
        assert verify(records, HOME.id, TRUSTED, witness=old).ok
        assert not verify(records[:3], HOME.id, TRUSTED, witness=old).ok
