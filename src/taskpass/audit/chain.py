"""Extends the chain: takes the head, makes the record that follows it, and signs the new head.

Not for: storing. The store calls this with its write lock held and inserts the result in the same transaction.
"""

from __future__ import annotations

from taskpass.core import audit
from taskpass.core.audit import Event, Record
from taskpass.core.clock import Instant
from taskpass.keys import ed25519
from taskpass.keys.base import Signer
from taskpass.store.base import Installation


def extend(head: tuple[int, str], event: Event, *, installation: Installation, at: Instant, signer: Signer) -> Record:
    """The signed record of ``event`` after ``head``; raises ``InvalidInput`` if it holds what cannot be digested."""
    seq, prev = head[0] + 1, head[1]
    body = audit.body_of(event, installation=installation.id, epoch=installation.epoch, seq=seq, at=at)
    hash_ = audit.link(prev, body)
    signature = signer.sign(audit.head_bytes(installation.id, seq, hash_))
    return Record(seq, body, prev, hash_, ed25519.encode(signature), signer.key_id)
