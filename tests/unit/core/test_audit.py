"""The chain: what it is made of, and that each kind of tampering is found at its first record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.core.audit import GENESIS, Event, Record, body_of, head_bytes, link, verify_chain
from taskpass.core.clock import Instant
from taskpass.core.errors import InvalidInput

HERE = "abcdefgh"
KEY = "audit-1"


def sign(data):
    """Stands for a signature: only who knows the word can make it."""
    return hashlib.sha256(b"the key" + data).hexdigest()


def verify_signature(key, data, signature):
    return key == KEY and signature == sign(data)


def chain(*events, installation=HERE, start=(0, GENESIS)):
    records, (seq, prev) = [], start
    for event in events:
        seq += 1
        body = body_of(event, installation=installation, epoch=1, seq=seq, at=Instant(seq * 1000))
        hash_ = link(prev, body)
        records.append(Record(seq, body, prev, hash_, sign(head_bytes(installation, seq, hash_)), KEY))
        prev = hash_
    return records


def event(number):
    return Event("lease.created", "broker", {"lease": f"lse_{number}"}, {"number": number})


def verify(records, **options):
    return verify_chain(records, installation=HERE, verify_signature=verify_signature, **options)


FIVE = chain(*(event(number) for number in range(5)))


def test_a_good_chain_verifies_to_its_head():
    assert verify(FIVE) == (5, FIVE[-1].hash, None)


def test_an_empty_chain_is_good_and_proves_nothing():
    assert verify([]) == (0, GENESIS, None)


def test_verification_can_go_on_from_a_known_head():
    assert verify(FIVE[3:], start=(3, FIVE[2].hash)) == (5, FIVE[-1].hash, None)
    _, _, fault = verify(FIVE[3:], start=(3, GENESIS))
    assert fault.seq == 4


def rehashed(record, body):
    """As somebody would who can write the store but does not have the key."""
    return replace(record, body=body, hash=link(record.prev, body))


def resigned(record, installation=HERE):
    return replace(record, signature=sign(head_bytes(installation, record.seq, record.hash)))


def changed(records, index, record):
    return [*records[:index], record, *records[index + 1 :]]


TAMPERED = {
    "content changed": (changed(FIVE, 2, replace(FIVE[2], body=FIVE[2].body.replace("2", "3", 1))), 3, "content"),
    "content and hash changed": (changed(FIVE, 2, rehashed(FIVE[2], FIVE[2].body + " ")), 3, "signature"),
    "one removed": (FIVE[:2] + FIVE[3:], 3, "missing"),
    "the first removed": (FIVE[1:], 1, "missing"),
    "two swapped": ([FIVE[0], FIVE[2], FIVE[1], *FIVE[3:]], 2, "missing"),
    "one repeated": ([*FIVE[:2], FIVE[1], *FIVE[2:]], 3, "missing"),
    "another predecessor": (changed(FIVE, 2, replace(FIVE[2], prev=FIVE[0].hash)), 3, "follow"),
    "signature of another record": (
        changed(FIVE, 2, replace(FIVE[2], signature=FIVE[3].signature)),
        3,
        "signature",
    ),
    "signature missing": (changed(FIVE, 2, replace(FIVE[2], signature="")), 3, "signature"),
    "another key": (changed(FIVE, 2, replace(FIVE[2], key="audit-2")), 3, "signature"),
    "renumbered with a good signature": (
        changed(FIVE, 2, resigned(rehashed(FIVE[2], FIVE[2].body.replace('"seq":3,', '"seq":4,')))),
        3,
        "sequence number",
    ),
    "of another installation": (chain(*(event(n) for n in range(3)), installation="zzzzzzzz"), 1, "signature"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_the_first_bad_record_is_named(name):
    records, seq, words = TAMPERED[name]
    good, hash_, fault = verify(records)
    assert fault.seq == seq
    assert words in fault.what
    assert good == seq - 1
    assert hash_ == (FIVE[good - 1].hash if good else GENESIS)


@given(st.integers(0, 4), st.data())
def test_one_flipped_bit_of_a_body_is_found(index, data):
    body = bytearray(FIVE[index].body.encode())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= 1
    _, _, fault = verify(changed(FIVE, index, replace(FIVE[index], body=body.decode())))
    assert fault.seq == index + 1


@pytest.mark.parametrize("field", ["prev", "hash", "signature"])
def test_one_changed_character_of_a_link_is_found(field):
    for index in range(5):
        value = getattr(FIVE[index], field)
        other = replace(FIVE[index], **{field: value[:-1] + ("0" if value[-1] != "0" else "1")})
        _, _, fault = verify(changed(FIVE, index, other))
        assert fault.seq == index + 1


def test_a_cut_end_is_not_found_by_the_chain_alone():
    """That is why heads are anchored outside; the docs say so, and this test keeps them honest."""
    assert verify(FIVE[:3])[2] is None


def test_a_body_says_everything_and_is_canonical():
    late = Event("lease.closed", "reconciler", {"task": "t", "lease": "l"}, {"b": 1, "a": [True, None, "é"]}, late=True)
    body = body_of(late, installation=HERE, epoch=3, seq=9, at=Instant(1500))
    assert json.loads(body) == {
        "v": 1,
        "installation": HERE,
        "epoch": 3,
        "seq": 9,
        "at": "1970-01-01T00:00:01.500Z",
        "event": "lease.closed",
        "actor": "reconciler",
        "subject": {"task": "t", "lease": "l"},
        "data": {"b": 1, "a": [True, None, "é"]},
        "late": True,
    }
    assert body == json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("value", [1.5, float("nan"), b"x", {1: "x"}, 2**60, object(), "\ud800"])
def test_what_cannot_be_written_canonically_is_refused(value):
    with pytest.raises(InvalidInput):
        body_of(Event("x.y", "a", {}, {"value": value}), installation=HERE, epoch=1, seq=1, at=Instant(0))


def test_a_link_covers_label_predecessor_and_body():
    assert link(GENESIS, "x") != "sha256:" + hashlib.sha256((GENESIS + "x").encode()).hexdigest()
    assert link(GENESIS, "x") != link(GENESIS, "y")
    assert link(GENESIS, "x") != link("sha256:" + "1" * 64, "x")


@pytest.mark.parametrize(
    ("one", "other"),
    [((HERE, 1, "h"), (HERE, 2, "h")), ((HERE, 1, "h"), ("z", 1, "h")), ((HERE, 1, "h"), (HERE, 1, "i"))],
)
def test_a_head_covers_installation_number_and_hash(one, other):
    assert head_bytes(*one) != head_bytes(*other)
