"""Chains made by hand for the tests beside this module."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taskpass.audit.chain import extend
from taskpass.core import audit
from taskpass.core.audit import GENESIS
from taskpass.core.clock import Instant
from taskpass.core.ids import InstallationId
from taskpass.keys import ed25519
from taskpass.keys.ed25519 import PublicKeys
from taskpass.keys.files import FileKey
from taskpass.store.base import Installation
from taskpass.testing.suites.records import NOW, event

HOME = Installation(InstallationId("0000000z"), 1, False, NOW, NOW)


def key(number=1):
    return FileKey(Ed25519PrivateKey.from_private_bytes(number.to_bytes(32)), "2026-01-01T00:00:00.000Z")


KEY, OTHER = key(1), key(2)
TRUSTED = PublicKeys([KEY.public])


def chain(count, *, signer=KEY, home=HOME, first=0, head=(0, GENESIS), events=None):
    """``count`` records; ``first`` numbers their content."""
    records = []
    for number in range(count):
        what = events[number] if events else event(first + number, task=f"tsk_{number}")
        record = extend(head, what, installation=home, at=Instant(NOW + number), signer=signer)
        records.append(record)
        head = (record.seq, record.hash)
    return records


def rechained(records, *, signer, installation=HOME.id):
    """``records`` with links, hashes and signatures computed again: what somebody with ``signer`` can do."""
    prev, made = GENESIS, []
    for record in records:
        hash_ = audit.link(prev, record.body)
        signature = ed25519.encode(signer.sign(audit.head_bytes(installation, record.seq, hash_)))
        made.append(replace(record, prev=prev, hash=hash_, signature=signature, key=signer.key_id))
        prev = hash_
    return made
