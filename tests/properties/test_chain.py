"""Whatever is done to a log is noticed, and the first bad record is named."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from taskpass.audit.anchors import Anchor
from taskpass.audit.export import read_export, write_export
from taskpass.audit.verify import verify
from taskpass.audit.witness import Head
from taskpass.core import digest
from taskpass.core.audit import GENESIS, Event, Record, body_of, link
from taskpass.core.ids import InstallationId
from taskpass.testing.suites.records import NOW
from tests.unit.audit.chains import HOME, KEY, OTHER, TRUSTED, chain, rechained

LENGTH = 7
RECORDS = chain(LENGTH)
ANCHORS = [Anchor(record.seq, record.hash, f"line {record.seq}") for record in RECORDS]
POSITION = st.integers(0, LENGTH - 1)
TEXT_FIELDS = [field.name for field in fields(Record) if field.name != "seq"]


def fault(records, **outside):
    return verify(records, HOME.id, TRUSTED, outside.pop("anchors", ()), **outside).fault


def test_an_untouched_chain_is_good():
    report = verify(RECORDS, HOME.id, TRUSTED, ANCHORS[:3])
    assert (report.ok, report.seq, report.head) == (True, LENGTH, RECORDS[-1].hash)
    assert (report.anchored, report.unanchored, report.trusted) == (3, LENGTH - 3, True)


@given(position=POSITION, name=st.sampled_from(TEXT_FIELDS), where=st.integers(0), flip=st.integers(1, 127))
@settings(max_examples=300)
def test_any_flipped_byte_is_noticed_at_its_record(position, name, where, flip):
    value = getattr(RECORDS[position], name)
    where %= len(value)
    changed = value[:where] + chr(ord(value[where]) ^ flip) + value[where + 1 :]
    records = [*RECORDS]
    records[position] = replace(RECORDS[position], **{name: changed})
    assert fault(records).seq == position + 1


@given(position=POSITION, number=st.integers(-1, LENGTH + 2))
def test_another_number_is_noticed_at_its_record(position, number):
    records = [*RECORDS]
    records[position] = replace(RECORDS[position], seq=number)
    assert (fault(records) is None) == (number == position + 1)
    if number != position + 1:
        assert fault(records).seq == position + 1


@given(position=st.integers(0, LENGTH - 2))
def test_a_dropped_record_is_noticed_where_it_was(position):
    assert fault(RECORDS[:position] + RECORDS[position + 1 :]).seq == position + 1


@given(position=POSITION)
def test_a_doubled_record_is_noticed_after_the_first(position):
    assert fault(RECORDS[: position + 1] + RECORDS[position:]).seq == position + 2


@given(order=st.permutations(range(LENGTH)))
def test_another_order_is_noticed_at_the_first_that_moved(order):
    moved = [at for at, number in enumerate(order) if at != number]
    found = fault([RECORDS[number] for number in order])
    assert (found.seq if found else None) == (moved[0] + 1 if moved else None)


@given(length=st.integers(0, LENGTH - 1), anchored=st.integers(1, LENGTH))
def test_a_cut_end_is_noticed_up_to_what_stands_outside(length, anchored):
    cut = RECORDS[:length]
    noticed = anchored > length
    assert (fault(cut, anchors=[ANCHORS[anchored - 1]]) is not None) == noticed
    last = RECORDS[anchored - 1]
    witness = Head(last.seq, last.hash, last.signature, last.key)
    assert (fault(cut, witness=witness) is not None) == noticed
    report = verify(cut, HOME.id, TRUSTED, [ANCHORS[anchored - 1]])
    assert report.fault is None or report.fault.seq == length + 1
    assert report.unanchored == length - (0 if noticed else anchored)


@given(position=POSITION)
def test_a_record_changed_by_somebody_with_another_key_is_noticed(position):
    forged = replace(RECORDS[position], body=RECORDS[position].body.replace("orders", "salary"))
    edited = rechained([*RECORDS[:position], forged, *RECORDS[position + 1 :]], signer=OTHER)
    assert fault([*RECORDS[:position], *edited[position:]]).seq == position + 1
    assert fault(edited).seq == 1


@given(position=POSITION, anchored=POSITION)
def test_a_record_changed_by_the_holder_of_the_key_is_noticed_at_the_next_anchor(position, anchored):
    forged = replace(RECORDS[position], body=RECORDS[position].body.replace("orders", "salary"))
    edited = rechained([*RECORDS[:position], forged, *RECORDS[position + 1 :]], signer=KEY)
    found = fault(edited, anchors=[ANCHORS[anchored]])
    assert (found.seq if found else None) == (anchored + 1 if anchored >= position else None)


@given(split=st.integers(0, LENGTH - 1), length=st.integers(1, 4))
def test_a_fork_is_noticed_where_the_branches_meet(split, length):
    head = (split, RECORDS[split - 1].hash if split else GENESIS)
    branch = chain(length, first=100, head=head)
    assert fault(RECORDS[:split] + branch) is None
    assert fault(RECORDS[:split] + branch, anchors=ANCHORS).seq == split + 1
    assert fault(RECORDS[: split + 1] + branch).seq == split + 2


@given(st.data())
@settings(max_examples=300)
def test_any_changed_byte_of_an_export_is_noticed_at_its_record(data):
    stream = io.BytesIO()
    write_export(stream, RECORDS, installation=HOME.id, keys=[KEY.public])
    lines = stream.getvalue().splitlines(keepends=True)
    position = data.draw(POSITION)
    line = bytearray(lines[position + 1])
    where = data.draw(st.integers(0, len(line) - 1))
    line[where] ^= data.draw(st.integers(1, 255))
    lines[position + 1] = bytes(line)
    export = read_export(io.BytesIO(b"".join(lines)))
    assert verify(export.records, HOME.id, TRUSTED, start=export.start).fault.seq == position + 1


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-digest.SAFE_INTEGER, digest.SAFE_INTEGER) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(data=st.dictionaries(TEXT, VALUES, max_size=4), actor=TEXT)
def test_any_event_survives_the_way_through_record_and_export(data, actor):
    what = Event("lease.created", actor, {"task": "tsk_1"}, data)
    records = chain(2, events=[what, what])
    assert json.loads(records[0].body)["data"] == json.loads(json.dumps(data))
    assert digest.canonical(json.loads(records[0].body)).decode() == records[0].body
    stream = io.BytesIO()
    assert write_export(stream, records, installation=HOME.id, keys=[KEY.public]) == 2
    stream.seek(0)
    export = read_export(stream)
    assert list(export.records) == records
    assert fault(records) is None


@given(st.sampled_from([digest.REQUEST, digest.MANIFEST, digest.CHALLENGE, digest.SNAPSHOT, digest.DECISION]), TEXT)
def test_a_record_of_the_log_never_has_the_digest_of_something_else(label, actor):
    body = body_of(Event("x.y", actor, {}, {}), installation=InstallationId("0000000z"), epoch=1, seq=1, at=NOW)
    assert link(GENESIS, body) != digest.digest_bytes(label, body.encode())
    assert link(GENESIS, body) != digest.digest_bytes(label, GENESIS.encode() + b"\0" + body.encode())
