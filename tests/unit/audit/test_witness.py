from __future__ import annotations

import stat

import pytest

from taskpass.audit import witness
from taskpass.audit.witness import Witness
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import InstallationId
from tests.unit.audit.chains import HOME, TRUSTED, chain

RECORDS = chain(12)


def hashes(records):
    known = {record.seq: record.hash for record in records}
    return known.get


def test_the_newest_head_is_kept_and_signed(tmp_path):
    path = tmp_path / "audit-head"
    kept = Witness(path)
    for record in RECORDS:
        kept.record(record)
        assert witness.read(path).hash == record.hash
    assert witness.read(path).signed_by(TRUSTED, HOME.id)
    assert not witness.read(path).signed_by(TRUSTED, InstallationId("0000000y"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_store_that_has_the_head_or_more_agrees(tmp_path):
    kept = Witness(tmp_path / "audit-head")
    assert kept.compare(hashes([]))
    kept.record(RECORDS[4])
    assert kept.compare(hashes(RECORDS))


@pytest.mark.parametrize("records", [RECORDS[:4], [], chain(12, first=50)], ids=["cut off", "empty", "another"])
def test_a_head_that_the_store_contradicts_is_left_as_evidence(tmp_path, records):
    path = tmp_path / "audit-head"
    Witness(path).record(RECORDS[4])
    kept = Witness(path)
    assert not kept.compare(hashes(records))
    kept.record(RECORDS[11])
    assert witness.read(path).seq == 5
    assert kept.seen() == 5
    kept.adopt(RECORDS[10])
    kept.record(RECORDS[11])
    assert witness.read(path).seq == 12


@pytest.mark.parametrize("content", [b"", b"\0" * 512, b"[]", b"{}", b'{"seq": "x"}', b"\xff"])
def test_a_damaged_file_is_no_head_and_is_replaced(tmp_path, content):
    path = tmp_path / "audit-head"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        witness.read(path)
    kept = Witness(path)
    assert kept.compare(hashes([]))
    kept.record(RECORDS[0])
    assert witness.read(path).seq == 1


def test_a_link_is_not_followed_and_a_missing_directory_is_no_error(tmp_path):
    (tmp_path / "audit-head").symlink_to(tmp_path / "elsewhere")
    Witness(tmp_path / "audit-head").record(RECORDS[0])
    assert not (tmp_path / "elsewhere").exists()
    Witness(tmp_path / "none" / "audit-head").record(RECORDS[0])
