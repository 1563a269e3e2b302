"""Verifies the log: the chain, its signatures, the people's signatures in it, and what stands outside against it.

Needs no broker and no write access: records come from a store opened for reading or from an export. Without a key that
the auditor brings, the result is a self-check only: whoever holds the broker's key could have written all of it.
What it cannot show: that everything that happened was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskpass.audit import approvals
from taskpass.audit.anchors import Anchor, by_seq
from taskpass.audit.witness import Head
from taskpass.core.audit import ADOPTED, GENESIS, Fault, Record, verify_chain
from taskpass.core.errors import InvalidInput, StoreUnavailable
from taskpass.core.ids import InstallationId
from taskpass.keys.base import Verifier

_BODY = frozenset({"v", "installation", "epoch", "seq", "at", "event", "actor", "subject", "data", "late"})


@dataclass(frozen=True, slots=True)
class Adoption:
    """A restored store that a person adopted with record ``seq``: of the numbers after ``last`` up to ``highest``,
    targets or the witness had seen another history, which is lost. ``strays`` are the anchors of that history that
    were met: numbers up to ``highest`` under which this log has another record, or none.
    """

    seq: int
    last: int
    highest: int
    actor: str
    strays: tuple[int, ...] = ()

    def to_json(self) -> dict[str, object]:
        strays = list(self.strays)
        return {"seq": self.seq, "last": self.last, "highest": self.highest, "actor": self.actor, "strays": strays}


@dataclass(frozen=True, slots=True)
class Report:
    """``seq`` and ``head`` are the last good record; ``fault`` the first bad one.

    ``trusted`` is False for a self-check; ``signed`` is False if not even the store's own keys were known. ``anchored``
    is the last record that stands outside, ``unanchored`` how many good ones follow it. ``notes`` are sentences.
    """

    seq: int
    head: str
    fault: Fault | None
    trusted: bool
    signed: bool
    anchored: int
    unanchored: int
    approvals: int
    """Verdicts, and acceptances of what a migration left, whose signature by a person was verified again."""
    unsigned: int
    """Self-confirmations without a signature: the broker's word."""
    late: int
    """Records written after their effect, while nothing could be written."""
    notes: tuple[str, ...] = ()
    adoptions: tuple[Adoption, ...] = ()

    @property
    def ok(self) -> bool:
        return self.fault is None

    def to_json(self) -> dict[str, object]:
        fault = {"seq": self.fault.seq, "what": self.fault.what} if self.fault else None
        return {
            "ok": self.ok,
            "trusted": self.trusted,
            "signed": self.signed,
            "seq": self.seq,
            "head": self.head,
            "fault": fault,
            "anchored": self.anchored,
            "unanchored": self.unanchored,
            "approvals": self.approvals,
            "unsigned": self.unsigned,
            "late": self.late,
            "adoptions": [adoption.to_json() for adoption in self.adoptions],
            "notes": list(self.notes),
        }


def verify(
    records: Iterable[Record],
    installation: InstallationId,
    trusted_key: Verifier | None,
    anchors: Iterable[Anchor] = (),
    *,
    own_keys: Verifier | None = None,
    witness: Head | None = None,
    reviewers: Mapping[str, str] | None = None,
    start: tuple[int, str] = (0, GENESIS),
) -> Report:
    """Walk ``records`` to the first fault.

    ``trusted_key`` comes from the auditor. ``own_keys`` are those that came with the records and serve only when
    there is none. ``witness`` is the head kept outside the database, read before the records: a running broker
    moves it after them, so an honest log would else look cut off. ``reviewers`` maps people to their public keys.
    """
    keys = trusted_key or own_keys
    walk = _Walk(installation, by_seq(anchors), witness, reviewers, start)

    def by_known_key(key: str, data: bytes, signature: str) -> bool:
        return keys is None or keys.verify(key, data, signature)

    seq, head, fault = verify_chain(
        walk.through(records), installation=installation, verify_signature=by_known_key, start=start
    )
    if walk.fault:
        seq, head, fault = *walk.good, walk.fault
    if walk.strays:
        seq, head, fault = walk.first_stray()
    fault = fault or walk.end(seq)
    return Report(
        seq=seq,
        head=head,
        fault=fault,
        trusted=trusted_key is not None,
        signed=keys is not None,
        anchored=min(walk.anchored, seq),
        unanchored=seq - min(walk.anchored, seq),
        approvals=walk.approvals,
        unsigned=walk.unsigned,
        late=walk.late,
        notes=(
            *_notes(trusted_key, keys, witness, installation, anchored=walk.anchored > start[0]),
            *(_told(adoption) for adoption in walk.adoptions),
        ),
        adoptions=tuple(walk.adoptions),
    )


def _told(adoption: Adoption) -> str:
    lost = f"{adoption.last + 1} to {adoption.highest} are lost" if adoption.highest > adoption.last else "are lost"
    met = f"; {len(adoption.strays)} anchors of the lost history were met" if adoption.strays else ""
    return f"record {adoption.seq}: {adoption.actor} adopted a restored store; records {lost}{met}"


def _notes(
    trusted: Verifier | None,
    keys: Verifier | None,
    witness: Head | None,
    installation: InstallationId,
    *,
    anchored: bool,
) -> Iterator[str]:
    if trusted is None:
        yield "self-check only: no trusted key was given, and the broker's own key could have written all of it"
    if keys is None:
        yield "signatures were not checked: no key is known"
    if witness and keys and not witness.signed_by(keys, installation):
        yield "the head kept outside the database is not signed by a known key"
    if witness is None and not anchored:
        yield "nothing that stands outside was compared, so a log that was cut off at its end would look the same"


@dataclass(slots=True)
class _Walk:
    """Looks at each record once the chain has found it good, and stops at the first fault of its own."""

    installation: InstallationId
    anchors: dict[int, list[Anchor]]
    witness: Head | None
    reviewers: Mapping[str, str] | None
    start: tuple[int, str]
    fault: Fault | None = None
    good: tuple[int, str] = field(init=False)
    anchored: int = 0
    approvals: int = 0
    unsigned: int = 0
    late: int = 0
    epoch: int = 0
    adoptions: list[Adoption] = field(default_factory=list[Adoption])
    strays: dict[int, tuple[str, tuple[int, str]]] = field(default_factory=dict[int, tuple[str, tuple[int, str]]])
    """What stands outside against a record, by its number, with what was good before it: a fault, unless an adoption
    follows that says that numbers up to there were given out twice.
    """

    def __post_init__(self) -> None:
        self.good = self.start
        self.anchored = self.start[0]

    def through(self, records: Iterable[Record]) -> Iterator[Record]:
        source = iter(records)
        while not self.fault:
            try:
                record = next(source, None)
            except InvalidInput as error:
                self.fault = Fault(self.good[0] + 1, f"it cannot be read: {error.message}")
                return
            except StoreUnavailable as error:
                if error.code != "store_corrupt":
                    raise
                self.fault = Fault(self.good[0] + 1, "it cannot be read: the store is damaged there")
                return
            if record is None:
                return
            yield record
            # The chain asks for the next record only if this one was good.
            self._look(record)

    def _look(self, record: Record) -> None:
        body = _parse(record.body)
        what = self._shape(record, body)
        if stray := "" if what else self._outside(record):
            self.strays.setdefault(record.seq, (stray, self.good))
        if not what and body["event"] == ADOPTED:
            what = self._adopt(record, body)
        if not what and body["event"] == approvals.EVENT:
            what = self._approval(body["data"])
        if not what and body["event"] == approvals.ACCEPTED:
            self.approvals += 1
            what = approvals.acceptance_fault(body, self.reviewers)
        if what:
            self.fault = Fault(record.seq, what)
            return
        self.late += body["late"] is True
        self.epoch = body["epoch"]
        self.good = (record.seq, record.hash)

    def _shape(self, record: Record, body: dict[str, Any]) -> str:
        if body.keys() != _BODY or body["v"] != 1 or type(body["epoch"]) is not int:
            return "its content is not a record of a version that is known"
        if body["installation"] != self.installation or body["seq"] != record.seq:
            return "its content is of another installation or number"
        return "its epoch is earlier than the one before it" if body["epoch"] < self.epoch else ""

    def _outside(self, record: Record) -> str:
        for anchor in self.anchors.pop(record.seq, []):
            if anchor.hash != record.hash:
                return f"it is not the record that was anchored: {anchor.where} has another hash"
            self.anchored = record.seq
        if self.witness and self.witness.seq == record.seq and self.witness.hash != record.hash:
            return "it is not the record that the head kept outside the database names"
        return ""

    def _adopt(self, record: Record, body: dict[str, Any]) -> str:
        last, highest = body["data"].get("last"), body["data"].get("highest")
        if type(last) is not int or type(highest) is not int or last != self.good[0] or highest != record.seq - 1:
            return "it adopts a restored store and does not say which numbers are lost"
        if body["epoch"] <= self.epoch:
            return "it adopts a restored store and does not raise the epoch"
        met = {number for number in self.strays if number <= highest}
        met |= {number for number in self.anchors if last < number <= highest}
        for number in met:
            self.strays.pop(number, None)
            self.anchors.pop(number, None)
        if self.witness and last < self.witness.seq <= highest:
            # Killed between the adoption and the new witness: the old one speaks of the history that was given up.
            self.witness = None
        self.adoptions.append(Adoption(record.seq, last, highest, str(body["actor"]), tuple(sorted(met))))
        return ""

    def first_stray(self) -> tuple[int, str, Fault]:
        """The first record that something outside stands against: what was good before it, and the fault."""
        number = min(self.strays)
        what, good = self.strays[number]
        return *good, Fault(number, what)

    def _approval(self, data: Mapping[str, Any]) -> str:
        if not approvals.is_signed(data):
            self.unsigned += 1
            return ""
        self.approvals += 1
        return approvals.fault(data, self.reviewers)

    def end(self, seq: int) -> Fault | None:
        """What stands outside and was not met on the way: the end was cut off, or an older store was put back."""
        later = [anchor for number in self.anchors if number > seq for anchor in self.anchors[number]]
        if later:
            newest = max(later, key=lambda anchor: anchor.seq)
            return Fault(seq + 1, f"it is missing: {newest.where} anchors record {newest.seq}, the log ends with {seq}")
        if self.witness and self.witness.seq > seq:
            return Fault(
                seq + 1,
                f"it is missing: the head kept outside the database is {self.witness.seq}, the log ends with {seq}",
            )
        return None


def _parse(body: str) -> dict[str, Any]:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}  # pyright: ignore[reportUnknownVariableType]
