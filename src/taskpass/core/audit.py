"""The audit chain's pure part: what a record is, how it is linked, and how a verifier finds the first bad one.

A record's hash covers the previous hash and its own canonical bytes; its signature covers installation, sequence number
and hash, so the newest record is a signed head. A chain proves order and integrity, not that everything was written,
nor that the end was not cut off: for the end, heads are anchored outside (the first anchor is the target's server log).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskpass.core import digest
from taskpass.core.clock import Instant, rfc3339
from taskpass.core.ids import InstallationId

GENESIS = "sha256:" + "0" * 64

ADOPTED = "store.adopted"
"""The one event that may leave numbers out: those that a restored store has lost (ADR 0012)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. ``name`` is ``<noun>.<past verb>``; ``actor`` who caused it; ``subject`` the ids it is about.

    ``data`` holds digestible values only and never a secret. ``late`` marks the one exception to record-first: access
    that was taken back while nothing could be written.
    """

    name: str
    actor: str
    subject: Mapping[str, str]
    data: Mapping[str, object]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A chained event. ``body`` is the canonical text that is hashed; ``hash`` and ``prev`` are ``sha256:<hex>``."""

    seq: int
    body: str
    prev: str
    hash: str
    signature: str
    key: str


def body_of(event: Event, *, installation: InstallationId, epoch: int, seq: int, at: Instant) -> str:
    """The canonical text of a record: RFC 8785."""
    return digest.canonical(
        {
            "v": 1,
            "installation": installation,
            "epoch": epoch,
            "seq": seq,
            "at": rfc3339(at),
            "event": event.name,
            "actor": event.actor,
            "subject": dict(event.subject),
            "data": dict(event.data),
            "late": event.late,
        }
    ).decode()


def link(prev: str, body: str) -> str:
    """The hash of a record: over its label, the previous hash and its bytes."""
    data = digest.AUDIT.encode() + b"\0" + prev.encode() + b"\0" + body.encode()
    return "sha256:" + hashlib.sha256(data).hexdigest()


def head_bytes(installation: InstallationId, seq: int, hash_: str) -> bytes:
    """What the audit key signs for a head."""
    return digest.canonical({"label": digest.HEAD, "installation": installation, "seq": seq, "hash": hash_})


@dataclass(frozen=True, slots=True)
class Fault:
    """The first record that is wrong, and why, in words for an auditor."""

    seq: int
    what: str


def verify_chain(
    records: Iterable[Record],
    *,
    installation: InstallationId,
    verify_signature: Callable[[str, bytes, str], bool],
    start: tuple[int, str] = (0, GENESIS),
) -> tuple[int, str, Fault | None]:
    """Walk ``records`` in order from ``start`` (sequence number and hash of the record before the first).

    Returns the last good sequence number, its hash, and the first fault or None. ``verify_signature(key id, bytes,
    signature)`` decides whether the audit key signed; it must return False, not raise, for anything it does not know.
    """
    seq, hash_ = start
    for record in records:
        fault = _fault(record, seq, hash_, installation, verify_signature)
        if fault:
            return seq, hash_, Fault(seq + 1, fault)
        seq, hash_ = record.seq, record.hash
    return seq, hash_, None


def is_gap_declared(record: Record, last: int) -> bool:
    """Whether ``record`` adopts a restored store whose newest record was ``last``, and names the numbers lost."""
    try:
        body: Any = json.loads(record.body)
        data: Any = body["data"]
        declared = (body["event"], data["last"], data["highest"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return declared == (ADOPTED, last, record.seq - 1) and record.seq > last


def _fault(
    record: Record,
    seq: int,
    prev: str,
    installation: InstallationId,
    verify_signature: Callable[[str, bytes, str], bool],
) -> str:
    if record.seq != seq + 1 and not is_gap_declared(record, seq):
        return f"record {seq + 1} is missing: the next one found is {record.seq}"
    if record.prev != prev:
        return "it does not follow the record before it"
    if link(prev, record.body) != record.hash:
        return "its content does not match its hash"
    if f'"seq":{record.seq},' not in record.body:
        return "its content carries another sequence number"
    if not verify_signature(record.key, head_bytes(installation, record.seq, record.hash), record.signature):
        return "its signature is not by the trusted key"
    return ""
