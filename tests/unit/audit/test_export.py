from __future__ import annotations

import io
import json

import pytest

from taskpass.audit.export import read_export, write_export
from taskpass.audit.verify import verify
from taskpass.core.errors import InvalidInput
from taskpass.keys.ed25519 import PublicKeys
from tests.unit.audit.chains import HOME, KEY, TRUSTED, chain

HEADER = {"format": "taskpass-audit/1", "installation": HOME.id, "keys": [KEY.public], "after": 0, "prev": "x"}


def exported(records, **options):
    stream = io.BytesIO()
    write_export(stream, records, installation=HOME.id, keys=[KEY.public], **options)
    stream.seek(0)
    return stream


def test_an_export_can_be_verified_elsewhere():
    export = read_export(exported(chain(3)))
    assert verify(export.records, export.installation, TRUSTED, start=export.start).seq == 3


def test_an_export_checks_itself_with_the_keys_in_its_header():
    export = read_export(exported(chain(3)))
    report = verify(export.records, export.installation, None, own_keys=PublicKeys(export.keys))
    assert (report.ok, report.signed, report.trusted) == (True, True, False)


def test_a_part_of_a_log_is_verified_from_where_it_starts():
    records = chain(5)
    start = (records[2].seq, records[2].hash)
    export = read_export(exported(records[3:], start=start))
    report = verify(export.records, HOME.id, TRUSTED, start=export.start)
    assert (report.ok, report.seq) == (True, 5)
    assert verify(records[3:], HOME.id, TRUSTED).fault.seq == 1


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps(HEADER | {"format": "taskpass-audit/2"}).encode(),
        json.dumps(HEADER | {"keys": "x"}).encode(),
        json.dumps(HEADER | {"after": "0"}).encode(),
        json.dumps(HEADER | {"after": True}).encode(),
        json.dumps(HEADER | {"prev": None}).encode(),
        json.dumps(HEADER | {"installation": 1}).encode(),
    ],
)
def test_a_file_that_is_no_export_is_refused(header):
    with pytest.raises(InvalidInput):
        read_export(io.BytesIO(header + b"\n"))


def test_a_half_written_line_is_bad_and_what_is_before_it_is_good():
    text = exported(chain(3)).getvalue()
    export = read_export(io.BytesIO(text[:-20]))
    report = verify(export.records, HOME.id, TRUSTED)
    assert (report.seq, report.fault.seq) == (2, 3)
    assert "line 4" in report.fault.what
