"""Adopt a store that was restored from an older copy: a person's deliberate act (ADR 0008, ADR 0012).

``survey`` shows what the copy does not know. ``adopt`` raises the epoch above every target's, records the adoption
above every audit number that anything outside remembers, takes every lease back, and closes with proof the roles that
the copy does not know. Then issuing works again. Not for a store that nothing contradicts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

from taskpass.broker.complete_task import end_leases
from taskpass.broker.context import Broker
from taskpass.broker.reconcile import doubts, issuers_of_all, reconcile
from taskpass.core import digest
from taskpass.core.audit import ADOPTED, Event, Record
from taskpass.core.errors import Conflict, InvalidInput, NotFound, TargetUnavailable, TaskpassError
from taskpass.core.ids import LeaseId
from taskpass.core.lease import UNENDED, LeaseState
from taskpass.core.request import RequestEvent, RequestState
from taskpass.issuers.base import FoundRole, Issuer
from taskpass.store.base import Unit

_REASON = "store_adopted"
_DROPS = {RequestState.PENDING: RequestEvent.CANCEL, RequestState.APPROVED: RequestEvent.WITHDRAW}


@dataclass(frozen=True, slots=True)
class TargetSurvey:
    """One target against the store. ``error`` is a safe text if it does not answer; then the rest says nothing.

    ``unknown`` are this installation's roles that no lease of the store explains, of which ``usable`` can log in or
    have a session; ``gone`` are leases that the store believes usable and the target does not have.
    """

    resource: str
    address: str
    error: str = ""
    epoch: int = 0
    audit_seq: int = 0
    unknown: tuple[str, ...] = ()
    usable: int = 0
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of the store and what stands against it.

    ``seq`` is the store's newest audit number; ``witness`` the one kept in the file beside it (0: none), which
    ``contradicted`` says is of another history; ``doubted`` names the resources for which this store was found to be a
    copy before (empty text: all). ``leases`` are those that the store believes usable, ``requests`` counts the open
    ones. ``mark`` names all that a person is shown and that does not move by itself.
    """

    installation: str
    epoch: int
    seq: int
    witness: int
    contradicted: bool
    doubted: tuple[str, ...]
    leases: tuple[str, ...]
    requests: int
    targets: tuple[TargetSurvey, ...]

    def highest(self, without: Collection[str] = ()) -> int:
        """The highest audit number that anything remembers; those above ``seq`` are lost."""
        seen = [target.audit_seq for target in self.targets if target.resource not in without]
        return max([self.seq, *seen, self.witness if self.contradicted else 0])

    @property
    def restored(self) -> bool:
        ahead = any(target.epoch > self.epoch for target in self.targets)
        return self.contradicted or bool(self.doubted) or ahead or self.highest() > self.seq

    @property
    def mark(self) -> str:
        shown: dict[str, object] = {
            "installation": self.installation,
            "epoch": self.epoch,
            "witness": self.witness,
            "targets": [
                {"address": t.address, "error": bool(t.error), "unknown": sorted(t.unknown), "audit_seq": t.audit_seq}
                for t in self.targets
            ],
        }
        return digest.digest(digest.ADOPTION, shown)

    def to_json(self) -> dict[str, object]:
        """For people; ``lost`` counts the audit numbers that are known to be missing."""
        return {
            **asdict(self),
            "highest": self.highest(),
            "lost": self.highest() - self.seq,
            "restored": self.restored,
            "mark": self.mark,
        }


@dataclass(frozen=True, slots=True)
class Adopted:
    """``closed`` roles that the store did not know; ``left`` what is not proven closed yet: it is tried again."""

    epoch: int
    seq: int
    leases: int
    requests: int
    closed: tuple[str, ...]
    left: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def survey(broker: Broker) -> Survey:
    """Look at the store, at the file beside it and at every target. Changes nothing."""
    with broker.store.read() as unit:
        installation, (seq, _) = unit.installation, unit.audit.head()
        doubted = doubts(unit)
        leases = unit.leases.list(states=UNENDED)
        requests = sum(len(unit.requests.list(state=state)) for state in _DROPS)
    witness = broker.witnessed()
    return Survey(
        installation=installation.id,
        epoch=installation.epoch,
        seq=seq,
        witness=witness or 0,
        contradicted=broker.store_is_copy(),
        doubted=tuple(sorted(doubted)),
        leases=tuple(lease.id for lease in leases),
        requests=requests,
        targets=tuple(_look(broker, issuer) for issuer in issuers_of_all(broker)),
    )


def _look(broker: Broker, issuer: Issuer) -> TargetSurvey:
    target = issuer.target
    try:
        inventory = issuer.inventory()
    except TaskpassError as error:
        return TargetSurvey(target.resource, target.address, error=f"{error.code}: {error.message}")
    with broker.store.read() as unit:
        unknown = [role for role in inventory.own if not _is_known(unit, role)]
        believed = unit.leases.list(states=[LeaseState.ACTIVE])
    there = {role.name for role in inventory.own}
    gone = [x.id for x in believed if x.target.address == target.address and x.role not in there]
    return TargetSurvey(
        resource=target.resource,
        address=target.address,
        epoch=inventory.epoch,
        audit_seq=inventory.audit_seq,
        unknown=tuple(role.name for role in unknown),
        usable=sum(role.can_login or role.sessions > 0 for role in unknown),
        gone=tuple(gone),
    )


def _is_known(unit: Unit, role: FoundRole) -> bool:
    if role.lease is None:
        return False
    try:
        unit.leases.get(role.lease)
    except NotFound:
        return False
    return True


def adopt(broker: Broker, *, actor: str, mark: str, without: Collection[str] = ()) -> Adopted:
    """Adopt the store as it is, if all is still as the person was shown it (``mark`` of the ``Survey``).

    Every target must answer, but for the resources in ``without``, which do not count: nothing is issued from them
    until the store is adopted with them too. Idempotent if it is cut off: what is left is shown and adopted again.
    Raises ``Conflict`` with code store_not_restored or adoption_changed, ``InvalidInput``, ``TargetUnavailable`` or
    ``StoreUnavailable``.
    """
    found = survey(broker)
    _demand(found, mark, without)
    record, epoch, requests = _record(broker, found, actor, without)
    broker.accept_store(record)
    taken = end_leases(broker, [LeaseId(lease) for lease in found.leases], reason=_REASON, actor=actor)
    reconcile(broker)
    after = survey(broker)
    still = {role for target in after.targets for role in target.unknown}
    left = [lease.id for lease in taken if lease.state in UNENDED] + sorted(still)
    left += [f"{target.resource}: {target.error}" for target in after.targets if target.error]
    return Adopted(
        epoch=epoch,
        seq=record.seq,
        leases=len(taken),
        requests=requests,
        closed=tuple(sorted({role for target in found.targets for role in target.unknown} - still)),
        left=tuple(left),
    )


def _demand(found: Survey, mark: str, without: Collection[str]) -> None:
    if not found.restored:
        raise Conflict("nothing stands against this store, so there is nothing to adopt", code="store_not_restored")
    known = {target.resource for target in found.targets}
    if unknown := sorted(set(without) - known):
        raise InvalidInput(f"there is no target {unknown[0][:60]!r} to leave out")
    away = [target.resource for target in found.targets if target.error and target.resource not in without]
    if away:
        raise TargetUnavailable(
            f"{away[0]} does not answer, so nobody knows what it holds of the lost history",
            hint=f"mend it first, or say that you go on without it: --without {away[0]}",
            code="adoption_incomplete",
        )
    if mark != found.mark:
        raise Conflict(
            "the targets do not stand as they were shown any more", hint="look again", code="adoption_changed"
        )


def _record(broker: Broker, found: Survey, actor: str, without: Collection[str]) -> tuple[Record, int, int]:
    """One unit: the new epoch, the adoption above every number that was seen, and the questions that it voids."""
    with broker.store.write() as unit:
        now = broker.now(unit)
        last, _ = unit.audit.head()
        highest = max(last, found.highest(without))
        raised = unit.raise_epoch(max([x.epoch for x in found.targets if x.resource not in without], default=0))
        data: dict[str, object] = {
            "last": last,
            "highest": highest,
            "epoch_before": found.epoch,
            "contradicted": found.contradicted,
            "witness": found.witness,
            "leases": list(found.leases),
            "targets": [dict(item) for item in _told(found)],
            "without": sorted(without),
        }
        record = unit.audit.append(Event(ADOPTED, actor, {"store": raised.id}, data), now, above=highest)
        return record, raised.epoch, _drop_requests(broker, unit, actor)


def _told(found: Survey) -> Iterator[dict[str, object]]:
    for target in found.targets:
        yield {
            "resource": target.resource,
            "error": target.error,
            "epoch": target.epoch,
            "audit_seq": target.audit_seq,
            "unknown": list(target.unknown),
            "gone": list(target.gone),
        }


def _drop_requests(broker: Broker, unit: Unit, actor: str) -> int:
    """Digests carry the epoch, so that no yes of before can be used; whoever waits is told at once."""
    now, dropped = broker.now(unit), 0
    for state, event in _DROPS.items():
        for request in unit.requests.list(state=state):
            unit.requests.advance(request.id, event, now, comment="the broker's store was restored: ask again")
            subject = {"task": request.task, "request": request.id}
            unit.audit.append(Event("request.cancelled", actor, subject, {"reason": _REASON}), now)
            dropped += 1
    return dropped
